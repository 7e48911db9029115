"""Starting from the weights of an exported model instead of the configuration's own."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from components.classifier.model import TextClassifier
from components.errors import CheckpointError
from components.export.paths import float32_dir


def warm_start(model: TextClassifier, path: str) -> dict[str, Any]:
    """Gives a model the weights of an earlier one of the same shape.

    Args:
      model: built, in any precision; its random generators keep their own state.
      path: the SavedModel that `export` wrote; of a low precision, its float32 counterpart beside it is read.

    Returns:
      What was done, for the summary: `source` and the number of `tensors`.

    Raises:
      CheckpointError: the two models differ in shape; nothing was changed.
    """
    whole = float32_dir(path)
    path = whole if tf.io.gfile.isdir(whole) else path
    reader = tf.train.load_checkpoint(f"{path}/variables/variables")
    shapes = reader.get_variable_to_shape_map()
    for number in range(max(len(model.variables), sum(name.startswith("weights/") for name in shapes))):
        theirs = shapes.get(_name(number))
        ours = model.variables[number].shape if number < len(model.variables) else None
        if theirs is None or ours is None or list(theirs) != list(ours):
            raise _differs(path, number, theirs, ours)
    count = 0
    for number, variable in enumerate(model.variables):
        value = reader.get_tensor(_name(number))
        if value.dtype.kind == "f":  # whole numbers are the state of a random generator
            variable.assign(value)
            count += 1
    return {"source": path, "tensors": count}


def _name(number: int) -> str:
    return f"weights/{number}/.ATTRIBUTES/VARIABLE_VALUE"


def _differs(path: str, number: int, theirs: Any, ours: Any) -> CheckpointError:
    def shape(value: Any) -> str:
        return "absent" if value is None else str(tuple(value))

    return CheckpointError(
        f"window.warm_start: the live model ({path}) is of another shape than the configured one: tensor {number} is "
        f"{shape(theirs)} there and {shape(ours)} here. Set window.warm_start = false for the run that changes the "
        "encoder, the head, the labels or the vocabulary"
    )
