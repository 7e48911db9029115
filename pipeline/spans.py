"""The spans of the data on disk, and which of them a run learns from. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from components.config import DataConfig
from components.errors import ConfigError
from components.examples.spans import find_versions, newest_version
from pipeline.retraining.config import WindowConfig, span_number


def has_spans(data: DataConfig) -> bool:
    """Whether the configuration's data comes as spans."""
    return any("{SPAN}" in pattern for pattern in data.splits.values())


def find_files(data: DataConfig) -> dict[int, tuple[int | None, dict[str, list[Path]]]]:
    """Span → its newest version and the files of that by split; one span 0 where the data has none."""
    return {
        span: (version, {split: [data.input / name for name in names] for split, names in by_split.items()})
        for span, (version, by_split) in find_names(data).items()
    }


def find_names(data: DataConfig) -> dict[int, tuple[int | None, dict[str, list[str]]]]:
    """The same by the files' names under `data.input`.

    Raises:
      ConfigError: two folders have the same number, or one has a number that is too large.
    """
    found = find_versions(data.input, data.splits)
    newest = {span: newest_version(versions) for span, versions in found.items()}
    return {span: (version, found[span][version]) for span, version in newest.items()}


def incomplete_spans(data: DataConfig, window: WindowConfig) -> dict[int, tuple[str, ...]]:
    """Spans that may be in the window and are left out of it, as they have no file for a split: span → these splits."""
    if not has_spans(data):
        return {}
    return {
        number: tuple(split for split in data.splits if split not in by_split)
        for number, (_, by_split) in find_names(data).items()
        if set(by_split) != set(data.splits) and is_eligible(window, number)
    }


def describe_incomplete(data: DataConfig, incomplete: dict[int, tuple[str, ...]]) -> list[str]:
    """What to say of each."""
    return [
        f"span {number} is left out: no file for "
        + ", ".join(f"data.splits.{split} ({pattern})" for split, pattern in data.splits.items() if split in gone)
        for number, gone in incomplete.items()
    ]


def window_members(window: WindowConfig, numbers: Iterable[int], newest: int | None = None) -> tuple[int, ...]:
    """The spans of a window that ends with `newest` (None: with the newest there is), oldest first."""
    inside = sorted(n for n in set(numbers) if is_eligible(window, n) and (newest is None or n <= newest))
    return tuple(inside if window.last == "all" else inside[-window.last :])


def is_eligible(window: WindowConfig, number: int) -> bool:
    """Whether a span may be in the window at all."""
    after = window.since is None or number >= span_number(window.since)
    before = window.until is None or number <= span_number(window.until)
    return after and before and number not in window.exclude


def spans_of_run(data: DataConfig, window: WindowConfig) -> tuple[int, ...]:
    """The spans that a run learns from and is evaluated on, oldest first; (0,) where the data has none.

    Raises:
      ConfigError: the window holds none of those that are there.
    """
    if not has_spans(data):
        return (0,)
    there = [number for number, (_, by_split) in find_names(data).items() if set(by_split) == set(data.splits)]
    members = window_members(window, there)
    if not members:
        raise ConfigError(
            f"window: holds no span; there are {len(there)} whole ones in {data.input}"
            + (f", from {min(there)} to {max(there)}" if there else "")
            + "".join(f"; {line}" for line in describe_incomplete(data, incomplete_spans(data, window))[-3:])
        )
    return members
