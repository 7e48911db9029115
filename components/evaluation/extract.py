"""From raw examples to what TFMA's metrics read, and a table of the predictions.

TFMA's own extractors put the inputs into the message of an error, and carry them along to the metrics (whose errors
print them, too). Inputs are texts, and may be patients'. This extractor asks the models for labels, probabilities
and decisions, and lets go of the texts; its errors give counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow_model_analysis as tfma
import tensorflow_text  # noqa: F401  (registers the ops of the exported tokeniser, in worker processes too)

from components.config import Task
from components.errors import ServingError
from components.evaluation.eval_config import LABEL_SLICE, LENGTH_SLICE, OLD, SPAN_SLICE, length_slice
from components.evaluation.rows import parse_row
from components.evaluation.scores import Array
from components.examples.merge import span_of

STAGE = "ScoreTexts"
PREDICTIONS = "predictions"  # the files predictions-*.parquet of the evaluation
_BATCH_ROWS = 256  # asked at once; the export itself splits them by length, in bounded memory
_KEY = "row_key"
_TRUNCATED = "row_truncated"
_SPANS = "spans"
_MODEL_ERRORS = (tf.errors.OpError, TypeError, ValueError, KeyError)


@dataclass(frozen=True)
class Scoring:
    """How rows are scored; the same for all rows of an evaluation."""

    task: Task
    labels: tuple[str, ...]
    slices: tuple[str, ...] = ()
    length_bounds: tuple[int, ...] = ()
    specs: Mapping[str, Any] = field(default_factory=dict)  # model's name in TFMA → ModelSpec
    newest: int | None = None  # the newest span of a window

    @property
    def multilabel(self) -> bool:
        """Whether a row has any number of labels."""
        return self.task == "multilabel"


class ToBatches(beam.PTransform):
    """Files and serialised examples in pairs → TFMA's extracts of batches; of a fixed size, so that answers repeat."""

    def expand(self, records: Any) -> Any:
        size = {"min_batch_size": _BATCH_ROWS, "max_batch_size": _BATCH_ROWS}
        return records | beam.BatchElements(**size) | beam.Map(_extracts)


