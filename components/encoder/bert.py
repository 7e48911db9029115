"""BERT (Devlin et al., 2019, arXiv:1810.04805) over packed tokens, in Keras 3 operations.

The same function as `transformers.BertModel` without its pooler: post-norm residual blocks, exact (erf) GELU,
learned absolute positions. `num_hidden_layers = 0` leaves the embeddings and their normalisation.

Only attention needs the texts as a padded block; padded keys get weight exactly zero, padded queries are
dropped again, so that no real token ever feels them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from components.encoder.config import BertGeometry
from components.encoder.packing import Batch, Cells, Layout, Tensor, cells, from_block, layout, to_block, with_gradient

# Below every score, and still finite after any softmax's subtraction of the maximum in bfloat16.
MASKED = -1e9


class Embeddings(keras.layers.Layer):
    """Word, position and segment embeddings, summed and normalised: [tokens] -> [tokens, hidden]."""

    def __init__(self, geometry: BertGeometry, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.geometry = geometry
        self.norm = keras.layers.LayerNormalization(
            epsilon=geometry.layer_norm_eps, name="norm", dtype=self.dtype_policy
        )
        self.dropout = keras.layers.Dropout(geometry.hidden_dropout_prob, dtype=self.dtype_policy)

    def build(self, _: Any = None) -> None:
        g = self.geometry
        normal = keras.initializers.TruncatedNormal(stddev=g.initializer_range)
        # Attention must tell places apart from the start; without it, random positions are noise on the words.
        place = normal if g.num_hidden_layers else keras.initializers.Zeros()
        for name, size, initializer in (
            ("word", g.vocab_size, normal),
            ("position", g.max_position_embeddings, place),
            ("segment", g.type_vocab_size, normal),
        ):
            # No autocast: it would turn the whole table to the compute dtype, and its gradient dense, every step.
            weight = self.add_weight(
                shape=(size, g.hidden_size),
                initializer=initializer.clone(),
                autocast=False,
                name=f"{name}_embeddings",
            )
            setattr(self, name, weight)
        self.norm.build((None, g.hidden_size))

    def call(self, batch: Batch, positions: Tensor, training: bool = False) -> Tensor:
        x = ops.take(self.word, batch["ids"], axis=0)  # (T, H)
        x = x + ops.take(self.position, positions, axis=0)
        x = x + self._of_segments(batch)
        x = self.norm(ops.cast(x, self.compute_dtype))
        return self.dropout(x, training=training)

    def _of_segments(self, batch: Batch) -> Tensor:
        if "segments" not in batch:
            return self.segment[0]
        # BERT knows two; whatever comes after is the second, too.
        known = ops.minimum(batch["segments"], self.geometry.type_vocab_size - 1)
        return ops.take(self.segment, known, axis=0)


class Dense(keras.layers.Dense):
    """Keras's, of [tokens, features], with a bias and no activation. The bias's gradient is a product: TensorFlow's
    BiasAddGrad took a quarter of a bfloat16 step's time on a GPU."""

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
            return upstream, ops.matmul(ops.ones((1, ops.shape(upstream)[0]), upstream.dtype), upstream)

        biased = with_gradient(lambda x, bias: ops.add(x, ops.reshape(bias, (-1,))), gradient)
        # Reshaped: TensorFlow's custom gradients take no variable.
        return biased(ops.matmul(inputs, self.kernel), ops.reshape(self.bias, (1, -1)))


class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention within each text: [tokens, hidden] -> [tokens, hidden], projected."""

    def __init__(self, geometry: BertGeometry, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.geometry = geometry
        normal = keras.initializers.TruncatedNormal(stddev=geometry.initializer_range)
        # One product for the three projections: [query | key | value].
        self.qkv = Dense(3 * geometry.hidden_size, kernel_initializer=normal, name="qkv", dtype=self.dtype_policy)
        self.output_dense = Dense(
            geometry.hidden_size, kernel_initializer=normal.clone(), name="output", dtype=self.dtype_policy
        )
        self.dropout = keras.layers.Dropout(geometry.attention_probs_dropout_prob, dtype=self.dtype_policy)

    def build(self, _: Any = None) -> None:
        self.qkv.build((None, self.geometry.hidden_size))
        self.output_dense.build((None, self.geometry.hidden_size))

    def call(self, x: Tensor, block: Cells, training: bool = False) -> Tensor:
        def dropout(weights: Tensor) -> Tensor:
            return self.dropout(weights, training=training)

        return self.output_dense(attend(self.qkv(x), block, self.geometry.num_attention_heads, dropout))


def attend(qkv: Tensor, block: Cells, heads: int, dropout: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Scaled dot-product attention within each text.

    Args:
      qkv: float [tokens, 3 * hidden], queries, keys and values side by side.
      block: where each text's tokens meet.
      heads: they divide `hidden` among them.
      dropout: of the attention weights; None: none.

    Returns:
      [tokens, hidden] in the dtype of `qkv`; the softmax is in float32 whatever that is.
    """
    size = qkv.shape[-1] // (3 * heads)
    longest = ops.shape(block.mask)[1]
    parts = ops.reshape(to_block(qkv, block), (-1, longest, 3, heads, size))
    parts = ops.transpose(parts, (2, 0, 3, 1, 4))  # (3, B, heads, L, size)
    query, key, value = ops.unstack(parts, 3)  # not by index: the gradient of each slice would be a whole block
    scores = ops.matmul(query * (1.0 / math.sqrt(size)), ops.swapaxes(key, -1, -2))  # (B, heads, L, L)
    scores = ops.where(block.mask[:, None, None, :], ops.cast(scores, "float32"), MASKED)
    weights = ops.cast(ops.softmax(scores, axis=-1), value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    context = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))  # (B, L, heads, size)
    return from_block(ops.reshape(context, (-1, heads * size)), block)  # (T, H)


