"""The project's model server as a child process of the check: started, waited for, and always stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from components.errors import ServingError

_LISTENS = re.compile(rb"^listening on grpc (\S+:\d+)\s*$", re.MULTILINE)
_REFUSED = b"Failed to start server"  # how the server, as TensorFlow Serving, ends when a model does not load
_STOP_TIMEOUT_S = 15.0
SERVER: tuple[str, ...] = (sys.executable, "-m", "serving.server")
# No verdict on the model: what took too long here may be quick on a machine that has less to do.
OVERLOADED = "run again when the machine has less to do, or raise serving.load_timeout_s"


class ModelNotLoaded(Exception):
    """The server is sound, and could not load the model: a verdict on the model."""


class ServerProcess:
    """A model server on a free loopback port; a context manager.

    It has a process group of its own, is stopped with the group when the context ends, and is killed by the kernel
    when this process is (see `tethered`). It computes on the CPU: the process that started it may hold all of a GPU.

    Args:
      base_path: the folder with the version folder.
      model_name: what to serve it as.
      log: a file for what the server writes.
      timeout_s: how long it may take to load the model.
      server: the program; None: `SERVER`.

    Attributes:
      address: HOST:PORT of its gRPC service.
      load_s: seconds from its start until it listened.
      pid: its process id, and that of its group.
    """

    def __init__(
        self, base_path: Path, model_name: str, log: Path, timeout_s: float, server: Sequence[str] | None = None
    ) -> None:
        program = list(server or SERVER)
        flags = [
            "--port=0", f"--model_name={model_name}", f"--model_base_path={base_path}",
            "--max_num_load_retries=0", "--file_system_poll_wait_seconds=0",
        ]  # fmt: skip
        self._command = [*program, *flags]
        self._log, self._timeout_s = log, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self.address, self.load_s, self.pid = "", 0.0, 0

    def __enter__(self) -> ServerProcess:
        tether = [sys.executable, "-m", "components.serving_check.tethered", str(os.getpid())]
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [*tether, *self._command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    env=_environment(), start_new_session=True,
                )  # fmt: skip
            self.pid = self._process.pid
            self._wait_until_it_listens()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_it_listens(self) -> None:
        """Raises ModelNotLoaded, or ServingError where the server itself failed."""
        assert self._process is not None
        began = time.monotonic()
        while True:
            status = self._process.poll()
            found = _LISTENS.search(self._log.read_bytes())
            self.load_s = time.monotonic() - began
            if status is not None:
                raise self._ended(status)
            if found:
                self.address = found.group(1).decode()
                return
            if self.load_s > self._timeout_s:
                raise ServingError(
                    f"the model server had not loaded the model after {self._timeout_s:g} s: {OVERLOADED}"
                )
            time.sleep(0.05)

    def _ended(self, status: int) -> Exception:
        if status > 0 and _REFUSED in self._log.read_bytes():
            return ModelNotLoaded("the model server could not load the model; server.log says why")
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        return ServingError(
            f"the model server {how}{hint} before it could answer, so the model was not judged; its last words:\n"
            f"{self.last_words()}"
        )

    def check_alive(self) -> None:
        """Raises ServingError if the server has ended by itself."""
        status = self._process.poll() if self._process is not None else None
        if status is not None:
            raise self._ended(status)

    def last_words(self, lines: int = 5) -> str:
        """The end of the server's log, which holds no text of a request."""
        text = self._log.read_bytes()[-4000:].decode("utf-8", "replace")
        return "\n".join(f"  {line[:300]}" for line in text.strip().splitlines()[-lines:])

    def stop(self) -> None:
        """SIGTERM to the group, SIGKILL to what is left of it after a while; returns when the server itself is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        _signal_group(process.pid, signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass  # it is killed below, whether it listens to SIGTERM or not
        finally:
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # gone, or (macOS) only zombies are left of it
        return


def _environment() -> dict[str, str]:
    """This process's own, with the project importable and nothing else that happens to lie in the working folder."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
