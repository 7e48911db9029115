"""Files to be predicted: found, told apart by their names, and read by the same rules as training data.

Rows need no label. An `id` is handed on where a file has that column; only where the second segment is built from
neighbouring sentences must it be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from components.config import DataConfig
from components.errors import DataError
from components.examples import head
from components.examples.files import InputFile, Item, ItemReader, open_file, plan_file
from components.examples.rows import BadRow, Row, RowSpec
from components.examples.spans import check_name

_HELD_ROWS = 1000
FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class UnlabelledSpec(RowSpec):
    """A RowSpec for rows whose label does not matter: the column of the text stands in for that of the label."""

    def known(self, labels: object) -> bool:
        """Any."""
        return True

    def split_labels(self, cell: bytes) -> tuple[bytes, ...]:
        """None."""
        return ()


def find_files(source: Path, data: DataConfig) -> tuple[list[InputFile], list[str]]:
    """The file `source`, or every data file in the folder `source` and below, in order of their names; and the names of
    the files and folders there that are passed over, hidden ones (`.name`) aside: those of other kinds, what programs
    write beside their data (`_SUCCESS`), and what may not be read.

    A link to a folder elsewhere is followed.

    Raises:
      DataError: there is none. ConfigError: a name is not UTF-8.
    """
    if source.is_file():
        return [InputFile(0, "all", str(source), source.name)], []
    if not source.is_dir():
        raise DataError(f"{source}: there is no such file or folder")
    known = {*FORMATS, ".txt"} if data.format == "pubmed_rct" else set(FORMATS)
    found: list[Path] = []
    skipped: list[str] = []
    for path in _walk(source):
        if path.suffix.lower() in known and path.is_file() and not path.name.startswith("_"):
            found.append(path)
        else:
            skipped.append(path.relative_to(source).as_posix() + "/" * path.is_dir())
    if not found:
        raise DataError(f"{source}: holds no data file ({', '.join(sorted(known))})")
    names = [path.relative_to(source).as_posix() for path in sorted(found)]
    for name in names:
        check_name(name)
    return [InputFile(number, "all", str(source / name), name) for number, name in enumerate(names)], sorted(skipped)


def _walk(source: Path) -> Iterator[Path]:
    """Everything in a folder and below, but the folders that are entered: each real one once, links to them last.

    Not entered: what cannot be read, what is set aside, and links to where the walk has been or comes from.
    """
    top = source.resolve()
    seen: set[Path] = set()
    waiting, links = [source], list[Path]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        real = folder.resolve()
        if real in seen or (folder != source and top.is_relative_to(real)):
            yield folder
            continue
        seen.add(real)
        try:
            entries = sorted(folder.iterdir())
        except PermissionError:
            yield folder
            continue
        for path in entries:
            if path.name.startswith("."):
                continue
            if not path.is_dir() or path.name.startswith("_"):
                yield path
            elif path.is_symlink():
                links.append(path)
            else:
                waiting.append(path)


def row_spec(file: InputFile, data: DataConfig) -> UnlabelledSpec:
    """How to read one file: by its suffix, or as the configuration's data where the suffix says nothing."""
    columns = data.columns
    suffix = Path(file.path).suffix.lower()
    if suffix == ".txt" and data.format != "pubmed_rct":
        raise DataError(f"{file.name}: is none of {', '.join(FORMATS)}; `predict --file` takes one text a line")
    kind = FORMATS.get(suffix, data.format)
    spec = UnlabelledSpec(
        format=kind,
        text="text" if kind == "pubmed_rct" else columns.text,
        label="text" if kind == "pubmed_rct" else columns.text,
        labels=frozenset(),
        multilabel=True,
        text_pair=columns.text_pair,
        neighbours=data.neighbours,
        max_characters=data.max_characters,
    )
    if kind == "pubmed_rct":
        return replace(spec, id="id")
    name = columns.id or ("id" if data.format == "pubmed_rct" else None)
    if data.neighbours:
        return replace(spec, id=name)
    # As a column to hand on, not as the row's id: it may be empty, or not be there.
    return replace(spec, slices=(name,)) if name is not None and _has(file, spec, name) else spec


def row_id(row: Row) -> str:
    """The row's id, or ""."""
    found = row.id or (row.slices[0] if row.slices else b"")
    return found.decode()


def read_rows(file: InputFile, data: DataConfig) -> Iterator[Row | BadRow]:
    """All rows of a file, good and bad, in order, without holding them.

    Raises:
      DataError: it cannot be read, is of another format, or lacks a column.
    """
    spec = row_spec(file, data)
    for item in plan_file(file, spec).items:
        yield from item_rows(item, spec)


def item_rows(item: Item, spec: UnlabelledSpec) -> Iterator[Row | BadRow]:
    """The rows of one item of a file, in order.

    Raises:
      DataError: JSONL in which no object has a key that is wanted: that is one mistake, and not one a row.
    """
    reader = ItemReader(item, spec)
    held: list[Row | BadRow] = []  # until a good row has shown that the keys are right
    rows = iter(reader)
    for row in rows:
        held.append(row)
        if isinstance(row, Row) or len(held) == _HELD_ROWS:
            break
    missing = [name for name in reader.unseen_columns if name not in spec.slices]
    if missing and not any(isinstance(row, Row) for row in held):
        raise head.missing_key(item.file.name, missing[0], reader.keys, spec.columns)
    yield from held
    yield from rows


def _has(file: InputFile, spec: UnlabelledSpec, column: str) -> bool:
    if spec.format == "jsonl":
        return True
    with open_file(file.path, file.name) as stream:
        if spec.format == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                return column in pq.ParquetFile(stream).schema_arrow.names
            except (pa.ArrowInvalid, OSError):
                return False  # plan_file says what is wrong with it
        return column in head.read_head(stream, spec, file.name)[2]
