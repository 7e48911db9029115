"""Keeps what is aspired loaded, and hands out what is loaded.

    aspired (source) ─▶ policy ─▶ load ─▶ READY ─▶ unload ─▶ gone
                                   └▶ ERROR (after its retries; stays until no longer aspired)

Contracts: `set_aspired` may be called from any thread and never blocks on a load. A handle from `acquire` keeps its
version in memory until it is closed, so a version that is being replaced finishes what it has begun (it drains).
Versions of one model load one after another, versions of different models side by side.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from serving.errors import Code, StatusError, quotable
from serving.flags import CPUS
from serving.loader import Servable
from serving.policy import Act, Snapshot, State, next_action

_log = logging.getLogger(__name__)
_KEPT_ENDED = 16  # versions of one model whose end stays visible in GetModelStatus


class Loader(Protocol):
    def load(self, name: str, version: int, path: str) -> Servable: ...


@dataclass(frozen=True)
class VersionStatus:
    """What GetModelStatus reports of one version."""

    version: int
    state: State
    code: Code = Code.OK
    message: str = ""


@dataclass(eq=False)
class _Harness:
    version: int
    path: str
    state: State = State.NEW
    aspired: bool = True
    code: Code = Code.OK
    message: str = ""
    servable: Servable | None = None
    handles: int = 0
    waiting: bool = False  # between two tries to load it
    cancelled: threading.Event = field(default_factory=threading.Event)

    def status(self) -> VersionStatus:
        return VersionStatus(self.version, self.state, self.code, self.message)


@dataclass
class _Model:
    versions: dict[int, _Harness] = field(default_factory=dict)
    ended: dict[int, VersionStatus] = field(default_factory=dict)
    ready: list[_Harness] = field(default_factory=list)  # newest first


@dataclass(frozen=True)
class LoadOptions:
    """How often and how fast a failing load is tried again, and how many loads and unloads go on at once.

    `initial_load_threads` holds within `Manager.fast_load`, `load_threads` outside of it.
    """

    max_retries: int = 5
    retry_interval_s: float = 60.0
    load_threads: int = 0
    unload_threads: int = 0
    initial_load_threads: int = 4 * CPUS  # TensorFlow Serving's, for which it has no flag


class Manager:
    """Owns all versions of all models. Thread-safe.

    Args:
        loader: loads one version.
        options: retries and threads.
        on_state: called as (model, status) at every change, in no particular thread and under the lock: it must be
            quick and must not wait for another thread.
    """

    def __init__(
        self,
        loader: Loader,
        options: LoadOptions = LoadOptions(),
        on_state: Callable[[str, VersionStatus], None] = lambda name, status: None,
    ):
        self._loader = loader
        self._options = options
        self._on_state = on_state
        self._models: dict[str, _Model] = {}
        self._changed = threading.Condition()
        self._load_slots = threading.Semaphore(max(1, options.load_threads))
        self._unload_slots = threading.Semaphore(max(1, options.unload_threads))
        self._workers: set[threading.Thread] = set()
        self._stopped = False

    # === What should be loaded ===

    @contextmanager
    def fast_load(self) -> Iterator[None]:
        """Within it, nobody is being answered yet: `initial_load_threads` versions load at once."""
        usual, self._load_slots = self._load_slots, threading.Semaphore(max(1, self._options.initial_load_threads))
        try:
            yield
        finally:
            self._load_slots = usual

    def set_aspired(self, name: str, versions: Mapping[int, str]) -> None:
        """Makes `versions` (version → folder) the aspired ones of `name`; an empty mapping lets all go."""
        with self._changed:
            if self._stopped or (not versions and name not in self._models):
                return
            model = self._models.setdefault(name, _Model())
            for harness in model.versions.values():
                harness.aspired = harness.version in versions
                if harness.aspired:
                    harness.cancelled.clear()
                else:
                    harness.cancelled.set()  # a load that waits for its next try gives up
            for version, path in versions.items():
                if version not in model.versions:
                    model.versions[version] = _Harness(version, path)
                    model.ended.pop(version, None)
            self._advance(name, model)

    def _advance(self, name: str, model: _Model) -> None:
        """Starts all steps that the policy asks for. Holds the lock."""
        for harness in [h for h in model.versions.values() if not h.aspired]:
            if harness.state in (State.NEW, State.ERROR):
                self._end(name, model, harness)
        while True:
            action = next_action(Snapshot(h.version, h.state, h.aspired) for h in model.versions.values())
            if action is None:
                return
            if action.act is Act.LOAD and any(
                h.state is State.LOADING and not h.waiting for h in model.versions.values()
            ):
                return  # one load at a time; when it ends, this is asked again
            harness = model.versions[action.version]
            if action.act is Act.LOAD:
                self._set_state(name, harness, State.LOADING)
                self._start(self._load, name, model, harness)
            else:
                model.ready.remove(harness)
                self._set_state(name, harness, State.UNLOADING)
                self._start(self._unload, name, model, harness)

    def _start(self, work: Callable, name: str, model: _Model, harness: _Harness) -> None:
        def body() -> None:
            try:
                work(name, model, harness)
            finally:
                with self._changed:
                    self._workers.discard(threading.current_thread())
                    self._changed.notify_all()

        thread = threading.Thread(target=body, name=f"{work.__name__[1:]}-{name}-{harness.version}", daemon=True)
        self._workers.add(thread)
        thread.start()

    # === The two pieces of work, each in a thread of its own ===

    def _load(self, name: str, model: _Model, harness: _Harness) -> None:
        servable = None
        started = time.monotonic()
        for attempt in range(self._options.max_retries + 1):
            if attempt and harness.cancelled.wait(max(0.0, self._options.retry_interval_s)):
                break
            harness.waiting = False
            try:
                with self._load_slots:
                    servable = self._loader.load(name, harness.version, harness.path)
                break
            except Exception as error:  # whatever a foreign model makes TensorFlow raise must not end the server
                status = error if isinstance(error, StatusError) else StatusError(Code.INTERNAL, str(error))
                _log.error("model %s version %d: try %d: %s", name, harness.version, attempt + 1, status)
                with self._changed:
                    harness.code, harness.message = status.code, status.message
                    harness.waiting = True
                    self._on_state(name, harness.status())
                    self._advance(name, model)  # another version need not wait for this one's next try
        with self._changed:
            if servable is None:
                self._set_state(name, harness, State.ERROR)
            else:
                harness.servable, harness.code, harness.message = servable, Code.OK, ""
                model.ready = sorted([*model.ready, harness], key=lambda h: -h.version)
                self._set_state(name, harness, State.READY)
                _log.info(
                    "model %s version %d: available after %.3f s",
                    name, harness.version, time.monotonic() - started,
                )  # fmt: skip
            self._advance(name, model)
            self._changed.notify_all()

    def _unload(self, name: str, model: _Model, harness: _Harness) -> None:
        with self._changed:
            self._changed.wait_for(lambda: harness.handles == 0)
        with self._unload_slots:
            assert harness.servable is not None
            harness.servable.close()
        with self._changed:
            harness.servable = None
            self._end(name, model, harness)
            _log.info("model %s version %d: unloaded", name, harness.version)
            self._advance(name, model)
            self._changed.notify_all()

    def _end(self, name: str, model: _Model, harness: _Harness) -> None:
        self._set_state(name, harness, State.DISABLED)
        del model.versions[harness.version]
        model.ended[harness.version] = harness.status()
        for old in sorted(model.ended)[:-_KEPT_ENDED]:
            del model.ended[old]
        if harness.aspired and not self._stopped:  # aspired again while it was going
            model.versions[harness.version] = _Harness(harness.version, harness.path)

    def _set_state(self, name: str, harness: _Harness, state: State) -> None:
        harness.state = state
        self._on_state(name, harness.status())

    # === What is loaded ===

    @contextmanager
    def acquire(self, name: str, version: int | None = None) -> Iterator[Servable]:
        """Lends the newest ready version, or the one asked for.

        Raises:
            StatusError: `NOT_FOUND` if it is not ready.
        """
        with self._changed:
            model = self._models.get(name)
            ready = model.ready if model else []
            harness = next((h for h in ready if version is None or h.version == version), None)
            if harness is None or harness.servable is None:
                said = quotable(name)
                request = f"Latest({said})" if version is None else f"Specific({said}, {version})"
                raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {request}")
            harness.handles += 1
            servable = harness.servable
        try:
            yield servable
        finally:
            with self._changed:
                harness.handles -= 1
                if harness.handles == 0 and harness.state is State.UNLOADING:
                    self._changed.notify_all()

    def statuses(self, name: str) -> list[VersionStatus]:
        """All known versions, the newest first: those there are and those that ended of late."""
        with self._changed:
            model = self._models.get(name)
            if model is None:
                return []
            known = {**model.ended, **{v: h.status() for v, h in model.versions.items()}}
        return [known[v] for v in sorted(known, reverse=True)]

    def is_available(self, name: str) -> bool:
        with self._changed:
            model = self._models.get(name)
            return bool(model and model.ready)

    def wait_settled(self, names: list[str], timeout_s: float | None, stop: threading.Event) -> list[str]:
        """Waits until each model has a ready version, or has given up on every aspired one.

        Returns:
            Names without a ready version. Ends early, with those so far, when `stop` is set.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s

        def settled(name: str) -> bool:
            model = self._models.get(name)
            if model is None:
                return False
            if not model.versions:  # none has come yet, or the last has been withdrawn
                return bool(model.ended)
            return bool(model.ready) or all(h.state is State.ERROR for h in model.versions.values())

        with self._changed:
            while not stop.is_set() and not all(settled(n) for n in names):
                if deadline is not None and time.monotonic() >= deadline:
                    break
                self._changed.wait(0.1)
        return [n for n in names if not self.is_available(n)]

    def stop(self, drain_s: float) -> None:
        """Unloads everything; waits up to `drain_s` seconds for requests that are still being answered."""
        with self._changed:
            for name, model in self._models.items():
                for harness in model.versions.values():
                    harness.aspired = False
                    harness.cancelled.set()
                self._advance(name, model)
            self._stopped = True
            self._changed.wait_for(lambda: not self._workers, drain_s)
