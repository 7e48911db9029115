"""Bytes → rows: CSV, TSV, JSONL and the PubMed RCT line format, as pure functions over physical lines.

| format | a record | quoting |
| --- | --- | --- |
| csv | RFC 4180: one line, or several inside quotes | a field with comma, quote or line end is quoted, quotes doubled |
| tsv | one line | none (IANA text/tab-separated-values): a quote is a character, and `"…""…"` CSV by mistake |
| jsonl | one line, one JSON object | JSON |
| pubmed_rct | `LABEL<TAB>sentence` below a line `###id` | none |

Lines end in LF or CRLF; a file may start with a byte-order mark. Blank lines hold no row. A stray quote in a CSV
file costs the line it stands in and no other: see `_csv_records`.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from components.examples import rows
from components.examples.rows import BadRow, Row, RowSpec

Line = tuple[int, int, bytes]  # offset in the file, 1-based number, the line with its end
BOM = b"\xef\xbb\xbf"
_HEADING = b"###"
BLOCK = 1 << 20  # read at once; no line of column names is longer
RCT_COLUMNS = ("id", "label", "text")

# RFC 4180. Possessive quantifiers: no backtracking, so every match is linear in the length of the line.
_FIELD = rb'(?:"(?:[^"]++|"")*+"|[^",\n]*+)'
COMPLETE = re.compile(rb"%b(?:,%b)*+" % (_FIELD, _FIELD))
_OPEN = re.compile(rb'((?:%b,)*+)"((?:[^"]++|"")*+)' % _FIELD)  # the last field is quoted and not closed
_QUOTED_QUOTE = re.compile(rb'"[^"]*+(?:""[^"]*+)++"')  # CSV's way to write a field that holds quotes
_INSIDE = re.compile(rb'(?:[^"]++|"")*+')
_FIELDS = re.compile(rb'(?:"((?:[^"]++|"")*+)"|([^",\n]*+)),')


class Record(NamedTuple):
    """One record of a file before its values are looked at. `fields` is None where `reason` says why, or for JSON."""

    offset: int
    line: int
    raw: bytes
    fields: list[bytes] | None = None
    reason: str | None = None
    heading: bool = False  # RCT: `###id`, no row

    def __repr__(self) -> str:
        return f"Record(offset={self.offset}, line={self.line}, reason={self.reason})"


@dataclass(frozen=True)
class Layout:
    """Where in a line the columns stand."""

    width: int
    text: int
    text_pair: int | None
    label: int
    id: int | None
    slices: tuple[int, ...]


def without_line_end(raw: bytes) -> bytes:
    """A line without its LF or CRLF."""
    return raw.removesuffix(b"\n").removesuffix(b"\r")


def read_lines(stream: BinaryIO, start: int, end: int, number: int, limit: int) -> Iterator[Line]:
    """The physical lines from `start`, the start of line `number`, to before `end`.

    A line of more than `limit` bytes is cut to `limit + 1` bytes, the rest passed over.
    """
    stream.seek(start)
    offset = start
    while offset < end:
        raw = stream.readline(limit + 1)
        if not raw:
            return
        yield offset, number, raw
        offset += len(raw)
        number += 1
        tail = raw
        while len(raw) > limit and tail and not tail.endswith(b"\n"):
            tail = stream.readline(BLOCK)
            offset += len(tail)


class Reader:
    """Reads the lines of one file.

    Records are cut the same way wherever reading starts, provided that it starts at the offset of a record.
    """

    def __init__(self, spec: RowSpec, columns: Sequence[str] = ()):
        self.spec = spec
        # Which keys JSON objects have: a column that no row of a file has is an error of the file.
        self.unseen = set(spec.columns) if spec.format == "jsonl" else set()
        self.objects = 0
        self.keys: tuple[str, ...] = ()
        self._layout = _layout(spec, RCT_COLUMNS if spec.format == "pubmed_rct" else columns)

    def records(self, lines: Iterable[Line]) -> Iterator[Record]:
        """The records that `lines` hold, in order."""
        limit = self.spec.row_limit
        if self.spec.format == "csv":
            return _csv_records(lines, self._layout, self.spec)
        if self.spec.format == "tsv":
            return _tsv_records(lines, self._layout.width, limit)
        if self.spec.format == "pubmed_rct":
            return _rct_records(lines, limit)
        return _json_records(lines, limit)

    def document(self, record: Record) -> bytes | None:
        """The id of the record's document, None where there is none to be read."""
        if record.fields is not None:
            return None if self._layout.id is None else record.fields[self._layout.id] or None
        if self.spec.format != "jsonl" or record.reason:
            return None
        values = _json_object(record.raw)
        return None if isinstance(values, str) else rows.document_of_values(self.spec, values)

    def row(self, record: Record) -> Row | BadRow:
        """The record's row. Not for headings."""
        _, line, raw, fields, reason, _ = record
        if fields is None:
            return BadRow(line, reason, raw) if reason else self._json_row(line, raw)
        layout = self._layout
        return rows.make_row(
            self.spec,
            line,
            raw,
            text=fields[layout.text],
            text_pair=None if layout.text_pair is None else fields[layout.text_pair],
            labels=self.spec.split_labels(fields[layout.label]),
            id=None if layout.id is None else fields[layout.id],
            slices=tuple([fields[index] for index in layout.slices]),
        )

    def rows(self, lines: Iterable[Line]) -> Iterator[Row | BadRow]:
        """The rows of `lines`, good and bad, in file order."""
        row, records = self.row, self.records(lines)
        if not self.spec.neighbours:
            return (row(record) for record in records if not record.heading)
        found = (rows.DocumentStart(self.document(record)) if record.heading else row(record) for record in records)
        return rows.with_neighbours(found, self.spec.neighbours)

    def _json_row(self, line: int, raw: bytes) -> Row | BadRow:
        values = _json_object(raw)
        if isinstance(values, str):
            return BadRow(line, values, raw)
        if not self.objects:
            self.keys = tuple(values)
        self.objects += 1
        if self.unseen:
            self.unseen.difference_update(values)
        return rows.row_from_values(self.spec, line, raw, values)


