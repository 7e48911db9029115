"""AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101) with clipping, row-wise for embeddings, on any strategy.

A batch touches a thousand of an embedding table's thirty thousand rows. Updating only those, as
`torch.optim.SparseAdam` does, makes a step of a small model several times as fast: a dense update moves
7 × 15 MB for a table of 128 columns. Moments of rows that a batch does not touch stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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

    def apply(self, gradients: Sequence[tf.Tensor | tf.IndexedSlices], rate: tf.Tensor) -> tf.Tensor:
        """One step, in replica context; gradients are summed over replicas first.

        Returns:
          The global norm of the gradients before clipping, float32 scalar.
        """
        context = tf.distribute.get_replica_context()
        summed = context.all_reduce(tf.distribute.ReduceOp.SUM, list(gradients))
        summed = [_unique_rows(g) if isinstance(g, tf.IndexedSlices) else g for g in summed]
        clipped, norm = tf.clip_by_global_norm(summed, self.clip_norm)
        context.merge_call(self._update_all, args=(clipped, rate))
        return norm

    def _update_all(self, strategy: tf.distribute.Strategy, gradients, rate) -> None:
        step = strategy.extended.update(self.step, lambda step: step.assign_add(1), group=False)
        with tf.control_dependencies(strategy.experimental_local_results(step)):
            for n, (target, gradient) in enumerate(zip(self.targets, gradients, strict=True)):
                decay = self.weight_decay if self._decayed[n] else 0.0
                own_rate = rate if self.scales[n] == 1.0 else rate * self.scales[n]
                strategy.extended.update(
                    target,
                    lambda w, g, m, v, t, r, decay=decay: _update(w, g, m, v, t, r, decay),
                    args=(gradient, self._m[n], self._v[n], self.step, own_rate),
                    group=False,
                )


def _is_decayed(variable: keras.Variable) -> bool:
    parts = variable.path.split("/")
    return not (parts[-1].startswith("bias") or "norm" in parts[-2])


def _unique_rows(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    """Sums the gradients of a row that a batch uses more than once; a norm is only then the dense gradient's."""
    indices, place = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, place, tf.size(indices))
    return tf.IndexedSlices(values, indices, gradient.dense_shape)


def _update(w, gradient, m, v, step, rate, decay: float) -> None:
    count = tf.cast(step, tf.float32)
    power_1, power_2 = BETA_1**count, BETA_2**count
    if isinstance(gradient, tf.IndexedSlices):
        rows, g = gradient.indices, gradient.values
        new_m = BETA_1 * tf.gather(m, rows) + (1 - BETA_1) * g
        new_v = BETA_2 * tf.gather(v, rows) + (1 - BETA_2) * tf.square(g)
        scale = rate * tf.sqrt(1 - power_2) / (1 - power_1)
        change = scale * new_m / (tf.sqrt(new_v) + EPSILON)
        if decay:
            change += rate * decay * tf.gather(w, rows)
        m.scatter_update(tf.IndexedSlices(new_m, rows))
        v.scatter_update(tf.IndexedSlices(new_v, rows))
        w.scatter_sub(tf.IndexedSlices(change, rows))
        return
    if decay:
        w.assign_sub(rate * decay * w)
    # One pass over memory instead of the ten of separate operations.
    tf.raw_ops.ResourceApplyAdam(
        var=w.handle, m=m.handle, v=v.handle, beta1_power=power_1, beta2_power=power_2, lr=rate,
        beta1=BETA_1, beta2=BETA_2, epsilon=EPSILON, grad=gradient, use_locking=True,
    )  # fmt: skip
