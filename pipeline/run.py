"""One run of the pipeline: nothing to do, or every step, and a record of what came of it.

The result is one dictionary, the same that `--json` prints:

    status       "pushed" | "unchanged" | "not_blessed" | "failed" | "partial"; while it runs, and for good if it is
                 killed, the record on disk says "interrupted", with the step that it is in
    version      the version in the model server's base path, or null
    model_path   its folder, or null
    metrics      by name: value, low, high
    baseline     TF-IDF + linear SVM on the same split, or null
    gates        each bound with its value
    live         the version that was live when it began, or null
    seconds      by step, and "total"
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import PipelineError
from components.push import base_path
from pipeline import records, spans
from pipeline.config import Config
from pipeline.fingerprint import FileHashes, code_fingerprint, code_revision, run_fingerprint
from pipeline.outcome import outcome
from pipeline.retraining import housekeeping

if TYPE_CHECKING:
    from rich.console import Console

EXIT_STATUS = {"pushed": 0, "unchanged": 0, "partial": 0, "failed": 1, "not_blessed": 3}


def run(
    config: Config,
    from_step: str | None = None,
    to_step: str | None = None,
    wait: bool = False,
    force: bool = False,
    trigger: str | None = None,
) -> dict[str, Any]:
    """Runs what has to be run and returns the record of it.

    Args:
      config: validated.
      from_step, to_step: node ids of `pipeline.steps.STEPS`, for a part of the graph.
      wait: wait for another run on the same root instead of being refused.
      force: run even when nothing has changed (unchanged steps still come from TFX's cache).
      trigger: what a schedule runs it for; kept in the record.

    Raises:
      PipelineError: with one message for a person; the record is written all the same.
    """
    began = time.monotonic()
    root = config.root
    try:
        with records.root_lock(root, wait):
            hashes = FileHashes(root / "file_hashes.json")
            fingerprint = run_fingerprint(config, hashes)
            hashes.save()
            whole = from_step is None and to_step is None
            known = None if force or not whole else _settled(root, config, fingerprint)
            if known is not None:
                status = "unchanged" if known["status"] == "pushed" else known["status"]
                return {**known, "status": status, "seconds": {"total": round(time.monotonic() - began, 2)}}
            return _execute(config, fingerprint, from_step, to_step, began, trigger)
    except OSError as error:  # of a step's own it would be a StepError
        explained = PipelineError(housekeeping.explain_os(error, root))
        explained.record = getattr(error, "record", None)
        raise explained from None


def _settled(root: Path, config: Config, fingerprint: str) -> dict[str, Any] | None:
    """The record of an earlier run of the very same inputs that ended in a push or a refusal, and still holds.

    A refusal holds while the live version is the one that the model was compared with.
    """
    for record in reversed(records.read_records(root)):
        if record.get("fingerprint") == fingerprint and record["status"] in ("pushed", "not_blessed"):
            if record["status"] == "pushed" and not _still_there(config, record):
                return None
            if _serving_refused(record):  # that may have been the machine's fault
                return None
            if record["status"] == "not_blessed" and record.get("live") != base_path.live_number(config.serving_dir):
                return None
            return record
    return None


def _still_there(config: Config, record: dict[str, Any]) -> bool:
    """Whether the version that a run pushed is live, or was rolled back on purpose."""
    from pipeline.versions import is_settled

    return is_settled(config.serving_dir, int(record["version"]))


def _serving_refused(record: dict[str, Any]) -> bool:
    check = record.get("serving_check") or {}
    return bool(check.get("checked")) and not check.get("blessed", True)


def _execute(
    config: Config, fingerprint: str, from_step: str | None, to_step: str | None, began: float, trigger: str | None
) -> dict[str, Any]:
    from rich.text import Text

    from components import progress
    from pipeline.console import StepDisplay, quiet, step_log

    root = config.root
    run_id = records.new_run_id(root)
    log = root / "logs" / f"{run_id}.log"
    record = {**blank_record(), "run_id": run_id, "name": config.name, "fingerprint": fingerprint, "log": str(log)}
    record.update(trigger=trigger, status=records.INTERRUPTED, live=base_path.live_number(config.serving_dir))
    seconds: dict[str, float] = {}

    def timed() -> dict[str, Any]:
        record["seconds"] = {**seconds, "total": round(time.monotonic() - began, 2)}
        return record

    def listen(step: str, event: str, elapsed: float) -> None:
        if event != "started":
            seconds[step] = round(elapsed, 2)
        record["step"] = step if event == "started" else None
        with suppress(OSError):  # a full disk is the step's own error to tell
            records.write_record(root, timed())
        display.step(step, event, elapsed)  # type: ignore[arg-type]

    with quiet(log) as console:
        console.print(Text.assemble((config.name, "bold"), f"  root {root}  log {log}"))
        left_out = spans.incomplete_spans(config.data, config.window)
        members = spans.spans_of_run(config.data, config.window) if left_out else (0,)
        record["incomplete_spans"] = [number for number in left_out if number > members[0]]
        for line in spans.describe_incomplete(config.data, {n: left_out[n] for n in record["incomplete_spans"]}):
            console.print(f"  {line}", style="yellow")
        try:
            housekeeping.before_run(config, run_id)
            records.write_record(root, timed())
            with StepDisplay(console) as display, progress.listening(display.report):
                pipeline = _prepare(config, fingerprint, console)
                from pipeline import local

                seconds["import"] = round(time.monotonic() - began, 2)
                result = local.run(
                    pipeline, listen, from_step, to_step, config.local,
                    log=lambda step: step_log(log.with_suffix("") / f"{step}.log"), run_id=run_id,
                )  # fmt: skip
            record.update({**outcome(result.outputs), "step": None})
        except BaseException as error:
            record.update({**failure(error), "status": "failed"})
            error.record = record  # type: ignore[attr-defined]  # whatever it is: `--json` prints it
            raise
        finally:
            _keep(root, timed(), console)
    return record


def blank_record() -> dict[str, Any]:
    """The record of a run that came to nothing: every key is there."""
    return {
        "run_id": None, "name": None, "status": "failed", "fingerprint": None, "version": None, "model_path": None,
        "metrics": None, "baseline": None, "gates": None, "data": None, "seconds": {}, "log": None, "error": None,
        "error_kind": None, "step": None, "trigger": None, "incomplete_spans": [], "live": None,
    }  # fmt: skip


def failure(error: BaseException) -> dict[str, Any]:
    """What a record says of the error that ended its run; of an unknown one its kind alone, for it may quote data."""
    if not isinstance(error, PipelineError):
        return {"error": type(error).__name__, "error_kind": type(error).__name__, "step": None}
    return {"error": str(error), "error_kind": error.kind, "step": getattr(error, "step", None)}


def _keep(root: Path, record: dict[str, Any], console: Console) -> None:
    """Writes the record; where that fails because of what the run failed of, the run's own error is the one to tell."""
    try:
        records.write_record(root, record)
    except OSError as error:
        if error.__context__ is None:
            raise
        console.print(f"the run's record could not be written ({error.strerror})")


def _prepare(config: Config, fingerprint: str, console: Console) -> Any:
    """Imports TFX and builds the graph."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with console.status("starting TensorFlow, Beam and TFX"):
        from pipeline.graph import create_pipeline
    return create_pipeline(config, run_facts(config, fingerprint), serving_refusals(config.root))


def serving_refusals(root: Path) -> int:
    """How often a serving check refused on this root; the check after a refusal is made anew."""
    return sum(map(_serving_refused, records.read_records(root)))


def run_facts(config: Config, fingerprint: str) -> dict[str, Any]:
    """What a version's lineage says of the run that made it, beside the artifacts."""
    return {
        "name": config.name,
        "fingerprint": fingerprint,
        "code": code_fingerprint(),
        "revision": code_revision(),
        "configuration": config.decisive(),
    }


def to_json(record: dict[str, Any]) -> str:
    """One JSON object for programs."""
    return json.dumps(record, sort_keys=True)