def _layout(spec: RowSpec, columns: Sequence[str]) -> Layout:
    if not columns:  # JSONL: by key
        return Layout(0, 0, None, 0, None, ())
    index = list(columns).index
    return Layout(
        width=len(columns),
        text=index(spec.text),
        text_pair=None if spec.text_pair is None else index(spec.text_pair),
        label=index(spec.label),
        id=None if spec.id is None else index(spec.id),
        slices=tuple(index(name) for name in spec.slices),
    )


def _tsv_records(lines: Iterable[Line], width: int, limit: int) -> Iterator[Record]:
    for offset, line, raw in lines:
        body = without_line_end(raw)
        if len(raw) > limit:
            yield Record(offset, line, body, None, rows.TOO_LONG)
        elif body:
            fields = body.split(b"\t")
            if len(fields) != width:
                yield Record(offset, line, body, None, rows.WRONG_COLUMNS)
            elif b'""' in body and any(map(_QUOTED_QUOTE.fullmatch, fields)):
                yield Record(offset, line, body, None, rows.QUOTED_TSV)
            else:
                yield Record(offset, line, body, fields)


def _json_records(lines: Iterable[Line], limit: int) -> Iterator[Record]:
    for offset, line, raw in lines:
        body = without_line_end(raw)
        if len(raw) > limit:
            yield Record(offset, line, body, None, rows.TOO_LONG)
        elif body.strip():
            yield Record(offset, line, body)


def _json_object(raw: bytes) -> dict | str:
    """The object in a line, or the reason why there is none."""
    try:
        values = json.loads(raw.decode())
    except UnicodeDecodeError:
        return rows.INVALID_UTF8
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        return rows.BROKEN_JSON
    return values if isinstance(values, dict) else rows.BROKEN_JSON


def _rct_records(lines: Iterable[Line], limit: int) -> Iterator[Record]:
    document = None
    for offset, line, raw in lines:
        body = without_line_end(raw)
        if len(raw) > limit:
            yield Record(offset, line, body, None, rows.TOO_LONG)
        elif body.startswith(_HEADING):
            document = body.removeprefix(_HEADING).strip()
            yield Record(offset, line, body, [document, b"", b""], None, True)
        elif not body.strip():
            continue  # the blank line below a document; the next one has its own heading
        elif document is None:
            yield Record(offset, line, body, None, rows.NO_DOCUMENT)
        else:
            label, tab, text = body.partition(b"\t")
            if tab:
                yield Record(offset, line, body, [document, label, text])
            else:
                yield Record(offset, line, body, None, rows.WRONG_COLUMNS)


