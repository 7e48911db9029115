"""Dense layers in bfloat16: products of bfloat16 rows and weights, sums in float32, the residual in float32."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from components.export.encoder import Dense


class Bfloat16:
    """Weights are constants of the graph: only these does oneDNN keep in the layout that its products want.

    Args:
      layers: by name (`components.export.encoder.dense_layers`).
    """

    def __init__(self, layers: Mapping[str, Dense]) -> None:
        self._layers = {
            name: Dense(*(tf.cast(values, tf.bfloat16).numpy() for values in layer)) for name, layer in layers.items()
        }

    def dense(self, name: str, x: tf.Tensor, residual: tf.Tensor | None = None) -> tf.Tensor:
        """bfloat16 [tokens, out] without a residual, float32 with one."""
        kernel, bias = self._layers[name]
        y = tf.nn.bias_add(tf.matmul(tf.cast(x, tf.bfloat16), tf.constant(kernel)), tf.constant(bias))
        return y if residual is None else residual + tf.cast(y, tf.float32)
