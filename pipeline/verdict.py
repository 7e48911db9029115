"""Whether a step's own verdict ends a run: what an orchestrator must show as failed though the step itself worked.

A local run goes on to the end and says `not_blessed`; an orchestrator has no word for that, only failed tasks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tfx.dsl.io import fileio


def refusal(step: str, outputs: Mapping[str, Sequence[Any]]) -> str:
    """Why a step refused the model, naming every gate that is broken, or "".

    Args:
      step: node id.
      outputs: its TFX artifacts by output name.
    """
    if step == "evaluator":
        gates = _read(outputs["evaluation"][0].uri, "gates.json")
        broken = [gate for gate in gates.get("gates", []) if not gate["passed"]]
        if gates.get("blessed"):
            return ""
        named = "; ".join(f"{gate['gate']} ({_value(gate['value'])})" for gate in broken)
        return f"the model was not blessed: {named or 'no gate holds'}"
    if step == "serving_check":
        report = _read(outputs["blessing"][0].uri, "report.json")
        return "" if report.get("blessed") else f"the serving check refused the model: {report.get('reason')}"
    return ""


def _value(value: float | None) -> str:
    return "no value" if value is None else f"{value:.4f}"


def _read(folder: str, name: str) -> dict[str, Any]:
    with fileio.open(os.path.join(folder, name), "r") as file:
        return json.loads(file.read())
