"""The search space of the configuration as KerasTuner's hyperparameters (see `components.trainer.hyperparameters`)."""

from __future__ import annotations

import json

import keras_tuner

from components.config import SpaceConfig


def hyperparameters(space: SpaceConfig) -> keras_tuner.HyperParameters:
    """The space for an oracle, its keys in alphabetical order: the order decides which trials a seed gives."""
    found = keras_tuner.HyperParameters()
    for name, values in sorted(space.by_name().items()):
        if isinstance(values, tuple):
            found.Choice(name, [json.dumps(value) for value in values])
        else:
            whole = all(isinstance(bound, int) for bound in (values.min, values.max, values.step or 1))
            add = found.Int if whole else found.Float
            add(name, values.min, values.max, step=values.step, sampling=values.sampling)
    return found
