"""Starting from the weights of an exported model instead of the configuration's own.

Tensors of equal shape may mean something else: labels in another order, another vocabulary, other attention heads. So
an export has beside it what its weights mean, and a model of another meaning is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import tensorflow as tf

from components.classifier.model import TextClassifier
from components.config import HeadConfig
from components.encoder.config import BertGeometry
from components.errors import CheckpointError
from components.export.paths import float32_dir
from components.transform.vocab_file import read_tokens

MEANING = "assets.extra/meaning.json"
# Of a geometry: what changes no answer, and the vocabulary's size, of which the digest tells more.
_NOT_OF_GEOMETRY = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "vocab_size")
_REMEDY = (
    "Set window.warm_start = false for the run that changes the encoder, the head, the labels, the tokeniser or the "
    "vocabulary"
)


def meaning(config: dict[str, Any], geometry: BertGeometry) -> dict[str, Any]:
    """What decides, beside the tensors' shapes, what a model's weights mean; by the configuration's keys.

    Args:
      config: see `components.trainer.run_fn`.
      geometry: of the encoder.
    """
    head, neighbours = HeadConfig.model_validate(config["head"]), config.get("neighbours", False)
    tokens = "\n".join(read_tokens(config["vocab_file"]))
    encoder = {key: value for key, value in geometry.as_config().items() if key not in _NOT_OF_GEOMETRY}
    return {
        "task": config["task"],
        "labels": list(config["labels"]),
        "data.columns.text_pair": config["pairs"] and not neighbours,
        "data.neighbours": neighbours,
        "tokenizer.vocab (sha256)": hashlib.sha256(tokens.encode()).hexdigest(),
        "tokenizer.lower_case": config["lower_case"],
        **{f"encoder.{key}": value for key, value in encoder.items()},
        "head.kind": head.kind,
        "head.widths": list(head.widths),
        **({"head.pool_size": head.pool_size} if head.kind == "flatten" else {}),
    }


def write_meaning(serving_model_dir: str, facts: dict[str, Any]) -> None:
    """Puts `meaning` beside an export."""
    path = os.path.join(serving_model_dir, MEANING)
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(json.dumps(facts, indent=1))


def warm_start(model: TextClassifier, path: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Gives a model the weights of an earlier one of the same shape and meaning.

    Args:
      model: built, in any precision; its random generators keep their own state.
      path: the SavedModel that `export` wrote; of a low precision, its float32 counterpart beside it is read.
      facts: `meaning` of the model.

    Returns:
      What was done, for the summary: `source` and the number of `tensors`.

    Raises:
      CheckpointError: the two models differ in shape or in what their weights mean; nothing was changed.
    """
    _check_meaning(path, facts)
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


def _check_meaning(path: str, facts: dict[str, Any]) -> None:
    try:
        with tf.io.gfile.GFile(os.path.join(path, MEANING)) as file:
            theirs = json.load(file)
    except (tf.errors.NotFoundError, ValueError):
        raise CheckpointError(
            f"window.warm_start: the live model ({path}) does not say what its weights mean ({MEANING}); set "
            "window.warm_start = false for one run"
        ) from None
    for key, ours in facts.items():
        if theirs.get(key) != ours:
            raise CheckpointError(
                f"window.warm_start: the live model ({path}) has {key} = {json.dumps(theirs.get(key))}, the configured "
                f"one {json.dumps(ours)}. {_REMEDY}"
            )


def _name(number: int) -> str:
    return f"weights/{number}/.ATTRIBUTES/VARIABLE_VALUE"


def _differs(path: str, number: int, theirs: Any, ours: Any) -> CheckpointError:
    def shape(value: Any) -> str:
        return "absent" if value is None else str(tuple(value))

    return CheckpointError(
        f"window.warm_start: the live model ({path}) is of another shape than the configured one: tensor {number} is "
        f"{shape(theirs)} there and {shape(ours)} here. {_REMEDY}"
    )
