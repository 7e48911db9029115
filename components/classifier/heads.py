"""CNN heads over packed token embeddings: [tokens, hidden] -> [batch, features].

`multi_width`  convolutions of several widths in parallel, maximum over the text (Kim, 2014, arXiv:1408.5882)
`global_max`   convolutions one after the other, maximum over the text
`stacked`      convolutions one after the other, each with batch normalisation and dropout; maximum
`flatten`      convolutions one after the other, max-pool, flattened at a fixed length
`attention`    convolutions in parallel, pooled by learned weights (Yang et al., 2016, section 2.2)
`cls`          no convolution: the embedding of the first token, as the control

Convolutions see zeros beyond the ends of a text, whatever stands beside it in the batch, and batch statistics
are over real tokens only: an answer never depends on the other texts or on padding.

Each head tells which n-gram each of its features comes from (`Head.ngrams`).
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from components.config import HeadConfig
from components.encoder.packing import Batch, Layout, Tensor, layout, padded, shifted

_PARALLEL = ("multi_width", "attention")
_NONE = 2**30  # above every token's number


class Convolutions(keras.layers.Layer):
    """1-D convolutions of several widths over the same packed tokens, zeros beyond each text's ends.

    A width of w looks at (w - 1) // 2 tokens before and w // 2 after (TensorFlow's "SAME"). The windows are
    laid out side by side and each width is one matrix product: on CPU as fast as a padded convolution of
    the same real tokens, and there is no padding to compute.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        filters: tuple[int, ...],
        regularizer: keras.regularizers.Regularizer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.widths = widths
        self.filters = filters
        self.regularizer = regularizer

    def build(self, input_shape: tuple[int, ...]) -> None:
        self.kernels = []
        self.biases = []
        for width, filters in zip(self.widths, self.filters, strict=True):
            self.kernels.append(
                self.add_weight(
                    shape=(width * input_shape[-1], filters),
                    initializer="glorot_uniform",
                    regularizer=self.regularizer,
                    name=f"kernel_{width}",
                )
            )
            self.biases.append(self.add_weight(shape=(filters,), initializer="zeros", name=f"bias_{width}"))

    def call(self, x: Tensor, rows: Tensor) -> list[Tensor]:
        """Returns one float [tokens, filters] a width, before any activation."""
        left = max(map(_before, self.widths))
        right = max(map(_after, self.widths))
        views = shifted(x, rows, left, right)
        outputs = []
        for width, kernel, bias in zip(self.widths, self.kernels, self.biases, strict=True):
            first = left - _before(width)
            window = ops.concatenate(views[first : first + width], axis=-1)  # (T, width * H)
            outputs.append(ops.matmul(window, kernel) + bias)
        return outputs


