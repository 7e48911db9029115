"""Dense layers in bfloat16: products of bfloat16 rows and weights, sums in float32, the residual in float32."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from components.export.encoder import Arithmetic, Dense


class Bfloat16(Arithmetic):
    """Weights are variables, transposed: of the layouts that a variable can have, oneDNN reads this one fastest.

    As constants of the graph they would be kept in oneDNN's own layout, and products of few rows take two thirds of
    the time. But TensorFlow copies a graph's constants with every rewriting of the graph: a BERT-base of 216 MB took
    24 s for its first answer, and 7.4 GB.

    Args:
      layers: by name (`components.export.encoder.dense_layers`).
    """

    def __init__(self, layers: Mapping[str, Dense]) -> None:
        self._layers = {
            name: tuple(tf.Variable(tf.cast(values, tf.bfloat16), trainable=False) for values in (kernel.T, bias))
            for name, (kernel, bias) in layers.items()
        }
        self.variables = [variable for layer in self._layers.values() for variable in layer]

    def dense(self, name: str, x: tf.Tensor, residual: tf.Tensor | None = None) -> tf.Tensor:
        """bfloat16 [tokens, out] without a residual, float32 with one."""
        kernel, bias = self._layers[name]
        y = tf.nn.bias_add(tf.matmul(tf.cast(x, tf.bfloat16), kernel, transpose_b=True), bias)
        return y if residual is None else residual + tf.cast(y, tf.float32)
