"""AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101) with clipping, row-wise for embeddings, on any strategy.

A batch touches a thousand of an embedding table's thirty thousand rows. Updating only those, as
`torch.optim.SparseAdam` does, makes a step of a small model several times as fast: a dense update moves
7 × 15 MB for a table of 128 columns. Moments of rows that a batch does not touch stay as they are; so they do where
XLA needs known shapes, and the table is dense.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from components.config import TrainingConfig

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def learning_rate(step: int, steps: int, training: TrainingConfig, highest: float | None = None) -> float:
    """The rate of a step, from 0: linear warm-up, then linear or cosine decay to 0, or constant.

    Args:
      highest: the rate after warm-up; None: `training.learning_rate`.
    """
    highest = training.learning_rate if highest is None else highest
    warmup = round(training.warmup_share * steps)
    if step < warmup:
        return highest * (step + 1) / warmup
    if training.decay == "constant":
        return highest
    progress = (step - warmup) / max(1, steps - warmup)
    factor = 1 - progress if training.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return highest * factor


class AdamW(tf.Module):
    """Adam with decoupled weight decay and global clipping.

    Args:
      variables: what is trained; those whose last path component is a bias or belongs to a normalisation are
        not decayed.
      weight_decay: share of a weight taken away a step, times the learning rate.
      clip_norm: greatest global norm of the gradients.
      scales: factors of the learning rate (and so of the weight decay) by variable; None: 1 each.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        weight_decay: float,
        clip_norm: float,
        scales: Sequence[float] | None = None,
    ) -> None:
        super().__init__(name="adamw")
        self.scales = [1.0] * len(variables) if scales is None else list(scales)
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.targets = [variable.value for variable in variables]
        self._decayed = [_is_decayed(variable) for variable in variables]
        zeros = [tf.zeros(v.shape, v.dtype) for v in self.targets]
        self._m = [tf.Variable(z, trainable=False) for z in zeros]
        self._v = [tf.Variable(z, trainable=False) for z in zeros]
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)

    @property
    def state(self) -> list[tf.Variable]:
        """Everything that a checkpoint must hold."""
        return [self.step, *self._m, *self._v]

    def apply(
        self, gradients: Sequence[tf.Tensor | tf.IndexedSlices], rate: tf.Tensor, static: bool = False
    ) -> tf.Tensor:
        """One step, in replica context; gradients are summed over replicas first.

        Args:
          static: whether shapes must be known, for XLA: then the whole of a table is gone through, under a mask.

        Returns:
          The global norm of the gradients before clipping, float32 scalar.
        """
        context = tf.distribute.get_replica_context()
        summed = context.all_reduce(tf.distribute.ReduceOp.SUM, list(gradients))
        unique = _rows_of_all if static else _unique_rows
        rows = [unique(g) if isinstance(g, tf.IndexedSlices) else None for g in summed]
        values = [g if of is None else of.values for g, of in zip(summed, rows, strict=True)]
        clipped, norm = tf.clip_by_global_norm(values, self.clip_norm)
        changes = [g if of is None else of._replace(values=g) for g, of in zip(clipped, rows, strict=True)]
        context.merge_call(self._update_all, args=(changes, rate))
        return norm

    def _update_all(self, strategy: tf.distribute.Strategy, gradients, rate) -> None:
        step = strategy.extended.update(self.step, lambda step: step.assign_add(1), group=False)
        with tf.control_dependencies(strategy.experimental_local_results(step)):
            count = tf.cast(self.step, tf.float32)
            powers = BETA_1**count, BETA_2**count
            rates = {scale: (rate * scale, rate * scale * self.weight_decay) for scale in set(self.scales)}
            for n, (target, gradient) in enumerate(zip(self.targets, gradients, strict=True)):
                own_rate, decay = rates[self.scales[n]]
                decay = decay if self._decayed[n] and self.weight_decay else None
                strategy.extended.update(
                    target, _update, group=False,
                    args=(gradient, self._m[n], self._v[n], powers, own_rate, decay),
                )  # fmt: skip


def _is_decayed(variable: keras.Variable) -> bool:
    parts = variable.path.split("/")
    return not (parts[-1].startswith("bias") or "norm" in parts[-2])


class Rows(NamedTuple):
    """The gradient of some of a table's rows."""

    values: tf.Tensor  # [rows, features]
    numbers: tf.Tensor | None  # [rows], each once; None: all of the table
    used: tf.Tensor | None = None  # bool [rows, 1], where these are all: which a batch has, or has for padding


def _unique_rows(gradient: tf.IndexedSlices) -> Rows:
    """Sums the gradients of a row that a batch uses more than once; a norm is only then the dense gradient's."""
    numbers, place = tf.unique(gradient.indices)
    return Rows(tf.math.unsorted_segment_sum(gradient.values, place, tf.size(numbers)), numbers)


def _rows_of_all(gradient: tf.IndexedSlices) -> Rows:
    count = gradient.dense_shape[0]
    values = tf.math.unsorted_segment_sum(gradient.values, gradient.indices, count)
    times = tf.math.unsorted_segment_sum(tf.ones_like(gradient.indices), gradient.indices, count)
    return Rows(values, None, times[:, None] > 0)


def _update(w, gradient, m, v, powers, rate, decay) -> None:
    """Brings a variable and its moments up to date; `decay`, of the whole weight, is None where there is none."""
    if isinstance(gradient, Rows):
        _update_rows(w, gradient, m, v, powers, rate, decay)
        return
    if decay is not None:
        w.assign_sub(decay * w)
    # One pass over memory instead of the ten of separate operations.
    tf.raw_ops.ResourceApplyAdam(
        var=w.handle, m=m.handle, v=v.handle, beta1_power=powers[0], beta2_power=powers[1], lr=rate,
        beta1=BETA_1, beta2=BETA_2, epsilon=EPSILON, grad=gradient, use_locking=True,
    )  # fmt: skip


def _update_rows(w, gradient: Rows, m, v, powers, rate, decay) -> None:
    def updated(m, v, w):
        """Both moments and what is taken from the weights, of the gradient's rows."""
        m = BETA_1 * m + (1 - BETA_1) * gradient.values
        v = BETA_2 * v + (1 - BETA_2) * tf.square(gradient.values)
        scale = rate * tf.sqrt(1 - powers[1]) / (1 - powers[0])
        change = scale * m / (tf.sqrt(v) + EPSILON)
        return m, v, change if decay is None else change + decay * w

    rows = gradient.numbers
    if rows is None:
        new_m, new_v, change = updated(m, v, w)
        m.assign(tf.where(gradient.used, new_m, m))
        v.assign(tf.where(gradient.used, new_v, v))
        w.assign_sub(tf.where(gradient.used, change, 0.0))
    else:
        new_m, new_v, change = updated(tf.gather(m, rows), tf.gather(v, rows), tf.gather(w, rows))
        m.scatter_update(tf.IndexedSlices(new_m, rows))
        v.scatter_update(tf.IndexedSlices(new_v, rows))
        w.scatter_sub(tf.IndexedSlices(change, rows))
