"""The gates: which bounds a model must hold to be blessed. Pure functions of the figures.

A figure that is missing or not a number fails its gate. `min_gain_over_…` compares with another model scored on the
same rows in the same run; for `calibration_error`, where less is better, a gain is a decrease.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from components.config import Gate

Kind = Literal["min", "max", "blessed", "baseline", "float32"]
_OTHER = {"blessed": "blessed model", "baseline": "baseline"}


@dataclass(frozen=True)
class Figures:
    """What one model reached on the evaluated split."""

    overall: Mapping[str, float]  # metric → value
    by_label: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # label → measure → value

    def get(self, gate: Gate) -> float:
        """The figure that a gate bounds; NaN where there is none."""
        if gate.label is None:
            return self.overall.get(gate.metric, math.nan)
        return self.by_label.get(gate.label, {}).get(str(gate.measure), math.nan)


@dataclass(frozen=True)
class Bound:
    """One bound of a gate, checked."""

    gate: str  # "macro_f1 >= 0.6"
    kind: Kind
    metric: str
    label: str | None
    bound: float | None  # what the value is held against; None where there is nothing to compare with
    value: float | None  # the model's figure; None where it is not a number
    reference: float | None  # what the other model reached; None for absolute bounds
    passed: bool
    message: str

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        return asdict(self)


def check_gates(
    gates: Sequence[Gate],
    model: Figures,
    *,
    baseline: Figures | None = None,
    blessed: Figures | None = None,
    blessed_note: str = "there is no blessed model to compare with yet",
    blessed_problem: str | None = None,
    where: str = "",
) -> list[Bound]:
    """Checks every bound of every gate, in their order.

    Args:
      gates: from the configuration.
      model: the candidate.
      baseline: TF-IDF + linear SVM; None where it was not scored.
      blessed: the latest blessed model; None where there is none to compare with: such bounds then hold.
      blessed_note: why there is nothing to compare with, for the message.
      blessed_problem: why the blessed model that there is could not be scored; such bounds then fail.
      where: the part of the rows that the figures are of; "" for all. A label that the part lacks is not judged there.
    """
    bounds = []
    for gate in gates:
        if where and gate.label is not None and not model.by_label.get(gate.label, {}).get("support"):
            continue
        value = model.get(gate)
        if gate.min is not None:
            bounds.append(_absolute(gate, "min", value, gate.min))
        if gate.max is not None:
            bounds.append(_absolute(gate, "max", value, gate.max))
        if gate.min_gain_over_baseline is not None:
            reference = baseline.get(gate) if baseline else math.nan
            bounds.append(_relative(gate, "baseline", value, reference, gate.min_gain_over_baseline))
        if gate.min_gain_over_blessed is not None:
            gain = gate.min_gain_over_blessed
            if blessed is not None:
                bounds.append(_relative(gate, "blessed", value, blessed.get(gate), gain))
            else:
                bounds.append(_without_blessed(gate, value, gain, blessed_note, blessed_problem))
    if where:
        return [replace(b, gate=f"{b.gate} on {where}", message=f"on {where}, {b.message}") for b in bounds]
    return bounds


def all_hold(bounds: Sequence[Bound]) -> bool:
    """Whether the model is to be blessed."""
    return all(bound.passed for bound in bounds)


def _absolute(gate: Gate, kind: Kind, value: float, bound: float) -> Bound:
    sign = ">=" if kind == "min" else "<="
    return _make(gate, f"{_name(gate)} {sign} {bound:g}", kind, value, bound, None, sign, "")


def _relative(gate: Gate, kind: Kind, value: float, reference: float, gain: float) -> Bound:
    sign = "<=" if _less_is_better(gate) else ">="
    step = -gain if _less_is_better(gate) else gain
    text = _relative_text(gate, kind, gain)
    origin = f" ({kind} {reference:.3f} {'-' if step < 0 else '+'} {abs(step):.3f})"
    return _make(gate, text, kind, value, reference + step, reference, sign, origin)


def _relative_text(gate: Gate, kind: Kind, gain: float) -> str:
    sign, step = ("<=", -gain) if _less_is_better(gate) else (">=", gain)
    return f"{_name(gate)} {sign} {kind} {'-' if step < 0 else '+'} {abs(step):g}"


def _without_blessed(gate: Gate, value: float, gain: float, note: str, problem: str | None) -> Bound:
    text = _relative_text(gate, "blessed", gain)
    if problem is not None:
        message = f"{_name(gate)} cannot be compared: {problem}"
    elif math.isnan(value):
        message = f"{_name(gate)} is missing or not a number"
    else:
        message = f"{_name(gate)} {value:.3f}: {note}"
    passed = problem is None and not math.isnan(value)
    return Bound(text, "blessed", _metric(gate), gate.label, None, _number(value), None, passed, message)


def _make(
    gate: Gate,
    text: str,
    kind: Kind,
    value: float,
    bound: float,
    reference: float | None,
    sign: str,
    origin: str,
) -> Bound:
    passed = value >= bound if sign == ">=" else value <= bound  # False where either is NaN
    if math.isnan(value):
        message = f"{_name(gate)} is missing or not a number"
    elif math.isnan(bound):
        message = f"{_name(gate)} {value:.3f} cannot be compared: the {_OTHER[kind]}'s figure is missing"
    else:
        relation = "holds" if passed else ("is below" if sign == ">=" else "is above")
        message = f"{_name(gate)} {value:.3f} {relation} its bound {bound:.3f}{origin}"
    return Bound(
        text,
        kind,
        _metric(gate),
        gate.label,
        _number(bound),
        _number(value),
        None if reference is None else _number(reference),
        bool(passed),
        message,
    )


def _less_is_better(gate: Gate) -> bool:
    return gate.label is None and gate.metric == "calibration_error"


def _metric(gate: Gate) -> str:
    return gate.metric if gate.label is None else str(gate.measure)


def _name(gate: Gate) -> str:
    return _metric(gate) if gate.label is None else f"{gate.measure} of {gate.label}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
