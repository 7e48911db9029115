"""What a row is, and the checks that make one out of values: pure functions, no files.

A row is good or bad. A good row keeps the exact bytes of its text. A bad row has one reason, the first that
applies in the order of `REASONS`.
"""

from __future__ import annotations

import datetime
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from components.config import NEIGHBOUR_BREAK

BAD_QUOTING = "bad_quoting"  # CSV: a quote where RFC 4180 allows none, or one that is never closed
QUOTED_TSV = "quoted_tsv"  # a field in quotes with doubled quotes inside: TSV has no quoting, so write it without
WRONG_COLUMNS = "wrong_columns"  # more or fewer columns than the header; RCT: no tab between label and text
BROKEN_JSON = "broken_json"  # JSONL: the line is not one JSON object
NO_DOCUMENT = "no_document"  # RCT: a sentence before the first ###id
WRONG_TYPE = "wrong_type"  # JSONL, Parquet: a text that is no string, a label that is a list, …
INVALID_UTF8 = "invalid_utf8"  # also a lone surrogate escape in JSON
NUL_CHARACTER = "nul_character"  # U+0000: a zero-filled block, or UTF-16 read as UTF-8
TOO_LONG = "too_long"  # text or text_pair over data.max_characters, or a row over `row_limit`
EMPTY_TEXT = "empty_text"  # nothing but white space, null, or no such key
EMPTY_ID = "empty_id"  # an id is configured and the row has none
MISSING_LABEL = "missing_label"  # empty (binary, multiclass), null, or no such key
LABEL_SPELLING = "label_case_or_space"  # a configured label but for case, or white space around it
UNKNOWN_LABEL = "unknown_label"  # not one of the configured labels, compared byte for byte
REASONS = (
    BAD_QUOTING, WRONG_COLUMNS, QUOTED_TSV, BROKEN_JSON, NO_DOCUMENT, WRONG_TYPE, INVALID_UTF8, NUL_CHARACTER,
    TOO_LONG, EMPTY_TEXT, EMPTY_ID, MISSING_LABEL, LABEL_SPELLING, UNKNOWN_LABEL,
)  # fmt: skip


_BREAK = NEIGHBOUR_BREAK.encode()


