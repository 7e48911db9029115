"""TFMA's configuration, from the project's: a pure function."""

from __future__ import annotations

import json

import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2

from components.config import EvaluationConfig, Task
from components.evaluation.metrics import TextClassification

LABEL_SLICE = "label"
LENGTH_SLICE = "length"
SPAN_SLICE = "span"  # of a window: the number of the span that a row came from
OLD = "old"  # and this one for all spans but the newest


def make_eval_config(
    evaluation: EvaluationConfig, task: Task, labels: tuple[str, ...], slices: tuple[str, ...]
) -> config_pb2.EvalConfig:
    """Says what is scored, by which metrics, in which slices.

    The one ModelSpec is the candidate's; `tfma.utils.update_eval_config_with_defaults(…, has_baseline=True)` adds
    its copy for the latest blessed model, as in TFX. There are no thresholds: the gates (`gates.py`) also compare
    with a baseline that is no TensorFlow model, and are kept in one place. Nor are there TFMA's own confidence
    intervals: its Poisson bootstrap cannot be seeded, and works row by row (`bootstrap.py` has the intervals).

    Args:
      evaluation: the section of the configuration.
      task: binary, multiclass or multilabel.
      labels: in the order of the probabilities.
      slices: columns of the examples to slice by, besides the label and the length.
    """
    spec = config_pb2.ModelSpec(
        signature_name="serialized_examples",
        prediction_key="probabilities",
        label_key="labels" if task == "multilabel" else "label",
        preprocessing_function_names=["transform_features"],
        model_type=tfma.TF_GENERIC,
    )
    metric = TextClassification(num_labels=len(labels), multilabel=task == "multilabel", binary=task == "binary")
    keys = [LABEL_SLICE, *([LENGTH_SLICE] if evaluation.length_bounds else []), *slices]
    return config_pb2.EvalConfig(
        model_specs=[spec],
        metrics_specs=[config_pb2.MetricsSpec(metrics=[_in_module(tfma.metrics.ExampleCount()), _in_module(metric)])],
        slicing_specs=[config_pb2.SlicingSpec(), *(config_pb2.SlicingSpec(feature_keys=[k]) for k in keys)],
    )


def _in_module(metric: tfma.metrics.Metric) -> config_pb2.MetricConfig:
    """A metric by class, module and JSON; `specs_from_metrics` leaves out the module, and so finds only TFMA's own."""
    name = type(metric)
    config = json.dumps(metric.get_config())
    return config_pb2.MetricConfig(class_name=name.__qualname__, module=name.__module__, config=config)


def length_slice(length: int, bounds: tuple[int, ...]) -> str:
    """The bucket of a length in tokens: with bounds 16 and 32 one of `1-16`, `17-32`, `33+`."""
    low = 1
    for bound in bounds:
        if length <= bound:
            return f"{low}-{bound}"
        low = bound + 1
    return f"{low}+"
