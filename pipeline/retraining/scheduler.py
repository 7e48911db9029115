"""One look (`look`), and the loop that looks again and again (`loop`).

A look: what an earlier one left open is settled or gone on with; else it is decided whether to run. A run's triggers
are recorded before it starts, and it is settled by its record afterwards. Killed at any moment, the next look goes on
from there: it waits for a run that is still alive, takes the record of one that has ended, and starts one again that
has left none (the pipeline itself then goes on with the steps that are done).
"""

from __future__ import annotations

import datetime as dt
import fcntl
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from components.errors import BusyError, PipelineError
from components.push import base_path
from pipeline.config import Config
from pipeline.fingerprint import FileHashes
from pipeline.retraining import launch, observe, results
from pipeline.retraining.decision import Decision, Measurement, Observed, Span, decide, is_enough, retry_pause, span_of
from pipeline.retraining.launch import Launch, Request, Stopped
from pipeline.retraining.state import FILE, Run, State, open_run_of
from pipeline.retraining.watch import Before, NotRolledBack, NotWatched
from pipeline.spans import has_spans, is_eligible

_log = logging.getLogger(__name__)
_LOCK = "schedule.lock"
_BEFORE = "server_before"  # in the result of a run: what its watch needs to know


class Measure(Protocol):
    """Measures drift and score of the live version, on the newest of the spans; leaves out what it cannot measure."""

    def __call__(self, live: int, spans: tuple[Span, ...], stop: Event) -> list[Measurement]: ...


class Watch(Protocol):
    """Watches the model server after a push."""

    def before(self) -> Before:
        """Looks at the server before a run."""

    def __call__(self, version: int, before: Before, stop: Event) -> str | None:
        """Returns why the version was rolled back, or None.

        Raises:
          Stopped: `stop` was set.
          NotRolledBack: it stays live though it is bad.
          NotWatched: no server has answered, neither before the run nor after it.
        """


@dataclass(frozen=True)
class Look:
    """What a look came to: the decision and, where it ran, the run as it was settled."""

    decision: Decision
    run: Run | None = None


