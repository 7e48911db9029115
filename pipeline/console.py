"""What a person sees of a run, and where everything else goes.

TFX, Beam and TensorFlow write a great deal, some of it straight to the process's standard error; during a run all
of that goes into a log file, and only this module writes to the terminal.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text


def _log_stream(descriptor: int) -> IO[str]:
    return os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace")


@contextmanager
def quiet(log: Path) -> Iterator[Console]:
    """Sends standard output, standard error and all logging to `log`; yields a console on the real standard error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal, output = os.dup(2), os.dup(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    handler = logging.StreamHandler(_log_stream(os.dup(2)))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    stream = os.fdopen(os.dup(terminal), "w", buffering=1, encoding=encoding, errors="backslashreplace")
    try:
        yield _console(file=stream)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        root.handlers[:] = handlers
        root.setLevel(level)
        os.dup2(output, 1)
        os.dup2(terminal, 2)
        os.close(output)
        os.close(terminal)
        handler.close()
        stream.close()


@contextmanager
def step_log(log: Path) -> Iterator[None]:
    """Inside `quiet`: what one step writes goes to a log of its own, after what it wrote before."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    os.dup2(file, 1)
    os.dup2(file, 2)
    handler = logging.StreamHandler(_log_stream(file))
    root = logging.getLogger()
    handlers = root.handlers[:]
    handler.setFormatter(handlers[0].formatter if handlers else None)
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        root.handlers[:] = handlers
        for descriptor, before in zip((1, 2), kept, strict=True):
            os.dup2(before, descriptor)
            os.close(before)
        handler.stream.close()


@contextmanager
def chatter_to(log: Path) -> Iterator[None]:
    """Sends what libraries write on standard error to `log`, written anew each time; an error out of this names it.

    Nowhere if it cannot be written or the folder of its own folder is not there, which may be mistaken. Standard output
    stays: it is for results.
    """
    sys.stderr.flush()
    try:
        log.parent.mkdir(exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o640)
    except OSError:
        file = os.open(os.devnull, os.O_WRONLY)
    terminal = os.dup(2)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    except Exception as error:
        sys.stderr.flush()
        if os.fstat(2).st_size:
            error.add_note(f"what the libraries said meanwhile: {log}")
        raise
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def report_console() -> Console:
    """A console for results on standard output; in a pipe or a file nothing is cut to a terminal's width."""
    return _console(width=None if sys.stdout.isatty() else 200)


def _console(**settings: Any) -> Console:
    """A console that writes every value as it is: a label such as "Dose [mg]" or ":x:" is no markup."""
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False, **settings)


class StepDisplay:
    """One line a step as it starts and ends; a live bar while the trainer works, on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._epoch: tuple[int, str] | None = None  # the newest report of the epoch under way

    def __enter__(self) -> StepDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, step: str, event: str, seconds: float) -> None:
        """Listens to `pipeline.local.run`."""
        if event == "started":
            if not self._console.is_terminal:
                self._console.print(f"  {step:<20} started", style="dim")
            self._task = self._progress.add_task(step, total=None, figures="")
            return
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._progress.refresh()  # or the bar would stay below the line that follows, until it is drawn again
            self._task = None
        if self._epoch and not self._console.is_terminal:
            self._console.print(f"    {self._epoch[1]}", style="dim")
        self._epoch = None
        marks = {"done": ("done", "green"), "cached": ("unchanged", "cyan"), "again": ("again", "yellow")}
        mark, style = marks.get(event, ("FAILED", "bold red"))
        self._console.print(Text.assemble("  ", (f"{step:<20} {mark:<10}", style), f" {seconds:6.1f} s"))

    def report(self, event: str, values: dict[str, float | int | str]) -> None:
        """Listens to `components.progress`: the trainer's loss, metric, texts/s and time left; the tuner's trials."""
        if event == "tune":
            self._epoch = None
            best = (
                f"metric {values['metric']:.4f}  best {values['best']:.4f}" if "metric" in values else "not trainable"
            )
            self._console.print(f"    trial {values['trial']}/{values['trials']}  {best}", style="dim")
        if event != "train":
            return
        figures = _figures(values)
        if self._task is not None:
            self._progress.update(
                self._task, total=float(values["steps"]), completed=float(values["step"]), figures=figures
            )
        epoch = int(values.get("epoch", 0))
        if not self._console.is_terminal and self._epoch and epoch != self._epoch[0]:
            self._console.print(f"    {self._epoch[1]}", style="dim")
        self._epoch = (epoch, figures)


def _figures(values: dict[str, float | int | str]) -> str:
    parts = [f"epoch {values.get('epoch', '?')}/{values.get('epochs', '?')}"]
    for key, pattern in (("loss", "loss {:.3f}"), ("metric", "metric {:.3f}"), ("texts_per_s", "{:.0f} texts/s")):
        if isinstance(values.get(key), int | float):
            parts.append(pattern.format(values[key]))
    if isinstance(values.get("seconds_left"), int | float):
        parts.append(f"{float(values['seconds_left']):.0f} s left")
    return "  ".join(parts)
