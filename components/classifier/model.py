"""The whole classifier: packed token ids in, logits out; and what its logits mean by task."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from components.classifier.heads import Head
from components.config import HeadConfig, Task
from components.encoder.bert import BertEncoder
from components.encoder.config import BertGeometry
from components.encoder.packing import Batch, Tensor
from components.encoder.windows import Windows


class TextClassifier(keras.Model):
    """BERT encoder, CNN head, optional hidden layer, output layer.

    Args:
      windows: cuts long texts (`components.encoder.windows`); None: they were truncated.

    Call arguments:
      batch: a packed batch (`components.encoder.packing`).
      frozen: see `components.encoder.bert.BertEncoder`.

    Returns:
      Logits, float32 [batch, outputs]: one output for a binary task, else one a label.
    """

    def __init__(
        self, encoder: BertEncoder, head: Head, outputs: int, windows: Windows | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.windows = windows
        config, policy = head.config, self.dtype_policy
        regularizer = keras.regularizers.L2(config.l2) if config.l2 else None
        self.encoder = encoder
        self.head = head
        self.hidden = None
        if config.dense_units:
            self.hidden = keras.layers.Dense(
                config.dense_units, activation="relu", kernel_regularizer=regularizer, name="hidden",
                dtype=policy,
            )  # fmt: skip
            self.hidden_dropout = keras.layers.Dropout(config.dropout, dtype=policy)
        self.dropout = keras.layers.Dropout(config.dropout, dtype=policy)
        # float32 whatever the policy: probabilities from bfloat16 logits have two digits.
        self.output_dense = keras.layers.Dense(
            outputs, kernel_regularizer=regularizer, name="output", dtype="float32",
            # At 1 Glorot's own. Maxima over many filters are large, and so are the first logits then.
            kernel_initializer=keras.initializers.VarianceScaling(config.output_scale**2, "fan_avg", "uniform"),
        )  # fmt: skip

    def build(self, _: Any = None) -> None:
        """Every layer is built as the first call comes to it; without this, Keras would trace that call for it."""

    def call(self, batch: Batch, training: bool = False, frozen: int | None = None) -> Tensor:
        batch = batch if self.windows is None else self.windows.split(batch)
        x = self.encoder(batch, training=training, frozen=frozen)  # (T, H)
        x = self.dropout(self.head(x, batch, training=training), training=training)  # (B, F)
        if self.hidden is not None:
            x = self.hidden_dropout(self.hidden(x), training=training)
        return self.output_dense(ops.cast(x, "float32"))


def build_classifier(
    geometry: BertGeometry,
    head: HeadConfig,
    task: Task,
    labels: int,
    segments: int = 1,
    max_length: int = 128,
    policy: str = "float32",
    encoder_trainable: bool = True,
    overlap: int | None = None,
) -> TextClassifier:
    """A classifier with random weights, every variable created.

    Args:
      labels: number of labels; a binary task has 2 and one output.
      segments: how many an example has; of more than one, batches carry `segments`.
      max_length: greatest number of tokens that the encoder is given of a text, or of a window.
      policy: Keras dtype policy, "float32" or "mixed_bfloat16".
      overlap: longer texts are cut into windows that share so many tokens; None: they never come.
    """
    encoder = BertEncoder(geometry, name="encoder", dtype=policy)
    model = TextClassifier(
        encoder,
        Head(head, segments, max_length, name="head", dtype=policy),
        outputs=1 if task == "binary" else labels,
        windows=None if overlap is None else Windows(max_length, overlap),
        name="classifier",
        dtype=policy,
    )
    batch = {"ids": np.zeros(2, np.int32), "row_lengths": np.full(1, 2, np.int32)}
    if segments > 1:
        batch["segments"] = np.array([0, 1], np.int32)
    model(batch)
    encoder.trainable = encoder_trainable
    return model


def probabilities(logits: Tensor, task: Task) -> Tensor:
    """Probabilities float32 [batch, labels] of logits float32 [batch, outputs].

    Softmax for a multiclass task, a sigmoid each for a multilabel one; a binary task's single logit p gives
    [1 - p, p], in the order of the labels.
    """
    if task == "multiclass":
        return ops.softmax(logits, axis=-1)
    if task == "binary":
        # sigmoid(-x), not 1 - sigmoid(x): exact also where p is next to 1
        return ops.sigmoid(ops.concatenate([-logits, logits], axis=-1))
    return ops.sigmoid(logits)
