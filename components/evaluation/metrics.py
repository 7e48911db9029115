"""The metric that TFMA lacks, as a TFMA metric, so that every slice has it.

TFMA's F1 binarises at a threshold (0.5, or the top k). What is served is a decision: the most probable label, or
for rows with several labels a mask by the thresholds in the export. `TextClassification` scores that decision, the
calibration of the probabilities, and PR-AUC: the same values as tfma.metrics.AUCPrecisionRecall for every label,
in a twentieth of its time.

It reads what `extract.py` extracts of a row: `labels` `[labels]` float32, and among the predictions `probabilities`
`[labels]` float32 and `decision` `[labels]` bool. Its formulas are those of `scores.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics.multi_class_confusion_matrix_metrics import Matrices, MatrixEntryKey

from components.evaluation import scores
from components.evaluation.scores import Array

OVERALL = ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "pr_auc", "calibration_error")
BY_LABEL = ("precision", "recall", "f1", "pr_auc", "support")
CONFUSION = "confusion_matrix"


class Sums(NamedTuple):
    """What the rows of a slice add up to, float64."""

    tp: Array  # [labels]
    fp: Array  # [labels]
    fn: Array  # [labels]
    correct: Array  # [] rows that are right in every label
    total: Array  # [] rows
    confidence: Array  # [curves, bins]; curves: 1, or the labels where a row has several
    hits: Array  # [curves, bins]
    confusion: Array  # [labels, labels], rows true, columns decided; [0, 0] where a row has several labels


class _SumsCombiner(beam.CombineFn):
    """Adds up `Sums` over the rows of a slice, as one array."""

    def __init__(self, key: Any, num_labels: int, multilabel: bool):
        self._key = key
        self._multilabel = multilabel
        bins = (num_labels if multilabel else 1, scores.CALIBRATION_BINS)
        confusion = 0 if multilabel else num_labels
        label = (num_labels,)
        self._shapes = [label, label, label, (), (), bins, bins, (confusion, confusion)]
        self._ends = np.cumsum([int(np.prod(shape)) for shape in self._shapes])

    def create_accumulator(self) -> Array:
        return np.zeros(self._ends[-1])

    def add_input(self, accumulator: Array, element: Any) -> Array:
        truth, predictions = _truth_and_predictions(element, self._key.model_name)
        decision, probabilities = predictions["decision"], predictions["probabilities"]
        labels = len(truth)
        right = (truth == decision).all()
        accumulator[:labels] += truth & decision
        accumulator[labels : 2 * labels] += decision & ~truth
        accumulator[2 * labels : 3 * labels] += truth & ~decision
        accumulator[3 * labels] += right
        accumulator[3 * labels + 1] += 1
        said, so = (probabilities, truth) if self._multilabel else (probabilities.max(keepdims=True), right)
        place = np.arange(said.size) * scores.CALIBRATION_BINS + scores.calibration_bin(said)
        accumulator[self._ends[4] + place] += said
        accumulator[self._ends[5] + place] += so
        if not self._multilabel:
            accumulator[self._ends[6] + np.argmax(truth) * labels + np.argmax(decision)] += 1
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Array]) -> Array:
        return np.sum(list(accumulators), axis=0)

    def extract_output(self, accumulator: Array) -> dict[Any, Sums]:
        parts = np.split(accumulator, self._ends[:-1])
        return {self._key: Sums(*(part.reshape(s) for part, s in zip(parts, self._shapes, strict=True)))}


class _ScoresCombiner(beam.CombineFn):
    """Counts, over the rows of a slice, how often a label is true or not at each threshold of its probability."""

    def __init__(self, key: Any, num_labels: int):
        self._key = key
        self._num_labels = num_labels

    def create_accumulator(self) -> Counter[int]:
        return Counter()

    def add_input(self, accumulator: Counter[int], element: Any) -> Counter[int]:
        truth, predictions = _truth_and_predictions(element, self._key.model_name)
        threshold = scores.threshold_of(predictions["probabilities"])
        accumulator.update(((threshold * 2 + truth) * self._num_labels + np.arange(self._num_labels)).tolist())
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Counter[int]]) -> Counter[int]:
        return sum(accumulators, Counter())

    def extract_output(self, accumulator: Counter[int]) -> dict[Any, Array]:
        """PR-AUC of every label."""
        codes = np.array(sorted(accumulator), np.int64)
        counts = np.array([accumulator[code] for code in codes.tolist()], np.float64)
        rest, label = np.divmod(codes, self._num_labels)
        areas = np.full(self._num_labels, np.nan)
        for i in range(self._num_labels):
            own = label == i
            areas[i] = scores.pr_auc(counts[None, own], rest[own] % 2 == 1, rest[own] // 2)[0]
        return {self._key: areas}


def _truth_and_predictions(element: Any, model_name: str) -> tuple[Array, Mapping[str, Array]]:
    predictions = element.predictions[model_name] if model_name else element.predictions
    return np.asarray(element.labels) > 0.5, predictions


def _computations(num_labels: int, multilabel: bool, binary: bool, name: str, model_name: str = "") -> list[Any]:
    def key(metric: str, label: int | None = None) -> Any:
        sub_key = None if label is None else tfma.metrics.SubKey(class_id=label)
        return tfma.metrics.MetricKey(name=metric, model_name=model_name, sub_key=sub_key)

    sums_key, areas_key = key(f"_{name}_sums"), key(f"_{name}_pr_auc")

    def result(metrics: Mapping[Any, Any]) -> dict[Any, Any]:
        sums: Sums = metrics[sums_key]
        by_label = scores.label_scores(sums.tp, sums.fp, sums.fn)
        by_label |= {"pr_auc": metrics[areas_key], "support": sums.tp + sums.fn}
        overall = scores.decision_scores(sums.tp, sums.fp, sums.fn, sums.correct, sums.total)
        overall["pr_auc"] = scores.mean_pr_auc(by_label["pr_auc"], binary)
        overall["calibration_error"] = scores.calibration_error(sums.confidence, sums.hits, sums.total)
        values = {key(metric): float(value) for metric, value in overall.items()}
        for measure, array in by_label.items():
            values |= {key(measure, label): float(array[label]) for label in range(num_labels)}
        if not multilabel:
            cells = np.argwhere(sums.confusion)
            entries = {MatrixEntryKey(int(i), int(j)): float(sums.confusion[i, j]) for i, j in cells}
            values[key(CONFUSION)] = Matrices({0.0: entries})
        return values

    keys = [key(metric) for metric in OVERALL]
    keys += [key(measure, label) for measure in BY_LABEL for label in range(num_labels)]
    keys += [] if multilabel else [key(CONFUSION)]
    sums, areas = _SumsCombiner(sums_key, num_labels, multilabel), _ScoresCombiner(areas_key, num_labels)
    return [
        tfma.metrics.MetricComputation(keys=[sums_key], preprocessors=None, combiner=sums),
        tfma.metrics.MetricComputation(keys=[areas_key], preprocessors=None, combiner=areas),
        tfma.metrics.DerivedMetricComputation(keys=keys, result=result),
    ]


class TextClassification(tfma.metrics.Metric):
    """Accuracy, F1 (macro, micro, weighted), PR-AUC and calibration error; by label precision, recall, F1, PR-AUC.

    Values of a label stand under TFMA's sub key `class_id`. With one label a row there is `confusion_matrix`, too.
    """

    def __init__(self, num_labels: int, multilabel: bool, binary: bool, name: str = "text_classification"):
        """For `num_labels` labels; `multilabel`: a row has any number of them; `binary`: the last is the positive."""
        super().__init__(
            tfma.metrics.merge_per_key_computations(_computations),
            num_labels=num_labels,
            multilabel=multilabel,
            binary=binary,
            name=name,
        )
