"""Before a run: room on the disk, metadata that can be written, a copy of it. After a run: old artifacts go.

The metadata (ML Metadata, in SQLite) is read here with SQL: importing the library takes as long as a small run, and a
reader that never writes cannot harm it. No row of it is ever removed, so that lineage outlives what it tells of; TFX
does not answer from its cache with an artifact whose folder is gone.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from components.errors import BusyError, PipelineError
from components.push import base_path
from pipeline import records
from pipeline.config import Config

_log = logging.getLogger(__name__)
DATABASE = "metadata.sqlite"
BACKUPS = "backups"
_TRASH = ".trash"
ARTIFACTS = "artifacts"
_BUSY_TIMEOUT_S = 10.0
_COPY_TIMEOUT_S = 60.0
_CHECKPOINT_DAYS = 30.0
# ml_metadata.proto, Event.Type
_INPUTS, _OUTPUTS = (2, 3), (1, 4)


# === Before a run ===


def before_run(config: Config, run_id: str) -> None:
    """Checks what a run needs and copies the metadata to `backups/metadata-<run id>.sqlite`.

    The artifacts hold the data's texts: their folder is made for its owner alone, who may open it to others.

    Raises:
      PipelineError: the disk is nearly full, or the metadata is held by another process, cannot be written or is
        damaged.
    """
    check_space(config.root, config.retention.min_free_mb)
    check_space(config.serving_dir, config.retention.min_free_mb)
    artifacts = config.root / ARTIFACTS
    with suppress(FileExistsError):
        artifacts.mkdir(mode=0o700, parents=True)
    if not os.access(artifacts, os.R_OK | os.W_OK | os.X_OK):
        raise PipelineError(
            f"{artifacts}: this user may not read and write it; run as its owner, or let the owner open it "
            "(chmod g+rwX for a group)"
        )
    database = config.root / DATABASE
    if not database.exists():
        return
    with explained(database):
        check_metadata(database)
        backup(database, config.root / BACKUPS / f"metadata-{run_id}.sqlite", config.retention.keep_backups)


def check_space(folder: Path, min_free_mb: int) -> None:
    """Raises PipelineError where less than that is free on the file system of a folder that may not exist yet."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < min_free_mb << 20:
        raise PipelineError(
            f"{folder}: only {free >> 20} MiB are free, retention.min_free_mb = {min_free_mb}; nothing was started. "
            "Free some space, keep fewer artifacts (retention.keep_runs) or versions (serving.keep_versions), or "
            "lower the bound"
        )