def _extracts(batch: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
    return {tfma.INPUT_KEY: [record for _, record in batch], _SPANS: [span_of(file) for file, _ in batch]}


def text_extractor(scoring: Scoring, shared_models: Sequence[Any]) -> Any:
    """The TFMA extractor that replaces those of features, labels and predictions."""
    loaders = {model.model_name: model.model_loader for model in shared_models}
    return tfma.extractors.Extractor(stage_name=STAGE, ptransform=beam.ParDo(_ScoreTexts(scoring, loaders)))


class _ScoreTexts(tfma.utils.DoFnWithModels):
    """Batches of serialised examples → extracts of one row each, without the text."""

    def __init__(self, scoring: Scoring, loaders: Mapping[str, Any]):
        super().__init__(dict(loaders))
        self._scoring = scoring

    def process(self, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        records = batch[tfma.INPUT_KEY]
        scoring = self._scoring
        answers = {}
        for name, model in self._loaded_models.items():
            answers[name] = ask(model, scoring, name, records)
        candidate = next(name for name, spec in scoring.specs.items() if not spec.is_baseline)
        truth, lengths, truncated = features(self._loaded_models[candidate], scoring, candidate, records)
        for i, record in enumerate(records):
            row = parse_row(record, scoring.slices)
            named = [label for label, true in zip(scoring.labels, truth[i], strict=True) if true]
            values = {LABEL_SLICE: np.array([label.encode() for label in named], object)}
            if scoring.length_bounds:
                bucket = length_slice(int(lengths[i]), scoring.length_bounds)
                values[LENGTH_SLICE] = np.array([bucket.encode()], object)
            for column, found in zip(scoring.slices, row.columns, strict=True):
                values[column] = np.array(found, object)
            span = batch[_SPANS][i]
            if span is not None:
                names = [str(span), *([OLD] if span != scoring.newest else [])]
                values[SPAN_SLICE] = np.array([name.encode() for name in names], object)
            predictions = {
                name: {"probabilities": probabilities[i], "decision": decision[i]}
                for name, (probabilities, decision) in answers.items()
            }
            yield {
                tfma.LABELS_KEY: truth[i].astype(np.float32),
                tfma.PREDICTIONS_KEY: predictions if len(predictions) > 1 else predictions[candidate],
                tfma.FEATURES_KEY: values,
                _KEY: row.key,
                _TRUNCATED: bool(truncated[i]),
            }


def ask(model: Any, scoring: Scoring, name: str, records: Sequence[bytes]) -> tuple[Array, Array]:
    """A model's probabilities `[rows, labels]` float32 and decisions, masks `[rows, labels]` bool.

    Raises:
      ServingError: if it does not answer, answers for other labels, or with what is not a number.
    """
    spec = scoring.specs[name]
    who = _who(spec)
    outputs = _call(model, spec, spec.signature_name, records)
    shape = (len(records), len(scoring.labels))
    try:
        probabilities = np.asarray(outputs[spec.prediction_key], np.float32)
        if scoring.multilabel:
            decision = np.asarray(outputs["labels"]) != 0
        else:
            names = np.array([label.encode() for label in scoring.labels], object)
            decision = np.asarray(outputs["label"], object)[:, None] == names
    except KeyError as error:
        raise ServingError(f"{who}'s signature {spec.signature_name} has no output {error}") from None
    if probabilities.shape != shape or decision.shape != shape:
        raise ServingError(
            f"{who} answers {probabilities.size / max(shape[0], 1):g} probabilities a row; there are {shape[1]} labels"
        )
    bad = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if bad:
        raise ServingError(f"{who}'s probabilities are not numbers in {bad} of {shape[0]} rows")
    if not scoring.multilabel and not (decision.sum(axis=1) == 1).all():
        raise ServingError(f"{who} decides for labels that the configuration does not have; train again")
    return probabilities, decision


def features(model: Any, scoring: Scoring, name: str, records: Sequence[bytes]) -> tuple[Array, Array, Array]:
    """What the model's own Transform makes of rows: truths, masks `[rows, labels]` bool, lengths `[rows]` in tokens,
    and whether tokens were cut off, `[rows]` bool.

    Raises:
      ServingError: if it gives labels that the configuration does not have.
    """
    spec = scoring.specs[name]
    outputs = _call(model, spec, spec.preprocessing_function_names[0], records)
    try:
        labels = np.asarray(outputs[spec.label_key])
        lengths, truncated = (np.asarray(outputs[name]).reshape(-1) for name in ("length", "truncated"))
    except KeyError as error:
        raise ServingError(f"the exported model's transform_features has no output {error}") from None
    truth = labels > 0.5 if scoring.multilabel else np.arange(len(scoring.labels)) == labels.reshape(-1, 1)
    if truth.shape != (len(records), len(scoring.labels)) or not (scoring.multilabel or truth.any(axis=1).all()):
        raise ServingError("the exported model's Transform gives labels that the configuration does not have")
    return truth, lengths, truncated != 0


def class_names(model: Any, scoring: Scoring, name: str, record: bytes) -> tuple[str, ...]:
    """The labels that a model knows, in the order of its probabilities; asked with one example."""
    spec = scoring.specs[name]
    outputs = _call(model, spec, spec.signature_name, [record])
    if "classes" not in outputs:
        raise ServingError(f"{_who(spec)}'s signature {spec.signature_name} has no output 'classes'")
    return tuple(bytes(value).decode() for value in np.asarray(outputs["classes"]).reshape(-1))


def _who(spec: Any) -> str:
    return "the latest blessed model" if spec.is_baseline else "the exported model"


def _call(model: Any, spec: Any, signature: str, records: Sequence[bytes]) -> dict[str, Any]:
    function = model.signatures.get(signature) if hasattr(model, "signatures") else None
    if function is None:
        raise ServingError(f"{_who(spec)} has no signature {signature}; train it again with this version")
    try:
        outputs = function(tf.constant(list(records), tf.string))
        return {key: value.numpy() for key, value in outputs.items()}
    except _MODEL_ERRORS as error:
        kind = type(error).__name__
    # Outside the handler: TensorFlow's message holds the example that it could not read, and must not be chained.
    raise ServingError(f"{_who(spec)}'s signature {signature} failed on {len(records)} rows ({kind})")


def prediction_table(scoring: Scoring, path: str) -> tuple[Any, Any]:
    """A TFMA evaluator and writer that keep every row's prediction in `<path>/predictions-*.parquet`.

    The columns: `row` (int64, see rows.py), `truncated` (bool), `truth` (list of bool), `slices` (list of
    `column=value`), and for each model its `probabilities` (list of float) and `decision` (list of bool). No text.
    """
    fields = [
        ("row", pa.int64()),
        ("truncated", pa.bool_()),
        ("truth", pa.list_(pa.bool_())),
        ("slices", pa.list_(pa.string())),
    ]
    for name in scoring.specs:
        fields += [
            (_column(name, "probabilities"), pa.list_(pa.float32())),
            (_column(name, "decision"), pa.list_(pa.bool_())),
        ]
    write = beam.io.WriteToParquet(f"{path}/{PREDICTIONS}", pa.schema(fields), file_name_suffix=".parquet")
    evaluator = tfma.evaluators.Evaluator(stage_name="TabulatePredictions", run_after=STAGE, ptransform=_Tabulate())
    return evaluator, tfma.writers.Writer(stage_name="WritePredictions", ptransform=_Write(write))


class _Tabulate(beam.PTransform):
    def expand(self, extracts: Any) -> Any:
        return {PREDICTIONS: extracts | beam.Map(_table_row)}


class _Write(beam.PTransform):
    def __init__(self, write: Any):
        super().__init__()
        self._write = write

    def expand(self, evaluation: Any) -> Any:
        return evaluation[PREDICTIONS] | self._write


def _column(model: str, name: str) -> str:
    return f"{model}.{name}" if model else name


def _table_row(extracts: Mapping[str, Any]) -> dict[str, Any]:
    predictions = extracts[tfma.PREDICTIONS_KEY]
    models = {"": predictions} if "decision" in predictions else predictions
    row = {
        "row": extracts[_KEY],
        "truncated": extracts[_TRUNCATED],
        "truth": [bool(value) for value in extracts[tfma.LABELS_KEY]],
        "slices": [
            f"{column}={bytes(value).decode('utf-8', 'replace')}"
            for column, values in extracts[tfma.FEATURES_KEY].items()
            for value in values
        ],
    }
    for name, values in models.items():
        row[_column(name, "probabilities")] = [float(value) for value in values["probabilities"]]
        row[_column(name, "decision")] = [bool(value) for value in values["decision"]]
    return row
