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
      ConfigError: the configuration has no fixed steps, or the output is no JSON file.
    """
    if output.suffix != ".json":
        raise ConfigError(f"--output {output}: name a file that ends with .json, beside biobert_cnn.py")
    lost = [item for item in overrides if not item.startswith(("airflow.", "paths."))]
    if lost:
        raise ConfigError(
            f"--set {lost[0]}: the tasks read {path} itself; write it there, or give it to a run as `set`"
        )
    if config.window.last == "all":
        raise ConfigError(
            "step examples: window.last = 'all': the tasks are fixed when compiled; give a number of spans"
        )
    from pipeline import nodes, spans
    from pipeline.graph import create_pipeline
    from pipeline.local import FINAL
    from pipeline.one_step import NOT_BLESSED

    members = spans.spans_of_run(config.data, config.window)
    steps = nodes.steps_of(create_pipeline(config, {}), members, config.window.last)
    own = config.airflow
    pool = own.pool or "biobert_cnn" + re.sub(r"\W+", "_", str(config.root))
    found = {
        "dag_id": own.dag_id or f"biobert_cnn_{config.name}",
        "program": own.program,
        "config": str(path.absolute()),
        "set": [f"paths.root={config.root}", f"paths.serving={config.serving_dir}"],
        "root": str(config.root),
        "schedule": own.schedule,
        "time_zone": own.time_zone,
        "start": [own.start.year, own.start.month, own.start.day],
        "pool": pool,
        "retry_delay_s": own.retry_delay_s,
        "final": sorted(FINAL | {NOT_BLESSED}),
        "steps": [_task(config, step) for step in steps],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return [step.id for step in steps], pool


def _task(config: Config, step: Any) -> dict[str, Any]:
    retries, timeout = config.airflow.of(step.id)
    return {"id": step.id, "after": sorted(step.after), "retries": retries, "timeout_s": timeout}