def check_metadata(database: Path) -> None:
    """Tries to write nothing: raises sqlite3.DatabaseError where another process holds the database."""
    with closing(sqlite3.connect(database, timeout=_BUSY_TIMEOUT_S, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def backup(database: Path, target: Path, keep: int) -> None:
    """Copies a database that may be in use, whole or not at all; the newest `keep` copies stay."""
    target.parent.mkdir(exist_ok=True)
    draft = target.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with closing(_reading(database)) as source, closing(sqlite3.connect(draft)) as copy:
        _copy(source, copy)
    with draft.open("rb+") as file:
        os.fsync(file.fileno())
    draft.replace(target)
    for old in sorted(target.parent.glob("metadata-*.sqlite"))[:-keep]:
        old.unlink(missing_ok=True)


@contextmanager
def copy_to_read(root: Path) -> Iterator[tuple[sqlite3.Connection, str] | None]:
    """A copy of the metadata that is nobody's but the reader's, and what it is a copy of; None where there is none.

    Where the metadata is held by another process or damaged, it is a copy of the newest one in `backups/`.
    """
    with closing(sqlite3.connect("")) as copy:  # a file of SQLite's own, gone when it is closed
        for path in (root / DATABASE, *sorted((root / BACKUPS).glob("metadata-*.sqlite"), reverse=True)):
            try:
                with closing(_reading(path, timeout_s=1.0)) as source:
                    _copy(source, copy)
                    copy.execute("SELECT count(*) FROM Execution").fetchone()
            except sqlite3.DatabaseError:
                continue
            yield copy, path.relative_to(root).as_posix()
            return
        yield None


def _copy(source: sqlite3.Connection, copy: sqlite3.Connection) -> None:
    """Copies a database page by page, so that writers get through; SQLite begins anew after each that did.

    Raises:
      sqlite3.DatabaseError: another process holds it, or writes all the time; SQLite alone would wait for ever.
    """
    deadline = time.monotonic() + _COPY_TIMEOUT_S

    def go_on(status: int, remaining: int, total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or (remaining and time.monotonic() > deadline):
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorname = "SQLITE_BUSY"
            raise error

    source.backup(copy, pages=256, progress=go_on, sleep=0.01)


@contextmanager
def explained(database: Path) -> Iterator[None]:
    """Turns what SQLite and the system say into a message for a person."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise PipelineError(explain(database, error)) from None
    except OSError as error:
        raise PipelineError(explain_os(error, database.parent)) from None


def explain(database: Path, error: sqlite3.DatabaseError) -> str:
    """What is wrong with the metadata, and what to do."""
    code = getattr(error, "sqlite_errorname", None) or type(error).__name__
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return (
            f"{database}: another process holds it and did not let go for {_BUSY_TIMEOUT_S:g} s; end that process "
            "(`fuser` or `lsof` names it) and run again. Nothing was changed"
        )
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return (
            f"{database}: is damaged; replace it by the newest copy in {database.parent / BACKUPS}, made before the "
            "last run, and run again"
        )
    if code.startswith("SQLITE_FULL"):
        return f"{database}: the disk is full; free some space and run again. Nothing was changed"
    return f"{database}: cannot be written ({code}); give this user write access to the file and its folder"


def explain_os(error: OSError, folder: Path) -> str:
    """What the system refused, and what to do."""
    where = error.filename or folder
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}: the disk is full; free some space and run again: what is done is kept"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"{where}: cannot be written ({error.strerror}); give this user write access, or another folder with "
            "--set paths.root=FOLDER"
        )
    return f"{where}: {error.strerror or type(error).__name__}"


# === After a run ===


def clean(config: Config, now: float | None = None) -> list[Path]:
    """Removes the artifacts that the retention does not keep. Returns their folders.

    Kept: those that a version in the model server's base path (rolled back or not) was made from, those of the latest
    `keep_runs` runs and of the runs of the last `keep_days` days, with what they read; and what the next run's data is
    compared with. Skipped while a run is going on.

    Raises:
      PipelineError: the metadata cannot be read, or a folder not be removed.
    """
    root, retention = config.root, config.retention
    if retention.keep_runs is None and retention.keep_days is None:
        return []
    now = time.time() if now is None else now
    try:
        with records.root_lock(root, wait=False), explained(root / DATABASE):
            gone = []
            if (root / DATABASE).exists():
                gone = expired(root, config.serving_dir, retention.keep_runs or 1, retention.keep_days, now)
            gone += _old_checkpoints(root / "checkpoints", retention.keep_days or _CHECKPOINT_DAYS, now)
            _remove(root, gone)
    except BusyError:
        _log.info("%s: a run is going on; its artifacts are looked after next time", root)
        return []
    if gone:
        _log.info("%s: removed %d artifacts past their time", root, len(gone))
    return gone


def expired(root: Path, serving_dir: Path, keep_runs: int, keep_days: float | None, now: float) -> list[Path]:
    """The folders of artifacts, and of working files, that nothing in use refers to; the metadata is only read."""
    with closing(_reading(root / DATABASE)) as database:
        runs = database.execute(
            "SELECT c.id, c.create_time_since_epoch FROM Context c JOIN Type t ON t.id = c.type_id "
            "WHERE t.name = 'pipeline_run' ORDER BY c.id DESC"
        ).fetchall()
        if not runs:
            return []
        recent = now * 1000 - (keep_days or 0.0) * 86_400_000
        kept_runs = [
            number for place, (number, made) in enumerate(runs)
            if place < keep_runs or (keep_days is not None and made is not None and made >= recent)
        ]  # fmt: skip
        kept = _of_runs(database, kept_runs) | _of_versions(database, serving_dir) | _references(database)
        rows = database.execute("SELECT id, uri FROM Artifact WHERE uri IS NOT NULL AND uri != ''").fetchall()
        # An execution that a kept run may have been killed in is newer than that run's first one.
        oldest = database.execute(
            f"SELECT min(execution_id) FROM Association WHERE context_id IN ({_marks(kept_runs)})", kept_runs
        ).fetchone()[0]
    kept_folders = {Path(uri) for number, uri in rows if number in kept}
    artifacts = root / ARTIFACTS
    found = []
    for folder in _execution_folders(artifacts):
        number = int(folder.name)
        if number < (oldest or 0) and not any(folder == keep or folder in keep.parents for keep in kept_folders):
            found.append(folder)
    return sorted(found)


def _of_runs(database: sqlite3.Connection, runs: list[int]) -> set[int]:
    """The artifacts that runs made or read."""
    made = database.execute(f"SELECT artifact_id FROM Attribution WHERE context_id IN ({_marks(runs)})", runs)
    read = database.execute(
        "SELECT e.artifact_id FROM Event e JOIN Association a ON a.execution_id = e.execution_id "
        f"WHERE a.context_id IN ({_marks(runs)})",
        runs,
    )
    return {row[0] for row in [*made.fetchall(), *read.fetchall()]}


def _of_versions(database: sqlite3.Connection, serving_dir: Path) -> set[int]:
    """The artifacts that the versions were made from: those named in their lineage, and what the model was made of."""
    kept: set[int] = set()
    for folder in [*base_path.published(serving_dir).values(), *base_path.rolled_back(serving_dir).values()]:
        named = (base_path.read_lineage(folder) or {}).get("artifacts") or {}
        for name, facts in named.items():
            row = database.execute("SELECT uri FROM Artifact WHERE id = ?", (facts.get("id"),)).fetchone()
            if row is None or row[0] != facts.get("uri"):  # of a metadata store before this one
                continue
            kept.add(facts["id"])
            if name == "model":
                kept |= _ancestors(database, facts["id"])
    return kept


def _references(database: sqlite3.Connection) -> set[int]:
    """Statistics and schema of the data that was approved last, and of the two newest spans that were approved.

    They are what `components.validation.previous` looks for, however many runs have failed since; two, for a span that
    is corrected is compared with the one before it.
    """
    rows = database.execute(
        "SELECT i.execution_id, p.step_key, i.artifact_id, coalesce(s.int_value, 0) "
        "FROM Artifact a JOIN Type t ON t.id = a.type_id "
        f"JOIN Event o ON o.artifact_id = a.id AND o.type IN {_OUTPUTS} "
        f"JOIN Event i ON i.execution_id = o.execution_id AND i.type IN {_INPUTS} "
        "JOIN EventPath p ON p.event_id = i.id AND p.step_key IN ('statistics', 'schema') "
        "LEFT JOIN ArtifactProperty s ON s.artifact_id = i.artifact_id AND s.name = 'span' "
        "WHERE t.name = 'DataApproval' ORDER BY i.execution_id"
    ).fetchall()
    inputs: dict[int, dict[str, int]] = {}
    newest: dict[int, int] = {}  # span → the last execution of the gate that approved it
    for execution, key, artifact, span in rows:
        inputs.setdefault(execution, {})[key] = artifact
        if key == "statistics":
            newest[span] = execution
    wanted = [newest[span] for span in sorted(newest)[-2:]] + list(inputs)[-1:]
    return {artifact for execution in wanted for artifact in inputs[execution].values()}


def _ancestors(database: sqlite3.Connection, artifact: int) -> set[int]:
    """What an artifact was made of, and that in turn; an earlier model that it was started from is no part of it."""
    found: set[int] = set()
    waiting = [artifact]
    while waiting:
        rows = database.execute(
            "SELECT DISTINCT i.artifact_id FROM Event o JOIN Event i ON i.execution_id = o.execution_id "
            "JOIN Artifact a ON a.id = i.artifact_id JOIN Type t ON t.id = a.type_id "
            f"WHERE o.artifact_id = ? AND o.type IN {_OUTPUTS} AND i.type IN {_INPUTS} AND t.name != 'Model'",
            (waiting.pop(),),
        ).fetchall()
        new = {row[0] for row in rows} - found
        found |= new
        waiting += new
    return found


def _execution_folders(artifacts: Path) -> Iterable[Path]:
    """`<step>/<output>/<execution>` and `<step>/.system/executor_execution/<execution>`."""
    for pattern in ("*/*/*", "*/.system/executor_execution/*"):
        for folder in artifacts.glob(pattern):
            if folder.name.isdigit() and folder.is_dir() and not folder.is_symlink():
                yield folder


def _old_checkpoints(folder: Path, days: float, now: float) -> list[Path]:
    """Checkpoints of trainings that were killed and never gone on with."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir()
        if path.is_dir() and max((p.stat().st_mtime for p in [path, *path.iterdir()]), default=now) < now - days * 86400
    )  # fmt: skip


def _remove(root: Path, folders: list[Path]) -> None:
    """Moves folders out of sight first, so that a killed process leaves none half there."""
    trash = root / _TRASH
    shutil.rmtree(trash, ignore_errors=True)
    if not folders:
        return
    trash.mkdir(mode=0o700, exist_ok=True)
    for number, folder in enumerate(folders):
        folder.rename(trash / str(number))
    shutil.rmtree(trash)


def _reading(database: Path, timeout_s: float = _BUSY_TIMEOUT_S) -> sqlite3.Connection:
    # as_uri quotes what a URI must not hold
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=timeout_s)


def _marks(values: list[int]) -> str:
    return ", ".join("?" * len(values))
