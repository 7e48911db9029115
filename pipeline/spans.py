"""The spans of the data on disk, and which of them a run learns from. Nothing heavy is imported here."""

from __future__ import annotations

import glob
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from components.config import DataConfig
from components.errors import ConfigError
from pipeline.retraining.config import WindowConfig, span_number

MAX_NUMBER = (1 << 31) - 1  # of a span or version: int32 in TFX's range_config.proto
_FIELD = re.compile(r"(\{SPAN\}|\{VERSION\})")


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
    found: dict[int, dict[int, dict[str, list[str]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    spelled: dict[tuple[int, ...], tuple[str, str]] = {}
    for split, pattern in data.splits.items():
        expression = re.compile(_expression(pattern))
        for name in glob.iglob(_FIELD.sub("*", pattern), root_dir=data.input):
            match = expression.fullmatch(name)
            if match is not None:
                groups = match.groupdict()
                version = groups.get("version")
                span = int(groups.get("span") or 0)
                for field, outer in (("span", ()), ("version", (span,))):
                    if field in groups:
                        _check_number(field.upper(), groups[field], outer, name, spelled)
                found[span][-1 if version is None else int(version)][split].append(name)
    newest = {}
    for span in sorted(found):
        version_number = max(found[span])
        newest[span] = (None if version_number < 0 else version_number, dict(found[span][version_number]))
    return newest


def _check_number(
    field: str, digits: str, outer: tuple[int, ...], name: str, spelled: dict[tuple[int, ...], tuple[str, str]]
) -> None:
    """Raises ConfigError for a number that TFX has no room for, or that two folders write in two ways."""
    number = int(digits)
    if number > MAX_NUMBER:
        raise ConfigError(
            f"data.splits: {name}: {{{field}}} is {digits}, and numbers go to {MAX_NUMBER}; name it by its day, as in "
            "20261126"
        )
    other, there = spelled.setdefault((*outer, number), (digits, name))
    if other != digits:
        raise ConfigError(
            f"data.splits: {there} and {name} have the same {{{field}}}, written {other} and {digits}; rename one"
        )


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


def _expression(pattern: str) -> str:
    """A glob with {SPAN} and {VERSION} as a regular expression; a field that stands there twice is the same twice."""
    text, seen = "", set()
    for piece in _FIELD.split(pattern):
        if piece in ("{SPAN}", "{VERSION}"):
            name = piece[1:-1].lower()
            text += rf"(?P={name})" if name in seen else rf"(?P<{name}>\d+)"
            seen.add(name)
            continue
        position = 0
        for wild in re.finditer(r"\*|\?|\[!?[^\]]+\]", piece):
            text += re.escape(piece[position : wild.start()])
            text += {"*": "[^/]*", "?": "[^/]"}.get(wild.group(), wild.group().replace("[!", "[^"))
            position = wild.end()
        text += re.escape(piece[position:])
    return text
