"""Low-rank adaptation (Hu et al., 2022, arXiv:2106.09685) of the encoder, by what Keras's Dense has for it.

Each kernel of a block gets its update: query, key and value together (they are one product here, and so share the
projection down), the attention's output, and both of the feed-forward. All else of the encoder stays as it is.
"""

from __future__ import annotations

import keras
import numpy as np

from components.classifier.model import TextClassifier
from components.encoder.bert import TransformerBlock


def enable_lora(model: TextClassifier, rank: int, alpha: float | None) -> None:
    """Freezes the encoder of a built classifier but for new low-rank updates, which start at zero.

    Args:
      rank: columns of the projection down.
      alpha: the update is scaled by alpha / rank; None: by 1.
    """
    model.encoder.embeddings.trainable = False
    for block in model.encoder.blocks:
        block.attention_norm.trainable = block.output_norm.trainable = False
        for dense in _kernels_of(block):
            dense.enable_lora(rank, lora_alpha=alpha)
            dense.bias.trainable = False


def merged_values(model: TextClassifier) -> list[np.ndarray]:
    """The values of `model.weights`, updates added to their kernels, in the order of a model without any."""
    merged, updates = {}, set()
    for block in model.encoder.blocks:
        for dense in _kernels_of(block):
            if dense.lora_enabled:
                own = {weight.name: weight for weight in dense.weights}
                down, up = own["lora_kernel_a"], own["lora_kernel_b"]
                change = dense.lora_alpha / dense.lora_rank * (down.numpy() @ up.numpy())
                merged[id(own["kernel"])] = own["kernel"].numpy() + change
                updates |= {id(down), id(up)}
    return [merged.get(id(weight), weight.numpy()) for weight in model.weights if id(weight) not in updates]


def _kernels_of(block: TransformerBlock) -> tuple[keras.layers.Dense, ...]:
    return block.attention.qkv, block.attention.output_dense, block.intermediate, block.output_dense
