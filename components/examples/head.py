"""What a file says of itself before its first row: encoding, header, columns; and the errors that it is refused by."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Collection, Sequence
from typing import BinaryIO

from components.errors import DataError
from components.examples.parse import (
    BLOCK,
    BOM,
    COMPLETE,
    RCT_COLUMNS,
    Reader,
    read_lines,
    split_fields,
    without_line_end,
)
from components.examples.rows import Row, RowSpec

HEADED = ("csv", "tsv")  # formats whose first line names the columns
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
    first = stream.readline(BLOCK)
    if not first:
        raise DataError(f"{name}: is empty; its first line must name the columns")
    check_encoding(first, name)
    columns = read_header(first, spec, name)
    _check_line_ends(stream.readline(BLOCK), columns, spec, name)
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
        if not COMPLETE.fullmatch(body):
            raise DataError(f"{name}: line 1: the header is not quoted as RFC 4180 wants")
        fields = split_fields(body)
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
