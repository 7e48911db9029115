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

import difflib
import io
import json
import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from components.errors import DataError
from components.examples import rows
from components.examples.rows import BadRow, Row, RowSpec

Line = tuple[int, int, bytes]  # offset in the file, 1-based number, the line with its end
BOM = b"\xef\xbb\xbf"
HEADED = ("csv", "tsv")  # formats whose first line names the columns
_HEADING = b"###"
_BLOCK = 1 << 20  # no line of column names is longer
RCT_COLUMNS = ("id", "label", "text")

# RFC 4180. Possessive quantifiers: no backtracking, so every match is linear in the length of the line.
_FIELD = rb'(?:"(?:[^"]++|"")*+"|[^",\n]*+)'
_WORD = re.compile(r"[^\W_]+")
# Words of headers: these and the configured names alone are shown of a first line that may be no header.
HEADER_WORDS = frozenset(
    {
        "abstract", "answer", "body", "category", "class", "classes", "code", "comment", "content", "context",
        "date", "doc", "document", "doi", "group", "id", "index", "journal", "key", "label", "labels", "language",
        "name", "note", "number", "page", "pair", "paragraph", "pmcid", "pmid", "position", "question", "row",
        "section", "sentence", "sentences", "source", "span", "split", "summary", "tag", "tags", "target", "text",
        "title", "topic", "type", "uid", "year",
    }
)  # fmt: skip
_COMPLETE = re.compile(rb"%b(?:,%b)*+" % (_FIELD, _FIELD))
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


def check_encoding(head: bytes, name: str) -> None:
    """Refuses a file whose first bytes say that it is no UTF-8 text.

    Raises:
      DataError: naming the file, what it is and what to do.
    """
    kinds = {
        b"\xff\xfe": "UTF-16 text: convert it to UTF-8",
        b"\xfe\xff": "UTF-16 text: convert it to UTF-8",
        b"\x1f\x8b": "compressed by gzip: decompress it",
        b"BZh": "compressed by bzip2: decompress it",
        b"\x28\xb5\x2f\xfd": "compressed by zstd: decompress it",
        b"PK\x03\x04": "a ZIP archive or a spreadsheet: save it as UTF-8 text",
        b"PAR1": "Parquet: set data.format to parquet",
    }
    for magic, kind in kinds.items():
        if head.startswith(magic):
            raise DataError(f"{name}: is {kind}")
    halves = (head[::2], head[1::2])
    if any(2 * half.count(0) > len(half) for half in halves):  # ASCII characters, each with a byte of zeros
        raise DataError(f"{name}: line 1: holds NUL bytes: it is UTF-16 text, or damaged: convert it to UTF-8")


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
            tail = stream.readline(_BLOCK)
            offset += len(tail)


def read_head(stream: BinaryIO, spec: RowSpec, name: str) -> tuple[int, int, tuple[str, ...]]:
    """Where the rows of a text file start, the line they start at, and its columns if it is headed.

    Raises:
      DataError: the file is of another format, or has not the configured columns.
    """
    head = stream.read(4)
    check_encoding(head, name)
    start = len(BOM) if head.startswith(BOM) else 0
    if spec.format == "pubmed_rct":
        check_columns(RCT_COLUMNS, spec, name)
    if spec.format not in HEADED:
        return start, 1, ()
    stream.seek(start)
    first = stream.readline(_BLOCK)
    if not first:
        raise DataError(f"{name}: is empty; its first line must name the columns")
    check_encoding(first, name)
    columns = read_header(first, spec, name)
    _check_line_ends(stream.readline(_BLOCK), columns, spec, name)
    return start + len(first), 2, columns


def _check_line_ends(second: bytes, columns: Sequence[str], spec: RowSpec, name: str) -> None:
    """Refuses a file in which all that follows the header is one line without an end: several rows between lone CRs."""
    pieces = [piece for piece in second.split(b"\r") if piece][:20]
    if second.endswith(b"\n") or len(pieces) < 2:
        return
    found = Reader(spec, columns).rows((0, 2, piece) for piece in pieces)
    if sum(isinstance(row, Row) for row in found) > 1:
        raise DataError(f"{name}: line 2: its rows end in CR alone: convert them to LF")


def check_keys(stream: BinaryIO, start: int, spec: RowSpec, name: str) -> None:
    """Makes sure that each configured key is in some JSON object of a JSONL file whose rows start at `start`.

    It reads on until all have been seen.

    Raises:
      DataError: no object has one of them.
    """
    reader = Reader(spec)
    end = stream.seek(0, io.SEEK_END)
    for _ in reader.rows(read_lines(stream, start, end, 1, spec.row_limit)):
        if not reader.unseen:
            return
    if reader.objects:
        raise missing_key(name, min(reader.unseen), reader.keys, spec.columns)


