"""What is known of past runs: one JSON file a run under `<root>/runs/`, and the lock of the pipeline root."""

from __future__ import annotations

import datetime
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from components.errors import BusyError, PipelineError

INTERRUPTED = "interrupted"  # the status of a run that has not come to its end: it is under way, or was killed
_LOOKED_AT_S = 0.2  # the lock may be held as long by a reader that looks whether it is held
RUN_ID = re.compile(r"\d{8}T\d{6}(-\d{4})?")  # sorts by time


@contextmanager
def root_lock(root: Path, wait: bool) -> Iterator[None]:
    """Holds the pipeline root for one run; the lock goes with the process that holds it.

    Raises:
      BusyError: another run holds it, and `wait` is false.
      PipelineError: the root cannot be written.
    """
    import fcntl

    path = root / "run.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise PipelineError(
            f"paths.root: {root} cannot be written ({error.strerror}); give another with --set paths.root=FOLDER"
        ) from None
    with file:
        if not _lock(file):
            file.seek(0)
            holder = f"another run (process {file.read().strip() or 'unknown'}) holds the pipeline root {root}"
            if not wait:
                raise BusyError(
                    f"{holder}; wait for it with --wait, or give this run a root of its own with "
                    "--set paths.root=FOLDER"
                )
            print(f"waiting: {holder}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(file: IO[str]) -> bool:
    """Whether the lock could be had, with some patience for readers."""
    import fcntl

    deadline = time.monotonic() + _LOOKED_AT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


def is_held(root: Path) -> bool:
    """Whether a run holds the pipeline root at this moment, as far as this user may know."""
    import fcntl

    try:
        with (root / "run.lock").open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, PermissionError):
        return False
    except BlockingIOError:
        return True
    return False


def new_run_id(root: Path) -> str:
    """A name that sorts by time and is new even when the clock was set back."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
    known = sorted(path.stem for path in (root / "runs").glob("*.json"))
    if known and known[-1] >= now:
        base, _, count = known[-1].partition("-")
        return f"{base}-{int(count or 0) + 1:04d}"
    return now


def write_record(root: Path, record: dict[str, Any]) -> None:
    """Writes `runs/<run id>.json`, whole or not at all."""
    write_json(root / "runs" / f"{record['run_id']}.json", record)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2), encoding="utf-8")
    temporary.replace(path)


def read_records(root: Path) -> list[dict[str, Any]]:
    """All runs of a pipeline root, oldest first."""
    return [_read(path) for path in sorted((root / "runs").glob("*.json"), key=lambda path: path.stem)]


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    # A file cut short by a crash of the machine: the run was there, and what came of it is not known.
    return record if isinstance(record, dict) else {"run_id": path.stem, "status": "unreadable"}
