"""Where models come from: the version folders under a base path, and the thread that polls them.

Follows TensorFlow Serving's FileSystemStoragePathSource: sub-folders named by a number are versions, a policy picks
the aspired ones, and a base path that cannot be read changes nothing. One deliberate difference: there, one
unreadable base path stops the poll of all models; here, of its own only.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tensorflow.errors import OpError
from tensorflow.io import gfile

from serving.errors import Code, StatusError, where

_log = logging.getLogger(__name__)
_NUMBER = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions of a model to serve.

    Attributes:
        kind: `latest`, `all` or `specific`.
        latest: how many of the newest, for `latest`.
        specific: the version numbers, for `specific`.
    """

    kind: str = "latest"
    latest: int = 1
    specific: tuple[int, ...] = ()


@dataclass(frozen=True)
class Target:
    """One model to watch: its name, the folder that holds its versions, and its policy."""

    name: str
    base_path: str
    policy: VersionPolicy = VersionPolicy()


def parse_version(name: str) -> int | None:
    """The version that a folder's name stands for, or None: an int64, as `absl::SimpleAtoi` reads one."""
    if not _NUMBER.fullmatch(name) or len(name) > 64:
        return None
    version = int(name)
    return version if -(1 << 63) <= version < 1 << 63 else None


def index_versions(children: Iterable[str]) -> dict[int, str]:
    """Version → child name. Two names of one number (`1`, `001`): the last in sorted order counts, with a warning."""
    found: dict[int, str] = {}
    for child in sorted(children):
        version = parse_version(child)
        if version is None:
            continue
        if version in found:
            _log.warning("version %d: folder %r is used, %r is ignored", version, child, found[version])
        found[version] = child
    return found


def aspired_versions(policy: VersionPolicy, available: Iterable[int]) -> list[int]:
    """The versions to serve, newest first."""
    newest_first = sorted(available, reverse=True)
    if policy.kind == "latest":
        return newest_first[: max(policy.latest, 1)]
    if policy.kind == "specific":
        return [v for v in newest_first if v in policy.specific]
    return newest_first


def poll(target: Target) -> dict[int, str]:
    """Looks at the base path once.

    Returns:
        Aspired version → its folder.

    Raises:
        StatusError: `NOT_FOUND` or the file system's own code, when the base path cannot be listed.
    """
    try:
        if not gfile.isdir(target.base_path):
            raise StatusError(Code.NOT_FOUND, f"Could not find base path {target.base_path} for servable {target.name}")
        children = [c.rstrip("/") for c in gfile.listdir(target.base_path)]
    except OpError as error:
        raise StatusError(Code(error.error_code), f"base path {target.base_path}: {error.message}") from error
    except (OSError, ValueError) as error:  # a name that is not UTF-8, for one
        raise StatusError(Code.UNKNOWN, f"base path {target.base_path}: {type(error).__name__}") from error
    found = index_versions(children)
    missing = [v for v in target.policy.specific if v not in found] if target.policy.kind == "specific" else []
    if missing:
        _log.warning("model %s: requested versions %s are not under %s", target.name, missing, target.base_path)
    versions = aspired_versions(target.policy, found)
    return {v: f"{target.base_path.rstrip('/')}/{found[v]}" for v in versions}


class FileSystemSource:
    """Polls base paths and reports the aspired versions of each model.

    `on_aspired(name, {version: path})` is called from one thread at a time, after every successful look, changed or
    not, and with an empty mapping once for a model that the configuration no longer names.

    Args:
        on_aspired: the callback.
        interval_s: seconds between two looks; 0 looks once (and once more after each new configuration).
    """

    def __init__(self, on_aspired: Callable[[str, Mapping[int, str]], None], interval_s: float):
        self._on_aspired = on_aspired
        self._interval_s = interval_s
        self._targets: dict[str, Target] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failing: set[str] = set()
        self._thread: threading.Thread | None = None

    def set_targets(self, targets: Iterable[Target]) -> list[str]:
        """Replaces the configuration and looks at once.

        Returns:
            Names of models whose base path could not be read or holds no version.
        """
        with self._lock:
            new = {t.name: t for t in targets}
            for gone in sorted(set(self._targets) - set(new)):
                self._on_aspired(gone, {})
            self._targets = new
            empty = self._poll_all()
        if self._thread is None and self._interval_s > 0:
            self._thread = threading.Thread(target=self._run, name="source-poll", daemon=True)
            self._thread.start()
        return empty

    def stop(self) -> None:
        """Ends polling and waits for the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                with self._lock:
                    self._poll_all()
            except Exception as error:  # whatever it was, the next look may go well
                _log.error("a look at the base paths failed: %s", where(error))

    def _poll_all(self) -> list[str]:
        empty = []
        for target in self._targets.values():
            try:
                versions = poll(target)
            except StatusError as error:
                if target.name not in self._failing:  # once, not at every poll
                    _log.error("model %s: %s; what is served stays as it is", target.name, error.message)
                self._failing.add(target.name)
                empty.append(target.name)
                continue
            if not versions:
                if target.name not in self._failing:
                    _log.warning(
                        "No versions of servable %s found under base path %s. Is each version a folder named by a "
                        "number, such as 1/?",
                        target.name,
                        target.base_path,
                    )
                self._failing.add(target.name)
                empty.append(target.name)
            else:
                self._failing.discard(target.name)
            self._on_aspired(target.name, versions)
        return empty
