"""A toy SavedModel with the project's signatures, raw examples, and one run of the evaluator over both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from tfx.types import standard_artifacts

from components.config import EvaluationConfig


@pytest.fixture
def save_model(tmp_path):
    """A function that saves a model which answers known texts with given probabilities."""

    def save(
        name: str,
        answers: Mapping[str, Sequence[float]],
        labels: Sequence[str],
        multilabel: bool = False,
        thresholds: Sequence[float] | None = None,
        broken: bool = False,
    ) -> standard_artifacts.Model:
        keys = tf.constant(list(answers))
        module = tf.Module()
        module.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(keys, tf.range(len(answers), dtype=tf.int64)), -1
        )
        module.label_table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(tf.constant(list(labels)), tf.range(len(labels), dtype=tf.int64)), -1
        )
        probabilities = tf.constant(list(answers.values()), tf.float32)
        names = tf.constant(list(labels))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
        def serialized_examples(examples):
            text = tf.io.parse_example(examples, {"text": tf.io.FixedLenFeature([], tf.string)})["text"]
            found = tf.gather(probabilities, module.table.lookup(text))
            if broken:
                found = found / 0.0
            outputs = {"probabilities": found, "classes": tf.tile(names[None], [tf.shape(text)[0], 1])}
            if multilabel:
                outputs["labels"] = tf.cast(found >= tf.constant(list(thresholds)), tf.int64)
            else:
                outputs["label"] = tf.gather(names, tf.argmax(found, axis=1))
            return outputs

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
        def transform_features(examples):
            label = "labels" if multilabel else "label"
            spec = {
                "text": tf.io.FixedLenFeature([], tf.string),
                label: tf.io.VarLenFeature(tf.string) if multilabel else tf.io.FixedLenFeature([], tf.string),
            }
            found = tf.io.parse_example(examples, spec)
            length = tf.cast(tf.strings.length(found["text"]), tf.int64)
            if not multilabel:
                return {"label": module.label_table.lookup(found["label"]), "length": length}
            sparse = found["labels"]
            dense = tf.sparse.to_dense(
                tf.SparseTensor(sparse.indices, module.label_table.lookup(sparse.values), sparse.dense_shape), -1
            )
            return {"labels": tf.reduce_sum(tf.one_hot(dense, len(labels)), axis=1), "length": length}

        model = standard_artifacts.Model()
        model.uri = str(tmp_path / name)
        model.set_string_custom_property("tfx_version", "1.21.0")
        path = Path(model.uri) / "Format-Serving"
        signatures = {f.__name__: f for f in (serialized_examples, transform_features)}
        tf.saved_model.save(module, str(path), signatures=signatures)
        return model

    return save


@pytest.fixture
def write_examples(tmp_path):
    """A function that writes splits of rows (dicts of str or lists of str) as ExampleGen does."""

    def write(splits: Mapping[str, Sequence[Mapping[str, str | Sequence[str]]]]) -> standard_artifacts.Examples:
        artifact = standard_artifacts.Examples()
        artifact.uri = str(tmp_path / "examples")
        artifact.split_names = json.dumps(list(splits))
        artifact.set_string_custom_property("tfx_version", "1.21.0")
        for split, rows in splits.items():
            folder = Path(artifact.uri) / f"Split-{split}"
            folder.mkdir(parents=True)
            with tf.io.TFRecordWriter(str(folder / "data_tfrecord-00000-of-00001.gz"), "GZIP") as writer:
                for row in rows:
                    writer.write(example(row))
        return artifact

    return write


def example(row: Mapping[str, str | Sequence[str]]) -> bytes:
    """A serialised tf.Example of byte features."""
    found = tf.train.Example()
    for name, value in row.items():
        values = [value] if isinstance(value, str) else value
        found.features.feature[name].bytes_list.value.extend(v.encode() for v in values)
    return found.SerializeToString(deterministic=True)


@pytest.fixture
def evaluate(tmp_path):
    """A function that runs the evaluator's executor; gives both reports, the blessing and the folder."""
    runs = []

    def run(examples, model, task, labels, evaluation: EvaluationConfig, blessed=None, slices=(), pairs=False):
        from components.evaluation.executor import Executor

        runs.append(1)
        evaluated, blessing = standard_artifacts.ModelEvaluation(), standard_artifacts.ModelBlessing()
        evaluated.uri, blessing.uri = str(tmp_path / f"eval{len(runs)}"), str(tmp_path / f"blessing{len(runs)}")
        for artifact in (evaluated, blessing):
            Path(artifact.uri).mkdir()
        custom_config = {
            "task": task,
            "labels": list(labels),
            "evaluation": evaluation.model_dump(mode="json"),
            "slices": list(slices),
            "pairs": pairs,
        }
        context = Executor.Context(
            beam_pipeline_args=["--direct_running_mode=in_memory", "--direct_num_workers=1"],
            tmp_dir=str(tmp_path / "tmp"),
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
            blessed=sorted(path.name for path in Path(blessing.uri).iterdir()),
            folder=folder,
        )

    return run


def probabilities(seed: int, rows: int, labels: int, sharpness: float = 2.0) -> np.ndarray:
    """Random probabilities `[rows, labels]`, float32, that add up to 1."""
    logits = np.random.default_rng(seed).normal(size=(rows, labels)) * sharpness
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return (exp / exp.sum(1, keepdims=True)).astype(np.float32)
