"""Statistics of batch normalisation for weights that no step was made with (Izmailov et al., 2018, arXiv:1803.05407,
section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np


@contextmanager
def estimated(
    norms: Sequence[keras.layers.BatchNormalization],
    forward: Callable[[Mapping[str, np.ndarray]], Any],
    batches: Iterable[Mapping[str, np.ndarray]],
) -> Iterator[None]:
    """Means and variances of `batches` by the present weights in the place of the moving ones, which come back
    afterwards to the bit.

    Args:
      norms: those of the model.
      forward: the model as in training; it moves the statistics.
      batches: of training examples, at least one; gone through once.
    """
    moving = [(variable, norm.momentum) for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]
    own = [np.asarray(variable.numpy()) for variable, _ in moving]
    sums = [np.zeros_like(value) for value in own]
    count = 0
    for batch in batches:
        count += 1
        for variable, _ in moving:
            variable.assign(np.zeros(variable.shape, np.float32))
        forward(batch)
        for total, (variable, momentum) in zip(sums, moving, strict=True):
            total += variable.numpy() / np.float32(1 - momentum)  # from 0, a step moves it so far towards the batch's
    for total, (variable, _) in zip(sums, moving, strict=True):
        variable.assign(total / np.float32(count))
    try:
        yield
    finally:
        for value, (variable, _) in zip(own, moving, strict=True):
            variable.assign(value)