def _csv_records(lines: Iterable[Line], layout: Layout, spec: RowSpec) -> Iterator[Record]:
    """RFC 4180 records.

    A quoted field may run over several lines. A stray quote looks the same at first, and would swallow the rows
    below it up to the next quote. So the first line alone is given up (`bad_quoting`), and reading goes on with
    the line after it, when what was gathered is not closed properly, or holds, as a line of its own, a whole row
    with a known label.
    """
    waiting: deque[Line] = deque()
    source = iter(lines)
    width, limit = layout.width, spec.row_limit
    while True:
        if waiting:
            offset, line, raw = waiting.popleft()
        else:
            try:
                offset, line, raw = next(source)
            except StopIteration:
                return
        body = without_line_end(raw)
        if len(raw) > limit:
            yield Record(offset, line, body, None, rows.TOO_LONG)
            continue
        if b'"' not in body:
            if not body:
                continue
            fields = body.split(b",")
        elif one := _split_one_quoted(body):
            fields = one
        elif COMPLETE.fullmatch(body):
            fields = split_fields(body)
        elif opened := _OPEN.fullmatch(raw):
            further, closed = _gather(waiting, source, limit - len(raw))
            whole = b"".join([raw, *(more for _, _, more in further)])
            fields = split_fields(without_line_end(whole)) if closed else []
            sound = len(fields) == width and spec.known(spec.split_labels(fields[layout.label]))
            if not closed or _swallows(opened, further, layout, spec, sound):
                waiting.extendleft(reversed(further))
                yield Record(offset, line, body, None, rows.BAD_QUOTING)
                continue
            body = without_line_end(whole)
        else:
            yield Record(offset, line, body, None, rows.BAD_QUOTING)
            continue
        if len(fields) == width:
            yield Record(offset, line, body, fields)
        else:
            yield Record(offset, line, body, None, rows.WRONG_COLUMNS)


def _split_one_quoted(body: bytes) -> list[bytes] | None:
    """The fields of a line in which one field is quoted and holds no quote: most rows, and much faster so."""
    pieces = body.split(b'"')
    if len(pieces) != 3:
        return None
    before, quoted, after = pieces
    if (before and not before.endswith(b",")) or (after and not after.startswith(b",")):
        return None
    fields = before[:-1].split(b",") if before else []
    fields.append(quoted)
    if after:
        fields += after[1:].split(b",")
    return fields


def split_fields(body: bytes) -> list[bytes]:
    """The fields of a complete record, unquoted."""
    return [quoted.replace(b'""', b'"') if quoted else plain for quoted, plain in _FIELDS.findall(body + b",")]


def _gather(waiting: deque[Line], source: Iterator[Line], room: int) -> tuple[list[Line], bool]:
    """The lines after one that ends inside quotes, to where the record ends, and whether it ends properly."""
    further: list[Line] = []
    while room > 0:
        item = waiting.popleft() if waiting else next(source, None)
        if item is None:
            return further, False
        further.append(item)
        raw = item[2]
        room -= len(raw)
        match = _INSIDE.match(raw)
        end = match.end() if match else 0
        if end == len(raw):
            continue  # still inside
        rest = raw[end + 1 :]
        body = without_line_end(rest)
        if not body:
            return further, True
        if body.startswith(b","):
            if COMPLETE.fullmatch(body, 1):
                return further, True
            if _OPEN.fullmatch(rest, 1):
                continue
        return further, False
    return further, False


def _swallows(opened: re.Match[bytes], further: list[Line], layout: Layout, spec: RowSpec, sound: bool) -> bool:
    """Whether a record of several lines is rather several rows behind a stray quote.

    Where the record is sound (the header's width, known labels) it is believed, even if lines inside it look like
    rows, unless every one of its lines is a row; where it is not, one such line is enough.
    """
    prefix, content = opened.groups()
    first = _is_row(_FIELDS.findall(prefix), without_line_end(content).split(b","), layout, spec)
    bodies = [without_line_end(raw) for _, _, raw in further[:-1]]
    inner = [bool(COMPLETE.fullmatch(body)) and _is_row([], split_fields(body), layout, spec) for body in bodies]
    if not sound:
        return first or any(inner)
    last = without_line_end(further[-1][2]).split(b",")
    return first and all(inner) and _is_row([], last, layout, spec)


def _is_row(before: list, fields: list[bytes], layout: Layout, spec: RowSpec) -> bool:
    if len(before) + len(fields) != layout.width or layout.label < len(before):
        return False
    labels = spec.split_labels(fields[layout.label - len(before)])
    return bool(labels) and spec.known(labels)