class Head(keras.layers.Layer):
    """The head that `config.kind` names.

    Args:
      config: kind, widths, filters and rates.
      segments: how many an example has; of more than one (batches carry `segments`) pooling heads pool each apart, if
        `config.pool_by_segment`. `flatten` and `cls` do not pool over the text.
      max_length: tokens that `flatten` keeps; shorter texts are padded with zeros, longer ones cropped.

    Call arguments:
      hidden: float [tokens, hidden].
      batch: the packed batch; of windows, where long texts are cut into such. Then pooling heads pool over all windows
        of a text, `flatten` takes the maximum of what it gives for each, and `cls` the mean.

    Returns:
      float [texts, features].
    """

    def __init__(self, config: HeadConfig, segments: int, max_length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.max_length = max_length
        self.segments = segments if config.pool_by_segment else 1  # pooled apart
        filters = config.filters * (len(config.widths) // len(config.filters))
        regularizer = keras.regularizers.L2(config.l2) if config.l2 else None
        policy = self.dtype_policy
        self.parallel = config.kind in _PARALLEL
        if config.kind == "cls":
            stages: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        elif self.parallel:
            stages = [(config.widths, filters)]
        else:
            stages = [((width,), (count,)) for width, count in zip(config.widths, filters, strict=True)]
        self.stages = [
            Convolutions(*stage, regularizer=regularizer, name=f"convolutions_{n}", dtype=policy)
            for n, stage in enumerate(stages)
        ]
        # How many tokens before and after its own each filter of the last stage sees.
        if self.parallel:
            both = zip(config.widths, filters, strict=True)
            self.reach = tuple((_before(width), _after(width)) for width, count in both for _ in range(count))
        else:
            self.reach = ((sum(map(_before, config.widths)), sum(map(_after, config.widths))),) * filters[-1]
        normalised = config.batch_norm or config.kind == "stacked"
        # A momentum of 0.9: a run of a few hundred steps must settle the moving statistics.
        self.norms = [
            keras.layers.BatchNormalization(momentum=0.9, name=f"norm_{n}", dtype=policy)
            for n in range(len(stages) if normalised else 0)
        ]
        self.dropouts = [
            keras.layers.Dropout(config.dropout, dtype=policy)
            for _ in range(len(stages) - 1 if config.kind == "stacked" else 0)
        ]
        if config.kind == "attention":
            self.hidden_score = keras.layers.Dense(
                sum(filters), activation="tanh", kernel_regularizer=regularizer, name="score_hidden",
                dtype=policy,
            )  # fmt: skip
            self.score = keras.layers.Dense(1, use_bias=False, name="score", dtype=policy)

    def build(self, _: Any = None) -> None:
        """Every layer is built as the first call comes to it; without this, Keras would trace that call for it."""

    def call(self, hidden: Tensor, batch: Batch, training: bool = False) -> Tensor:
        place = layout(batch)
        windows = batch.get("text_of_row")  # where long texts are several rows (components.encoder.windows)
        if self.config.kind == "cls":
            first = ops.take(hidden, place.starts, axis=0)
            return first if windows is None else _mean(first, windows, ops.shape(batch["text_lengths"])[0])
        features = self._convolved(hidden, place, training)  # (T, F), at least 0
        if self.config.kind == "flatten":
            flat = self._flattened(features, place)
            return flat if windows is None else ops.segment_max(flat, windows, ops.shape(batch["text_lengths"])[0])
        groups, count = self._groups(batch, place)
        if self.config.kind == "attention":
            pooled = self._attended(features, groups, count)
        else:
            # The maximum over no token at all (an empty second segment) is that of no n-gram found: 0.
            pooled = ops.maximum(ops.segment_max(features, groups, num_segments=count), 0)
        return ops.reshape(pooled, (-1, self.segments * features.shape[-1]))

    def ngrams(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Which n-gram each feature comes from: the one at its maximum over the text, or with attention at the greatest
        part of its weighted mean. Convolutions one after the other see as many tokens as all their widths together.

        Args: of `call`.

        Returns:
          int32 [texts, features, 2]: the n-gram's first token and the one after its last, counted in the text from
          [CLS], which is 0; special tokens at the ends are left out. Both are 0 where there is none: the feature is
          not above 0, or the head is `cls`.
        """
        place = layout(batch)
        windows = batch.get("text_of_row")
        texts = ops.shape(place.lengths if windows is None else batch["text_lengths"])[0]
        if self.config.kind == "cls":
            return ops.zeros((texts, hidden.shape[-1], 2), "int32")
        values = self._convolved(hidden, place, training=False)  # (T, F)
        tokens = ops.arange(ops.shape(values)[0], dtype="int32")[:, None]
        reach = self.reach
        if self.config.kind == "flatten":
            values, tokens = self._greatest_of_cells(values, place)  # (rows, cells * F) each
            reach = reach * (values.shape[-1] // len(reach))
            groups = ops.arange(ops.shape(place.lengths)[0], dtype="int32") if windows is None else windows
            count = texts
        else:
            groups, count = self._groups(batch, place)
            if self.config.kind == "attention":
                values = values * ops.cast(self._weights(values, groups, count), values.dtype)
            reach = reach * self.segments
        found = ops.reshape(_at_greatest(values, tokens, groups, count), (-1, len(reach)))  # (texts, features)

        token = ops.maximum(found, 0)
        row, position = ops.take(place.rows, token, axis=0), ops.take(place.positions, token, axis=0)
        before, after = (np.array(sizes, np.int32) for sizes in zip(*reach, strict=True))
        last = ops.take(place.lengths, row, axis=0) - 1  # [SEP]
        first = ops.maximum(position - before, 1)
        end = ops.maximum(ops.minimum(position + after + 1, last), first)
        span = ops.stack([first, end], axis=-1)
        if windows is not None:
            span = span + ops.take(batch["skipped"], row, axis=0)[:, :, None]
        return ops.where(found[:, :, None] < 0, 0, span)

    def _groups(self, batch: Batch, place: Layout) -> tuple[Tensor, Tensor]:
        """What tokens are pooled together: of each token its group, int32 [tokens], and the number of groups."""
        windows = batch.get("text_of_row")
        if windows is not None:
            return ops.take(windows, place.rows, axis=0), ops.shape(batch["text_lengths"])[0]
        count = ops.shape(place.lengths)[0]
        if self.segments == 1:
            return place.rows, count
        return self.segments * place.rows + ops.cast(batch["segments"], "int32"), self.segments * count

    def _convolved(self, x: Tensor, place: Layout, training: bool) -> Tensor:
        for n, stage in enumerate(self.stages):
            outputs = stage(x, place.rows)
            x = ops.concatenate(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
            if self.norms:
                x = self.norms[n](x, training=training)
            x = ops.relu(x)
            if n < len(self.dropouts):
                x = self.dropouts[n](x, training=training)
        return x

    def _flattened(self, features: Tensor, place: Layout) -> Tensor:
        block, mask = padded(features, place, self.max_length)  # (B, max_length, F)
        block = block * ops.cast(mask, block.dtype)[:, :, None]
        pool = self.config.pool_size
        block = ops.max_pool(block, pool, strides=pool, padding="same", data_format="channels_last")
        return ops.reshape(block, (-1, -(-self.max_length // pool) * features.shape[-1]))

    def _greatest_of_cells(self, features: Tensor, place: Layout) -> tuple[Tensor, Tensor]:
        """What `_flattened` gives, and the tokens, int32, that it is of."""
        block, mask = padded(features, place, self.max_length)
        block = block * ops.cast(mask, block.dtype)[:, :, None]
        pool, count = self.config.pool_size, features.shape[-1]
        cells = -(-self.max_length // pool)
        missing = cells * pool - self.max_length
        left = missing // 2  # as the pooling does it
        block = ops.pad(block, [[0, 0], [left, missing - left], [0, 0]])
        block = ops.reshape(block, (-1, cells, pool, count))
        place_in_cell = ops.cast(ops.argmax(block, axis=2), "int32")  # (B, cells, F)
        cell = ops.arange(cells, dtype="int32")[None, :, None]
        tokens = place.starts[:, None, None] + cell * pool + place_in_cell - left
        return tuple(ops.reshape(x, (-1, cells * count)) for x in (ops.max(block, axis=2, initial=0), tokens))

    def _attended(self, features: Tensor, groups: Tensor, count: Tensor) -> Tensor:
        weight = self._weights(features, groups, count)
        total = ops.segment_sum(weight, groups, num_segments=count)  # (G, 1), 0 for an empty group
        summed = ops.segment_sum(ops.cast(features, "float32") * weight, groups, num_segments=count)
        return ops.cast(summed / ops.maximum(total, 1e-9), features.dtype)

    def _weights(self, features: Tensor, groups: Tensor, count: Tensor) -> Tensor:
        """Weights float32 [tokens, 1], in each group those of a softmax but for their sum."""
        score = ops.cast(self.score(self.hidden_score(features)), "float32")
        # The maximum is subtracted for range alone, its gradient cancels.
        highest = ops.stop_gradient(ops.segment_max(score, groups, num_segments=count))
        return ops.exp(score - ops.take(highest, groups, axis=0))


def _before(width: int) -> int:
    """How many tokens before its own a filter sees."""
    return (width - 1) // 2


def _after(width: int) -> int:
    return width // 2


def _at_greatest(values: Tensor, tokens: Tensor, groups: Tensor, count: Tensor) -> Tensor:
    """Of each group and column the token of the greatest value, the first of equal ones; -1 where none is above 0.

    Args:
      values: float [rows, columns].
      tokens: int32 [rows, columns or 1].
      groups: int32 [rows], below `count`.

    Returns:
      int32 [count, columns].
    """
    greatest = ops.segment_max(values, groups, num_segments=count)
    here = ops.logical_and(values == ops.take(greatest, groups, axis=0), values > 0)
    least = -ops.segment_max(ops.where(here, -tokens, -_NONE), groups, num_segments=count)
    return ops.where(ops.logical_and(least >= 0, least < _NONE), least, -1)


def _mean(x: Tensor, groups: Tensor, count: Tensor) -> Tensor:
    """The mean over each group of rows: [rows, features] -> [count, features]; of one row, that row to the bit."""
    sizes = ops.segment_sum(ops.ones_like(groups), groups, num_segments=count)
    total = ops.segment_sum(x, groups, num_segments=count)
    return total / ops.cast(ops.maximum(sizes, 1), x.dtype)[:, None]
