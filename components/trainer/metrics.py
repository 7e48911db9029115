"""What a prediction is worth: the metrics that early stopping and the run's history use.

Decisions: the likeliest label; for a multilabel task every label whose probability reaches its threshold.
"""

from __future__ import annotations

import numpy as np
from sklearn import metrics as sk

from components.config import Task
from components.evaluation.scores import mean_pr_auc, pr_auc, threshold_of


def decisions(probabilities: np.ndarray, task: Task, thresholds: np.ndarray | None = None) -> np.ndarray:
    """Decisions of probabilities [examples, labels]: int64 [examples], or for multilabel int64 [examples, labels]."""
    if task == "multilabel":
        bounds = 0.5 if thresholds is None else thresholds
        return (probabilities >= bounds).astype(np.int64)
    return probabilities.argmax(axis=1)


def scores(
    probabilities: np.ndarray, truth: np.ndarray, task: Task, thresholds: np.ndarray | None = None
) -> dict[str, float]:
    """The metrics of `components.config.METRICS`.

    Args:
      probabilities: float [examples, labels].
      truth: int [examples], or for multilabel 0/1 [examples, labels].
      thresholds: float [labels], for multilabel; default 0.5.

    Returns:
      `accuracy` (multilabel: share of examples whose labels are all right), `macro_f1`, `micro_f1` and
      `weighted_f1` over all labels, a label without true or predicted examples counting 0, and `pr_auc`, as the
      evaluation has it: of the positive label where the task is binary, else the mean over labels, each against the
      rest, labels without true examples left out; 0 without any.
    """
    labels = probabilities.shape[1]
    predicted = decisions(probabilities, task, thresholds)
    truth = truth.astype(np.int64)
    found = {"accuracy": float(sk.accuracy_score(truth, predicted))}
    for average in ("macro", "micro", "weighted"):
        value = sk.f1_score(truth, predicted, labels=range(labels), average=average, zero_division=0)
        found[f"{average}_f1"] = float(value)
    hot = truth if task == "multilabel" else np.eye(labels, dtype=np.int64)[truth]
    once = np.ones((1, len(hot)))
    areas = [pr_auc(once, hot[:, n] > 0, threshold_of(probabilities[:, n]))[0] for n in range(labels)]
    found["pr_auc"] = float(np.nan_to_num(mean_pr_auc(np.array(areas), task == "binary")))
    return found


def tune_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The threshold of each label that gives the best F1 on these examples.

    Halfway between two probabilities that occur; of equally good ones the nearest to 0.5. A label without true
    examples keeps 0.5.

    Args:
      probabilities: float [examples, labels].
      truth: 0/1 [examples, labels].

    Returns:
      float32 [labels].
    """
    thresholds = np.full(probabilities.shape[1], 0.5, np.float32)
    for label in range(probabilities.shape[1]):
        positives = truth[:, label].sum()
        if not positives:
            continue
        order = np.argsort(-probabilities[:, label], kind="stable")
        p = probabilities[order, label].astype(np.float64)
        hits = np.cumsum(truth[order, label])
        f1 = 2 * hits / (np.arange(1, len(p) + 1) + positives)
        cut = np.append(p[1:], 0.0)  # the first probability below the threshold
        middle = (p + cut) / 2
        possible = np.flatnonzero(p > cut)  # equal probabilities cannot be told apart
        if possible.size == 0:
            continue
        best = possible[np.isclose(f1[possible], f1[possible].max(), rtol=0, atol=1e-12)]
        thresholds[label] = middle[best[np.argmin(np.abs(middle[best] - 0.5))]]
    return thresholds
