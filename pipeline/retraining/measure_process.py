"""Starts `measure.py` in a process of its own when there is something new to measure on."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from threading import Event

from pipeline.retraining.decision import Measurement, Span
from pipeline.retraining.launch import run_json

_log = logging.getLogger(__name__)


class MeasureProcess:
    """`python -m pipeline.retraining.measure CONFIG`; see `scheduler.Measure`."""

    def __init__(self, config: Path, overrides: tuple[str, ...], log: Path) -> None:
        self._config, self._overrides, self._log = config, overrides, log

    def __call__(self, live: int, spans: tuple[Span, ...], stop: Event) -> list[Measurement]:
        """Measures the live version on the newest whole span; a failure is logged, and nothing is measured."""
        whole = [span for span in spans if span.complete and span.digest]
        if not whole:
            return []
        newest = whole[-1]
        command = [
            sys.executable, "-m", "pipeline.retraining.measure", str(self._config),
            *(part for override in self._overrides for part in ("--set", override)), f"--live={live}",
            f"--span={newest.number}", f"--digest={newest.digest}",
        ]  # fmt: skip
        found = run_json(command, self._log, stop)
        if "measurements" not in found:
            _log.error("drift and score were not measured: %s", found.get("error"))
            return []
        return [Measurement(**item) for item in found["measurements"]]
