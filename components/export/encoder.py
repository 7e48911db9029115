"""The encoder as it is served, with its matrix products left to a given arithmetic.

The same network as `components.encoder.bert.BertEncoder` in inference, arranged for speed on CPUs: attention works on
groups of texts of like length, a single text has a branch without gathers and masks, and normalisation is written in
the form that TensorFlow's kernels fuse where that is faster. What differs between precisions is how a dense layer is
computed; embeddings, residuals, normalisation and softmax are float32 everywhere.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from components.encoder.bert import MASKED, BertEncoder
from components.encoder.packing import Batch, Layout, layout

_TABLES = ("word", "position", "segment")
_GROUPS = 4  # of texts, in their order: padded to the longest of a group

Attention = Callable[[tf.Tensor], tf.Tensor]  # float [tokens, 3 * hidden] -> [tokens, hidden]


class Dense(NamedTuple):
    """A dense layer's weights: kernel float32 [in, out], bias float32 [out]."""

    kernel: np.ndarray
    bias: np.ndarray


class Arithmetic(ABC):
    """How dense layers are computed.

    Attributes:
      table_dtype: in which embedding tables are stored. bfloat16 loses less there than its products lose elsewhere.
      variables: tf.Variables that the computation reads, beside those of the encoder.
    """

    table_dtype = tf.bfloat16
    variables: list[tf.Variable]

    @abstractmethod
    def dense(self, name: str, x: tf.Tensor, residual: tf.Tensor | None = None) -> tf.Tensor:
        """`x @ kernel + bias (+ residual)` of the layer of that name: float [tokens, in] -> float [tokens, out]."""

    def dense_gelu(self, name: str, x: tf.Tensor) -> tf.Tensor:
        """`gelu(x @ kernel + bias)`, by erf: float [tokens, in] -> float [tokens, out]."""
        return tf.nn.gelu(self.dense(name, x), approximate=False)


class Float32(Arithmetic):
    """The products that were trained, of the encoder's own variables: no second copy of the weights."""

    table_dtype = tf.float32

    def __init__(self, encoder: BertEncoder) -> None:
        self._layers = named_layers(encoder)
        self.variables = []

    def dense(self, name: str, x: tf.Tensor, residual: tf.Tensor | None = None) -> tf.Tensor:
        """float32 [tokens, out]."""
        layer = self._layers[name]
        y = tf.nn.bias_add(tf.matmul(x, layer.kernel), layer.bias)
        return y if residual is None else residual + y


def named_layers(encoder: BertEncoder) -> dict[str, Any]:
    """Every dense layer, by name: `0/qkv`, `0/attention_output`, `0/intermediate`, `0/output`, `1/qkv` …"""
    found: dict[str, Any] = {}
    for number, block in enumerate(encoder.blocks):
        layers = {
            "qkv": block.attention.qkv,
            "attention_output": block.attention.output_dense,
            "intermediate": block.intermediate,
            "output": block.output_dense,
        }
        found |= {f"{number}/{name}": layer for name, layer in layers.items()}
    return found


def dense_layers(encoder: BertEncoder) -> dict[str, Dense]:
    """A copy of every dense layer's weights, by the names of `named_layers`."""
    return {
        name: Dense(*(np.asarray(value, np.float32) for value in (layer.kernel, layer.bias)))
        for name, layer in named_layers(encoder).items()
    }


class EncoderFunction:
    """An encoder whose weights no training will change.

    Args:
      encoder: trained.
      arithmetic: of its dense layers.

    Attributes:
      variables: what it reads; tf.Variables and Keras variables.
    """

    def __init__(self, encoder: BertEncoder, arithmetic: Arithmetic) -> None:
        self.geometry = encoder.geometry
        self._arithmetic = arithmetic
        self._tables = {name: getattr(encoder.embeddings, name) for name in _TABLES}
        if arithmetic.table_dtype is not tf.float32:
            for name, table in self._tables.items():
                self._tables[name] = tf.Variable(tf.cast(table, arithmetic.table_dtype), trainable=False)
        self._norms = {"embeddings": encoder.embeddings.norm}
        for number, block in enumerate(encoder.blocks):
            self._norms[f"{number}/attention_norm"] = block.attention_norm
            self._norms[f"{number}/output_norm"] = block.output_norm
        norms = [variable for norm in self._norms.values() for variable in norm.variables]
        self.variables = [*self._tables.values(), *norms, *arithmetic.variables]

    def __call__(self, batch: Batch) -> tf.Tensor:
        """float32 [tokens, hidden] of a packed batch. Fastest if its texts are in the order of their length."""
        place = layout(batch)
        x = self._embedded(batch, place)
        if not self.geometry.num_hidden_layers:
            return self._normalised("embeddings", x, _layer_norm)
        heads = self.geometry.num_attention_heads
        return tf.cond(
            tf.equal(tf.size(place.lengths), 1),
            lambda: self._blocks(x, lambda qkv: attend_alone(qkv, heads), _layer_norm),
            lambda: self._blocks(x, attention_in_groups(place, heads), _fused_layer_norm),
        )

    def _blocks(self, x: tf.Tensor, attention: Attention, norm: Callable[..., tf.Tensor]) -> tf.Tensor:
        x = self._normalised("embeddings", x, norm)
        dense = self._arithmetic.dense
        for number in range(self.geometry.num_hidden_layers):
            context = attention(dense(f"{number}/qkv", x))
            x = self._normalised(f"{number}/attention_norm", dense(f"{number}/attention_output", context, x), norm)
            inner = self._arithmetic.dense_gelu(f"{number}/intermediate", x)
            x = self._normalised(f"{number}/output_norm", dense(f"{number}/output", inner, x), norm)
        return x

    def _embedded(self, batch: Mapping[str, Any], place: Layout) -> tf.Tensor:
        tables = {name: tf.convert_to_tensor(table) for name, table in self._tables.items()}
        segments = tables["segment"][0]
        if "segments" in batch:  # what comes after BERT's two is the second, too
            segments = tf.gather(tables["segment"], tf.minimum(batch["segments"], self.geometry.type_vocab_size - 1))
        parts = [tf.gather(tables["word"], batch["ids"]), tf.gather(tables["position"], place.positions), segments]
        word, position, segment = (tf.cast(part, tf.float32) for part in parts)
        return word + position + segment

    def _normalised(self, name: str, x: tf.Tensor, norm: Callable[..., tf.Tensor]) -> tf.Tensor:
        layer = self._norms[name]
        scaled = norm(x, self.geometry.layer_norm_eps) * tf.convert_to_tensor(layer.gamma)
        return scaled + tf.convert_to_tensor(layer.beta)


