"""The formulas behind every figure of the evaluation, in NumPy and over any leading axes.

The TFMA metrics apply them to the counts of a slice, the bootstrap to the counts of all resamples at once.
Decisions and truths are masks `[rows, labels]` bool for every task: one true entry a row where a row has one label.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CALIBRATION_BINS = 15  # Guo et al., "On Calibration of Modern Neural Networks", 2017
# tfma.metrics.AUCPrecisionRecall: 10,000 buckets, then as many thresholds, spaced a little wider.
_BUCKETS = 10_000
_THRESHOLDS = np.concatenate([[-1e-7], np.arange(1, _BUCKETS - 1) / (_BUCKETS - 1), [1 + 1e-7]])

Array = np.ndarray[Any, np.dtype[Any]]


def ratio(numerator: Array, denominator: Array) -> Array:
    """Quotient, float64, 0 where the denominator is 0 (scikit-learn's `zero_division=0`)."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    return np.divide(numerator, denominator, out=np.zeros(denominator.shape), where=denominator != 0)


def label_scores(tp: Array, fp: Array, fn: Array) -> dict[str, Array]:
    """Precision, recall and F1 of every label, each the shape of the counts."""
    return {
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
    }


def decision_scores(tp: Array, fp: Array, fn: Array, correct: Array, total: Array) -> dict[str, Array]:
    """What the decisions are worth over all labels.

    Args:
      tp, fp, fn: true positives, false positives, false negatives `[..., labels]`.
      correct: rows `[...]` whose decision is right in every label (subset accuracy when rows have several).
      total: rows `[...]`.

    Returns:
      `accuracy`, `macro_f1`, `micro_f1`, `weighted_f1` `[...]` float64; NaN where there are no rows. A label that
      is neither true nor decided anywhere has F1 0, as in scikit-learn with `zero_division=0` and all labels.
    """
    f1 = label_scores(tp, fp, fn)["f1"]
    support = tp + fn
    scores = {
        "accuracy": ratio(correct, total),
        "macro_f1": f1.mean(axis=-1),
        "micro_f1": label_scores(tp.sum(-1), fp.sum(-1), fn.sum(-1))["f1"],
        "weighted_f1": ratio((f1 * support).sum(-1), support.sum(-1)),
    }
    return {name: np.where(np.asarray(total) > 0, value, np.nan) for name, value in scores.items()}


def calibration_points(truth: Array, decision: Array, probabilities: Array, multilabel: bool) -> tuple[Array, Array]:
    """What is said with which confidence, and whether it is so, both `[rows, curves]`.

    One curve for the decision of a row with one label (its confidence is the greatest probability); one curve
    a label when a row has several (the probability of the label against its presence).
    """
    if multilabel:
        return probabilities, truth
    return probabilities.max(-1, keepdims=True), (truth == decision).all(-1, keepdims=True)


def calibration_bin(confidence: Array) -> Array:
    """The bin of equal width, 0 to `CALIBRATION_BINS - 1`, int64."""
    return np.clip((np.asarray(confidence) * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)


def calibration_error(confidence: Array, hits: Array, total: Array) -> Array:
    """Expected calibration error: the mean distance of confidence from truth, bins weighted by their rows.

    Args:
      confidence, hits: sums over the rows of every bin `[..., curves, bins]`.
      total: rows `[...]`.

    Returns:
      `[...]` float64, the mean over the curves; NaN where there are no rows.
    """
    gap = np.abs(confidence - hits).sum(-1).mean(-1)
    total = np.asarray(total)
    return np.where(total > 0, ratio(gap, total), np.nan)


def threshold_of(probabilities: Array) -> Array:
    """The greatest of TFMA's thresholds that a probability reaches, int64 index, through TFMA's buckets."""
    probabilities = np.asarray(probabilities, np.float64)
    edges = np.floor(probabilities * _BUCKETS) / _BUCKETS
    return np.searchsorted(_THRESHOLDS, np.where(probabilities >= 1, np.inf, edges), side="right") - 1


def pr_auc(weights: Array, positive: Array, threshold: Array) -> Array:
    """Area under the precision-recall curve, interpolated as tfma.metrics.AUCPrecisionRecall does.

    The interpolation is that of Davis and Goadrich, "The relationship between Precision-Recall and ROC curves", 2006.

    Args:
      weights: how often each row counts `[resamples, rows]`.
      positive: whether a row has the label `[rows]` bool.
      threshold: `threshold_of` the row's probability `[rows]`.

    Returns:
      `[resamples]` float64; NaN where no row has the label.
    """
    order = np.argsort(-threshold, kind="stable")
    last = np.flatnonzero(np.diff(threshold[order], append=-1))  # the last row at each threshold
    positive = positive[order]
    weights = weights[:, order].astype(np.float64)
    zero = np.zeros((len(weights), 1))
    tp = np.concatenate([zero, np.cumsum(weights * positive, axis=1)[:, last]], axis=1)
    predicted = np.concatenate([zero, np.cumsum(weights, axis=1)[:, last]], axis=1)
    gain, step = np.diff(tp, axis=1), np.diff(predicted, axis=1)
    slope = ratio(gain, step)
    before = predicted[:, :-1]
    growth = np.divide(predicted[:, 1:], before, out=np.ones_like(before), where=before > 0)
    area = slope * (gain + (tp[:, :-1] - slope * before) * np.log(growth))
    return np.where(tp[:, -1] > 0, ratio(area.sum(axis=1), tp[:, -1]), np.nan)


def mean_pr_auc(by_label: Array, binary: bool) -> Array:
    """PR-AUC over all labels `[...]` from that of each `[..., labels]`.

    Binary: that of the positive label, the last. Otherwise the mean over the labels that any row has; NaN if none.
    """
    if binary:
        return by_label[..., -1]
    known = ~np.isnan(by_label)
    total = np.where(known, by_label, 0.0).sum(-1)
    return np.where(known.any(-1), ratio(total, known.sum(-1)), np.nan)