@dataclass(frozen=True)
class RowSpec:
    """What makes a row good: the columns to read and the bounds on their values."""

    format: str  # csv, tsv, jsonl, parquet or pubmed_rct
    text: str
    label: str  # the column of the label, or of the labels when `multilabel`
    labels: frozenset[bytes]
    multilabel: bool = False
    label_separator: bytes = b";"
    text_pair: str | None = None
    id: str | None = None
    slices: tuple[str, ...] = ()
    neighbours: int = 0  # sentences before and after that make `text_pair`; 0: none
    max_characters: int = 1_000_000

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a file must have, each once, in the order text, text_pair, label, id, slices."""
        named = (self.text, self.text_pair, self.label, self.id, *self.slices)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    @property
    def row_limit(self) -> int:
        """Bytes beyond which no row can be good, so that a file without line ends fills no memory.

        Room for text and text_pair at their longest (4 bytes a character; 12 escaped in JSON) and 16 MiB of others.
        """
        return (24 if self.format == "jsonl" else 8) * self.max_characters + (16 << 20)

    def known(self, labels: Sequence[bytes]) -> bool:
        """Whether every one of `labels` is configured."""
        return all(label in self.labels for label in labels)

    def split_labels(self, cell: bytes) -> tuple[bytes, ...]:
        """The labels in one cell; an empty cell holds none."""
        if not cell:
            return ()
        return tuple(cell.split(self.label_separator)) if self.multilabel else (cell,)


class Row(NamedTuple):
    """One good row. The values are UTF-8; `line` is 1-based, and where the row starts."""

    line: int
    text: bytes
    text_pair: bytes | None
    labels: tuple[bytes, ...]  # exactly one unless multilabel
    id: bytes | None
    slices: tuple[bytes, ...]  # in the order of the configuration; empty where the file has nothing

    def __repr__(self) -> str:  # a text must not reach a log or a traceback by accident
        return f"Row(line={self.line})"


class BadRow(NamedTuple):
    """One row that cannot be used; `raw` is the row as it stands in the file, `id` its document where readable."""

    line: int
    reason: str
    raw: bytes
    id: bytes | None = None

    def __repr__(self) -> str:
        return f"BadRow(line={self.line}, reason={self.reason})"


class DocumentStart(NamedTuple):
    """The heading of a document, in formats that have one: no row, but it ends the document before."""

    id: bytes | None


class Fault(Exception):
    """The reason why a value cannot be used; never holds the value."""


def make_row(
    spec: RowSpec,
    line: int,
    raw: bytes,
    *,
    text: bytes,
    text_pair: bytes | None,
    labels: tuple[bytes, ...],
    id: bytes | None,
    slices: tuple[bytes, ...],
) -> Row | BadRow:
    """Checks the values of one row, whose structure is sound."""
    try:
        blank = _check_string(text, spec.max_characters)
        if text_pair:
            _check_string(text_pair, spec.max_characters)
        for value in slices:
            _check_string(value)
        if id:
            _check_string(id)
        if blank:
            raise Fault(EMPTY_TEXT)
        if spec.id is not None and not id:
            raise Fault(EMPTY_ID)
        if not labels and not spec.multilabel:
            raise Fault(MISSING_LABEL)
        if not spec.known(labels):
            meant = {_plain(label) for label in spec.labels}
            raise Fault(LABEL_SPELLING if all(_plain(label) in meant for label in labels) else UNKNOWN_LABEL)
    except Fault as fault:
        return BadRow(line, str(fault), raw, id or None)
    if len(labels) > 1:
        labels = tuple(dict.fromkeys(labels))  # a set: the same label twice is the label
    return Row(line, text, text_pair, labels, id, slices)


def _check_string(value: bytes, limit: int | None = None) -> bool:
    """Whether `value` is blank; raises Fault where it is no text. ASCII, the common case, is not decoded."""
    characters, blank = len(value), not value or value.isspace()
    if not value.isascii():
        try:
            decoded = value.decode()
        except UnicodeDecodeError:
            raise Fault(INVALID_UTF8) from None
        characters, blank = len(decoded), decoded.isspace()
    if b"\0" in value:
        raise Fault(NUL_CHARACTER)
    if limit is not None and characters > limit:
        raise Fault(TOO_LONG)
    return blank


def row_from_values(spec: RowSpec, line: int, raw: bytes, values: dict[str, Any]) -> Row | BadRow:
    """Makes a row of typed values (JSONL, Parquet); a key that is absent counts as null."""
    try:
        text = _string(values.get(spec.text))
        pair = None if spec.text_pair is None else _string(values.get(spec.text_pair))
        group = None if spec.id is None else document_of_values(spec, values, strict=True) or b""
        slices = tuple(_scalar(values.get(name), more=True) or b"" for name in spec.slices)
        cell = values.get(spec.label)
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            # Checked here and not in make_row: null is not "none of the labels", an empty list is.
            labels = None
        elif isinstance(cell, list) and spec.multilabel:
            labels = tuple(_scalar(item) or b"" for item in cell)
        else:
            labels = spec.split_labels(_scalar(cell) or b"")
    except Fault as fault:
        return BadRow(line, str(fault), raw, document_of_values(spec, values))
    row = make_row(spec, line, raw, text=text, text_pair=pair, labels=labels or (), id=group, slices=slices)
    if labels is None and isinstance(row, Row):
        return BadRow(line, MISSING_LABEL, raw, row.id)
    return row


def document_of_values(spec: RowSpec, values: dict[str, Any], strict: bool = False) -> bytes | None:
    """The id among typed values; None where it is absent, null or, unless `strict`, of a wrong type."""
    if spec.id is None:
        return None
    try:
        return _scalar(values.get(spec.id)) or None
    except Fault:
        if strict:
            raise
        return None


def _plain(label: bytes) -> str:
    return label.decode("utf-8", "replace").strip().casefold()


def _string(value: Any) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str | bytes):
        raise Fault(WRONG_TYPE)
    return _scalar(value) or b""


def _scalar(value: Any, more: bool = False) -> bytes | None:
    """The bytes of a string or whole number, as JSON writes it; `more` also takes fractions and dates.

    A column of whole numbers in which some are missing is one of floats in pandas: 1.0 is 1 there, and NaN is missing.
    """
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, float) and not more and (value.is_integer() or math.isnan(value)):
        return None if math.isnan(value) else str(int(value)).encode()
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise Fault(INVALID_UTF8) from None
    if isinstance(value, bool | int) or (more and isinstance(value, float)):
        return json.dumps(value).encode()
    if more and isinstance(value, datetime.date | datetime.time):
        return value.isoformat().encode()
    raise Fault(WRONG_TYPE)


def with_neighbours(rows: Iterable[Row | BadRow | DocumentStart], count: int) -> Iterator[Row | BadRow]:
    """Sets text_pair to the sentences before and after in the same document: up to `count` before, joined by spaces, a
    line break, up to `count` after.

    Neighbours are the good rows before and after, in file order, with the same id; the first of a document has none
    before, the last none after. A bad row between two of one document is passed over; one that belongs to another
    document ends the run.
    """
    before: deque[bytes] = deque(maxlen=count)
    waiting: deque[Row] = deque()  # for the sentences after them; the oldest first

    def oldest() -> Row:
        row = waiting.popleft()
        halves = (b" ".join(before), b" ".join(_line(after) for after in islice(waiting, count)))
        before.append(_line(row))
        return row._replace(text_pair=_BREAK.join(halves))

    for row in rows:
        if waiting and row.id != waiting[0].id and (isinstance(row, Row) or row.id is not None):
            while waiting:
                yield oldest()
            before.clear()
        if isinstance(row, Row):
            waiting.append(row)
            if len(waiting) > count:
                yield oldest()
        elif isinstance(row, BadRow):
            yield row
    while waiting:
        yield oldest()


def _line(row: Row) -> bytes:
    """The text on one line."""
    return row.text.replace(_BREAK, b" ")