class TransformerBlock(keras.layers.Layer):
    """Attention and feed-forward, each with dropout, residual and normalisation after it."""

    def __init__(self, geometry: BertGeometry, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.geometry = geometry
        policy, g = self.dtype_policy, geometry
        normal = keras.initializers.TruncatedNormal(stddev=g.initializer_range)
        self.attention = SelfAttention(g, name="attention", dtype=policy)
        self.attention_norm = keras.layers.LayerNormalization(
            epsilon=g.layer_norm_eps, name="attention_norm", dtype=policy
        )
        self.intermediate = Dense(g.intermediate_size, kernel_initializer=normal, name="intermediate", dtype=policy)
        self.output_dense = Dense(g.hidden_size, kernel_initializer=normal.clone(), name="output", dtype=policy)
        self.output_norm = keras.layers.LayerNormalization(epsilon=g.layer_norm_eps, name="output_norm", dtype=policy)
        self.dropout = keras.layers.Dropout(g.hidden_dropout_prob, dtype=policy)

    def build(self, _: Any = None) -> None:
        hidden = (None, self.geometry.hidden_size)
        self.attention.build(hidden)
        self.attention_norm.build(hidden)
        self.intermediate.build(hidden)
        self.output_dense.build((None, self.geometry.intermediate_size))
        self.output_norm.build(hidden)

    def call(self, x: Tensor, block: Cells, training: bool = False) -> Tensor:
        attended = self.dropout(self.attention(x, block, training=training), training=training)
        x = self.attention_norm(x + attended)
        inner = ops.gelu(self.intermediate(x), approximate=False)  # (T, intermediate)
        return self.output_norm(x + self.dropout(self.output_dense(inner), training=training))


class BertEncoder(keras.layers.Layer):
    """Contextual token embeddings of a packed batch.

    Call arguments:
      batch: see `components.encoder.packing`. With `hidden`, float [tokens, hidden_size], what `lower` gave for these
        tokens, only the blocks above are computed.
      frozen: the embeddings and so many blocks from the bottom run as in inference, without dropout; None: none.

    Returns:
      float [tokens, hidden_size], in the compute dtype of the layer's policy.
    """

    def __init__(self, geometry: BertGeometry, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.geometry = geometry
        self.embeddings = Embeddings(geometry, name="embeddings", dtype=self.dtype_policy)
        self.blocks = [
            TransformerBlock(geometry, name=f"layer_{n}", dtype=self.dtype_policy)
            for n in range(geometry.num_hidden_layers)
        ]

    def build(self, _: Any = None) -> None:
        self.embeddings.build()
        for block in self.blocks:
            block.build()

    def call(self, batch: Batch, training: bool = False, frozen: int | None = None) -> Tensor:
        place = layout(batch)
        if "hidden" in batch:
            x = ops.cast(batch["hidden"], self.compute_dtype)
        else:
            x = self._lower(batch, place, frozen or 0, training and frozen is None)
        return self._through(self.blocks[frozen or 0 :], x, place, training)

    def lower(self, batch: Batch, blocks: int) -> Tensor:
        """What the embeddings and so many blocks from the bottom give in inference, float [tokens, hidden_size]."""
        return self._lower(batch, layout(batch), blocks, training=False)

    def _lower(self, batch: Batch, place: Layout, blocks: int, training: bool) -> Tensor:
        x = self.embeddings(batch, place.positions, training=training)
        return self._through(self.blocks[:blocks], x, place, training)

    @staticmethod
    def _through(layers: list[TransformerBlock], x: Tensor, place: Layout, training: bool) -> Tensor:
        block = cells(place)
        for layer in layers:
            x = layer(x, block, training=training)
        return x
