"""Whether to retrain now. `decide` is a pure function: the same time, configuration and observation, the same answer.

A *trigger* is one reason to run, named so that it is the same however often it is seen: a due time of the cron
expression, a span in one version with one content, a measurement of one version of the model on one evidence. A
trigger that has been recorded is never acted on again, so that a crash, a restart or a clock that was set back
cannot run anything twice. What only *holds* a run (quiet hours, the pause, the cap) leaves its triggers for later.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal
from zoneinfo import ZoneInfo

from pipeline.retraining import cron
from pipeline.retraining.config import ScheduleConfig, WindowConfig
from pipeline.spans import is_eligible, window_members

Rule = Literal["drift", "serving_drift", "score"]
_LONG_AGO = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MEASURED: tuple[Rule, ...] = ("drift", "serving_drift", "score")


@dataclass(frozen=True)
class Span:
    """One span of the data, in its newest version; `number` 0 stands for data without spans.

    Attributes:
      digest: of the names and contents of its files.
      modified: when the newest of them was written.
      complete: whether every split has a file.
    """

    number: int
    version: int | None
    digest: str
    modified: dt.datetime
    complete: bool = True

    @property
    def trigger(self) -> str:
        """Its name as a trigger."""
        version = "" if self.version is None else f".{self.version}"
        return f"span:{self.number}{version}:{self.digest[:16]}"

    def __str__(self) -> str:
        return f"span {self.number}" + ("" if self.version is None else f" version {self.version}")


def span_of(trigger: str) -> int | None:
    """The number of the span that a trigger stands for; None where it stands for something else."""
    kind, _, rest = trigger.partition(":")
    return int(rest.split(":")[0].split(".")[0]) if kind == "span" else None


@dataclass(frozen=True)
class Measurement:
    """A value of the live version `live`, measured on `evidence` (a digest of what it was measured on)."""

    rule: Rule
    live: int
    evidence: str
    value: float
    what: str  # e.g. "label (L-infinity)"

    @property
    def trigger(self) -> str:
        """Its name as a trigger."""
        return f"{self.rule}:{self.live}:{self.evidence[:16]}"


@dataclass(frozen=True)
class OpenRun:
    """A run that was started and has not been settled.

    Attributes:
      number: its row in the state.
      not_before: when it may be tried again; None: it was interrupted, at once.
      watching: it has pushed a version, which is live already and must be watched.
    """

    number: int
    reason: str
    attempts: int
    not_before: dt.datetime | None = None
    watching: bool = False


@dataclass(frozen=True)
class Observed:
    """All that a decision depends on beside the time and the configuration.

    Attributes:
      name: of the pipeline; two pipelines have different jitter.
      cron_since: due times up to here are over; when the schedule was first looked at, at the least.
      spans: what is on disk, in any order, each in its newest version.
      handled: every trigger that was ever recorded.
      refused: those triggers of spans whose data was refused: left out of every window until they are corrected.
      suspects: triggers of new spans that a run was refused for as a whole; each is run on again without the others.
      newest_handled: the greatest number of a span that a run was started on, or that was there before.
      measurements: the latest.
      live: the live version of the model.
      started, ended: when recent runs did.
      open_run: the run to go on with.
    """

    name: str = ""
    cron_since: dt.datetime = _LONG_AGO
    spans: tuple[Span, ...] = ()
    handled: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    suspects: frozenset[str] = frozenset()
    newest_handled: int | None = None
    measurements: tuple[Measurement, ...] = ()
    live: int | None = None
    started: tuple[dt.datetime, ...] = ()
    ended: tuple[dt.datetime, ...] = ()
    open_run: OpenRun | None = None


@dataclass(frozen=True)
class Finding:
    """What one rule came to, for `schedule explain`."""

    rule: str
    fires: bool
    text: str


@dataclass(frozen=True)
class Decision:
    """The answer and its reason.

    Attributes:
      run: whether to start a run, or go on with `resume`, now.
      reason: in one line.
      findings: every rule with what it came to.
      triggers: what the run answers; recorded before it starts.
      newest: the span that the window ends with; None for data without spans.
      exclude: spans left out of the window because their data was refused, or another suspect is tried first.
      skipped: triggers of spans that no run will see, with the reason; recorded too.
      resume: the open run to go on with.
      check_at: when the answer may change without anything new to see.
    """

    run: bool
    reason: str
    findings: tuple[Finding, ...] = ()
    triggers: tuple[str, ...] = ()
    newest: int | None = None
    exclude: tuple[int, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    resume: int | None = None
    check_at: dt.datetime | None = None


@dataclass
class _Sorted:
    """The spans by what can be done with them; `usable` from the oldest on."""

    usable: list[Span] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)  # new, and left out until a suspect has been tried
    outside: list[tuple[str, str]] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    settles_at: dt.datetime | None = None


@dataclass(frozen=True)
class _Plan:
    """The span that a run would end with, those that it would be the first to see, and those that none will."""

    newest: int | None = None
    covered: tuple[Span, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


def decide(now: dt.datetime, schedule: ScheduleConfig, window: WindowConfig, observed: Observed) -> Decision:
    """Decides whether to run now.

    Args:
      now: with a time zone.
      schedule, window: sections of the configuration.
      observed: what is there.
    """
    if observed.open_run is not None:
        return _go_on(now, schedule, observed.open_run)
    spans = _sort(now, schedule, window, observed)
    _hold_all_but_one_suspect(window, observed, spans)
    plan = _plan_new(schedule, window, observed, spans) if schedule.on_new_span else _Plan()
    rules = [
        _cron(now, schedule, observed),
        _spans(schedule, observed, spans, plan),
        *(_measured(rule, schedule, observed) for rule in _MEASURED),
    ]
    findings = tuple(finding for finding, _ in rules)
    firing = [(finding, trigger) for finding, trigger in rules if finding.fires]
    if firing and not plan.covered:
        plan = _plan_newest(window, observed, spans)
    decision = Decision(
        False, "", findings, newest=plan.newest, exclude=tuple(sorted([*spans.refused, *spans.held])),
        skipped=(*spans.outside, *plan.skipped),
        check_at=_earliest([_next_cron(now, schedule, observed), spans.settles_at]),
    )  # fmt: skip
    if not firing:
        return replace(decision, reason="nothing is due: " + "; ".join(item.text for item in findings if item.text))
    due = "; ".join([*(finding.text for finding, _ in firing), *_left_out(window, spans, plan)])
    if plan.newest is None:
        waits = "; ".join(spans.waiting[:3]) or "no span is there, or every one is left out"
        return replace(decision, reason=f"due ({due}), but there is nothing to learn from: {waits}")
    hold = _hold(now, schedule, observed)
    if hold is not None:
        text, until = hold
        held = (*findings, Finding("hold", False, text))
        return replace(decision, reason=f"held by {text} (due: {due})", findings=held, check_at=until)
    triggers = [trigger for _, trigger in firing if trigger] + [span.trigger for span in plan.covered]
    return replace(decision, run=True, reason=due, triggers=tuple(dict.fromkeys(triggers)), check_at=None)


def is_enough(window: WindowConfig, members: int) -> bool:
    """Whether a window of so many spans has something to learn from and something to evaluate on."""
    return members > window.evaluate_newest


def _go_on(now: dt.datetime, schedule: ScheduleConfig, run: OpenRun) -> Decision:
    if run.watching:  # nothing holds it: the version is live, and only a watch can roll it back
        text = f"the watch after the push goes on: {run.reason}"
        return Decision(True, text, (Finding("open run", True, text),), resume=run.number)
    again = f"attempt {run.attempts + 1} of {schedule.attempts}: {run.reason}"
    quiet = cron.quiet_until(schedule.quiet_hours, schedule.time_zone, now)
    if quiet is not None:
        text = f"quiet hours until {_clock(schedule, quiet)}"
        finding = Finding("open run", False, f"{again}; held by {text}")
        return Decision(False, finding.text, (finding,), resume=run.number, check_at=quiet)
    longest = now + retry_pause(schedule, run.attempts)
    if run.not_before is not None and now < run.not_before <= longest:  # later than that: the clock was set back
        finding = Finding("open run", False, f"{again}; not before {_clock(schedule, run.not_before)}")
        return Decision(False, finding.text, (finding,), resume=run.number, check_at=run.not_before)
    return Decision(True, again, (Finding("open run", True, again),), resume=run.number)


def retry_pause(schedule: ScheduleConfig, attempts: int) -> dt.timedelta:
    """How long to wait after that many failed attempts: twice as long each time."""
    return dt.timedelta(seconds=schedule.retry_after_s * 2 ** (attempts - 1))


def _sort(now: dt.datetime, schedule: ScheduleConfig, window: WindowConfig, observed: Observed) -> _Sorted:
    found = _Sorted()
    settle = dt.timedelta(seconds=schedule.settle_s)
    blocked = False
    for span in sorted(observed.spans, key=lambda span: span.number):
        if span.trigger in observed.refused:
            found.refused.append(span.number)
        elif not is_eligible(window, span.number):
            if span.trigger not in observed.handled:
                found.outside.append((span.trigger, f"{span} lies outside window.since and until, or is excluded"))
        elif span.trigger in observed.handled:
            found.usable.append(span)
        elif span.modified <= now < span.modified + settle:  # written in the future: the clock was set back
            found.waiting.append(f"{span} was written to in the last {schedule.settle_s:g} s")
            found.settles_at = _earliest([found.settles_at, span.modified + settle])
            blocked = True  # those after it wait too, or it would be overtaken
        elif not span.complete:
            found.waiting.append(f"{span} lacks the file of a split")
        elif not blocked:
            found.usable.append(span)
    return found


def _hold_all_but_one_suspect(window: WindowConfig, observed: Observed, spans: _Sorted) -> None:
    """A run was refused for the data of its window as a whole: which of its new spans is to blame shows one by one."""
    suspects = [span for span in spans.usable if span.trigger in observed.suspects]
    rest = [span for span in spans.usable if span.trigger in observed.handled or span in suspects[:1]]
    if suspects and is_enough(window, len(rest)):
        spans.held = [span.number for span in spans.usable if span not in rest]
        spans.usable = rest


def _plan_new(schedule: ScheduleConfig, window: WindowConfig, observed: Observed, spans: _Sorted) -> _Plan:
    """The next new span, or late and corrected ones in the window that ends with the newest that was handled."""
    handled = observed.newest_handled
    new = [
        span.number
        for place, span in enumerate(spans.usable)
        if span.trigger not in observed.handled
        and (handled is None or span.number > handled)
        and is_enough(window, place + 1 if window.last == "all" else min(place + 1, window.last))
    ]
    if new:
        newest = new[0] if schedule.backlog == "each" else new[-1]
    elif spans.usable:
        newest = spans.usable[-1].number
    else:
        return _Plan()
    return _plan_ending(newest, window, observed, spans)


def _plan_newest(window: WindowConfig, observed: Observed, spans: _Sorted) -> _Plan:
    """What a run that no new span asks for learns from: the data as it stands."""
    if not spans.usable:
        return _Plan()
    return _plan_ending(spans.usable[-1].number, window, observed, spans)


def _plan_ending(newest: int, window: WindowConfig, observed: Observed, spans: _Sorted) -> _Plan:
    members = set(window_members(window, (span.number for span in spans.usable), newest))
    if not is_enough(window, len(members)):
        return _Plan()
    pending = [s for s in spans.usable if s.trigger not in observed.handled and s.number <= newest]
    skipped = [
        (span.trigger, f"{span}: the window that ends with span {newest} does not reach back to it")
        for span in pending
        if span.number not in members
    ]
    return _Plan(newest, tuple(span for span in pending if span.number in members), tuple(skipped))


def _left_out(window: WindowConfig, spans: _Sorted, plan: _Plan) -> list[str]:
    """Says which spans the window lacks because their data was refused; empty where it lacks none."""
    reached = window_members(window, [*(span.number for span in spans.usable), *spans.refused], plan.newest)
    refused = [str(number) for number in sorted(set(spans.refused).intersection(reached))]
    said = [f"without span {', '.join(refused)}, whose data was refused"] if refused else []
    if spans.held:
        waiting = ", ".join(map(str, spans.held[:3])) + (" and more" if len(spans.held) > 3 else "")
        said.append(f"without span {waiting}, until it is known whose data was refused")
    return said


def _cron(now: dt.datetime, schedule: ScheduleConfig, observed: Observed) -> tuple[Finding, str | None]:
    if schedule.cron is None:
        return Finding("cron", False, ""), None
    # A clock that was set back makes what is over lie ahead: from now on counts, and nothing is stuck until then.
    since = min(observed.cron_since, now)
    due = cron.last_due(schedule.cron, schedule.time_zone, now, since, observed.name, schedule.jitter_s)
    trigger = None if due is None else f"cron:{due.isoformat()}"
    if due is None or trigger in observed.handled:
        coming = _next_cron(now, schedule, observed)
        return Finding("cron", False, f"cron comes due at {_clock(schedule, coming)}" if coming else "never due"), None
    return Finding("cron", True, f"cron was due at {_clock(schedule, due)}"), trigger


def _next_cron(now: dt.datetime, schedule: ScheduleConfig, observed: Observed) -> dt.datetime | None:
    if schedule.cron is None:
        return None
    since = min(observed.cron_since, now)
    return cron.next_due(schedule.cron, schedule.time_zone, now, since, observed.name, schedule.jitter_s)


def _spans(schedule: ScheduleConfig, observed: Observed, spans: _Sorted, plan: _Plan) -> tuple[Finding, str | None]:
    if not schedule.on_new_span:
        return Finding("span", False, ""), None
    if not plan.covered:
        handled = observed.newest_handled
        newest = "no span yet" if handled is None else f"nothing new after span {handled}"
        excluded = f"refused and left out: {', '.join(map(str, spans.refused[-3:]))}" if spans.refused else ""
        return Finding("span", False, "; ".join(filter(None, [newest, *spans.waiting[:3], excluded]))), None
    listed = ", ".join(str(span) for span in plan.covered[:3]) + (" and more" if len(plan.covered) > 3 else "")
    return Finding("span", True, f"{listed} {'is' if len(plan.covered) == 1 else 'are'} new"), None


def _measured(rule: Rule, schedule: ScheduleConfig, observed: Observed) -> tuple[Finding, str | None]:
    bound = schedule.bounds.get(rule)
    if bound is None:
        return Finding(rule, False, ""), None
    found = [m for m in observed.measurements if m.rule == rule and m.live == observed.live]
    if not found:
        why = "no version is live" if observed.live is None else f"not measured yet for version {observed.live}"
        return Finding(rule, False, f"{rule}: {why}"), None
    # Of several features the one that is furthest out.
    worst = min(found, key=lambda m: m.value) if rule == "score" else max(found, key=lambda m: m.value)
    broken = worst.value < bound if rule == "score" else worst.value > bound
    sign = ("<" if broken else ">=") if rule == "score" else (">" if broken else "<=")
    text = f"{rule} of {worst.what}, version {worst.live}: {worst.value:.4g} {sign} {bound:g}"
    if broken and worst.trigger in observed.handled:
        return Finding(rule, False, f"{text}, answered already"), None
    return Finding(rule, broken, text), worst.trigger if broken else None


def _hold(now: dt.datetime, schedule: ScheduleConfig, observed: Observed) -> tuple[str, dt.datetime] | None:
    quiet = cron.quiet_until(schedule.quiet_hours, schedule.time_zone, now)
    if quiet is not None:
        return f"quiet hours until {_clock(schedule, quiet)}", quiet
    ended = max((moment for moment in observed.ended if moment <= now), default=None)
    if ended is not None and now < ended + dt.timedelta(seconds=schedule.min_pause_s):
        until = ended + dt.timedelta(seconds=schedule.min_pause_s)
        return f"the pause of {schedule.min_pause_s:g} s after the last run, until {_clock(schedule, until)}", until
    if schedule.max_runs_a_day is not None:
        today = cron.day(schedule.time_zone, now)
        count = sum(cron.day(schedule.time_zone, moment) == today for moment in observed.started)
        if count >= schedule.max_runs_a_day:
            until = cron.start_of_next_day(schedule.time_zone, now)
            return f"the cap of {schedule.max_runs_a_day} runs a day ({count} today)", until
    return None


def _clock(schedule: ScheduleConfig, moment: dt.datetime) -> str:
    return moment.astimezone(ZoneInfo(schedule.time_zone)).strftime("%Y-%m-%d %H:%M:%S %Z")


def _earliest(moments: Collection[dt.datetime | None]) -> dt.datetime | None:
    return min((moment for moment in moments if moment is not None), default=None)
