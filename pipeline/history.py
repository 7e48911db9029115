"""`history`, every run of a pipeline root, and `versions`, what the model server can see."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from components.errors import PipelineError
from pipeline.config import Config
from pipeline.records import INTERRUPTED, RUN_ID, is_held, read_records
from pipeline.retraining import housekeeping

KEYS = ("run_id", "status", "step", "version", "metrics", "baseline", "gates", "data", "seconds", "error")
# ml_metadata.proto, Execution.State; a step that was killed is "running" until the next run on the root.
_STATES = {1: "running", 2: "running", 3: "done", 4: "failed", 5: "cached", 6: "failed"}
_RESOLVER = "tfx.dsl.components.common.resolver.Resolver"
Steps = dict[str, dict[str, str]]


def list_runs(root: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Every run of a pipeline root, oldest first; of one that was killed what is known.

    Returns:
      `KEYS` of each run, from its record; and `steps`, what each step came to: done, cached, failed, running. Those are
      from a copy of the metadata: what it is a copy of stands beside; None where there is none.
    """
    rows: list[dict[str, Any]] = [{key: record.get(key) for key in KEYS} for record in read_records(root)]
    if rows and rows[-1]["status"] == INTERRUPTED and is_held(root):
        rows[-1]["status"] = "running"
    steps, source = _steps(root)
    return [{**row, "steps": steps.get(row["run_id"], {})} for row in rows], source


def _steps(root: Path) -> tuple[Steps, str | None]:
    """What each step came to, by run."""
    found: Steps = {}
    with housekeeping.copy_to_read(root) as copied:
        if copied is None:
            return found, None
        metadata, source = copied
        rows = metadata.execute(
            "SELECT run.name, node.name, x.last_known_state FROM Execution x "
            "JOIN Type kind ON kind.id = x.type_id AND kind.name != ? "
            "JOIN Association a ON a.execution_id = x.id JOIN Context run ON run.id = a.context_id "
            "JOIN Type run_type ON run_type.id = run.type_id AND run_type.name = 'pipeline_run' "
            "JOIN Association b ON b.execution_id = x.id JOIN Context node ON node.id = b.context_id "
            "JOIN Type node_type ON node_type.id = node.type_id AND node_type.name = 'node' ORDER BY x.id",
            (_RESOLVER,),
        )
        for run, node, state in rows:
            name = run.partition(".")[0]  # of an orchestrated run: <run id>.<attempt>
            if RUN_ID.fullmatch(name):
                found.setdefault(name, {})[node.rpartition(".")[2]] = _STATES.get(state, "unknown")
    return found, source


def print_history(config: Config, as_json: bool) -> None:
    """Prints the runs, oldest first, as a table or as one JSON object."""
    rows, source = list_runs(config.root)
    unread = source is None and (config.root / housekeeping.DATABASE).exists()
    if unread and not rows:
        raise PipelineError(
            f"{config.root / housekeeping.DATABASE}: cannot be read, no copy of it in {housekeeping.BACKUPS}/ can, and "
            "there are no records of runs: which runs there were is not known. If another process holds it, call again "
            "when that has ended; if it is damaged, move it away, and `biobert-cnn run` begins anew"
        )
    if as_json:
        print(json.dumps({"root": str(config.root), "metadata": source, "runs": rows}))
        return
    from rich.table import Table

    from pipeline.console import report_console

    metric = config.training.metric
    table = Table(title=f"{config.name}: runs in {config.root}", title_justify="left", box=None, header_style="bold")
    for column in ("run", "span", "status", "version", metric, "baseline", "gates broken", "seconds", "steps"):
        table.add_column(column, no_wrap=column != "gates broken")
    for row in rows:
        metrics = row["metrics"]
        measured = metrics.get(metric) if metrics else None
        value = measured["value"] if measured else None
        scored = row["baseline"]
        baseline = scored.get(metric) if scored else None
        broken = [gate["gate"] for gate in row["gates"] or [] if not gate["passed"]]
        table.add_row(
            row["run_id"],
            str((row["data"] or {}).get("span", "")),
            row["status"] + (f" in {row['step']}" if row["step"] else ""),
            str(row["version"] or ""),
            "" if value is None else f"{value:.4f}",
            "" if baseline is None else f"{baseline:.4f}",
            "; ".join(broken),
            f"{(row['seconds'] or {}).get('total', 0):.0f}",
            ", ".join(f"{count} {state}" for state, count in sorted(Counter(row["steps"].values()).items())),
        )
    report_console().print(table if rows else f"no runs in {config.root} yet")
    if unread:
        report_console().print(f"steps are not known: {housekeeping.DATABASE} cannot be read, nor a copy of it")
    elif source not in (None, housekeeping.DATABASE):
        report_console().print(f"steps as of {source}: the metadata itself cannot be read now")


def print_versions(config: Config, as_json: bool) -> None:
    """Prints the versions, newest first, as a table or as one JSON object."""
    from pipeline.versions import list_versions

    found = list_versions(config.serving_dir)
    if as_json:
        versions = [version.to_json() for version in found]
        print(json.dumps({"serving_dir": str(config.serving_dir), "versions": versions}))
        return
    from rich.table import Table

    from pipeline.console import report_console

    metric = config.training.metric
    table = Table(title=f"versions in {config.serving_dir}", title_justify="left", box=None, header_style="bold")
    for column in ("version", "state", "pushed", "blessed", "span", metric):
        table.add_column(column, no_wrap=True)
    for version in found:
        value = version.metrics.get(metric)
        table.add_row(
            str(version.number),
            version.state,
            version.pushed_at or "",
            {True: "yes", False: "no", None: "unknown"}[version.blessed],
            "" if version.span is None else str(version.span),
            "" if value is None else f"{value:.4f}",
        )
    report_console().print(table if found else f"no versions in {config.serving_dir} yet")
