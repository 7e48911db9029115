"""The stages of a training: which variables learn in each, and how fast."""

from __future__ import annotations

import keras

from components.classifier.model import TextClassifier
from components.config import Stage, TrainingConfig


def stages_of(training: TrainingConfig) -> tuple[Stage, ...]:
    """The configured stages; without any, one of everything."""
    return training.stages or (Stage(layers="all", epochs=training.epochs),)


def frozen_blocks(stage: Stage, blocks: int) -> int | None:
    """How many of an encoder's blocks stay as they are, from the bottom, and the embeddings with them; None: nothing
    is frozen beside what the model itself does not train."""
    return None if stage.layers == "all" else blocks - stage.layers


def learning_variables(model: TextClassifier, frozen: int | None) -> list[keras.Variable]:
    """What learns, in the order of the model's variables."""
    if frozen is None:
        return model.trainable_variables
    still = {id(variable) for part in _parts(model)[: frozen + 1] for variable in part.variables}
    return [variable for variable in model.trainable_variables if id(variable) not in still]


def rate_scales(model: TextClassifier, variables: list[keras.Variable], decay: float) -> list[float]:
    """Factors of the learning rate: 1 for the head, `decay` for the top layer, its square for the one below, and so on
    down to the embeddings (Howard & Ruder, 2018, arXiv:1801.06146, section 3.1)."""
    parts = _parts(model)
    distance = {id(variable): len(parts) - n for n, part in enumerate(parts) for variable in part.variables}
    return [decay ** distance.get(id(variable), 0) for variable in variables]


def _parts(model: TextClassifier) -> list[keras.layers.Layer]:
    """The encoder from below: embeddings, then block by block."""
    return [model.encoder.embeddings, *model.encoder.blocks]