class Scheduler:
    """The schedule of one pipeline root.

    Args:
      config: the whole configuration.
      start: starts a run; see `launch.Launch`.
      clock: the time, with a time zone.
      measure, watch: see there; None: not done.
      deliver: delivers queued notifications; None: they stay queued.
      after_run: called when a run has been settled, for housekeeping.
      stop: set to end a look or the loop early; what is under way is gone on with at the next start.
    """

    def __init__(
        self, config: Config, start: Launch, *, clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        measure: Measure | None = None, watch: Watch | None = None, deliver: Callable[[State], None] | None = None,
        after_run: Callable[[], None] | None = None, stop: Event | None = None,
    ) -> None:  # fmt: skip
        self._config, self._start, self._clock = config, start, clock
        self._measure, self._watch, self._deliver, self._after_run = measure, watch, deliver, after_run
        self.stop = stop or Event()

    # === Looks ===

    def look(self) -> Look:
        """One look; runs what is due and returns when it has ended.

        Raises:
          BusyError: another schedule is at work on this root.
          PipelineError: the state or the data cannot be read or written.
        """
        with self._alone(), self._state() as state:
            return self._look(state)

    def explain(self) -> Decision:
        """What a look would do now; nothing is run and nothing changes, and another schedule may be at work."""
        now = self._clock()
        config = self._config
        if not (config.root / FILE).exists():
            return decide(now, config.schedule, config.window, self._before_first_look(now))
        with self._state() as state:
            if state.cron_since() is None:
                return decide(now, config.schedule, config.window, self._before_first_look(now))
            return decide(now, config.schedule, config.window, self._observe(state, now, self._find(now)))

    def loop(self, told: Callable[[Look], None] = lambda look: None) -> None:
        """Looks until `stop` is set; sleeps in between until something may have changed.

        The pause is counted by a clock that nobody can set, so that a clock that was set back does not stall the loop.
        A look that fails for a reason that may pass (the disk is full, a folder is away) is made again.

        Args:
          told: called after each look that changed the decision or ran something.

        Raises:
          BusyError: another schedule is at work on this root.
        """
        with self._alone():
            while not self.stop.is_set():
                pause = self._config.schedule.poll_s
                try:
                    with self._state() as state:
                        look = self._look(state, told)
                    pause = self._pause(look)
                except Stopped:
                    break
                except PipelineError as error:
                    _log.error("%s", error)
                self.stop.wait(pause)

    # === Inside a look ===

    def _look(self, state: State, told: Callable[[Look], None] = lambda look: None) -> Look:
        now = self._clock()
        spans = self._find(now, save=True)
        if state.cron_since() is None:
            state.first_look(now, self._known_before(spans))
        state.clock_is(now)
        self._measure_if_due(state, now, spans)
        observed = self._observe(state, now, spans)
        decision = decide(now, self._config.schedule, self._config.window, observed)
        changed = state.decided(decision, now)
        run = self._act(state, decision, now)
        look = Look(decision, run)
        if changed or run is not None:
            told(look)
        if self._deliver is not None:
            self._deliver(state)
        return look

    def _act(self, state: State, decision: Decision, now: dt.datetime) -> Run | None:
        root = self._config.root
        if not decision.run:
            state.skip(decision.skipped, now)
            return None
        run: Run | None
        with launch.run_lock(root, self.stop) as lock:
            if decision.resume is None:
                run = state.start(decision, now, launch.newest_record(root))
                if run is None:  # recorded by another schedule a moment ago
                    return None
                result = None
            else:
                run = state.get(decision.resume)
                if run.status == "watching":
                    return self._watch_and_settle(state, run, run.result or {})
                result = launch.finished(root, run.key, run.last_record) if run.status == "started" else None
                if result is None:
                    run = state.attempt(run, launch.newest_record(root))
            if result is None:
                run = self._look_before(state, run)
                result = self._start(self._request(run), self.stop, lock)
        return self._settle(state, run, result)

    def _look_before(self, state: State, run: Run) -> Run:
        """Notes what the server is like before a run; a run that was killed may have pushed: its first look counts."""
        if self._watch is None or _BEFORE in (run.result or {}):
            return run
        return state.note(run, {_BEFORE: asdict(self._watch.before())})

    def _request(self, run: Run) -> Request:
        newest = run.newest if has_spans(self._config.data) else None
        configured = self._config.window.exclude  # an override replaces it, so it is said again
        return Request(run.key, newest, tuple(sorted({*configured, *run.exclude})) if run.exclude else ())

    def _settle(self, state: State, run: Run, result: dict[str, Any]) -> Run:
        status = results.status_of(result)
        now = self._clock()
        schedule = self._config.schedule
        summary = results.summary(result)
        if status == "failed" and results.may_pass(result) and run.attempts < schedule.attempts:
            state.retry(run, now + retry_pause(schedule, run.attempts), summary)
            return state.get(run.id)
        if status == "pushed" and self._watch is not None:
            summary[_BEFORE] = (run.result or {}).get(_BEFORE)
            state.watching(run, summary)
            return self._watch_and_settle(state, state.get(run.id), summary)
        return self._close(state, run, status, summary)

    def _watch_and_settle(self, state: State, run: Run, summary: dict[str, Any]) -> Run:
        version = summary.get("version")
        record = summary.get("record")
        reason = None
        if self._watch is not None and isinstance(version, int):
            try:
                reason = self._watch(version, Before(**summary.get(_BEFORE) or {}), self.stop)
            except NotRolledBack as error:
                _log.error("%s", error)
                return self._close(state, run, "failed", {**summary, "cause": str(error)})
            except NotWatched as error:
                _log.warning("version %d was not watched: %s", version, error)
                results.annotate_record(self._config.root, record, {"not_watched": str(error)})
        if reason is not None:
            results.annotate_record(self._config.root, record, {"rolled_back": reason})
            return self._close(state, run, "rolled_back", {**summary, "rolled_back": reason})
        return self._close(state, run, "pushed", summary)

    def _close(self, state: State, run: Run, status: str, summary: dict[str, Any]) -> Run:
        refused, released, suspects = self._refused(state, run, summary)
        body = results.body(self._config.name, self._config.root, run, status, summary, self._clock())
        events = [(event, {**body, "event": event}) for event in results.events(status)]
        state.settle(run, status, self._clock(), summary, events, refused, released, suspects)
        if self._after_run is not None:
            self._after_run()
        return state.get(run.id)

    def _refused(self, state: State, run: Run, result: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
        """The triggers of spans whose data was refused; those of the run that are to be answered without them; and of
        the latter the spans one of which is to blame, where the step that refused the data saw the window as a whole.
        """
        if not results.is_refused_data(result):
            return [], [], []
        spans = {item: span_of(item) for item in run.triggers if item.startswith("span:")}
        number = results.refused_span(result)
        earlier = state.handled() - spans.keys()
        known = [span for span in self._find(self._clock()) if span.trigger in earlier]
        if number is None:
            refused = list(spans)
            window, before = self._config.window, state.refused()
            usable = [span for span in known if is_eligible(window, span.number) and span.trigger not in before]
            if len(spans) > 1 and is_enough(window, len(usable) + 1):
                return [], list(run.triggers), refused
        else:
            refused = [item for item in spans if spans[item] == number]
            if not refused:  # an earlier run has seen it; if it was corrected meanwhile, that is a trigger of its own
                refused = [span.trigger for span in known if span.number == number]
        digests = {item.rpartition(":")[2] for item in refused}  # theirs, and of what was measured on them
        return refused, [item for item in run.triggers if item.rpartition(":")[2] not in digests] if refused else [], []

    def _find(self, now: dt.datetime, save: bool = False) -> tuple[Span, ...]:
        hashes = FileHashes(self._config.root / "file_hashes.json")
        spans = observe.find_spans(self._config.data, hashes, now, self._config.schedule.settle_s)
        if save:
            try:
                hashes.save()
            except OSError as error:
                raise PipelineError(f"paths.root: {self._config.root} cannot be written ({error.strerror})") from None
        return spans

    def _known_before(self, spans: tuple[Span, ...]) -> list[Span]:
        _, lineage = base_path.live_lineage(self._config.serving_dir)
        return observe.known_before(spans, lineage, self._config.data, self._config.schedule.first_span)

    def _before_first_look(self, now: dt.datetime) -> Observed:
        spans = self._find(now)
        known = self._known_before(spans)
        return Observed(
            name=self._config.name, cron_since=now, spans=spans, live=base_path.live_number(self._config.serving_dir),
            handled=frozenset(span.trigger for span in known),
            newest_handled=max((span.number for span in known), default=None),
        )  # fmt: skip

    def _observe(self, state: State, now: dt.datetime, spans: tuple[Span, ...]) -> Observed:
        recent = state.runs(limit=200)
        return Observed(
            name=self._config.name,
            cron_since=state.cron_since() or now,
            spans=spans,
            handled=state.handled(),
            refused=state.refused(),
            suspects=state.suspects(),
            newest_handled=state.newest_handled(),
            measurements=state.measurements(),
            live=base_path.live_number(self._config.serving_dir),
            started=tuple(run.started_at for run in recent),
            ended=tuple(run.ended_at for run in recent if run.ended_at is not None),
            open_run=open_run_of(state.open_run()),
        )

    def _measure_if_due(self, state: State, now: dt.datetime, spans: tuple[Span, ...]) -> None:
        """Measures when something is bounded, a version is live, and long enough has passed since the last time.

        What could not be measured is measured again after that time, on the same evidence.
        """
        schedule = self._config.schedule
        bounded = schedule.bounds.keys()
        if self._measure is None or not bounded or state.open_run() is not None:
            return
        live = base_path.live_number(self._config.serving_dir)
        last, measured_on = state.measured_at()
        due = last is None or not last <= now < last + dt.timedelta(seconds=schedule.measure_every_s)
        if live is None or not due:
            return
        evidence = observe.evidence(self._config, live, spans)
        if evidence == measured_on:
            return
        found = self._measure(live, spans, self.stop)
        known = {item.trigger for item in state.measurements()}
        drifted = [item for item in found if results.is_drift(schedule, item) and item.trigger not in known]
        body = {"pipeline": self._config.name, "root": str(self._config.root), "event": "drift"}
        events = [("drift", {**body, **results.drift_body(item, now)}) for item in drifted]
        complete = bounded <= {item.rule for item in found}
        state.measured(found, now, evidence if complete else None, events)

    def _pause(self, look: Look) -> float:
        if look.run is not None:
            return 0.0
        poll = self._config.schedule.poll_s
        if look.decision.check_at is None:
            return poll
        return min(max((look.decision.check_at - self._clock()).total_seconds(), 0.05), poll)

    @contextmanager
    def _state(self) -> Iterator[State]:
        state = State(self._config.root)
        try:
            yield state
        finally:
            state.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        root: Path = self._config.root
        try:
            root.mkdir(parents=True, exist_ok=True)
            file = (root / _LOCK).open("a+")
        except OSError as error:
            raise PipelineError(
                f"paths.root: {root} cannot be written ({error.strerror}); the schedule keeps its state there"
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(f"{root}: another schedule is at work on this pipeline root") from None
            yield
