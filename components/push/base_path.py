"""The folder that a model server watches, and what else stands in it.

    <serving_dir>/
      1764031000/          a version: a SavedModel, complete from the moment that it is there
      1764035000/          the newest number is the live one: TensorFlow Serving's `latest` policy
      .rolled-back/
        1764033000/        taken from the server by a rollback; `restore` brings it back under its own number
      .removed/
        1764029000/        of a version that was removed: its lineage alone
      .staging/            versions on their way in or out; what a killed process left here goes at the next push
      .journal.jsonl       who pushed, rolled back, restored or removed which version, when and why
      .lock                held by whoever changes any of this

A model server takes a sub-folder for a version only if its name is a number, so it never looks at the others.
Every change that a server can see is one rename on one file system: it has happened or it has not.
What is live follows from the folders alone; the journal explains and is never needed to serve.
Nothing heavy is imported here: the command line lists versions in a moment.
"""

from __future__ import annotations

import datetime
import getpass
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.errors import PushError

ROLLED_BACK = ".rolled-back"
REMOVED = ".removed"
STAGING = ".staging"
JOURNAL = ".journal.jsonl"
LOCK = ".lock"
LINEAGE = "assets.extra/lineage.json"
# How long to wait for another push or rollback: about what copying tens of gigabytes takes.
LOCK_TIMEOUT_S = 600.0
_NUMBER = re.compile(r"\d+", re.ASCII)


@contextmanager
def locked(serving_dir: Path, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Holds the base path for one change; made if it is not there. The lock goes with the process that holds it.

    Raises:
      PushError: it cannot be written, or another process held it for `timeout_s`.
    """
    import filelock

    try:
        serving_dir.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(serving_dir / LOCK, timeout=timeout_s)
        lock.acquire()
    except filelock.Timeout:
        raise PushError(
            f"{serving_dir}: another push or rollback has held this folder for {timeout_s:g} s; try again later"
        ) from None
    except OSError as error:
        raise PushError(
            f"{serving_dir}: cannot be written ({error.strerror}); give another folder with --set paths.serving=FOLDER"
        ) from None
    try:
        yield
    finally:
        lock.release()


def numbered(folder: Path) -> dict[int, Path]:
    """Version → path of every entry whose name is a number, oldest first; empty where there is no such folder."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found = {int(name): folder / name for name in sorted(names) if _NUMBER.fullmatch(name)}
    return dict(sorted(found.items()))


def published(serving_dir: Path) -> dict[int, Path]:
    """The versions that a model server sees, oldest first; the last is the live one."""
    return {number: path for number, path in numbered(serving_dir).items() if path.is_dir()}


def live(serving_dir: Path) -> tuple[int, Path] | None:
    """The number and folder of the version that a model server serves; None where there is none."""
    return max(published(serving_dir).items(), default=None)


def live_number(serving_dir: Path) -> int | None:
    """The number of the version that a model server serves; None where there is none."""
    found = live(serving_dir)
    return None if found is None else found[0]


def rolled_back(serving_dir: Path) -> dict[int, Path]:
    """The versions that a rollback took away and that `restore` can bring back, oldest first."""
    return numbered(serving_dir / ROLLED_BACK)


def removed(serving_dir: Path) -> dict[int, Path]:
    """What is kept of versions whose folders are gone: a folder with the lineage alone, oldest first."""
    return numbered(serving_dir / REMOVED)


def read_lineage(version: Path) -> dict[str, Any] | None:
    """What a version was made of; None for a folder that this pipeline did not push."""
    try:
        lineage = json.loads((version / LINEAGE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return lineage if isinstance(lineage, dict) else None


def live_lineage(serving_dir: Path) -> tuple[int | None, dict[str, Any]]:
    """The number of the version that a model server serves, and what it was made of; None, {} where there is none."""
    found = live(serving_dir)
    return (None, {}) if found is None else (found[0], read_lineage(found[1]) or {})


def next_number(serving_dir: Path, now: float) -> int:
    """A number for a new version: Unix time, as TFX's Pusher has it, but above every number ever used here.

    A clock that was set back, or two pushes within a second, must not make the new version look older than another
    (the server would not serve it), nor give it the number of one that was taken away.
    """
    used = [*numbered(serving_dir), *rolled_back(serving_dir), *removed(serving_dir)]
    used += [entry["version"] for entry in read_journal(serving_dir) if isinstance(entry.get("version"), int)]
    number = max(int(now), max(used, default=0) + 1, 1)
    if number >= 1 << 63:
        raise PushError(
            f"{serving_dir}: holds the version {number - 1}, and model servers know no greater number (int64); "
            "move that folder away"
        )
    return number


def read_journal(serving_dir: Path) -> list[dict[str, Any]]:
    """All entries, oldest first; a line that a killed process left unfinished is passed over."""
    try:
        lines = (serving_dir / JOURNAL).read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def write_journal(serving_dir: Path, event: str, version: int, reason: str = "", **facts: Any) -> None:
    """Adds an entry, on disk when this returns. Call it inside `locked`."""
    entry = {"at": timestamp(), "event": event, "version": version, "by": _who(), "reason": reason, **facts}
    path = serving_dir / JOURNAL
    with path.open("ab+") as file:
        if file.tell():  # at the end, after open for appending
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def remove(serving_dir: Path, path: Path) -> None:
    """Removes a version: gone in one rename, then deleted at leisure."""
    grave = staging_folder(serving_dir) / f"{path.name}.removed.{os.getpid()}"
    path.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)  # what is left goes with the next push


def staging_folder(serving_dir: Path) -> Path:
    """Where versions stand on their way in or out; on the same file system, so that a rename does the rest."""
    folder = serving_dir / STAGING
    folder.mkdir(exist_ok=True)
    return folder


def clear_staging(serving_dir: Path) -> None:
    """Removes what killed processes left. Only inside `locked`: nobody else can be at work in there."""
    for left in staging_folder(serving_dir).iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def timestamp() -> str:
    """Now, in UTC, by ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