def read_header(raw: bytes, spec: RowSpec, name: str) -> tuple[str, ...]:
    """The column names in the first line of a CSV or TSV file.

    Raises:
      DataError: if it is no header line, or a configured column is missing or stands there twice.
    """
    body = without_line_end(raw).removeprefix(BOM)
    if b"\r" in body:
        raise DataError(f"{name}: its lines end in CR alone: convert them to LF")
    _check_separator(body, spec, name)
    if spec.format == "csv":
        if not _COMPLETE.fullmatch(body):
            raise DataError(f"{name}: line 1: the header is not quoted as RFC 4180 wants")
        fields = _split_fields(body)
    else:
        fields = body.split(b"\t")
    try:
        columns = tuple(field.decode() for field in fields)
    except UnicodeDecodeError:
        raise DataError(f"{name}: line 1: the header is not UTF-8") from None
    check_columns(columns, spec, name)
    return columns


def _check_separator(body: bytes, spec: RowSpec, name: str) -> None:
    """Refuses a header that another separator, or taking off its quotes, would make one with the configured columns."""
    wanted, own = spec.text.encode(), b"," if spec.format == "csv" else b"\t"
    cells = body.split(own)
    if wanted in (cells if spec.format == "tsv" else [cell.strip(b'"') for cell in cells]):
        return
    if b'"%b"' % wanted in cells:
        raise DataError(
            f"{name}: line 1: the columns are quoted, and TSV has no quoting: write the file without (in pandas "
            "quoting=csv.QUOTE_NONE), or as CSV"
        )
    called = {b",": "commas", b"\t": "tabs", b";": "semicolons"}
    for separator in called.keys() - {own}:
        if separator in body and wanted in [cell.strip(b'" ') for cell in body.split(separator)]:
            format = {b",": "csv", b"\t": "tsv"}.get(separator)
            remedy = f"set data.format to {format}, or name the file .{format} where it has no label"
            remedy = remedy if format else f"write it with {called[own]}"
            raise DataError(
                f"{name}: line 1: the columns are separated by {called[separator]}, and those of {spec.format.upper()} "
                f"by {called[own]}: {remedy}"
            )


def check_columns(columns: Sequence[str], spec: RowSpec, name: str) -> None:
    """Makes sure that each configured column is there once.

    Raises:
      DataError: naming the file, the column and the columns found.
    """
    for column in spec.columns:
        if columns.count(column) != 1:
            fault = "missing" if column not in columns else "there more than once"
            raise DataError(
                f"{name}: the column {column!r} is {fault}; columns found: {describe_columns(columns, spec.columns)}. "
                "Name the right one in data.columns, or correct the file"
            )


def claim(owners: dict[str, str], name: str, split: str) -> None:
    """Notes in `owners` that a file belongs to a split.

    Raises:
      DataError: it belongs to another already.
    """
    if (owner := owners.setdefault(name, split)) != split:
        raise DataError(f"{name}: matches data.splits.{owner} and data.splits.{split}")


def missing_key(name: str, key: str, first: Sequence[str], wanted: Collection[str]) -> DataError:
    """The error of a JSONL file in which no object has `key`, one of the `wanted`; `first`: the keys of the first."""
    keys = describe_columns(first, wanted)
    return DataError(
        f"{name}: the column {key!r} is missing: no object has it; keys of the first: {keys}. "
        "Name the right one in data.columns, or correct the file"
    )


def describe_columns(columns: Sequence[str], wanted: Collection[str]) -> str:
    """Column names for a message, which must hold no text: a file may have no header, an object texts for its keys.

    Shown are names that are wanted, or much like one of these, and those whose every word is one of headers.
    """
    meant = [name.lower() for name in wanted]
    known = HEADER_WORDS.union(*(_WORD.findall(name) for name in meant))

    def is_name(name: str) -> bool:
        words = set(_WORD.findall(name.lower()))
        return name in wanted or (
            len(name) <= 40
            and name.isprintable()
            and bool((words and words <= known) or difflib.get_close_matches(name.lower(), meant, 1, 0.8))
        )

    names = [name for name in columns if is_name(name)]
    others = len(columns) - min(len(names), 50)
    listed = ", ".join(repr(name) for name in names[:50])
    if others:
        listed = f"{listed} and {others} more" if listed else str(others)
        listed += ", not shown (if they are no names, the header is missing)"
    return listed or "none"


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
        elif _COMPLETE.fullmatch(body):
            fields = _split_fields(body)
        elif opened := _OPEN.fullmatch(raw):
            further, closed = _gather(waiting, source, limit - len(raw))
            whole = b"".join([raw, *(more for _, _, more in further)])
            fields = _split_fields(without_line_end(whole)) if closed else []
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


def _split_fields(body: bytes) -> list[bytes]:
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
            if _COMPLETE.fullmatch(body, 1):
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
    inner = [bool(_COMPLETE.fullmatch(body)) and _is_row([], _split_fields(body), layout, spec) for body in bodies]
    if not sound:
        return first or any(inner)
    last = without_line_end(further[-1][2]).split(b",")
    return first and all(inner) and _is_row([], last, layout, spec)


def _is_row(before: list, fields: list[bytes], layout: Layout, spec: RowSpec) -> bool:
    if len(before) + len(fields) != layout.width or layout.label < len(before):
        return False
    labels = spec.split_labels(fields[layout.label - len(before)])
    return bool(labels) and spec.known(labels)
