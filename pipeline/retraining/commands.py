"""`biobert-cnn schedule …` and `biobert-cnn lineage`. Only typer is imported before a command is called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.retraining.scheduler import Look, Scheduler

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file with a section [schedule].")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a value, e.g. schedule.poll_s=10.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
# As `run`: 3 is a model or data that was refused.
_EXIT = {"pushed": 0, "unchanged": 0, "refused": 3, "rolled_back": 3, "failed": 1, "retry": 1}


def register(app: typer.Typer, errors_in_words: Wrap) -> None:
    """Adds the commands to the command line."""
    schedule = typer.Typer(help="Retrain when it is due.", no_args_is_help=True)
    for name, command in (
        ("run", schedule_run), ("once", schedule_once), ("explain", schedule_explain), ("status", schedule_status),
        ("retry", schedule_retry),
    ):  # fmt: skip
        schedule.command(name)(errors_in_words(command))
    app.add_typer(schedule, name="schedule")
    app.command("lineage")(errors_in_words(lineage_command))


def schedule_run(config: ConfigPath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Look again and again, and run what is due, until stopped (SIGTERM or Ctrl-C; a run under way goes on later)."""
    import logging
    import signal

    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    scheduler = _scheduler(config, set_)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: scheduler.stop.set())
    scheduler.loop(lambda look: print(_line(look, as_json), flush=True))


