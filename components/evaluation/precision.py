"""The gates of a low precision: the exported model against the same model in float32, on the same rows.

Both are scored by TFMA in the same run. Held are the share of rows on which they decide alike, and what accuracy and
macro-F1 lose; and in every slice with enough rows the same share, and accuracy. Of the slices the worst is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from tensorflow_model_analysis import BASELINE_KEY, CANDIDATE_KEY
from tensorflow_model_analysis.proto import config_pb2

from components.config import ExportConfig
from components.evaluation.gates import Bound, Figures
from components.evaluation.report import Predictions

FLOAT32 = "float32"  # the model's name in TFMA
_METRICS = ("accuracy", "macro_f1")

SliceFigures = Mapping[str, tuple[int, Figures]]


def with_float32(eval_config: config_pb2.EvalConfig) -> config_pb2.EvalConfig:
    """The configuration with one more model, `FLOAT32`, scored like the candidate."""
    config = config_pb2.EvalConfig()
    config.CopyFrom(eval_config)
    candidate = next(spec for spec in config.model_specs if not spec.is_baseline)
    candidate.name = CANDIDATE_KEY
    config.model_specs.add().CopyFrom(candidate)
    config.model_specs[-1].name = FLOAT32
    names = [CANDIDATE_KEY, FLOAT32, *(BASELINE_KEY for spec in config.model_specs if spec.is_baseline)]
    for spec in config.metrics_specs:
        spec.model_names[:] = names
    return config


def check_precision(
    export: ExportConfig,
    model: SliceFigures,
    reference: SliceFigures,
    predictions: Predictions,
    reference_predictions: Predictions,
) -> list[Bound]:
    """Checks every bound of `export`.

    Args:
      export: the bounds.
      model, reference: slice → rows and figures, '' for all rows: of the export, and of the model in float32.
      predictions, reference_predictions: of the same rows, in the same order.
    """
    alike = (predictions.decision == reference_predictions.decision).all(axis=1)
    bounds = [_bound("agreement", "", float(alike.mean()), export.min_agreement, None)]
    for metric in _METRICS:
        value, theirs = model[""][1].overall[metric], reference[""][1].overall[metric]
        bounds.append(_bound(metric, "", value, export.max_loss, theirs))
    members = predictions.members()
    large = sorted(name for name, rows in members.items() if len(rows) >= export.min_slice_rows and name in reference)
    if large:
        agreement = {name: float(np.mean(alike[members[name]])) for name in large}
        worst = min(large, key=lambda name: agreement[name])
        bounds.append(_bound("agreement", worst, agreement[worst], export.min_slice_agreement, None))
        accuracy = {
            name: (model[name][1].overall["accuracy"], reference[name][1].overall["accuracy"]) for name in large
        }
        worst = min(large, key=lambda name: accuracy[name][0] - accuracy[name][1])
        bounds.append(_bound("accuracy", worst, accuracy[worst][0], export.max_slice_loss, accuracy[worst][1]))
    return bounds


def _bound(metric: str, where: str, value: float, allowed: float, theirs: float | None) -> Bound:
    """One bound: `allowed` is the least agreement, or (with the figure of float32) the greatest loss."""
    every = " in every slice" if where else ""
    if theirs is None:
        gate, bound = f"agreement with float32{every} >= {allowed:g}", allowed
    else:
        gate, bound = f"{metric}{every} >= float32 - {allowed:g}", theirs - allowed
    name = ("agreement with float32" if theirs is None else metric) + (f" in {where}" if where else "")
    passed = value >= bound  # False where either is not a number
    if math.isnan(value) or math.isnan(bound):
        message = f"{name} is missing or not a number"
    else:
        origin = "" if theirs is None else f" (float32 {theirs:.4f} - {allowed:g})"
        message = f"{name} {value:.4f} {'holds' if passed else 'is below'} its bound {bound:.4f}{origin}"
    bound_, value_, theirs_ = (None if n is None or math.isnan(n) else n for n in (bound, value, theirs))
    return Bound(gate, "float32", metric, None, bound_, value_, theirs_, bool(passed), message)
