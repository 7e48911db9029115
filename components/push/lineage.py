"""Where a version comes from: data, configuration, code, metrics, gates and artifacts, as one JSON object.

It stands in the version's own folder (`assets.extra/lineage.json`), complete or absent together with it, and in MLMD
as properties of the PushedModel artifact. It holds no text of the data.

    version, pushed_at   number and time
    blessed              whether every gate and the serving check held
    run                  name, fingerprint, code revision and configuration of the run
    data                 span, version, files with sha256 and bytes, counts
    training             epochs, seconds, parameters
    metrics              by name: value, low, high; `evaluated` says on which split and how many examples
    gates, baseline      each bound with its value; TF-IDF + linear SVM of the same run
    serving_check        what the model server answered
    artifacts            id, type and URI of every artifact that went in
    software             versions of what computed it
    model                sha256 of graph, weights and assets; bytes and sha256 by file
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from tfx import types
from tfx.dsl.io import fileio

_PACKAGES = ("tfx", "tensorflow", "tensorflow-text", "keras", "apache-beam", "ml-metadata", "biobert-cnn")
# Of ingest_report.json; whatever else it may come to hold stays out.
_DATA = ("span", "version", "spans", "rows", "splits", "bad", "leaked", "dropped", "files")


def collect(artifacts: Mapping[str, types.Artifact], run: Mapping[str, Any]) -> dict[str, Any]:
    """Reads what the steps left beside their artifacts.

    Args:
      artifacts: by input name: model, examples, model_run, evaluation, model_blessing, infra_blessing; any may lack.
      run: facts of the run, as the runner gives them.
    """

    def report(name: str, file: str) -> dict[str, Any]:
        return _read_json(artifacts[name].uri, file) if name in artifacts else {}

    metrics = report("evaluation", "metrics.json")
    data = report("examples", "ingest_report.json")
    return {
        "blessed": True,  # nothing else is ever published
        "run": dict(run),
        "data": {key: data[key] for key in _DATA if key in data},
        "training": report("model_run", "summary.json"),
        "metrics": metrics.get("model", {}),
        "evaluated": {key: metrics.get(key) for key in ("split", "examples")},
        "baseline": metrics.get("baseline"),
        "gates": report("evaluation", "gates.json").get("gates", []),
        "serving_check": report("infra_blessing", "report.json"),
        "artifacts": {
            name: {"id": artifact.id, "type": artifact.type_name, "uri": artifact.uri}
            for name, artifact in sorted(artifacts.items())
        },
        "software": software(),
    }


def properties(lineage: Mapping[str, Any]) -> dict[str, str | int | float]:
    """The facts of a version as flat properties for MLMD, to search by; `lineage` holds them all as JSON."""
    run, data = lineage.get("run", {}), lineage.get("data", {})
    found: dict[str, str | int | float] = {"lineage": json.dumps(lineage, sort_keys=True)}
    for name, value in (
        ("model_sha256", lineage.get("model", {}).get("sha256")),
        ("run_fingerprint", run.get("fingerprint")),
        ("code_revision", run.get("revision") or run.get("code")),
        ("data_span", data.get("span")),
        ("data_version", data.get("version")),
    ):
        if isinstance(value, str | int | float):
            found[name] = value
    for name, metric in (lineage.get("metrics") or {}).items():
        if isinstance(metric, Mapping) and isinstance(metric.get("value"), int | float):
            found[f"metric_{name}"] = float(metric["value"])
    return found


def software() -> dict[str, str]:
    """Installed version by package."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _read_json(uri: str, name: str) -> dict[str, Any]:
    path = os.path.join(uri, name)
    if not fileio.exists(path):
        return {}
    with fileio.open(path, "r") as file:
        return json.loads(file.read())
