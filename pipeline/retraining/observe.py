"""What a schedule can see without TensorFlow: the spans on disk and the live version."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from typing import Any

from components.config import DataConfig
from components.errors import DataError
from pipeline import spans
from pipeline.config import Config
from pipeline.fingerprint import FileHashes, file_hash, serving_logs
from pipeline.retraining.decision import Span


def find_spans(data: DataConfig, hashes: FileHashes, now: dt.datetime, settle_s: float) -> tuple[Span, ...]:
    """Every span in its newest version, oldest first; one span numbered 0 where the data has none.

    Args:
      data: the section `data`.
      hashes: of files; a file is read only when it has changed.
      now: a file that was written less than `settle_s` before is not read yet, and its span has no digest.

    Raises:
      DataError: a folder or a file cannot be read.
    """
    found = []
    for number, (version, by_split) in spans.find_names(data).items():
        try:
            found.append(_describe(data, hashes, number, version, by_split, now, settle_s))
        except OSError as error:
            raise DataError(
                f"data.input: {error.filename or data.input} cannot be read ({error.strerror}); the schedule waits"
            ) from None
    return tuple(found)


def evidence(config: Config, live: int, found: tuple[Span, ...]) -> str:
    """What drift and score are measured on: the live version, the newest whole span and the request log."""
    whole = [span.digest for span in found if span.complete and span.digest]
    return f"{live} {whole[-1] if whole else ''} {logs_digest(config)}"


def logs_digest(config: Config) -> str:
    """Of the names, sizes and times of the request logs; "" where none are configured."""
    if config.validation.serving_logs is None:
        return ""
    digest = hashlib.sha256()
    for path in serving_logs(config):
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def known_before(found: tuple[Span, ...], lineage: dict[str, Any], data: DataConfig, first: int | None) -> list[Span]:
    """The spans that a schedule takes for handled when it first looks: those before `first`, or, where that is None,
    those that the live version saw or that came before it; without a live version all before the newest that is whole.

    A span that the live version saw counts only if its files are still the same.
    """
    if first is not None:
        return [span for span in found if span.number < first]
    trained = (lineage.get("data") or {}).get("span") if spans.has_spans(data) else 0
    if lineage and trained is not None:
        seen = {entry.get("sha256") for entry in (lineage.get("data") or {}).get("files") or []}
        return [s for s in found if s.number < trained or (s.number == trained and _same_files(data, s, seen))]
    whole = [span.number for span in found if span.complete]
    return [span for span in found if whole and span.number < whole[-1]]


def _same_files(data: DataConfig, span: Span, seen: set[Any]) -> bool:
    files = [path for paths in spans.find_files(data)[span.number][1].values() for path in paths]
    return {file_hash(path) for path in files} <= seen


def _describe(
    data: DataConfig, hashes: FileHashes, number: int, version: int | None, by_split: dict[str, list[str]],
    now: dt.datetime, settle_s: float,
) -> Span:  # fmt: skip
    base, moment = str(data.input), now.timestamp()
    found = []
    newest, settled = 0.0, True
    for split in sorted(by_split):
        for name in sorted(by_split[split]):
            path = f"{base}/{name}"
            status = os.stat(path)
            found.append((split, name, path, status))
            newest = max(newest, status.st_mtime)
            settled = settled and not status.st_mtime <= moment < status.st_mtime + settle_s
    digest = ""
    if settled:
        lines = [f"{split}\0{name}\0{hashes.of(path, status)}\n" for split, name, path, status in found]
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    modified = dt.datetime.fromtimestamp(newest, dt.UTC)
    return Span(number, version, digest, modified, complete=len(by_split) == len(data.splits))
