"""A trained classifier with its encoder in another precision, ready for the export."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf
from keras import ops

from components.classifier.model import TextClassifier
from components.config import Precision
from components.encoder.packing import Batch
from components.export.bfloat16 import Bfloat16
from components.export.encoder import Arithmetic, EncoderFunction, dense_layers
from components.export.int8 import Int8, Simulated, calibrate


class LowPrecisionClassifier:
    """The head and output layer of a classifier, float32 variables, over an encoder of constants.

    It answers calls as the `TextClassifier` that it was made of, and has what the export asks of one.
    """

    def __init__(self, model: TextClassifier, arithmetic: Arithmetic) -> None:
        self._encode = EncoderFunction(model.encoder, arithmetic)
        self.windows = model.windows
        self.head, self.hidden, self.output_dense = model.head, model.hidden, model.output_dense
        layers = [layer for layer in (self.head, self.hidden, self.output_dense) if layer is not None]
        self.variables = [variable for layer in layers for variable in layer.variables]

    def __call__(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """Logits, float32 [batch, outputs]."""
        batch = batch if self.windows is None else self.windows.split(batch)
        x = self.head(self._encode(batch), batch, training=False)
        if self.hidden is not None:
            x = self.hidden(x)
        return self.output_dense(ops.cast(x, "float32"))


def lower(
    model: TextClassifier, precision: Precision, calibration: Iterable[Batch]
) -> tuple[Any, Callable[..., Any] | None]:
    """The classifier in a precision.

    Args:
      model: trained, computing in float32.
      precision: "float32" gives `model` itself.
      calibration: packed batches of training texts; int8 takes its ranges from them.

    Returns:
      The classifier; and what it is to be held against where its arithmetic may depend on the machine (int8: the same
      weights with exact products), else None.
    """
    if precision == "float32":
        return model, None
    layers = dense_layers(model.encoder)
    if precision == "bfloat16":
        return LowPrecisionClassifier(model, Bfloat16(layers)), None
    if model.windows is not None:
        calibration = (model.windows.split(batch) for batch in calibration)
    ranges = calibrate(model.encoder, layers, calibration)
    simulated = LowPrecisionClassifier(model, Simulated(layers, ranges))
    return LowPrecisionClassifier(model, Int8(layers, ranges)), simulated
