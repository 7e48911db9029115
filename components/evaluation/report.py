"""metrics.json: the figures of an evaluation, from TFMA's results and the table of predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tfx.dsl.io import fileio

from components.errors import DataError
from components.evaluation import bootstrap, scores
from components.evaluation.baseline import BaselineResult
from components.evaluation.documents import document_scores
from components.evaluation.eval_config import LABEL_SLICE, LENGTH_SLICE, SPAN_SLICE
from components.evaluation.extract import PREDICTIONS, Scoring
from components.evaluation.gates import Figures
from components.evaluation.metrics import BY_LABEL, OVERALL
from components.evaluation.scores import Array

_DIGITS = 9  # so that the order in which workers add up does not show
_MIN_ROWS = 10  # slices of fewer rows get no intervals: they would say nothing, and there can be many
SEED = 0  # of every bootstrap


@dataclass(frozen=True)
class Predictions:
    """What one model said of every row, ordered by the rows' keys."""

    keys: Array  # [rows] int64
    truth: Array  # [rows, labels] bool
    decision: Array  # [rows, labels] bool
    probabilities: Array  # [rows, labels] float32
    slices: list[list[str]]  # of every row: "column=value"
    truncated: int  # rows of which tokens were cut off

    def members(self) -> dict[str, list[int]]:
        """The rows of every slice."""
        found: dict[str, list[int]] = {}
        for row, names in enumerate(self.slices):
            for name in set(names):
                found.setdefault(name, []).append(row)
        return found


def read_predictions(path: str, model: str) -> Predictions:
    """Reads the table that `extract.prediction_table` wrote for the model of that name in TFMA ('' if alone)."""
    prefix = f"{model}." if model else ""
    tables = []
    for file in sorted(fileio.glob(f"{path}/{PREDICTIONS}*.parquet")):
        with fileio.open(file, "rb") as stream:
            tables.append(pq.read_table(pa.BufferReader(stream.read())))
    table = pa.concat_tables(tables).sort_by("row")

    def matrix(column: str) -> Array:
        values = table[column].combine_chunks()
        return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)

    return Predictions(
        keys=table["row"].to_numpy(),
        truth=matrix("truth"),
        decision=matrix(f"{prefix}decision"),
        probabilities=matrix(f"{prefix}probabilities"),
        slices=table["slices"].to_pylist(),
        truncated=pc.sum(table["truncated"]).as_py() or 0,
    )


def read_figures(result: Any, labels: Sequence[str]) -> dict[str, tuple[int, Figures]]:
    """From a tfma.EvalResult: slice → its rows and figures; the slice '' is the whole split."""
    found = {}
    for slice_key, outputs in result.slicing_metrics:
        by_sub_key = outputs[""]
        overall = {name: _double(by_sub_key[""][name]) for name in OVERALL}
        by_label = {}
        for i, label in enumerate(labels):
            values = by_sub_key[f"classId:{i}"]
            by_label[label] = {measure: _double(values[measure]) for measure in BY_LABEL}
        name = ",".join(f"{column}={value}" for column, value in slice_key)
        found[name] = int(_double(by_sub_key[""]["example_count"])), Figures(overall, by_label)
    return found


def _double(value: Mapping[str, Any]) -> float:
    number = value.get("doubleValue", math.nan)
    return round(float(number), _DIGITS)


def baseline_figures(result: BaselineResult, labels: Sequence[str]) -> Figures:
    """The figures of the baseline's decisions; it gives no probabilities, hence no PR-AUC and calibration."""
    truth, decision = result.truth, result.decision
    tp, fp, fn = (truth & decision).sum(0), (decision & ~truth).sum(0), (truth & ~decision).sum(0)
    correct = (truth == decision).all(1).sum()
    overall = scores.decision_scores(tp, fp, fn, correct, np.array(len(truth)))
    by_label = scores.label_scores(tp, fp, fn)
    return Figures(
        {name: round(float(value), _DIGITS) for name, value in overall.items()},
        {
            label: {measure: round(float(by_label[measure][i]), _DIGITS) for measure in by_label}
            for i, label in enumerate(labels)
        },
    )


def paired_report(predictions: Predictions, baseline: BaselineResult, samples: int) -> dict[str, Any]:
    """`paired` of metrics.json: model − baseline on the same rows, with the paired bootstrap's interval.

    Raises:
      DataError: if the two were not scored on the same rows.
    """
    same = np.array_equal(predictions.keys, baseline.keys)
    if not same or not np.array_equal(predictions.truth, baseline.truth):
        raise DataError(
            f"the model was scored on {len(predictions.keys)} rows and the baseline on {len(baseline.keys)}, and "
            "they are not the same rows with the same labels; run the pipeline again from the ingest"
        )
    differences = bootstrap.paired_differences(
        predictions.truth, predictions.decision, baseline.decision, samples, SEED
    )
    return {
        name: {"difference": number(difference), "low": number(low), "high": number(high)}
        for name, (difference, low, high) in differences.items()
        if name in ("accuracy", "macro_f1", "micro_f1")
    }


