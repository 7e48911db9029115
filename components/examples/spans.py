"""Which files of `data.input` the globs of `data.splits` name, by span, version and split. Nothing heavy is imported.

The one finder of the product: `config check`, the schedule, the fingerprint of a run and the ingest all ask it.
"""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.errors import ConfigError, DataError

MAX_NUMBER = (1 << 31) - 1  # of a span or version: int32 in TFX's range_config.proto
_FIELD = re.compile(r"(\{SPAN\}|\{VERSION\})")

Names = dict[str, list[str]]  # by split, sorted, relative to the folder


def find_versions(folder: str | Path, splits: Mapping[Any, str]) -> dict[int, dict[int | None, Names]]:
    """Span → version → the files of each split; span 0 and version None where the globs have no such field.

    Args:
      folder: that the globs start from; nothing in its own name is a wildcard.
      splits: a glob by split.

    Raises:
      ConfigError: two folders have the same number, or one has a number that is too large; a name is not UTF-8.
    """
    found: dict[int, dict[int | None, Names]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    spelled: dict[tuple[int, ...], tuple[str, str]] = {}
    for split, written in splits.items():
        pattern = os.path.normpath(written)  # the same file by two spellings is one file
        expression = re.compile(_expression(pattern)) if _FIELD.search(pattern) else None
        for name in sorted(matching_names(folder, pattern)):
            check_name(name)
            if expression is None:
                found[0][None][split].append(name)
            elif match := expression.fullmatch(name):
                groups = match.groupdict()
                span, version = int(groups.get("span") or 0), groups.get("version")
                for field, outer in (("span", ()), ("version", (span,))):
                    if field in groups:
                        _check_number(field.upper(), groups[field], outer, name, spelled)
                found[span][None if version is None else int(version)][split].append(name)
    return {
        span: {version: dict(by_split) for version, by_split in versions.items()}
        for span, versions in sorted(found.items())
    }


def newest_version(versions: Mapping[int | None, Names]) -> int | None:
    """The greatest of a span's versions; None where it has none."""
    return max(versions, key=lambda version: -1 if version is None else version)


def files_of(
    folder: str | Path, splits: Mapping[Any, str], span: int | None = None, version: int | None = None
) -> tuple[int, int | None, Names]:
    """Span, version and files that a run reads.

    Args:
      folder, splits: as for `find_versions`.
      span: None: the newest.
      version: None: the newest of the span.

    Raises:
      DataError: a split has no file.
      ConfigError: as `find_versions`.
    """
    found = find_versions(folder, splits)
    if not any(_FIELD.search(pattern) for pattern in splits.values()):
        span = 0
    elif span is None:
        span = max(found, default=0)
    versions = found.get(span, {})
    if version is None and versions:
        version = newest_version(versions)
    names = versions.get(version, {})
    for split, pattern in splits.items():
        if split not in names:
            of_span = f" of span {span}" if "{SPAN}" in pattern and found else ""
            of_span += f" in version {version}" if of_span and version is not None else ""
            raise DataError(f"data.splits.{split}: no file{of_span} matches {pattern!r} in {folder}")
    return span, version, {split: names[split] for split in splits}


def matching_names(folder: str | Path, pattern: str) -> Iterator[str]:
    """The files under a folder that match a glob, by their names in it; neither folders nor pipes, sockets and devices.

    As in a shell, a wildcard matches no hidden file: editors and copying programs leave such files beside the data. A
    {SPAN} or {VERSION} is a wildcard, too.
    """
    pattern = os.path.normpath(_FIELD.sub("*", pattern))
    for name in glob.iglob(pattern, root_dir=folder):
        path = os.path.join(folder, name)
        if os.path.isfile(path) or not os.path.exists(path):  # the latter: a link to nowhere, which is not passed over
            yield name


def check_name(name: str) -> None:
    """Raises ConfigError for a name that is not UTF-8: reports and metadata have no other."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise ConfigError(f"{shown}: the name of the file is not UTF-8; rename it") from None


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


def _expression(pattern: str) -> str:
    """A glob with {SPAN} and {VERSION} as a regular expression; a field that stands there twice is the same twice."""
    text, seen = "", set()
    for piece in _FIELD.split(pattern):
        if piece in ("{SPAN}", "{VERSION}"):
            name = piece[1:-1].lower()
            whole = r"(?<!\d)" if text.endswith("[^/]*") else ""  # the star takes no digits of the number
            text += rf"(?P={name})" if name in seen else rf"{whole}(?P<{name}>[0-9]+)"
            seen.add(name)
            continue
        position = 0
        for wild in re.finditer(r"\*|\?|\[!?[^\]]+\]", piece):
            text += re.escape(piece[position : wild.start()])
            text += {"*": "[^/]*", "?": "[^/]"}.get(wild.group(), wild.group().replace("[!", "[^"))
            position = wild.end()
        text += re.escape(piece[position:])
    return text
