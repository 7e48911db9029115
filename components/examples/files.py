"""Files → work items → rows. An item is a range of one file that a worker reads on its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from components.errors import DataError
from components.examples import head, rows
from components.examples.parse import Reader, read_lines
from components.examples.rows import BadRow, Row, RowSpec

ITEM_BYTES = 16 << 20  # input bytes of one work item, and so of one shard of examples
_BLOCK = 1 << 20
_PARQUET_BATCH = 1024  # rows decoded at once


@dataclass(frozen=True)
class InputFile:
    """One file of the input: `index` by split and name, `split` a split or "all", `name` as messages give it."""

    index: int
    split: str
    path: str
    name: str


@dataclass(frozen=True)
class Item:
    """A range of a file: bytes [start, end), or for Parquet row groups; `line` is the number of its first line."""

    file: InputFile
    part: int
    start: int
    end: int
    line: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class FilePlan:
    """What a file is, and the items that cover its rows without gap or overlap."""

    sha256: str
    bytes: int
    items: tuple[Item, ...]


def open_file(path: str, name: str) -> BinaryIO:
    """Opens a file for reading bytes, as they are.

    Raises:
      DataError: if it cannot be opened.
    """
    try:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except OSError as error:  # Beam's own error is one
        raise DataError(f"{name}: cannot be read ({error.strerror or type(error).__name__})") from None


def sha256_file(path: str, name: str) -> tuple[str, int]:
    """The SHA-256 (hexadecimal) and the number of bytes of a file."""
    digest, size = hashlib.sha256(), 0
    with open_file(path, name) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def plan_file(file: InputFile, spec: RowSpec, item_bytes: int = ITEM_BYTES) -> FilePlan:
    """Hashes a file, checks its columns and cuts it into items of about `item_bytes`.

    Cuts fall between records, as a reading of the whole file finds them. A PubMed RCT document is never cut, nor
    any document when its sentences are neighbours (so a Parquet file is then one item).

    Raises:
      DataError: if the file cannot be read, is of another format, or has not the configured columns.
    """
    digest, size = sha256_file(file.path, file.name)
    if spec.format == "parquet":
        return FilePlan(digest, size, tuple(_plan_parquet(file, spec, item_bytes)))
    with open_file(file.path, file.name) as stream:
        start, line, columns = head.read_head(stream, spec, file.name)
        if size <= start:
            items = []
        elif size - start <= item_bytes:
            items = [Item(file, 0, start, size, line, columns)]
        else:
            items = list(_cut(stream, file, spec, Item(file, 0, start, size, line, columns), item_bytes))
    return FilePlan(digest, size, tuple(items))


def _cut(stream: BinaryIO, file: InputFile, spec: RowSpec, whole: Item, item_bytes: int) -> Iterator[Item]:
    reader = Reader(spec, whole.columns)
    keep_documents = bool(spec.neighbours) or spec.format == "pubmed_rct"
    part, start, line = 0, whole.start, whole.line
    previous = None
    for record in reader.records(read_lines(stream, start, whole.end, line, spec.row_limit)):
        if record.offset - start >= item_bytes and previous is not None:
            if keep_documents:
                before, here = reader.document(previous), reader.document(record)
                may_cut = before is not None and here is not None and before != here
            else:
                may_cut = True
            if may_cut:
                yield Item(file, part, start, record.offset, line, whole.columns)
                part, start, line = part + 1, record.offset, record.line
        previous = record
    yield Item(file, part, start, whole.end, line, whole.columns)


def _plan_parquet(file: InputFile, spec: RowSpec, item_bytes: int) -> Iterator[Item]:
    with open_file(file.path, file.name) as stream:
        parquet = _open_parquet(stream, file)
        columns = tuple(parquet.schema_arrow.names)
        check_parquet(parquet.schema_arrow, spec, file.name)
        groups = parquet.num_row_groups
        sizes = [parquet.metadata.row_group(group) for group in range(groups)]
        if spec.neighbours:
            item_bytes = sum(group.total_byte_size for group in sizes) + 1
    part = start = gathered = 0
    line = following = 1
    for group, metadata in enumerate(sizes):
        gathered += metadata.total_byte_size
        following += metadata.num_rows
        if gathered >= item_bytes or group == groups - 1:
            yield Item(file, part, start, group + 1, line, columns)
            part, start, gathered, line = part + 1, group + 1, 0, following


def check_parquet(schema: pa.Schema, spec: RowSpec, name: str) -> None:
    """Makes sure that each configured column is there once, and of a type that can be what it is to be.

    Raises:
      DataError: naming the file, the column and its type.
    """
    head.check_columns(schema.names, spec, name)
    for column in spec.columns:
        kind = schema.field(column).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = (
            _is_text(plain) or pa.types.is_binary(plain) or pa.types.is_large_binary(plain) or pa.types.is_null(plain)
        )
        if column in (spec.text, spec.text_pair) and not text:
            raise DataError(f"{name}: the column {column!r} is of type {kind}, and a text is a string; convert it")
        if pa.types.is_struct(plain) or pa.types.is_map(plain) or pa.types.is_decimal(plain):
            raise DataError(f"{name}: the column {column!r} is of type {kind}; convert it to strings or whole numbers")


def _open_parquet(stream: BinaryIO, file: InputFile) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream)
    except (pa.ArrowInvalid, OSError):
        raise DataError(f"{file.name}: is not a Parquet file, or is damaged") from None


class ItemReader:
    """Reads the rows of one item."""

    def __init__(self, item: Item, spec: RowSpec):
        self._item, self._spec = item, spec
        self._text = Reader(spec, item.columns)
        self.line = item.line  # of the row last read: where, if reading fails

    def __iter__(self) -> Iterator[Row | BadRow]:
        item, spec = self._item, self._spec
        with open_file(item.file.path, item.file.name) as stream:
            if spec.format == "parquet":
                found = self._parquet_rows(stream)
            else:
                found = self._text.rows(read_lines(stream, item.start, item.end, item.line, spec.row_limit))
            for row in found:
                self.line = row.line
                yield row

    @property
    def unseen_columns(self) -> tuple[str, ...]:
        """JSONL, once read: the configured columns that no object had; empty where there was no object."""
        return tuple(sorted(self._text.unseen)) if self._text.objects else ()

    @property
    def objects(self) -> int:
        """JSONL: how many lines were JSON objects."""
        return self._text.objects

    @property
    def keys(self) -> tuple[str, ...]:
        """JSONL: the keys of the first object."""
        return self._text.keys

    def _parquet_rows(self, stream: BinaryIO) -> Iterator[Row | BadRow]:
        found = self._parquet_values(stream)
        return rows.with_neighbours(found, self._spec.neighbours) if self._spec.neighbours else found

    def _parquet_values(self, stream: BinaryIO) -> Iterator[Row | BadRow]:
        item, spec = self._item, self._spec
        parquet = _open_parquet(stream, item.file)
        line = item.line
        groups = range(item.start, item.end)
        batches = parquet.iter_batches(_PARQUET_BATCH, row_groups=groups, columns=list(spec.columns))
        try:
            for batch in batches:
                for values in _values(batch):
                    row = rows.row_from_values(spec, line, b"", values)
                    # `raw` is only made for bad rows: there is no row as such in a columnar file
                    yield row._replace(raw=_as_json(values)) if isinstance(row, BadRow) else row
                    line += 1
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{item.file.name}: row {line} or below: cannot be decoded ({type(error).__name__})"
            ) from None


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    # Strings are read as bytes: a Parquet string need not be valid UTF-8, and then it is a bad row, not an error.
    arrays = [_as_list(_as_binary(array)) for array in batch.columns]
    for values in zip(*arrays, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


class _NoValue:
    """A value that Python has none for, such as a date beyond the year 9999: the row is a bad one."""

    def __str__(self) -> str:
        return "out of range"


def _as_list(array: pa.Array) -> list[Any]:
    try:
        return array.to_pylist()
    except (OverflowError, ValueError):
        return [_as_value(item) for item in array]


def _as_value(item: pa.Scalar) -> Any:
    try:
        return item.as_py()
    except (OverflowError, ValueError):
        return _NoValue()


def _as_binary(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _as_binary(array.dictionary_decode())
    if _is_text(kind):
        return array.cast(pa.large_binary())
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type):
        return array.cast(pa.large_list(pa.large_binary()))
    return array


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _as_json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, default=_plain).encode()


def _plain(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
