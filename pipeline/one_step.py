"""One step of a run that an orchestrator leads, such as Airflow: each step a process of its own, on a local root.

All steps of a run write one record, `runs/<run>.json`, as a local run does. In ML Metadata they share one run, until a
step is made again: then a new one begins that takes over everything that does not depend on the step.

A step waits while another process holds the root. That one run after the other works on it, from its first step to its
last, is the orchestrator's part; a version that comes live all the same, by a run of another kind or a rollback,
between the look-up of the live model that a run's model is compared with and its push, is noticed here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from components.errors import ConfigError, PipelineError
from components.push import base_path
from pipeline import records, spans
from pipeline.config import Config
from pipeline.fingerprint import FileHashes, run_fingerprint
from pipeline.outcome import outcome
from pipeline.retraining import housekeeping
from pipeline.run import blank_record, failure, run_facts, serving_refusals

PLACE = re.compile(r"examples_(\d+)")
NOT_BLESSED = "NotBlessed"  # the kind of error of a step that refused the model


class Overtaken(PipelineError):
    """Another version came live since the model was compared with the live one."""


def run_step(load: Callable[[list[str]], Config], step: str, run: str, span: str) -> dict[str, Any]:
    """Runs one step and brings the run's record up to date.

    Args:
      load: reads the configuration, with further overrides.
      step: a node's id; `examples_N` for the N-th newest span of the window.
      run: YYYYMMDDTHHMMSS or YYYYMMDDTHHMMSS-NNNN; the steps of one run are called with the same.
      span: the window ends with this one; "" for the newest there is when the run's first step starts.

    Returns:
      The record; its `last_step` says what this step came to: "done", "cached", "absent" or "refused".

    Raises:
      PipelineError: the step failed; the record says so too.
    """
    if not records.RUN_ID.fullmatch(run):
        raise ConfigError(
            f"--run {run}: write the time at which the run began, for example 20270131T235959, or 20270131T235959-0001 "
            "for another of the same second"
        )
    config = load([f"window.until={span}"] if span else [])
    with records.root_lock(config.root, wait=True):
        record = next((item for item in records.read_records(config.root) if item["run_id"] == run), None)
        if record is None:
            housekeeping.before_run(config, run)
            record = {**blank_record(), "run_id": run, "name": config.name, "trigger": "orchestrator", "attempt": 0}
            if spans.has_spans(config.data):
                record["window_end"] = max(spans.spans_of_run(config.data, config.window))
        if record.get("window_end") is not None:  # a span that came meanwhile is for the next run
            config = load([f"window.until={record['window_end']}"])
        return _run_and_record(config, step, record)


def _check_live(config: Config, record: dict[str, Any]) -> None:
    """Before a push: the version that the model was compared with must still be the live one."""
    live, facts = base_path.live_lineage(config.serving_dir)
    own = (facts.get("run") or {}).get("fingerprint") == record["fingerprint"]  # pushed by a task that was killed then
    if live != record.get("live", live) and not own:
        raise Overtaken(
            f"{config.serving_dir}: the live version was {record['live'] or 'none'} when the model was compared with "
            f"it, and is {live or 'none'} now; run the evaluator again, and what comes after it"
        )


def _run_and_record(config: Config, step: str, record: dict[str, Any]) -> dict[str, Any]:
    from pipeline.console import quiet

    began = time.monotonic()
    log = config.root / "logs" / str(record["run_id"]) / f"{step}.log"
    hashes = FileHashes(config.root / "file_hashes.json")
    record["fingerprint"] = run_fingerprint(config, hashes)
    hashes.save()
    record["log"] = str(log)
    try:
        with quiet(log):
            record.update(error=None, error_kind=None, step=None, last_step=None)
            if step == "push":
                _check_live(config, record)
            _run(config, step, record)
    except BaseException as error:
        record.update({**failure(error), "status": "failed", "step": step})
        if isinstance(error, PipelineError):
            error.record = record
        raise
    finally:
        seconds = {**record["seconds"], step: round(time.monotonic() - began, 2)}
        record["seconds"] = {**seconds, "total": round(sum(seconds[key] for key in seconds if key != "total"), 2)}
        records.write_record(config.root, record)
    return record


def _run(config: Config, step: str, record: dict[str, Any]) -> None:
    """Launches the step, and the look-ups that only it waits for."""
    from pipeline import local, metadata_runs
    from pipeline.graph import create_pipeline
    from pipeline.nodes import place_of
    from pipeline.verdict import refusal

    refused = serving_refusals(config.root)
    graph = create_pipeline(config, run_facts(config, str(record["fingerprint"])), refused)
    members = spans.spans_of_run(config.data, config.window)
    nodes = {place_of(node.id, members): node.id for node in graph.components}
    if step not in nodes:
        place = PLACE.fullmatch(step)
        if place and int(place[1]) < (0 if config.window.last == "all" else config.window.last):
            record["last_step"] = "absent"  # a place in the window for which there is no span yet
            return
        raise ConfigError(f"{step}: there is no such step; the steps are {', '.join(nodes)}")
    result = local.Result()
    events: dict[str, str] = {}
    ir, deployment, connection = local.compile_run(graph, f"{record['run_id']}.{record['attempt']}")
    if metadata_runs.has_run(connection, ir, nodes[step]):
        record["attempt"] += 1
        ir, deployment, connection = local.compile_run(graph, f"{record['run_id']}.{record['attempt']}")
        metadata_runs.take_over(connection, ir, f"{record['run_id']}.{record['attempt'] - 1}", nodes[step])
    own = next(node for node in ir.nodes if local.step_id(node) == nodes[step])
    for node in ir.nodes:
        waited_for = local.step_id(node) in own.pipeline_node.upstream_nodes
        looks_up = local.is_resolver(node) and waited_for
        if node is own or (looks_up and not metadata_runs.has_run(connection, ir, local.step_id(node))):
            if local.step_id(node) == "live_model":  # before it: one that comes live meanwhile is another
                record["live"] = base_path.live_number(config.serving_dir)
                # At once: where the step is killed, it may not look it up again.
                records.write_record(config.root, {**record, "status": records.INTERRUPTED, "step": step})
            local.launch(ir, deployment, connection, node, lambda name, event, _: events.update({name: event}), result)
    record.update(outcome(metadata_runs.outputs(connection, ir)))
    record["last_step"] = events[nodes[step]]
    reason = refusal(step, result.outputs[nodes[step]])
    if reason:
        record.update(last_step="refused", error=reason, error_kind=NOT_BLESSED, step=step)
