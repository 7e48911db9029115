"""What a run's record means to the schedule, and what of it is told to others: never a text of the data."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from components.config import span_of_step
from pipeline import records
from pipeline.retraining.config import Event, ScheduleConfig
from pipeline.retraining.decision import Measurement

# Kinds of error that the same data and configuration would meet again.
_REFUSALS = ("DataError",)
_LASTING = ("ConfigError", "CheckpointError", *_REFUSALS)


def status_of(record: dict[str, Any]) -> str:
    """pushed, unchanged, refused (by a gate, by the serving check, for its data) or failed."""
    status = record.get("status")
    if status in ("pushed", "unchanged", "partial"):
        return "unchanged" if status == "partial" else str(status)
    return "refused" if status == "not_blessed" or is_refused_data(record) else "failed"


def is_refused_data(record: dict[str, Any]) -> bool:
    """Whether the data itself was refused."""
    return record.get("status") == "failed" and record.get("error_kind") in _REFUSALS


def refused_span(result: dict[str, Any]) -> int | None:
    """The span whose data was refused; None where the step that refused it saw the whole window."""
    return span_of_step(result.get("step") or "")


def may_pass(record: dict[str, Any]) -> bool:
    """Whether a failure may be gone at the next attempt."""
    return record.get("error_kind") not in _LASTING


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Of a record what the schedule keeps."""
    return {
        "status": record.get("status"),
        "record": record.get("run_id"),
        "version": record.get("version"),
        "error": record.get("error"),
        "error_kind": record.get("error_kind"),
        "step": record.get("step"),
        "cause": cause(record),
        "metrics": {name: facts.get("value") for name, facts in (record.get("metrics") or {}).items() if facts},
    }


def cause(record: dict[str, Any]) -> str | None:
    """Why nothing was pushed: each broken gate, what the serving check found, or the error; None where it was."""
    if record.get("status") == "failed":
        return record.get("error") or "unknown; see the log"
    if record.get("status") != "not_blessed":
        return None
    broken = [gate.get("message") or gate["gate"] for gate in record.get("gates") or [] if not gate["passed"]]
    if not broken:
        check = record.get("serving_check") or {}
        broken = [str(check.get("reason") or "the serving check refused the model")]
    return "; ".join(broken)


def events(status: str) -> tuple[Event, ...]:
    """The notification that a settled run gives rise to."""
    known: dict[str, tuple[Event, ...]] = {
        "pushed": ("pushed",), "refused": ("refused",), "failed": ("failed",), "rolled_back": ("rolled_back",),
    }  # fmt: skip
    return known.get(status, ())


def annotate_record(root: Path, record_id: str | None, facts: dict[str, Any]) -> None:
    """Adds what happened after a run to its record."""
    for record in reversed(records.read_records(root)):
        if record["run_id"] == record_id:
            records.write_record(root, {**record, **facts})
            return


def body(name: str, root: Path, run: Any, status: str, result: dict[str, Any], now: dt.datetime) -> dict[str, Any]:
    """The body of a notification about a settled run."""
    return {
        "pipeline": name,
        "root": str(root),
        "at": now.astimezone(dt.UTC).isoformat(timespec="seconds"),
        "run": run.id,
        "record": result.get("record"),
        "triggers": list(run.triggers),
        "reason": run.reason,
        "span": run.newest,
        "status": status,
        "version": result.get("version"),
        "cause": result.get("rolled_back") or result.get("cause"),
        "metrics": result.get("metrics") or {},
    }


def is_drift(schedule: ScheduleConfig, item: Measurement) -> bool:
    """Whether a measurement is a drift beyond its bound."""
    bound = schedule.bounds.get(item.rule)
    return item.rule != "score" and bound is not None and item.value > bound


def drift_body(item: Measurement, now: dt.datetime) -> dict[str, Any]:
    """The body of a notification about a drift."""
    return {
        "at": now.astimezone(dt.UTC).isoformat(timespec="seconds"),
        "rule": item.rule,
        "what": item.what,
        "value": item.value,
        "version": item.live,
    }
