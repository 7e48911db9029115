"""The process that the soak kills: the schedule as `biobert-cnn schedule run` makes it, but for the clock: a file.

    python soak_schedule.py CONFIG CLOCK SOCKET SERVER METRICS      (SOCKET: of soak_runs.py)

Runs are real; they start in a fork of a process that has imported TFX, which saves half a minute each.
"""

import datetime as dt
import json
import os
import signal
import socket
import sys
from pathlib import Path
from threading import Event
from typing import Any

from pipeline.config import load_config
from pipeline.retraining import housekeeping
from pipeline.retraining.config import WatchConfig
from pipeline.retraining.launch import Request
from pipeline.retraining.notify import Notifier
from pipeline.retraining.scheduler import Scheduler
from pipeline.retraining.watch import ServerWatch


class WarmRun:
    """The seam `Launch`: asks soak_runs.py for a run, and hands it the lock of scheduled runs."""

    def __init__(self, config: Path, address: str) -> None:
        self._config, self._address = config, address

    def __call__(self, request: Request, stop: Event, lock: int) -> dict[str, Any]:
        argv = ["run", str(self._config), "--json", "--wait", "--trigger", request.key]
        for override in request.overrides:
            argv += ["--set", override]
        reading, writing = os.pipe()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._address)
            socket.send_fds(connection, [json.dumps(argv).encode()], [writing, lock])
            connection.recv(1)  # taken
        os.close(writing)
        with os.fdopen(reading) as output:
            lines = output.read().splitlines()
        for line in reversed(lines):
            if line.startswith("{"):
                return json.loads(line)
        return {"status": "failed", "error": "the process printed nothing", "error_kind": "Exit"}


def main() -> None:
    config_file, clock_file, address, server, metrics = sys.argv[1:]
    config = load_config(config_file)

    def clock() -> dt.datetime:
        return dt.datetime.fromisoformat(Path(clock_file).read_text())

    watch = WatchConfig(target=server, metrics_url=metrics, watch_s=3, poll_s=0.5, load_timeout_s=900, min_requests=5)
    scheduler = Scheduler(
        config,
        WarmRun(Path(config_file), address),
        clock=clock,
        watch=ServerWatch(watch, config.serving.model_name, config.serving_dir),
        deliver=Notifier(config.notify, clock, pause_s=0.05),
        after_run=lambda: housekeeping.clean(config),
    )
    signal.signal(signal.SIGTERM, lambda *_: scheduler.stop.set())
    scheduler.loop(lambda look: print(look.decision.reason, look.run and look.run.status, flush=True))


if __name__ == "__main__":
    main()
