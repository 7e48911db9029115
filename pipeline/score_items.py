"""One item of a scoring job: a range of an input file becomes one shard of predictions, complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.utils.shared import Shared

from components.config import DataConfig
from components.examples.files import Item
from components.examples.rows import BadRow, Row
from pipeline import inputs
from pipeline.predict import Predictor, output_row, shortest

# Rows held at once: enough to find texts of like length, too few to fill the memory.
CHUNK_ROWS = 2048
_CHUNK_BYTES = 16 << 20
_DEAD_ROW_BYTES = 1 << 20  # a longer bad row is cut in the dead-letter file


@dataclass(frozen=True)
class Job:
    """What every worker needs to know."""

    output: str  # the folder of the shards
    model: str  # the version's folder
    version: int
    format: str  # jsonl or parquet
    data: DataConfig
    batch_size: int
    threads: int = 0  # of TensorFlow in one worker; 0: one a core

    @property
    def work(self) -> Path:
        """Marks of finished items, and what is being written."""
        return Path(self.output) / ".work"

    def shard(self, number: int) -> Path:
        """Where the predictions of an item go."""
        return Path(self.output) / f"part-{number:06d}.{self.format}"

    def mark(self, number: int) -> Path:
        """The file that says that an item is finished, with its counts. Written last."""
        return self.work / f"part-{number:06d}.json"

    def dead_letters(self, number: int) -> Path:
        """The bad rows of an item."""
        return self.work / f"part-{number:06d}.dead.jsonl"


class ScoreItem(beam.DoFn):
    """(number, item) → the number, once its shard is there. The model is loaded once a process."""

    def __init__(self, job: Job) -> None:
        self._job, self._shared = job, Shared()
        self._predictor: Predictor | None = None

    def setup(self) -> None:
        job = self._job
        self._predictor = self._shared.acquire(
            lambda: Predictor(Path(job.model), job.batch_size, job.threads), tag=job.model
        )
        self._predictor.check_pairs(job.data.has_pairs)

    def process(self, element: tuple[int, Item]) -> Iterable[int]:
        assert self._predictor is not None
        number, item = element
        score_item(self._job, number, item, self._predictor)
        yield number


def score_item(job: Job, number: int, item: Item, predictor: Predictor) -> None:
    """Reads, predicts and writes one item.

    The same item gives the same bytes, whatever was done of it before: what it is cut into depends on it alone.

    Raises:
      DataError: the input cannot be read any more. ServingError: the model failed on it.
    """
    rows, bad, labels = 0, Counter[str](), Counter[str]()
    spec = inputs.row_spec(item.file, job.data)
    with (
        whole_file(job.shard(number), job.work) as stream,
        whole_file(job.dead_letters(number), job.work, private=True) as dead,
        (_ParquetRows if job.format == "parquet" else _JsonRows)(stream, predictor) as writer,
    ):
        for chunk in _chunks(inputs.item_rows(item, spec)):
            good = [row for row in chunk if isinstance(row, Row)]
            for row in chunk:
                if isinstance(row, BadRow):
                    bad[row.reason] += 1
                    dead.write(_dead_letter(item, row))
            if good:
                pairs = [row.text_pair or b"" for row in good] if predictor.pairs else None
                probabilities, names = predictor.probabilities([row.text for row in good], pairs)
                writer.write(
                    [
                        output_row(item.file.name, row, found, shortest(values), predictor, job.version)
                        for row, found, values in zip(good, names, probabilities, strict=True)
                    ]
                )
                rows += len(good)
                for found in names:
                    labels.update(found)
    if not bad:
        job.dead_letters(number).unlink()
    shard = job.shard(number)
    with shard.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    facts = {
        "shard": shard.name, "rows": rows, "bad": dict(bad), "labels": dict(labels),
        "bytes": shard.stat().st_size, "sha256": digest,
    }  # fmt: skip
    with whole_file(job.mark(number), job.work) as stream:
        stream.write(json.dumps(facts).encode())


def _chunks(rows: Iterable[Row | BadRow]) -> Iterator[list[Row | BadRow]]:
    chunk: list[Row | BadRow] = []
    held = 0
    for row in rows:
        chunk.append(row)
        held += len(row.raw) if isinstance(row, BadRow) else len(row.text) + len(row.text_pair or b"")
        if len(chunk) == CHUNK_ROWS or held >= _CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _dead_letter(item: Item, row: BadRow) -> bytes:
    """As ingest writes them: `row` by surrogateescape is the row byte for byte."""
    letter: dict[str, Any] = {"file": item.file.name, "line": row.line, "reason": row.reason}
    letter["row"] = row.raw[:_DEAD_ROW_BYTES].decode("utf-8", "surrogateescape")
    if len(row.raw) > _DEAD_ROW_BYTES:
        letter["cut"] = True
    return json.dumps(letter).encode() + b"\n"


class _JsonRows:
    """Writes rows as JSON lines."""

    def __init__(self, stream: IO[bytes], predictor: Predictor) -> None:
        self._stream = stream

    def __enter__(self) -> _JsonRows:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        self._stream.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


class _ParquetRows:
    """Writes rows as Parquet, one row group a chunk; the classes' names are in the schema's metadata."""

    def __init__(self, stream: IO[bytes], predictor: Predictor) -> None:
        decision = ("labels", pa.list_(pa.string())) if predictor.multilabel else ("label", pa.string())
        self._schema = pa.schema(
            [
                ("file", pa.string()), ("line", pa.int64()), ("id", pa.string()), decision,
                ("probabilities", pa.list_(pa.float32())), ("version", pa.int64()),
            ],
            metadata={"classes": json.dumps(predictor.classes)},
        )  # fmt: skip
        self._writer = pq.ParquetWriter(stream, self._schema)

    def __enter__(self) -> _ParquetRows:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        plain = [{**row, "probabilities": list(row["probabilities"].values())} for row in rows]
        self._writer.write_table(pa.Table.from_pylist(plain, schema=self._schema))


@contextmanager
def whole_file(path: Path, work: Path, private: bool = False) -> Iterator[IO[bytes]]:
    """A file that is complete or absent: written in `work`, brought down to the disk, then renamed.

    `private`: only its owner may read it (mode 0600).
    """
    draft = work / f"{path.name}.{os.getpid()}.draft"
    with suppress(FileNotFoundError):
        draft.unlink()  # of a process that was killed and had this one's number
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
