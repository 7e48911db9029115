"""The errors that a user can meet; each message names the thing, the place and the remedy.

PipelineError
├── ConfigError       the configuration, or what it points at, is not usable      (exit status 2)
├── DataError         the data must not be learned from as it is                  (exit status 1)
├── DivergenceError   the loss of a training is no longer a finite number         (exit status 1)
├── CheckpointError   weights, vocabulary and configuration do not fit together   (exit status 1)
├── ExportError     the exported model would not run where it is to be served     (exit status 1)
├── ServingError      the exported model does not answer as it must               (exit status 1)
├── PushError         a version cannot be published or rolled back                (exit status 1)
└── BusyError         another run holds the pipeline root                         (exit status 1)

No message ever holds a text of the data: files, line numbers and counts say where to look.
"""

from __future__ import annotations

import traceback
from functools import cached_property
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]


class PipelineError(Exception):
    """Base of all errors that end a command with one clear message and no traceback."""

    exit_status = 1
    record: dict[str, Any] | None = None  # of the run that it ended
    answer: dict[str, Any] | None = None  # what `--json` prints of it; None: the error alone

    @cached_property
    def kind(self) -> str:
        """What programs tell errors apart by."""
        return type(self).__name__


class ConfigError(PipelineError):
    """A key, a value or a file that the configuration names is wrong."""

    exit_status = 2


class DataError(PipelineError):
    """Rows, statistics or anomalies that stop a run before anything is learned from them."""


class DivergenceError(PipelineError):
    """A training whose loss is no longer a finite number."""


class CheckpointError(PipelineError):
    """Encoder weights that are missing, misshapen or at odds with the vocabulary or configuration."""


class ExportError(PipelineError):
    """The exported model holds, or does, what the model server or some of its CPUs cannot do."""


class ServingError(PipelineError):
    """The model server refused the exported model or answered differently from the trainer."""


class PushError(PipelineError):
    """A model version could not be published, or the version to go back to does not exist."""


class BusyError(PipelineError):
    """Another process is working on the same pipeline root."""


def explain_unexpected(error: BaseException) -> str:
    """An error that nobody foresaw: its kind, and where in this project it came from. Its message may quote data."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(_ROOT)]
    own = [f for f in own if "site-packages" not in f.filename and ".venv" not in f.filename]
    if not own:
        return f"unexpected {type(error).__name__}"
    place = own[-1]
    return (
        f"unexpected {type(error).__name__} at {Path(place.filename).relative_to(_ROOT)}:{place.lineno} ({place.name})"
    )
