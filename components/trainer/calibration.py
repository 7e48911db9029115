"""Temperature scaling (Guo et al., 2017, arXiv:1706.04599): logits divided by one number, so that a probability is how
often it is so. What is likeliest stays likeliest."""

from __future__ import annotations

import logging

import numpy as np

from components.classifier.model import TextClassifier, probabilities
from components.config import Task
from components.evaluation import scores
from components.trainer.batches import Examples
from components.trainer.metrics import decisions
from components.trainer.steps import make_logits_step, predict

LOWEST, HIGHEST = 0.05, 1000.0  # temperatures between which the best one is looked for
_HALVINGS = 60  # of that interval: to the last digits of float64

log = logging.getLogger(__name__)


def calibrate(model: TextClassifier, examples: Examples, task: Task) -> dict[str, float | None]:
    """Fits the temperature on `examples` and makes the division part of the model's output layer.

    Returns:
      `temperature`, or None where no finite one is best and the model stays as it is; negative log-likelihood and
      expected calibration error of the examples before and after: `loss_before`, `loss_after`, `error_before`,
      `error_after`.
    """
    logits, truth = predict(make_logits_step(model), examples), examples.labels
    temperature = fit_temperature(logits, truth, task)
    if temperature is None:
        log.warning("training.calibration: the evaluation split gives no finite temperature; the model stays as it is")
    else:
        for variable in model.output_dense.weights:
            variable.assign(variable.numpy() / np.float32(temperature))
    found: dict[str, float | None] = {"temperature": temperature}
    for name, scale in (("before", 1.0), ("after", temperature or 1.0)):
        found[f"loss_{name}"] = negative_log_likelihood(logits, truth, task, scale)
        found[f"error_{name}"] = calibration_error(np.asarray(probabilities(logits / scale, task)), truth, task)
    return found


def fit_temperature(logits: np.ndarray, truth: np.ndarray, task: Task) -> float | None:
    """The temperature that makes the truth likeliest; None where that is not between LOWEST and HIGHEST.

    That is so where the examples are told apart without a mistake, or no better than by chance: the likelihood then
    grows towards a temperature of 0, or of infinity.

    Args:
      logits: float [examples, outputs].
      truth: int [examples], or for multilabel 0/1 [examples, labels].
    """
    z = logits.astype(np.float64)
    low, high = 1 / HIGHEST, 1 / LOWEST
    # The mean negative log-likelihood is convex in 1 / temperature: its slope has one zero, or none.
    if not _slope(z, truth, task, low) < 0 < _slope(z, truth, task, high):
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _slope(z, truth, task, middle) > 0:
            high = middle
        else:
            low = middle
    return 2 / (low + high)


def negative_log_likelihood(logits: np.ndarray, truth: np.ndarray, task: Task, temperature: float = 1.0) -> float:
    """Mean over examples, and for multilabel over labels; natural logarithm."""
    z = logits.astype(np.float64) / temperature
    if task == "multiclass":
        return float(np.mean(_log_sum_exp(z) - z[np.arange(len(z)), truth]))
    return float(np.mean(np.logaddexp(0, z) - truth.reshape(z.shape) * z))


def calibration_error(said: np.ndarray, truth: np.ndarray, task: Task) -> float:
    """The evaluation's `calibration_error` (components/evaluation/scores.py) of probabilities [examples, labels]."""
    labels, multilabel = said.shape[1], task == "multilabel"
    decided = decisions(said, task)
    if not multilabel:
        truth, decided = np.eye(labels)[truth], np.eye(labels)[decided]
    confidence, hits = scores.calibration_points(truth.astype(bool), decided.astype(bool), said, multilabel)
    curves = range(confidence.shape[1])
    bins = scores.calibration_bin(confidence)
    by_bin = [
        [np.bincount(bins[:, n], value[:, n], scores.CALIBRATION_BINS) for n in curves] for value in (confidence, hits)
    ]
    return float(scores.calibration_error(np.array(by_bin[0]), np.array(by_bin[1]), np.array(len(said))))


def _slope(z: np.ndarray, truth: np.ndarray, task: Task, inverse: float) -> float:
    """Derivative of the mean negative log-likelihood by 1 / temperature."""
    if task == "multiclass":
        p = np.exp(inverse * z - _log_sum_exp(inverse * z)[:, None])
        return float(np.mean((p * z).sum(axis=1) - z[np.arange(len(z)), truth]))
    p = np.exp(-np.logaddexp(0, -inverse * z))
    return float(np.mean((p - truth.reshape(z.shape)) * z))


def _log_sum_exp(z: np.ndarray) -> np.ndarray:
    highest = z.max(axis=1)
    return highest + np.log(np.exp(z - highest[:, None]).sum(axis=1))