def attend_alone(qkv: tf.Tensor, heads: int) -> tf.Tensor:
    """`components.encoder.bert.attend` where there is one text: nothing to gather, no mask."""
    size = qkv.shape[-1] // (3 * heads)
    block = tf.transpose(tf.reshape(qkv, [-1, 3, heads, size]), [1, 2, 0, 3])
    query, key, value = block[0] * (1.0 / math.sqrt(size)), block[1], block[2]  # (heads, T, size)
    scores = tf.cast(tf.matmul(query, key, transpose_b=True), tf.float32)
    context = tf.matmul(tf.cast(tf.nn.softmax(scores), value.dtype), value)
    return tf.reshape(tf.transpose(context, [1, 0, 2]), [-1, heads * size])


def attention_in_groups(place: Layout, heads: int, groups: int = _GROUPS) -> Attention:
    """`components.encoder.bert.attend` for one group of texts after the other; groups are of as many texts each.

    What one head has of one token is a row of `[tokens * 3 * heads, size]`. It is taken from there to where the
    products need it in one step, and back in another: padded blocks of whole tokens would have to be transposed.
    """
    tokens, count = tf.size(place.rows), tf.size(place.lengths)
    head = tf.range(heads)
    ends = tf.concat([place.starts, [tokens]], 0)  # where text n begins: also for n = count
    parts = []
    for first, last in itertools.pairwise(count * number // groups for number in range(groups + 1)):
        lengths = place.lengths[first:last]
        longest = tf.maximum(tf.reduce_max(lengths), 0)  # a group may be without texts
        steps = tf.range(longest)
        token = tf.minimum(place.starts[first:last, None] + steps, tokens - 1)  # (B, L); at padding any real token
        query = token[:, None, :] * (3 * heads) + head[:, None]  # (B, heads, L)
        mask = tf.where(steps < lengths[:, None], 0.0, MASKED)[:, None, None, :]  # (B, 1, 1, L)
        own = slice(ends[first], ends[last])
        text = place.rows[own, None] - first  # (T, 1)
        back = (text * heads + head) * longest + place.positions[own, None]  # (T, heads)
        parts.append(((query, query + heads, query + 2 * heads), mask, back))

    def attention(qkv: tf.Tensor) -> tf.Tensor:
        size = qkv.shape[-1] // (3 * heads)
        vectors = tf.reshape(qkv, [-1, size])
        found = []
        for to, mask, back in parts:
            query, key, value = (tf.gather(vectors, index) for index in to)  # (B, heads, L, size)
            scores = tf.cast(tf.matmul(query, key, transpose_b=True), tf.float32)  # (B, heads, L, L)
            # In this order TensorFlow makes one kernel of product, scale and mask, where all is float32.
            weights = tf.cast(tf.nn.softmax(scores * (1.0 / math.sqrt(size)) + mask), value.dtype)
            context = tf.reshape(tf.matmul(weights, value), [-1, size])
            found.append(tf.reshape(tf.gather(context, back), [-1, heads * size]))
        return tf.concat(found, 0)

    return attention


def _layer_norm(x: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Rows of x [tokens, hidden] less their mean, by their standard deviation. Faster for few rows."""
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    return centred * tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True) + epsilon)


def _fused_layer_norm(x: tf.Tensor, epsilon: float) -> tf.Tensor:
    """The same in the form that TensorFlow turns into one oneDNN kernel: the batch statistics of one image of rows."""
    rows = tf.shape(x)[0]
    image = tf.reshape(x, tf.stack([1, rows, x.shape[1], 1]))
    ones, zeros = tf.fill([rows], 1.0), tf.fill([rows], 0.0)
    found, *_ = tf.compat.v1.nn.fused_batch_norm(image, ones, zeros, epsilon=epsilon, data_format="NCHW")
    return tf.reshape(found, tf.shape(x))
