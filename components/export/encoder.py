"""The encoder as a function of NumPy weights, with its matrix products left to a given arithmetic.

The same network as `components.encoder.bert.BertEncoder` in inference. What differs between precisions is how a dense
layer is computed; embeddings, residuals, normalisation and softmax are float32 everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from components.encoder.bert import BertEncoder, attend
from components.encoder.packing import Batch, Layout, layout

_TABLES = ("word", "position", "segment")


class Dense(NamedTuple):
    """A dense layer's weights: kernel float32 [in, out], bias float32 [out]."""

    kernel: np.ndarray
    bias: np.ndarray


class Arithmetic(Protocol):
    """How dense layers are computed."""

    def dense(self, name: str, x: tf.Tensor, residual: tf.Tensor | None = None) -> tf.Tensor:
        """`x @ kernel + bias (+ residual)` of the layer of that name: float [tokens, in] -> float [tokens, out]."""


def dense_layers(encoder: BertEncoder) -> dict[str, Dense]:
    """Of every dense layer, by name: `0/qkv`, `0/attention_output`, `0/intermediate`, `0/output`, `1/qkv` …"""
    found = {}
    for number, block in enumerate(encoder.blocks):
        layers = {
            "qkv": block.attention.qkv,
            "attention_output": block.attention.output_dense,
            "intermediate": block.intermediate,
            "output": block.output_dense,
        }
        for name, layer in layers.items():
            weights = (np.asarray(value, np.float32) for value in (layer.kernel, layer.bias))
            found[f"{number}/{name}"] = Dense(*weights)
    return found


class EncoderFunction:
    """An encoder whose weights no training will change.

    Embedding tables are stored in bfloat16: what they lose is less than what the products lose.

    Args:
      encoder: trained; its weights are copied.
      arithmetic: of its dense layers.
    """

    def __init__(self, encoder: BertEncoder, arithmetic: Arithmetic) -> None:
        self.geometry = encoder.geometry
        self._arithmetic = arithmetic
        self._tables = {name: tf.cast(getattr(encoder.embeddings, name), tf.bfloat16).numpy() for name in _TABLES}
        self._norms = {"embeddings": _norm(encoder.embeddings.norm)}
        for number, block in enumerate(encoder.blocks):
            self._norms[f"{number}/attention_norm"] = _norm(block.attention_norm)
            self._norms[f"{number}/output_norm"] = _norm(block.output_norm)

    def __call__(self, batch: Batch) -> tf.Tensor:
        """float32 [tokens, hidden] of a packed batch."""
        place = layout(batch)
        x = self._normalised("embeddings", self._embedded(batch, place))
        dense = self._arithmetic.dense
        for number in range(self.geometry.num_hidden_layers):
            context = attend(dense(f"{number}/qkv", x), place, self.geometry.num_attention_heads)
            attended = dense(f"{number}/attention_output", context, x)
            x = self._normalised(f"{number}/attention_norm", attended)
            inner = tf.nn.gelu(tf.cast(dense(f"{number}/intermediate", x), tf.float32), approximate=False)
            x = self._normalised(f"{number}/output_norm", dense(f"{number}/output", inner, x))
        return x

    def _embedded(self, batch: Mapping[str, Any], place: Layout) -> tf.Tensor:
        tables = {name: tf.constant(table) for name, table in self._tables.items()}
        segments = tf.gather(tables["segment"], batch["segments"]) if "segments" in batch else tables["segment"][0]
        parts = [tf.gather(tables["word"], batch["ids"]), tf.gather(tables["position"], place.positions), segments]
        word, position, segment = (tf.cast(part, tf.float32) for part in parts)
        return word + position + segment

    def _normalised(self, name: str, x: tf.Tensor) -> tf.Tensor:
        gamma, beta = self._norms[name]
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        return centred * tf.math.rsqrt(variance + self.geometry.layer_norm_eps) * gamma + beta


def _norm(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(layer.gamma, np.float32), np.asarray(layer.beta, np.float32)
