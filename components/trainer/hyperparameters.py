"""A trial's values in the configuration.

A hyperparameter is named by its key, "head.kind". A value chosen among several is a JSON text, since KerasTuner knows
numbers and strings alone and a choice may be a list; one out of a range is a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def decoded(values: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values, by name, as the configuration would have them."""
    return {name: json.loads(value) if isinstance(value, str) else value for name, value in values.items()}


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration's sections, as JSON values, with decoded values of a trial in their places."""
    changed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for name, value in values.items():
        section, _, key = name.partition(".")
        changed[section][key] = value
    return changed
