"""A toy SavedModel with the project's signatures, raw examples, and one run of the evaluator over both."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tfx.types import standard_artifacts

from components.config import EvaluationConfig
from components.examples.merge import prefix_of


class Workshop:
    """Makes models, examples and evaluations in one folder."""

    def __init__(self, root: Path):
        self.root = root
        self._numbers = itertools.count()

    def folder(self) -> str:
        path = self.root / str(next(self._numbers))
        path.mkdir()
        return str(path)

    def model(
        self,
        answers: Mapping[str, Sequence[float]],
        labels: Sequence[str],
        thresholds: Sequence[float] | None = None,
    ) -> standard_artifacts.Model:
        """A model that answers known texts with given probabilities; with thresholds, one of several labels a row."""
        module = tf.Module()
        module.texts = _table(list(answers))
        module.labels = _table(list(labels))
        probabilities, names = tf.constant(list(answers.values()), tf.float32), tf.constant(list(labels))
        one = tf.io.FixedLenFeature([], tf.string)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
        def serialized_examples(examples):
            text = tf.io.parse_example(examples, {"text": one})["text"]
            found = tf.gather(probabilities, module.texts.lookup(text))
            outputs = {"probabilities": found, "classes": tf.tile(names[None], [tf.shape(text)[0], 1])}
            if thresholds is None:
                outputs["label"] = tf.gather(names, tf.argmax(found, axis=1))
            else:
                outputs["labels"] = tf.cast(found >= tf.constant(list(thresholds)), tf.int64)
            return outputs

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
        def transform_features(examples):
            name, kind = ("label", one) if thresholds is None else ("labels", tf.io.RaggedFeature(tf.string))
            found = tf.io.parse_example(examples, {"text": one, name: kind})
            length = tf.cast(tf.strings.length(found["text"]), tf.int64)
            measures = {"length": length, "truncated": tf.cast(length > 20, tf.int64)}
            if thresholds is None:
                return measures | {"label": module.labels.lookup(found["label"])}
            marks = tf.one_hot(module.labels.lookup(found["labels"].to_tensor("")), len(labels))
            return measures | {"labels": tf.reduce_sum(marks, axis=1)}

        artifact = standard_artifacts.Model()
        artifact.uri = self.folder()
        artifact.set_string_custom_property("tfx_version", "1.21.0")
        signatures = {f.__name__: f for f in (serialized_examples, transform_features)}
        tf.saved_model.save(module, str(Path(artifact.uri) / "Format-Serving"), signatures=signatures)
        return artifact

    def examples(self, splits: Mapping[str, Sequence[Mapping[str, Any] | bytes]]) -> standard_artifacts.Examples:
        """Splits of rows (dicts of str or lists of str, or records as they are), as ExampleGen writes them."""
        artifact = standard_artifacts.Examples()
        artifact.uri = self.folder()
        artifact.split_names = json.dumps(list(splits))
        artifact.set_string_custom_property("tfx_version", "1.21.0")
        for split, rows in splits.items():
            folder = Path(artifact.uri) / f"Split-{split}"
            folder.mkdir()
            with tf.io.TFRecordWriter(str(folder / "data_tfrecord-00000-of-00001.gz"), "GZIP") as writer:
                for row in rows:
                    writer.write(row if isinstance(row, bytes) else record(row))
        return artifact

    def window(
        self, train: Sequence[Mapping[str, Any]], tests: Mapping[int, Sequence[Mapping[str, Any]]]
    ) -> standard_artifacts.Examples:
        """Examples of a window of spans: each gives rows to the split `test`."""
        artifact = self.examples({"train": train, "eval": train, "test": []})
        folder = Path(artifact.uri) / "Split-test"
        for span, rows in tests.items():
            path = str(folder / f"{prefix_of(span, 'test')}data_tfrecord-00000-00000.gz")
            with tf.io.TFRecordWriter(path, "GZIP") as writer:
                for row in rows:
                    writer.write(record(row))
        return artifact

    def evaluate(
        self, examples, model, task, labels, evaluation: EvaluationConfig, blessed=None, slices=(), pairs=False,
        export=None, guard=False,
    ) -> SimpleNamespace:  # fmt: skip
        """Runs the evaluator's executor: both reports, the blessing and its files, the folder."""
        from components.evaluation.executor import Executor

        evaluated, blessing = standard_artifacts.ModelEvaluation(), standard_artifacts.ModelBlessing()
        evaluated.uri, blessing.uri = self.folder(), self.folder()
        custom_config = {
            "task": task,
            "labels": list(labels),
            "evaluation": evaluation.model_dump(mode="json"),
            "slices": list(slices),
            "pairs": pairs,
            "guard": guard,
            "neighbours": False,
        } | ({"export": export.model_dump(mode="json")} if export else {})
        context = Executor.Context(
            # An image, though none is used: else TFX builds a source package of itself for workers, for seconds.
            beam_pipeline_args=[
                "--runner=FnApiRunner",
                "--direct_running_mode=in_memory",
                "--direct_num_workers=1",
                "--sdk_container_image=none",
            ],
            tmp_dir=self.folder(),
            unique_id="1",
        )
        Executor(context).Do(
            {"examples": [examples], "model": [model], "baseline_model": [blessed] if blessed else []},
            {"evaluation": [evaluated], "blessing": [blessing]},
            {"custom_config": json.dumps(custom_config)},
        )
        folder = Path(evaluated.uri)
        return SimpleNamespace(
            metrics=json.loads((folder / "metrics.json").read_text()),
            gates=json.loads((folder / "gates.json").read_text()),
            blessing=blessing,
            files=sorted(path.name for path in Path(blessing.uri).iterdir()),
            folder=folder,
        )


def _table(keys: list[str]) -> tf.lookup.StaticHashTable:
    values = tf.range(len(keys), dtype=tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant(keys), values), -1)


def record(row: Mapping[str, Any]) -> bytes:
    """A serialised tf.Example of byte features."""
    found = tf.train.Example()
    for name, value in row.items():
        values = [value] if isinstance(value, str) else value
        found.features.feature[name].bytes_list.value.extend(v.encode() for v in values)
    return found.SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    """Makes what an evaluation needs, and runs it."""
    return Workshop(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="session")
def probabilities():
    """A function that draws probabilities `[rows, labels]`, float32, that add up to 1."""

    def draw(seed: int, rows: int, labels: int, sharpness: float = 2.0) -> np.ndarray:
        weights = np.exp(np.random.default_rng(seed).normal(size=(rows, labels)) * sharpness)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)

    return draw
