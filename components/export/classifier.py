"""A trained classifier as it is exported, its encoder in a given precision."""

from __future__ import annotations

from collections.abc import Iterable

import keras
import tensorflow as tf
from keras import ops

from components.classifier.explanation import Explanation, explain
from components.classifier.model import TextClassifier
from components.config import Precision, Task
from components.encoder.packing import Batch
from components.export.bfloat16 import Bfloat16
from components.export.encoder import Arithmetic, EncoderFunction, Float32, dense_layers
from components.export.int8 import Int8, Simulated, calibrate


class ServedClassifier:
    """A trained classifier as it is exported: its head and output layer over an `EncoderFunction`.

    It answers calls as the `TextClassifier` that it was made of, and has what the export asks of one.

    Attributes:
      variables: tf.Variables; with an encoder in float32 those of the `TextClassifier`, in its order, by which a warm
        start reads them.
    """

    def __init__(self, model: TextClassifier, arithmetic: Arithmetic) -> None:
        self._encode = EncoderFunction(model.encoder, arithmetic)
        self.windows = model.windows
        self.head, self.hidden, self.output_dense = model.head, model.hidden, model.output_dense
        variables = model.variables
        if not isinstance(arithmetic, Float32):
            layers = [layer for layer in (self.head, self.hidden, self.output_dense) if layer is not None]
            variables = [variable for layer in layers for variable in layer.variables] + self._encode.variables
        self.variables = [v.value if isinstance(v, keras.Variable) else v for v in variables]

    def __call__(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """Logits, float32 [batch, outputs]."""
        return self.logits(*self.encoded(batch))

    def encoded(self, batch: Batch) -> tuple[tf.Tensor, Batch]:
        """What the encoder gives, float32 [tokens, hidden], and the batch, long texts cut into windows."""
        batch = batch if self.windows is None else self.windows.split(batch)
        return self._encode(batch), batch

    def logits(self, hidden: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Logits of what `encoded` gives, float32 [batch, outputs]."""
        x = self.head(hidden, batch, training=False)
        if self.hidden is not None:
            x = self.hidden(x)
        return self.output_dense(ops.cast(x, "float32"))

    def explain(self, hidden: tf.Tensor, batch: Batch, task: Task, count: int) -> Explanation:
        """The n-grams that give most to each label, so many at most, of what `encoded` gives."""
        return explain(self, hidden, batch, task, count)


def served(
    model: TextClassifier, precision: Precision = "float32", calibration: Iterable[Batch] = ()
) -> tuple[ServedClassifier, ServedClassifier | None]:
    """The classifier in a precision.

    Args:
      model: trained, computing in float32.
      calibration: packed batches of training texts; int8 takes its ranges from them.

    Returns:
      The classifier; and what it is to be held against where its arithmetic may depend on the machine (int8: the same
      weights with exact products), else None.
    """
    if precision == "float32":
        return ServedClassifier(model, Float32(model.encoder)), None
    layers = dense_layers(model.encoder)
    if precision == "bfloat16":
        return ServedClassifier(model, Bfloat16(layers)), None
    if model.windows is not None:
        calibration = (model.windows.split(batch) for batch in calibration)
    int8 = Int8(layers, calibrate(model.encoder, layers, calibration))
    return ServedClassifier(model, int8), ServedClassifier(model, Simulated(int8))
