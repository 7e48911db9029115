"""`biobert-cnn compile --target airflow`: the graph's steps as JSON, from which the DAG is made without TFX.

Airflow reads its DAG files every few seconds, in an environment of its own; importing TFX there would take longer than
it allows. deploy/airflow/biobert_cnn.py makes one DAG of each such file beside it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from components.errors import ConfigError
from pipeline.config import Config


def compile_to(config: Config, path: Path, overrides: list[str], output: Path) -> tuple[list[str], str]:
    """Writes the DAG's description.

    Args:
      config: validated.
      path: its file, which the tasks will read; so overrides would be lost.
      overrides: must be none.
      output: a JSON file in the folder of DAGs.

    Returns:
      The tasks' ids, and the pool that they need.

    Raises:
      ConfigError: the configuration has no fixed steps, or for `schedule_once` no trigger or no times to look at; or
        the output is no JSON file, or another DAG beside it has the same pipeline root or id.
    """
    if output.suffix != ".json":
        raise ConfigError(f"--output {output}: name a file that ends with .json, beside biobert_cnn.py")
    lost = [item for item in overrides if not item.startswith(("airflow.", "paths."))]
    if lost:
        raise ConfigError(
            f"--set {lost[0]}: the tasks read {path} itself; write it there, or give it to a run as `set`"
        )
    own = config.airflow
    once = own.tasks == "schedule_once"
    steps, final = _one_look(config) if once else _steps(config)
    pool = own.pool or "biobert_cnn" + re.sub(r"\W+", "_", str(config.root))
    found = {
        "dag_id": own.dag_id or f"biobert_cnn_{config.name}",
        "command": ["schedule", "once"] if once else ["step"],
        "program": own.program,
        "config": str(path.absolute()),
        "set": [f"paths.root={config.root}", f"paths.serving={config.serving_dir}"],
        "root": str(config.root),
        "schedule": own.schedule,
        "time_zone": own.time_zone,
        "start": [own.start.year, own.start.month, own.start.day],
        "pool": pool,
        "retry_delay_s": own.retry_delay_s,
        "final": final,
        "steps": steps,
    }
    _check_others(found, output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return [step["id"] for step in steps], pool


def _check_others(found: dict[str, Any], output: Path) -> None:
    """One DAG a root: Airflow lets one run of a DAG be active, and knows of no such thing across DAGs."""
    remedy = {"root": "paths.root=FOLDER", "dag_id": "airflow.dag_id=NAME"}
    for other in sorted(output.parent.glob("*.json")):
        if other.name == output.name:
            continue
        try:
            compiled = json.loads(other.read_text(encoding="utf-8"))
            same = [key for key in remedy if _same(key, compiled[key], found[key])]
        except (OSError, ValueError, TypeError, KeyError):  # something else that lies there
            continue
        for key in same:
            raise ConfigError(
                f"--output {output}: {other} has the same {key}, {found[key]}, and runs of the two would mix; "
                f"take one of them away, or give this one its own with --set {remedy[key]}"
            )


def _same(key: str, one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve() if key == "root" else one == other


def _steps(config: Config) -> tuple[list[dict[str, Any]], list[str]]:
    """A task for each step of the graph, and the kinds of errors that another try cannot help."""
    if config.window.last == "all":
        raise ConfigError(
            "step examples: window.last = 'all': the tasks are fixed when compiled; give a number of spans"
        )
    from pipeline import nodes, spans
    from pipeline.graph import create_pipeline
    from pipeline.local import FINAL
    from pipeline.one_step import Overtaken

    members = spans.spans_of_run(config.data, config.window)
    found = []
    for step in nodes.steps_of(create_pipeline(config, {}), members, config.window.last):
        retries, timeout = config.airflow.of(step.id)
        found.append({"id": step.id, "after": sorted(step.after), "retries": retries, "timeout_s": timeout})
    return found, sorted({*FINAL, Overtaken.__name__})


def _one_look(config: Config) -> tuple[list[dict[str, Any]], list[str]]:
    """The one task of `schedule once`, tried once: the schedule itself makes a run's attempts, look by look."""
    if not config.schedule.any_trigger:
        raise ConfigError(
            "airflow.tasks = 'schedule_once': [schedule] has nothing that starts a run; set on_new_span = true, cron, "
            "drift, serving_drift or min_score"
        )
    if config.airflow.schedule is None:
        raise ConfigError(
            "airflow.tasks = 'schedule_once': the DAG would never look whether a run is due; say when, for example "
            "--set airflow.schedule='*/10 * * * *'"
        )
    return [{"id": "schedule_once", "after": [], "retries": 0, "timeout_s": config.airflow.timeout_s}], []
