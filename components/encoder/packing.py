"""Packed batches: all real tokens of a batch end to end, no padding anywhere.

A batch of texts is a dict of
  `ids`          int32 [tokens]   the texts' token ids, one text after the other, special tokens included
  `segments`     int32 [tokens]   0 in the text, 1 and 2 in the segments after it; only where there are such
  `row_lengths`  int32 [batch]    tokens of each text (or window of one, see components.encoder.windows)
  `steps`        int32 [bound]    only where a bound of the row lengths must be known by a shape: this one's; 0, 1, 2 …

Dense layers, normalisation and residuals work on `[tokens, hidden]` as it stands. What looks beyond a token
(attention, convolution, pooling) asks the layout which text a token is of. With no padding there is nothing
that could change an answer, a normalisation's statistics or a pooled maximum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import keras
from keras import ops

Tensor = Any  # of whichever backend Keras runs on
Batch = dict[str, Tensor]


class Layout(NamedTuple):
    """Where every token of a packed batch belongs."""

    rows: Tensor  # int32 [tokens], the text that a token is of
    positions: Tensor  # int32 [tokens], its place in that text, from 0
    starts: Tensor  # int32 [batch], where each text begins
    lengths: Tensor  # int32 [batch]
    bound: Tensor | None = None  # int32 scalar, at least the greatest length; None: that is taken


def layout(batch: Batch) -> Layout:
    """The layout of a packed batch; the row lengths must add up to the number of tokens."""
    lengths = ops.cast(batch["row_lengths"], "int32")
    ends = ops.cumsum(lengths)
    starts = ends - lengths
    tokens = ops.arange(ops.shape(batch["ids"])[0], dtype="int32")
    rows = ops.cast(ops.searchsorted(ends, tokens, side="right"), "int32")
    bound = ops.shape(batch["steps"])[0] if "steps" in batch else None
    return Layout(rows, tokens - ops.take(starts, rows, axis=0), starts, lengths, bound)


class Cells(NamedTuple):
    """Packed tokens as a padded block, [batch, longest], where attention needs one."""

    tokens: Tensor  # int32 [batch, longest], the token in each cell; at padding some real one
    mask: Tensor  # bool [batch, longest], true at real tokens
    cell: Tensor  # int32 [tokens], where each token stands in the flattened block


def cells(place: Layout) -> Cells:
    """The block of these texts, as long as the longest of them, or as their bound."""
    longest = ops.max(place.lengths, initial=1) if place.bound is None else place.bound  # 1: of a batch without texts
    steps = ops.arange(longest, dtype="int32")[None, :]  # (1, L)
    last = ops.shape(place.rows)[0] - 1
    return Cells(
        ops.minimum(place.starts[:, None] + steps, last),
        steps < place.lengths[:, None],
        place.rows * longest + place.positions,
    )


def with_gradient(function: Callable[..., Tensor], gradient: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
    """The function of tensors, differentiated by `gradient`: from what comes from above to that of each argument.

    With TensorFlow on a CPU it is differentiated as it is: nothing is gained there, and TensorFlow's registry of
    gradients keeps each graph that has one of its own for ever (12 layers: 50 MB a trace).
    """
    if not _pays():
        return function

    @ops.custom_gradient
    def computed(*inputs: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        def backward(*args: Tensor, upstream: Tensor = None) -> Any:  # as it is handed over differs by Keras's backend
            return gradient(args[0] if upstream is None else upstream)

        return function(*inputs), backward

    return computed


@cache
def _pays() -> bool:
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def to_block(x: Tensor, block: Cells) -> Tensor:
    """float [tokens, features] -> [batch, longest, features]. What is made of padding must not reach the loss: then the
    gradient of this gathering is itself one, where a framework would add cell by cell."""

    def gradient(upstream: Tensor) -> Tensor:
        return ops.take(ops.reshape(upstream, (-1, x.shape[-1])), block.cell, axis=0)

    return with_gradient(lambda x: ops.take(x, block.tokens, axis=0), gradient)(x)


def from_block(x: Tensor, block: Cells) -> Tensor:
    """float [batch * longest, features] -> [tokens, features], padding dropped."""

    def gradient(upstream: Tensor) -> Tensor:
        found = ops.take(upstream, ops.reshape(block.tokens, (-1,)), axis=0)
        return ops.where(ops.reshape(block.mask, (-1, 1)), found, ops.zeros((), upstream.dtype))

    return with_gradient(lambda x: ops.take(x, block.cell, axis=0), gradient)(x)


def shifted(x: Tensor, rows: Tensor, left: int, right: int) -> list[Tensor]:
    """The tokens `left` before to `right` after each token; zeros beyond the ends of its text.

    Args:
      x: float [tokens, features].
      rows: int32 [tokens].

    Returns:
      `left + 1 + right` tensors of the shape of `x`; the one at index `left` is `x` itself.
    """
    tokens = ops.shape(x)[0]
    padded = ops.pad(x, [[left, right], [0, 0]])
    padded_rows = ops.pad(rows, [[left, right]], constant_values=-1)
    views = []
    for offset in range(left + right + 1):
        if offset == left:
            views.append(x)
            continue
        same_text = ops.equal(padded_rows[offset : offset + tokens], rows)
        # ops.slice, whose gradient is a padding, and not an index, whose gradient fills zeros one by one.
        view = ops.slice(padded, (offset, 0), (tokens, x.shape[1]))
        views.append(view * ops.cast(same_text, x.dtype)[:, None])
    return views


def padded(x: Tensor, place: Layout, length: int | Tensor) -> tuple[Tensor, Tensor]:
    """Packed rows as a padded block, cropped to `length`.

    Returns:
      block: the dtype of `x`, [batch, length, features]. At padding it repeats some real token: mask it.
      mask: bool [batch, length], true at real tokens.
    """
    block = cells(place._replace(bound=length))
    return ops.take(x, block.tokens, axis=0), block.mask
