"""What a person reads at the end of a run: data, metrics against gates and baseline, version, where things are."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_summary(console: Console, record: dict[str, Any], root: str) -> None:
    """Prints the record of a run (see `pipeline.run`)."""
    data = record.get("data")
    if data:
        _print_data(console, data, record.get("truncated"))
    if record.get("metrics"):
        _print_metrics(console, record)
        absent = [label for label, values in (record.get("per_label") or {}).items() if values.get("support") == 0]
        if absent:
            names = ", ".join(map(repr, absent))
            console.print(f"no row of the evaluated split has {names}: F1 0 in macro-F1", style="yellow")
    training = record.get("training") or {}
    if found := training.get("hyperparameters"):
        console.print("found by the tuner: " + ", ".join(f"{name} = {value}" for name, value in found.items()))
    if calibration := training.get("calibration"):
        _print_calibration(console, calibration)
    if record.get("gates"):
        table = Table(title="gates", title_justify="left", box=None, header_style="bold")
        for column in ("", "bound", "value"):
            table.add_column(column)
        for gate in record["gates"]:
            mark = Text("holds", "green") if gate["passed"] else Text("BROKEN", "bold red")
            value = "none" if gate["value"] is None else f"{gate['value']:.4f}"
            table.add_row(mark, str(gate["gate"]), value)
        console.print(table)
    check = record.get("serving_check")
    if check and not check.get("blessed", True):
        console.print(Text.assemble(("serving check failed:", "bold red"), f" {check.get('reason')}"))
    nothing = f"data, configuration and code are those of version {record['version']} → {record['model_path']}"
    messages = {
        "pushed": (("pushed", "bold green"), f" version {record['version']} → {record['model_path']}"),
        "unchanged": (("nothing to do", "bold cyan"), f": {record.get('reason') or nothing}"),
        "not_blessed": (("not pushed", "bold red"), ": the model was not blessed"),
        "partial": (("done", "bold"), " up to the last step asked for"),
        "failed": (("failed", "bold red"),),
    }
    console.print(Text.assemble(*messages[record["status"]]))
    console.print(f"total {record['seconds']['total']:.1f} s   everything is in {root}", style="dim")


def _print_data(console: Console, data: dict[str, Any], truncated: dict[str, int] | None) -> None:
    counts = "  ".join(f"{split} {values['rows']}" for split, values in data["splits"].items())
    parts = [f"data: {counts}  bad rows {data['bad']['rows']}"]
    for shared in data.get("leaked", []):
        parts.append(f"texts both in {' and '.join(shared['splits'])} {shared['texts']}")
    if dropped := sum(data.get("dropped", {}).values()):
        parts.append(f"dropped for that {dropped}")
    if truncated:
        parts.append("truncated " + ", ".join(f"{split} {count}" for split, count in truncated.items()))
    console.print("; ".join(parts))


def _print_calibration(console: Console, found: dict[str, Any]) -> None:
    if found["temperature"] is None:
        console.print("calibration: no temperature fits split eval; the model stays as trained")
        return
    console.print(
        f"calibration on split eval: temperature {found['temperature']:.3f}, expected calibration error "
        f"{found['error_before']:.4f} → {found['error_after']:.4f}, log loss {found['loss_before']:.4f} → "
        f"{found['loss_after']:.4f}"
    )


def _print_metrics(console: Console, record: dict[str, Any]) -> None:
    table = Table(title="metrics", title_justify="left", box=None, header_style="bold")
    for column in ("", "model", "95 % interval", "SVM", "difference to TF-IDF + SVM"):
        table.add_column(column, no_wrap=True)
    metrics, baseline, paired = record["metrics"], record.get("baseline") or {}, record.get("paired") or {}
    if documents := record.get("documents"):
        metrics = metrics | {"document_f1": documents["model"]}
        if "baseline" in documents:
            difference = documents["difference"]
            baseline = baseline | {"document_f1": documents["baseline"]["value"]}
            paired = paired | {"document_f1": {**difference, "difference": difference["value"]}}
    for name, metric in metrics.items():
        if not isinstance(metric, dict) or metric.get("value") is None:
            continue
        low, high = metric.get("low"), metric.get("high")
        interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        other = baseline.get(name)
        pair = paired.get(name)
        difference = "" if not pair else f"{pair['difference']:+.3f} ({pair['low']:+.3f} to {pair['high']:+.3f})"
        table.add_row(name, f"{metric['value']:.4f}", interval, "" if other is None else f"{other:.4f}", difference)
    console.print(table)
