"""The Beam part: files → items → shards of tf.Examples, dead letters and counts.

    files → Plan (a file each) → Reshuffle (of items, never of rows) → Ingest (an item each) → files

Rows pass through one fused stage and go straight to gzipped TFRecord shards, so that memory does not grow with
the data on any runner: Beam's local ones hold everything that is shuffled in memory. A shard is named after its
file and part: the same input gives the same shards, byte for byte, whatever the mode and however items are spread.
Workers hand back what they counted as small files in a work folder; a retried item writes the same again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, cast

import apache_beam as beam
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from components.errors import DataError, PipelineError
from components.examples import files, leaks, tfrecord
from components.examples.files import FilePlan, InputFile, Item, ItemReader
from components.examples.rows import BadRow, Row, RowSpec

_GZIP_LEVEL = 1  # twice the speed of the default; the files are read a few times and then kept
_BUFFER = 1 << 20
_DEAD_ROW_BYTES = 1 << 20  # a longer bad row is cut in the dead-letter file
HASHES = "hashes"  # the folder of an Examples artifact with the sorted hashes of its texts, a file a shard


@dataclass(frozen=True)
class Ingestion:
    """What the workers need to know."""

    spec: RowSpec
    output: str  # the artifact's folder
    work: str  # a folder for what workers hand back
    hash_split: tuple[tuple[str, int], ...] = ()  # split and share; for files that are to be split by hash
    item_bytes: int = files.ITEM_BYTES
    dropped_hashes: str | None = None  # a file: texts to leave out of train

    def path(self, kind: str, *numbers: int) -> str:
        """Where a worker writes what it hands back: `kind` by file, part or both."""
        return FileSystems.join(self.work, "-".join([kind, *(f"{number:05d}" for number in numbers)]))


def split_of(group: bytes, shares: Iterable[tuple[str, int]]) -> str:
    """The split of a group: the first 8 bytes of its SHA-256, big-endian, modulo the sum of the shares.

    It depends on the group and the shares alone: new data never moves a document to another split.
    """
    shares = tuple(shares)
    bucket = int.from_bytes(hashlib.sha256(group).digest()[:8], "big") % sum(share for _, share in shares)
    for split, share in shares:
        bucket -= share
        if bucket < 0:
            return split
    raise AssertionError("the bucket is below the sum of the shares")


def split_of_row(row: Row, shares: Iterable[tuple[str, int]]) -> str:
    """The split of a row of files that are split by hash: of its document, or where it has none, of its text."""
    return split_of(row.text if row.id is None else row.id, shares)


def ingest(pipeline: beam.Pipeline, ingestion: Ingestion, inputs: Iterable[InputFile]) -> None:
    """Adds the whole of the ingestion to a pipeline."""
    _ = (
        pipeline
        | "Files" >> beam.Create(list(inputs))
        | "Plan" >> beam.ParDo(PlanFile(ingestion))
        | "Spread" >> beam.Reshuffle()
        | "Ingest" >> beam.ParDo(IngestItem(ingestion))
    )


def ingest_again(pipeline: beam.Pipeline, ingestion: Ingestion, items: Iterable[Item]) -> None:
    """Adds a second reading of `items`, which writes their shards anew without `dropped_hashes`."""
    _ = (
        pipeline
        | "Items" >> beam.Create(list(items))
        | "Spread" >> beam.Reshuffle()
        | "Ingest" >> beam.ParDo(IngestItem(ingestion))
    )


class PlanFile(beam.DoFn):
    """InputFile → its Items; hands back the plan, or the error that the file is."""

    def __init__(self, ingestion: Ingestion):
        self._ingestion = ingestion

    def process(self, file: InputFile) -> Iterator[Item]:
        ingestion = self._ingestion
        with _errors_without_texts(file.name, lambda: None):
            try:
                plan = files.plan_file(file, ingestion.spec, ingestion.item_bytes)
            except PipelineError as error:
                write_json(ingestion.path("plan", file.index), {"error": str(error)})
                return
        write_json(ingestion.path("plan", file.index), asdict(plan))
        yield from plan.items


class IngestItem(beam.DoFn):
    """Item → shards; hands back counts, dead letters and hashes of texts."""

    def __init__(self, ingestion: Ingestion):
        self._ingestion = ingestion
        self._dropped: frozenset[bytes] = frozenset()

    def setup(self) -> None:
        if self._ingestion.dropped_hashes:
            self._dropped = leaks.each_hash(read_bytes(self._ingestion.dropped_hashes))

    def process(self, item: Item) -> None:
        ingestion = self._ingestion
        reader = ItemReader(item, ingestion.spec)
        summary_path = ingestion.path("item", item.file.index, item.part)
        with _errors_without_texts(item.file.name, lambda: reader.line):
            try:
                with ExitStack() as stack:
                    output = _ItemOutput(item, ingestion, self._dropped, stack)
                    for row in reader:
                        output.add(row)
                    output.finish()
            except PipelineError as error:
                write_json(summary_path, {"error": str(error)})
                return
        write_json(summary_path, output.summary(reader))


class _ItemOutput:
    """The files that one item becomes, and its counts."""

    def __init__(self, item: Item, ingestion: Ingestion, dropped: frozenset[bytes], stack: ExitStack):
        self._item, self._ingestion, self._dropped, self._stack = item, ingestion, dropped, stack
        self._encode = tfrecord.row_encoder(ingestion.spec)
        self._pair_counts = ingestion.spec.text_pair is not None
        self._shards: dict[str, Shard] = {}
        self._dead: BinaryIO | None = None
        self._labels: dict[str, Counter[str]] = {}
        self._bad: Counter[str] = Counter()
        self._dropped_rows: Counter[str] = Counter()

    def add(self, row: Row | BadRow) -> None:
        """Writes a row to its split, or to the dead letters."""
        if isinstance(row, BadRow):
            self._add_bad(row)
            return
        split = self._item.file.split
        if split == "all":
            split = split_of_row(row, self._ingestion.hash_split)
        digest = leaks.text_hash(row.text, row.text_pair if self._pair_counts else None)
        if split == "train" and digest in self._dropped:
            self._dropped_rows[split] += 1
            return
        shard = self._shards.get(split)
        if shard is None:
            shard = self._shards[split] = self._open_shard(split)
        shard.add(self._encode(row), digest)
        labels = shard.labels
        for label in row.labels or (b"",):
            labels[label] += 1

    def _open_shard(self, split: str) -> Shard:
        item = self._item
        name = f"data_tfrecord-{item.file.index:05d}-{item.part:05d}.gz"
        path = FileSystems.join(self._ingestion.output, f"Split-{split}", name)
        return Shard(self._stack.enter_context(writing(path, self._ingestion.work)))

    def _add_bad(self, row: BadRow) -> None:
        if self._dead is None:
            path = self._ingestion.path("dead", self._item.file.index, self._item.part)
            self._dead = self._stack.enter_context(writing(path, self._ingestion.work, private=True))
        self._bad[row.reason] += 1
        letter: dict[str, Any] = {"file": self._item.file.name, "line": row.line, "reason": row.reason}
        # surrogateescape: json.loads(letter)["row"].encode("utf-8", "surrogateescape") is the row, byte for byte
        letter["row"] = row.raw[:_DEAD_ROW_BYTES].decode("utf-8", "surrogateescape")
        if len(row.raw) > _DEAD_ROW_BYTES:
            letter["cut"] = True
        self._dead.write(json.dumps(letter).encode() + b"\n")

    def finish(self) -> None:
        """Writes what is buffered, and the hashes."""
        for split, shard in self._shards.items():
            shard.finish()
            path = self._ingestion.path(f"hashes-{split}", self._item.file.index, self._item.part)
            with writing(path, self._ingestion.work) as stream:
                stream.write(leaks.sorted_hashes(bytes(shard.hashes)))

    def summary(self, reader: ItemReader) -> dict[str, Any]:
        """The counts, as JSON."""
        return {
            "rows": {split: shard.rows for split, shard in self._shards.items()},
            "labels": {
                split: {label.decode(): count for label, count in shard.labels.items()}
                for split, shard in self._shards.items()
            },
            "bad": dict(self._bad),
            "dropped": dict(self._dropped_rows),
            "objects": reader.objects,
            "unseen": reader.unseen_columns,
            "keys": reader.keys,
        }


class Shard:
    """One gzipped TFRecord file, buffered; the same rows give the same bytes."""

    def __init__(self, stream: BinaryIO):
        self._gzip = gzip.GzipFile("", "wb", _GZIP_LEVEL, cast(Any, stream), mtime=0)
        self._frames: list[bytes] = []
        self._buffered = 0
        self.rows = 0
        self.labels: Counter[bytes] = Counter()
        self.hashes = bytearray()

    def add(self, record: bytes, digest: bytes) -> None:
        framed = tfrecord.frame(record)
        self._frames.append(framed)
        self._buffered += len(framed)
        self.rows += 1
        self.hashes += digest
        if self._buffered > _BUFFER:
            self._flush()

    def _flush(self) -> None:
        self._gzip.write(b"".join(self._frames))
        self._frames, self._buffered = [], 0

    def finish(self) -> None:
        self._flush()
        self._gzip.close()


@contextmanager
def _errors_without_texts(name: str, line: Callable[[], int | None]) -> Iterator[None]:
    """Lets no exception out whose message could hold a piece of the data: Beam logs what workers raise."""
    try:
        yield
    except (PipelineError, OSError):
        raise
    except Exception as error:
        where = f"{name}: line {line()} or below" if line() else name
        raise RuntimeError(f"{where}: {type(error).__name__} while it was read; a defect of the reader") from None


@contextmanager
def writing(path: str, work: str, private: bool = False) -> Iterator[BinaryIO]:
    """A file that is complete or absent: it is written in the folder `work`, then moved to `path`.

    `private`: a local file that only its owner may read (mode 0600).
    """
    unfinished = FileSystems.join(work, f"unfinished-{uuid.uuid4().hex}")
    with _create(unfinished, private) as stream:
        yield stream
    parent = FileSystems.split(path)[0]
    if not FileSystems.exists(parent):
        make_folder(parent)
    FileSystems.rename([unfinished], [path])


def make_folder(path: str) -> None:
    """Makes a folder; another worker may make it at the same time."""
    try:
        FileSystems.mkdirs(path)
    except OSError:
        if not FileSystems.exists(path):
            raise


def _create(path: str, private: bool) -> AbstractContextManager[BinaryIO]:
    if private and "://" not in path:
        return cast(BinaryIO, os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"))
    return FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)


def shard_name(hashes: str) -> tuple[str, str]:
    """The split and the name of the shard whose hashes stand in a file of that name: `hashes-train-00000-00001`."""
    _, split, file, part = hashes.split("-")
    return split, f"data_tfrecord-{file}-{part}.gz"


def write_json(path: str, value: Any) -> None:
    """Writes a file that is complete or absent, in its own folder."""
    with writing(path, FileSystems.split(path)[0]) as stream:
        stream.write(json.dumps(value).encode())


def read_bytes(path: str, start: int = 0, size: int = -1) -> bytes:
    """The whole of a file, or at most `size` bytes of it from `start` on."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
        stream.seek(start)
        return stream.read(size)


def read_plan(value: dict[str, Any]) -> FilePlan:
    """The plan that `PlanFile` handed back.

    Raises:
      DataError: if it handed back an error.
    """
    if "error" in value:
        raise DataError(value["error"])
    items = [
        Item(**{**item, "file": InputFile(**item["file"]), "columns": tuple(item["columns"])})
        for item in value["items"]
    ]
    return FilePlan(value["sha256"], value["bytes"], tuple(items))
