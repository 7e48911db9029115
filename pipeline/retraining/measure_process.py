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

    def __init__(self, config: Path, overrides: tuple[str, ...], log: Path, timeout_s: float | None = None) -> None:
        """Args: as `launch.PipelineProcess`."""
        self._config, self._overrides, self._log, self._timeout_s = config, overrides, log, timeout_s

    def __call__(self, live: int, spans: tuple[Span, ...], stop: Event) -> list[Measurement]:
        """Measures the live version on the newest whole span; what could not be measured is logged and left out."""
        whole = [span for span in spans if span.complete and span.digest]
        if not whole:
            return []
        newest = whole[-1]
        command = [
            sys.executable, "-m", "pipeline.retraining.measure", str(self._config),
            *(part for override in self._overrides for part in ("--set", override)), f"--live={live}",
            f"--span={newest.number}", f"--digest={newest.digest}",
        ]  # fmt: skip
        found = run_json(command, self._log, stop, self._timeout_s)
        errors = found["errors"] if "measurements" in found else {"drift and score": found.get("error")}
        for rule, error in errors.items():
            _log.error("not measured: %s: %s", rule, error)
        return [Measurement(**item) for item in found.get("measurements", [])]