def schedule_once(config: ConfigPath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Look once and run what is due: for cron, a Kubernetes CronJob, Airflow."""
    import signal

    from pipeline.retraining.launch import Stopped

    scheduler = _scheduler(config, set_)
    signal.signal(signal.SIGTERM, lambda *_: scheduler.stop.set())
    try:
        look = scheduler.look()
    except Stopped:
        print("stopped; the next look goes on with the run", file=sys.stderr)
        raise typer.Exit(143) from None
    print(_line(look, as_json))
    raise typer.Exit(0 if look.run is None else _EXIT[look.run.status])


def schedule_explain(config: ConfigPath, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Say whether a run would start now, and why or why not, and why the last one did. Nothing is run or changed."""
    from pipeline.retraining.state import FILE, State

    decision = _scheduler(config, set_).explain()
    root = _load(config, set_).root
    last = None
    if (root / FILE).exists():
        state = State(root)
        last = state.last_run_decision()
        state.close()
    if as_json:
        print(json.dumps({**_decision(decision), "last_run": last}))
        return
    print(f"{'would run now' if decision.run else 'would not run now'}: {decision.reason}")
    for finding in decision.findings:
        if finding.text:
            print(f"  {'*' if finding.fires else '-'} {finding.rule:<14} {finding.text}")
    if decision.run and decision.newest is not None:
        left_out = f", without {', '.join(map(str, decision.exclude))}" if decision.exclude else ""
        print(f"  the window would end with span {decision.newest}{left_out}")
    for trigger, reason in decision.skipped:
        print(f"  no run for {trigger}: {reason}")
    if decision.check_at is not None:
        print(f"  the next look that may change this: {decision.check_at.isoformat(timespec='seconds')}")
    if last is not None:
        print(f"  the last run was started at {last['at'][:19]}: {last['reason']}")


def schedule_status(
    config: ConfigPath,
    set_: Overrides = None,
    as_json: AsJson = False,
    last: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many runs and decisions.")] = 10,
) -> None:
    """List the runs that the schedule started, what it decided, and the spans that no run has seen."""
    from pipeline.retraining.state import FILE, State

    loaded = _load(config, set_)
    facts: dict[str, Any] = {"runs": [], "decisions": [], "skipped": [], "undelivered": 0}
    if (loaded.root / FILE).exists():
        state = State(loaded.root)
        facts = {
            "runs": [_run(run) for run in state.runs(last)],
            "decisions": state.decisions(last),
            "skipped": state.skips(last),
            "undelivered": len(state.outbox()),
        }
        state.close()
    if as_json:
        print(json.dumps({"root": str(loaded.root), **facts}))
        return
    print(f"{loaded.name}: scheduled runs in {loaded.root}" if facts["runs"] else f"no run yet in {loaded.root}")
    for run in facts["runs"]:
        parts = [run["started_at"][:19], f"span {run['span']}", run["status"]]
        parts += [] if run["version"] is None else [f"version {run['version']}"]
        parts += [f"attempts {run['attempts']}", run["reason"]] + ([f"cause: {run['cause']}"] if run["cause"] else [])
        print("  " + "  ".join(parts))
    for entry in facts["decisions"]:
        print(f"  {entry['at'][:19]}  {'run ' if entry['run'] else 'wait'}  {entry['reason']}")
    for entry in facts["skipped"]:
        print(f"  no run for {entry['trigger']}: {entry['reason']}")


def schedule_retry(
    config: ConfigPath,
    set_: Overrides = None,
    span: Annotated[
        int | None, typer.Option("--span", help="Instead: take this span, whose data was refused, for new again.")
    ] = None,
) -> None:
    """Give the last run that failed for good all its attempts again; the next look starts it."""
    from components.errors import PipelineError
    from pipeline.retraining.decision import span_of
    from pipeline.retraining.state import State

    loaded = _load(config, set_)
    state = State(loaded.root)
    try:
        if span is not None:
            refused = sorted({str(span_of(item)) for item in state.refused()}, key=int)
            if not state.readmit(span):
                listed = ", ".join(refused) or "none"
                raise PipelineError(
                    f"{loaded.root}: span {span} was not refused for its data; those that were: {listed}"
                )
            print(f"span {span} is new again at the next look")
            return
        failed = next((run for run in state.runs() if run.status == "failed"), None)
        if failed is None:
            raise PipelineError(f"{loaded.root}: no scheduled run has failed, so there is nothing to try again")
        state.reopen(failed)
        print(f"run {failed.id} ({failed.reason}) is tried again at the next look")
    finally:
        state.close()


def lineage_command(
    config: ConfigPath,
    version: Annotated[int | None, typer.Argument(metavar="[VERSION]", help="Default: the live one.")] = None,
    span: Annotated[int | None, typer.Option("--span", help="Instead: every model that has seen this span.")] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """From a version back to spans, file hashes, configuration, code, metrics and gates; or forward from a span."""
    from pipeline.retraining import lineage

    loaded = _load(config, set_)
    if span is not None:
        lineage.print_span(span, lineage.of_span(loaded, span), as_json)
    else:
        lineage.print_version(lineage.of_version(loaded, version), as_json)


def _load(path: Path, overrides: list[str] | None) -> Config:
    from pipeline.config import load_config

    return load_config(path, overrides or [])


def _scheduler(path: Path, overrides: list[str] | None) -> Scheduler:
    """The scheduler with all its parts as they are in production."""
    import datetime as dt
    import logging

    from components.errors import ConfigError, PipelineError
    from pipeline.retraining import housekeeping
    from pipeline.retraining.launch import PipelineProcess
    from pipeline.retraining.measure_process import MeasureProcess
    from pipeline.retraining.notify import Notifier
    from pipeline.retraining.scheduler import Scheduler
    from pipeline.retraining.watch import ServerWatch

    config = _load(path, overrides)
    if not config.schedule.any_trigger:
        raise ConfigError(
            f"{path}: [schedule] has nothing that starts a run; set on_new_span = true, cron, drift, serving_drift "
            "or min_score"
        )

    def clock() -> dt.datetime:
        return dt.datetime.now(dt.UTC)

    def clean() -> None:
        try:
            housekeeping.clean(config)
        except PipelineError as error:  # a run that went well is not undone by what could not be cleared away
            logging.getLogger(__name__).error("%s", error)

    given = tuple(overrides or ())
    logs = config.root / "logs"
    return Scheduler(
        config,
        PipelineProcess(path.absolute(), given, logs / "scheduled-run.log", config.schedule.run_timeout_s),
        clock=clock,
        measure=MeasureProcess(path.absolute(), given, logs / "measure.log", config.schedule.measure_timeout_s),
        watch=None if config.watch.target is None else ServerWatch(
            config.watch, config.serving.model_name, config.serving_dir
        ),
        deliver=Notifier(config.notify, clock),
        after_run=clean,
    )  # fmt: skip


def _line(look: Look, as_json: bool) -> str:
    run = look.run
    if as_json:
        return json.dumps({**_decision(look.decision), "run": None if run is None else _run(run)})
    if run is None:
        return f"waits: {look.decision.reason}"
    parts = [f"run {run.id}: {run.status}"]
    if run.result and run.result.get("version") is not None:
        parts.append(f"version {run.result['version']}")
    parts.append(f"because {run.reason}")
    cause = (run.result or {}).get("rolled_back") or (run.result or {}).get("cause")
    return "; ".join(parts + ([f"cause: {cause}"] if cause else []))


def _decision(decision: Any) -> dict[str, Any]:
    return {
        "would_run": decision.run,
        "reason": decision.reason,
        "findings": [{"rule": f.rule, "fires": f.fires, "text": f.text} for f in decision.findings],
        "triggers": list(decision.triggers),
        "span": decision.newest,
        "exclude": list(decision.exclude),
        "skipped": [{"trigger": trigger, "reason": reason} for trigger, reason in decision.skipped],
        "check_at": None if decision.check_at is None else decision.check_at.isoformat(),
    }


def _run(run: Any) -> dict[str, Any]:
    result = run.result or {}
    return {
        "run": run.id,
        "status": run.status,
        "triggers": list(run.triggers),
        "reason": run.reason,
        "span": run.newest,
        "exclude": list(run.exclude),
        "attempts": run.attempts,
        "started_at": run.started_at.isoformat(),
        "ended_at": None if run.ended_at is None else run.ended_at.isoformat(),
        "record": result.get("record"),
        "version": result.get("version"),
        "cause": result.get("rolled_back") or result.get("cause"),
    }
