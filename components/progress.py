"""How a step tells the command line how far it is.

TFX runs a step's executor in the process of the local runner, but hands it nothing to report to. A runner
listens; a step reports counts and figures, never texts. Without a listener a report goes nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Reporter = Callable[[str, dict[str, float | int | str]], None]

_listeners: list[Reporter] = []


@contextmanager
def listening(reporter: Reporter) -> Iterator[None]:
    """Passes every report made inside the block to `reporter(event, values)`."""
    _listeners.append(reporter)
    try:
        yield
    finally:
        _listeners.remove(reporter)


def report(event: str, **values: float | int | str) -> None:
    """Tells the listeners that something happened, for example `report("train", step=5, steps=100, loss=0.3)`."""
    for reporter in tuple(_listeners):
        reporter(event, values)
