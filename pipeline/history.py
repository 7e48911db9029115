"""`history`, every run of a pipeline root, and `versions`, what the model server can see."""

from __future__ import annotations

import json
from typing import Any

from pipeline.config import Config
from pipeline.records import INTERRUPTED, is_held, read_records

KEYS = ("run_id", "status", "step", "version", "metrics", "baseline", "gates", "data", "seconds", "error")


def print_history(config: Config, as_json: bool) -> None:
    """Prints the runs, oldest first, as a table or as one JSON object; of one that was killed what is known."""
    rows: list[dict[str, Any]] = [{key: record.get(key) for key in KEYS} for record in read_records(config.root)]
    if rows and rows[-1]["status"] == INTERRUPTED and is_held(config.root):
        rows[-1]["status"] = "running"
    if as_json:
        print(json.dumps({"root": str(config.root), "runs": rows}))
        return
    from rich.table import Table

    from pipeline.console import report_console

    metric = config.training.metric
    table = Table(title=f"{config.name}: runs in {config.root}", title_justify="left", box=None, header_style="bold")
    for column in ("run", "span", "status", "version", metric, "baseline", "gates broken", "seconds"):
        table.add_column(column, no_wrap=True)
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
        )
    report_console().print(table if rows else f"no runs in {config.root} yet")


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
