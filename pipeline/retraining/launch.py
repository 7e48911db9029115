"""A run of the pipeline in a process of its own, so that the schedule stays small and outlives whatever a run does."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from components.errors import PipelineError
from pipeline import records

_GRACE_S = 20.0
_LOCK = "schedule.run.lock"


class Stopped(Exception):
    """The schedule was told to stop while a run was under way; the run goes on at the next start."""


@dataclass(frozen=True)
class Request:
    """What is to be run: `key` names it in the run's record; the window ends with `newest` and lacks `exclude`."""

    key: str
    newest: int | None
    exclude: tuple[int, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        """The same as `--set` values of the command line."""
        found = [] if self.newest is None else [f"window.until={self.newest}"]
        if self.exclude:
            found.append(f"window.exclude={list(self.exclude)}")
        return tuple(found)


class Launch(Protocol):
    """The seam at which a run is started. Called while the run's lock is held; `lock` is its descriptor.

    A process that does the run inherits the descriptor, and with it the lock: as long as it lives, no other schedule
    starts a second one.

    Returns: the run's record, as `biobert-cnn run --json` prints it.
    Raises: Stopped.
    """

    def __call__(self, request: Request, stop: Event, lock: int) -> dict[str, Any]: ...


@contextmanager
def run_lock(root: Path, stop: Event, wait: Callable[[float], None] = time.sleep) -> Iterator[int]:
    """Holds the lock of scheduled runs; waits while a run that an earlier schedule started is still alive.

    Raises:
      Stopped: while it waited.
      PipelineError: the root cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / _LOCK).open("a+")
    except OSError as error:
        raise PipelineError(f"paths.root: {root} cannot be written ({error.strerror})") from None
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if stop.is_set():
                    raise Stopped from None
                wait(0.2)
        yield file.fileno()


class PipelineProcess:
    """`python -m pipeline.cli run CONFIG --json --wait`."""

    def __init__(self, config: Path, overrides: tuple[str, ...], log: Path, timeout_s: float | None = None) -> None:
        """Args:
        config, overrides: as given to the schedule; those of a request come after.
        log: what the process says on standard error, of the last run.
        timeout_s: after which it is ended.
        """
        self._config, self._overrides, self._log, self._timeout_s = config, overrides, log, timeout_s

    def __call__(self, request: Request, stop: Event, lock: int) -> dict[str, Any]:
        """Runs it to its end."""
        command = [sys.executable, "-m", "pipeline.cli", "run", str(self._config), "--json", "--wait"]
        for override in (*self._overrides, *request.overrides):
            command += ["--set", override]
        command += ["--trigger", request.key]
        return run_json(command, self._log, stop, self._timeout_s, lock)


def run_json(
    command: list[str], log: Path, stop: Event, timeout_s: float | None = None, lock: int | None = None
) -> dict[str, Any]:
    """Runs a command that prints one JSON object, and ends its whole process group on `stop` or after `timeout_s`.

    Returns:
      The object; or `{"status": "failed", "error": …}` where it printed none.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as errors, subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
        pass_fds=() if lock is None else (lock,), env=environment,
    ) as process:  # fmt: skip
        began = time.monotonic()
        output = b""
        while True:
            try:
                output = process.communicate(timeout=1.0)[0]
                break
            except subprocess.TimeoutExpired:
                late = timeout_s is not None and time.monotonic() - began > timeout_s
                if stop.is_set() or late:
                    _end(process)
                    if late and not stop.is_set():
                        return _failed(f"took longer than {timeout_s:g} s", "Timeout")
                    raise Stopped from None
    for line in reversed(output.decode("utf-8", "replace").splitlines()):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    code = process.returncode
    if code < 0:
        return _failed(f"the process was ended by {signal.Signals(-code).name}; see {log}", "Killed")
    return _failed(f"the process ended with exit status {code}; see {log}", "Exit")


def finished(root: Path, key: str, after: str) -> dict[str, Any] | None:
    """The record of a run that ended while no schedule was there to see it: newer than the record `after`."""
    for record in reversed(records.read_records(root)):
        if record["run_id"] <= after:
            return None
        if record.get("trigger") == key and record["status"] != records.INTERRUPTED:
            return record
    return None


def newest_record(root: Path) -> str:
    """The id of the newest record; "" where there is none."""
    names = sorted(path.stem for path in (root / "runs").glob("*.json"))
    return names[-1] if names else ""


def _failed(error: str, kind: str) -> dict[str, Any]:
    return {"status": "failed", "error": error, "error_kind": kind}


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
            return
