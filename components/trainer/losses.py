"""Cross-entropy by task, with label smoothing or focus, and class weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from keras import ops

from components.config import Task
from components.encoder.packing import Tensor


def class_weights(
    setting: str | Mapping[str, float], labels: Sequence[str], truth: np.ndarray, task: Task
) -> np.ndarray | None:
    """Weights of errors by true class.

    Args:
      setting: "none", "balanced" (inverse to frequency, 1 on average; King & Zeng, 2001), or a weight a label.
      labels: the names.
      truth: int [examples], or for multilabel 0/1 [examples, labels].

    Returns:
      None; or float32 [labels]; for multilabel float32 [2, labels], for absent and present labels: "balanced"
      weighs both sides of each label equally, given weights are those of present labels.
    """
    if setting == "none":
        return None
    if not isinstance(setting, str):
        given = np.array([setting[label] for label in labels], np.float32)
        return np.stack([np.ones_like(given), given]) if task == "multilabel" else given
    if task != "multilabel":
        counts = np.bincount(truth, minlength=len(labels))
        return (len(truth) / (len(labels) * np.maximum(counts, 1))).astype(np.float32)
    present = truth.sum(axis=0)
    counts = np.stack([len(truth) - present, present])
    return (len(truth) / (2 * np.maximum(counts, 1))).astype(np.float32)


def example_losses(
    logits: Tensor,
    truth: Tensor,
    task: Task,
    smoothing: float = 0.0,
    weights: np.ndarray | None = None,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Weighted cross-entropy of each example, float32 [batch]; for multilabel the mean over labels.

    Args:
      logits: float32 [batch, outputs].
      truth: int [batch], or for multilabel float [batch, labels].
      smoothing: share of the target spread evenly over the classes (Szegedy et al., 2016).
      weights: of `class_weights`.
      focal_gamma: above 0, and then without smoothing, errors count by (1 - p)^gamma, p the probability of what is
        true (Lin et al., 2017, arXiv:1708.02002). Keras's focal losses cut probabilities at 1e-7, where the gradient
        of what is most wrong ends; this one does not.
    """
    if task == "multiclass":
        classes = logits.shape[-1]
        target = ops.one_hot(truth, classes) * (1.0 - smoothing) + smoothing / classes
        losses = _focused(-ops.sum(target * ops.log_softmax(logits, axis=-1), axis=-1), focal_gamma)
        return losses if weights is None else losses * ops.take(weights, truth, axis=0)
    if task == "binary":
        hard = ops.cast(truth, "float32")[:, None]  # (B, 1)
        weight = None if weights is None else ops.take(weights, truth, axis=0)[:, None]
    else:
        hard = ops.cast(truth, "float32")
        weight = None if weights is None else weights[0] * (1.0 - hard) + weights[1] * hard
    target = hard * (1.0 - smoothing) + smoothing / 2
    # max(x, 0) - x t + log(1 + exp(-|x|)): no overflow at any logit
    losses = _focused(ops.relu(logits) - logits * target + ops.log1p(ops.exp(-ops.abs(logits))), focal_gamma)
    return ops.mean(losses if weight is None else losses * weight, axis=-1)


def _focused(losses: Tensor, gamma: float) -> Tensor:
    """Losses -log p times (1 - p)^gamma."""
    if not gamma:
        return losses
    # From below 1e-7 on 1 - p is no longer told from 0, where the slope of a root is infinite.
    return losses * ops.power(ops.maximum(-ops.expm1(-losses), 1e-7), gamma)
