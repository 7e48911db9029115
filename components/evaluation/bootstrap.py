"""Bootstrap intervals in NumPy: all resamples of a data set at once, from a seed.

Why not TFMA's Poisson bootstrap: it cannot be seeded outside its tests, so the same inputs would give other numbers,
and it adds every row to every resample one by one.

Resampling rows with replacement is a multinomial draw. Rows that are alike in all that a metric looks at form one
cell, so that metrics of decisions need one draw over the cells, whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from components.evaluation import scores
from components.evaluation.scores import Array

LEVEL = 0.95
_MAX_DRAWS = 20_000_000  # rows × resamples; more rows get fewer resamples (and have narrow intervals)
_CHUNK = 4_000_000  # counts held in memory at once

Interval = tuple[float, float]


def interval(samples: Array) -> Interval:
    """The percentile interval of level `LEVEL`; NaN, NaN if a resample has no value."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_differences(
    truth: Array, model: Array, baseline: Array, samples: int, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """How much better the model decides than the baseline on the same rows.

    Args:
      truth, model, baseline: masks `[rows, labels]` bool, row for row the same examples.
      samples: resamples.
      seed: of the draws.

    Returns:
      For each metric of `scores.decision_scores` the difference model − baseline and its interval (low, high).
    """
    cells, counts = _cells(np.concatenate([truth, model, baseline], axis=1))
    truth, model, baseline = np.split(cells, 3, axis=1)
    once = _decision(counts[None], truth, model), _decision(counts[None], truth, baseline)
    drawn: dict[str, list[Array]] = {name: [] for name in once[0]}
    for weights in _draw(counts, samples, seed):
        a, b = _decision(weights, truth, model), _decision(weights, truth, baseline)
        for name, values in drawn.items():
            values.append(a[name] - b[name])
    return {
        name: (float(once[0][name][0] - once[1][name][0]), *interval(np.concatenate(values)))
        for name, values in drawn.items()
    }


def metric_intervals(
    truth: Array,
    decision: Array,
    probabilities: Array,
    task: str,
    samples: int,
    seed: int = 0,
) -> tuple[dict[str, Interval], list[dict[str, Interval]]]:
    """Intervals of one model's metrics.

    Args:
      truth, decision: masks `[rows, labels]` bool.
      probabilities: `[rows, labels]` float32.
      task: binary, multiclass or multilabel.
      samples: resamples, at least 1; fewer are drawn above `_MAX_DRAWS` / rows.
      seed: of the draws.

    Returns:
      The intervals (low, high) of the metrics over all labels; and for each label those of its precision, recall
      and F1.
    """
    rows = len(truth)
    multilabel = task == "multilabel"
    said, so = scores.calibration_points(truth, decision, probabilities.astype(np.float64), multilabel)
    bins = scores.calibration_bin(said)
    threshold = scores.threshold_of(probabilities)
    drawn: dict[str, list[Array]] = {}
    samples = resamples(rows, samples)
    for weights in _draw(np.ones(rows), samples, seed):
        values = _decision(weights, truth, decision) | _by_label(weights, truth, decision)
        areas = [scores.pr_auc(weights, truth[:, i], threshold[:, i]) for i in range(truth.shape[1])]
        values["pr_auc"] = scores.mean_pr_auc(np.stack(areas, axis=-1), task == "binary")
        values["calibration_error"] = _calibration(weights, bins, said, so)
        for name, array in values.items():
            drawn.setdefault(name, []).append(array)
    joined = {name: np.concatenate(arrays) for name, arrays in drawn.items()}
    measures = ("precision", "recall", "f1")
    by_label = [{m: interval(joined[m][:, i]) for m in measures} for i in range(truth.shape[1])]
    return {n: interval(a) for n, a in joined.items() if n not in measures}, by_label


def resamples(rows: int, samples: int) -> int:
    """How many resamples are drawn of so many rows when `samples` are asked for."""
    return max(min(samples, 100), min(samples, _MAX_DRAWS // max(rows, 1)))


def _cells(masks: Array) -> tuple[Array, Array]:
    """The distinct rows of a mask in a fixed order, and how often each occurs."""
    packed, index, counts = np.unique(np.packbits(masks, axis=1), axis=0, return_index=True, return_counts=True)
    del packed
    return masks[index], counts


def _draw(counts: Array, samples: int, seed: int) -> Iterator[Array]:
    """Multinomial resamples of the rows that `counts` counts by cell: `[chunk, cells]` float64."""
    generator = np.random.default_rng(seed)
    rows = int(counts.sum())
    step = max(1, _CHUNK // len(counts))
    for start in range(0, samples, step):
        size = min(step, samples - start)
        yield generator.multinomial(rows, counts / rows, size=size).astype(np.float64)


def _counts(weights: Array, truth: Array, decision: Array) -> tuple[Array, Array, Array]:
    return weights @ (truth & decision), weights @ (decision & ~truth), weights @ (truth & ~decision)


def _decision(weights: Array, truth: Array, decision: Array) -> dict[str, Array]:
    tp, fp, fn = _counts(weights, truth, decision)
    right = (truth == decision).all(axis=1)
    return scores.decision_scores(tp, fp, fn, weights @ right, weights.sum(axis=1))


def _by_label(weights: Array, truth: Array, decision: Array) -> dict[str, Array]:
    return scores.label_scores(*_counts(weights, truth, decision))


def _calibration(weights: Array, bins: Array, said: Array, so: Array) -> Array:
    rows, curves = bins.shape
    confidence = np.zeros((len(weights), curves, scores.CALIBRATION_BINS))
    hits = np.zeros_like(confidence)
    for curve in range(curves):
        member = np.zeros((rows, scores.CALIBRATION_BINS))
        member[np.arange(rows), bins[:, curve]] = 1
        confidence[:, curve] = weights @ (member * said[:, curve, None])
        hits[:, curve] = weights @ (member * so[:, curve, None])
    return scores.calibration_error(confidence, hits, weights.sum(axis=1))
