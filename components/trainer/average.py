"""The exponential moving average of weights (Polyak & Juditsky, 1992), on any strategy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf


class MovingAverage(tf.Module):
    """average := decay * average + (1 - decay) * weight after every step, from the weights after the first.

    What Keras's optimisers do with `use_ema`; this product's AdamW is none of them (see `optimizer`).

    Args:
      variables: what is averaged.
      decay: 0.99 averages over about a hundred steps.
    """

    def __init__(self, variables: Sequence[keras.Variable], decay: float) -> None:
        super().__init__(name="moving_average")
        self.decay = decay
        self._targets = [variable.value for variable in variables]
        self.state = [tf.Variable(target, trainable=False) for target in self._targets]

    def update(self, step: tf.Variable) -> None:
        """After a step, in replica context; `step` counts from 1."""
        tf.distribute.get_replica_context().merge_call(self._update_all, args=(step,))

    def _update_all(self, strategy: tf.distribute.Strategy, step: tf.Variable) -> None:
        for average, target in zip(self.state, self._targets, strict=True):
            strategy.extended.update(average, self._update, args=(target, step), group=False)

    def _update(self, average, target, step) -> None:
        decay = tf.where(tf.equal(step, 1), 0.0, self.decay)
        average.assign(decay * average + (1.0 - decay) * target)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages in the place of the weights, which come back afterwards to the bit."""
        own = [np.asarray(target.numpy()) for target in self._targets]
        for average, target in zip(self.state, self._targets, strict=True):
            target.assign(average.numpy())
        try:
            yield
        finally:
            for value, target in zip(own, self._targets, strict=True):
                target.assign(value)