def document_report(
    documents: Array, predictions: Predictions, baseline: BaselineResult | None, samples: int
) -> dict[str, Any] | None:
    """`documents` of metrics.json: F1 by document of the model, the baseline and their difference, each with its
    interval (`components.evaluation.documents`); None where no row has a label."""
    if not predictions.truth.any():
        return None
    decision = None if baseline is None else baseline.decision
    found = document_scores(documents, predictions.truth, predictions.decision, decision, max(samples, 1), SEED)
    return {
        name: {"value": number(value), "low": number(low), "high": number(high)}
        for name, (value, low, high) in found.items()
    }


def model_report(
    figures: Mapping[str, tuple[int, Figures]],
    predictions: Predictions,
    scoring: Scoring,
    samples: int,
) -> dict[str, Any]:
    """`examples`, `truncated`, `model`, `per_label`, `confusion`, `calibration`, `slices` of metrics.json."""
    rows, whole = figures[""]
    overall, by_label = _intervals(predictions, None, scoring, samples)
    per_label = {}
    for i, label in enumerate(scoring.labels):
        values = {measure: number(value) for measure, value in whole.by_label[label].items()}
        values["support"] = int(whole.by_label[label]["support"])
        for measure, (low, high) in by_label[i].items() if by_label else ():
            values |= {f"{measure}_low": number(low), f"{measure}_high": number(high)}
        per_label[label] = values
    members = predictions.members()
    slices = []
    for name in sorted(figures.keys() - {""}, key=lambda name: _slice_order(name, scoring)):
        count, part = figures[name]
        kept = part.overall
        if name.startswith(f"{LABEL_SLICE}=") and not scoring.multilabel:
            # One true label: accuracy is its recall, and what averages over labels says nothing.
            kept = {metric: kept[metric] for metric in ("accuracy", "calibration_error")}
        bounds: dict[str, bootstrap.Interval] = {}
        if count >= _MIN_ROWS:
            bounds, _ = _intervals(predictions, np.array(members[name]), scoring, samples)
        slices.append({"slice": name, "examples": count, "metrics": _with_bounds(kept, bounds)})
    truth, decision = predictions.truth.astype(int), predictions.decision.astype(int)
    if scoring.multilabel:  # of each label one, as scikit-learn's multilabel_confusion_matrix: rows not true, true
        by_truth = ((1 - truth, 1 - decision), (1 - truth, decision)), ((truth, 1 - decision), (truth, decision))
        confusion = np.array([[(t * d).sum(0) for t, d in row] for row in by_truth]).transpose(2, 0, 1).tolist()
    else:  # [labels, labels], rows true, columns decided
        confusion = (truth.T @ decision).tolist()
    return {
        "examples": rows,
        "truncated": predictions.truncated,
        "model": _with_bounds(whole.overall, overall),
        "per_label": per_label,
        "confusion": confusion,
        "calibration": _calibration(predictions, scoring),
        "slices": slices,
    }


def _intervals(
    predictions: Predictions, members: Array | None, scoring: Scoring, samples: int
) -> tuple[dict[str, bootstrap.Interval], list[dict[str, bootstrap.Interval]]]:
    if not samples:
        return {}, []
    parts = (predictions.truth, predictions.decision, predictions.probabilities)
    truth, decision, probabilities = (part if members is None else part[members] for part in parts)
    return bootstrap.metric_intervals(truth, decision, probabilities, scoring.task, samples, SEED)


def _with_bounds(
    values: Mapping[str, float], bounds: Mapping[str, bootstrap.Interval]
) -> dict[str, dict[str, float | None]]:
    report = {}
    for name, value in values.items():
        low, high = bounds.get(name, (math.nan, math.nan))
        report[name] = {"value": number(value), "low": number(low), "high": number(high)}
    return report


def _calibration(predictions: Predictions, scoring: Scoring) -> list[dict[str, Any]]:
    """The reliability diagram: of the bins that hold rows, the mean confidence and the share that is so."""
    said, so = scores.calibration_points(
        predictions.truth, predictions.decision, predictions.probabilities, scoring.multilabel
    )
    bins = scores.calibration_bin(said).ravel()
    said, so = said.ravel().astype(np.float64), so.ravel()
    width = 1 / scores.CALIBRATION_BINS
    return [
        {
            "from": number(i * width),
            "to": number((i + 1) * width),
            "count": int((bins == i).sum()),
            "confidence": number(float(said[bins == i].mean())),
            "observed": number(float(so[bins == i].mean())),
        }
        for i in np.unique(bins).tolist()
    ]


def _slice_order(name: str, scoring: Scoring) -> tuple[int, int, str]:
    column, _, value = name.partition("=")
    if column == LABEL_SLICE and value in scoring.labels:
        return 0, scoring.labels.index(value), name
    if column == LENGTH_SLICE:
        return 1, int(value.rstrip("+").partition("-")[0]), name
    if column == SPAN_SLICE:
        return 3, int(value) if value.isdigit() else 0, name
    return 2, 0, name


def number(value: float) -> float | None:
    """A figure as JSON has it: rounded, None where it is not a number."""
    return None if math.isnan(value) else round(float(value), _DIGITS)
