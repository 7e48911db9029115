"""What a run came to, read from the artifacts that its steps left behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Outputs = Mapping[str, Mapping[str, Sequence[Any]]]


def outcome(outputs: Outputs) -> dict[str, Any]:
    """Args: outputs: TFX artifacts by step and output. Returns: the part of a run's record that steps decide."""
    found: dict[str, Any] = {"status": "partial"}
    if "examples" in outputs:
        found["data"] = _read(outputs, "examples", "examples", "ingest_report.json")
    if "trainer" in outputs:
        found["training"] = _read(outputs, "trainer", "model_run", "summary.json")
        found["model"] = next((artifact.uri for artifact in outputs["trainer"].get("model") or []), None)
        found["truncated"] = dict((found["training"] or {}).get("truncated", {}))
    if "evaluator" in outputs:
        metrics = _read(outputs, "evaluator", "evaluation", "metrics.json") or {}
        gates = _read(outputs, "evaluator", "evaluation", "gates.json") or {}
        if "truncated" in metrics:
            found.setdefault("truncated", {})[metrics["split"]] = metrics["truncated"]
        found["metrics"] = metrics.get("model")
        found["per_label"] = metrics.get("per_label")
        found["baseline"] = metrics.get("baseline")
        found["paired"] = metrics.get("paired")
        found["documents"] = metrics.get("documents")
        found["gates"] = gates.get("gates")
        found["evaluation"] = outputs["evaluator"]["evaluation"][0].uri
        if not gates.get("blessed", False):
            found["status"] = "not_blessed"
            return found
    if "serving_check" in outputs:
        check = _read(outputs, "serving_check", "blessing", "report.json") or {}
        found["serving_check"] = check
        if not check.get("blessed", False):
            found["status"] = "not_blessed"
            return found
    if "push" in outputs:
        pushed = _read(outputs, "push", "pushed_model", "push.json") or {}
        if pushed.get("version") is not None:
            found.update(status="pushed", version=pushed["version"], model_path=pushed["path"])
        else:
            # Blessed, and yet not to be served: this very model was rolled back.
            found.update(status="unchanged", reason=pushed.get("reason"))
    return found


def _read(outputs: Outputs, step: str, key: str, name: str) -> Any:
    artifacts = outputs[step].get(key) or []
    path = Path(artifacts[0].uri) / name if artifacts else None
    if path is None or not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8"))
