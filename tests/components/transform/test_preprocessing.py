"""The Transform user function, run by tensorflow_transform itself, and its graph as serving uses it."""

import functools

import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

from components.errors import DataError
from components.transform.preprocessing import preprocessing_fn

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "pain", "fell", "##s", "no", ".", "a"]
DENSE, SPARSE = tf.io.FixedLenFeature([1], tf.string), tf.io.VarLenFeature(tf.string)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS), encoding="utf-8")
    return {
        "vocab_file": str(tmp_path / "vocab.txt"),
        "lower_case": False,
        "max_length": 6,
        "pairs": False,
        "task": "multiclass",
        "labels": ["METHODS", "RESULTS"],
        "passthrough": [],
    }


@pytest.fixture
def transform(tmp_path):
    """Analyses and transforms rows in memory: returns the transformed rows and the transform's output."""

    def run(rows, features, config):
        metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(features))
        function = functools.partial(preprocessing_fn, custom_config=config)
        with tft_beam.Context(temp_dir=str(tmp_path / "tmp")):
            (transformed, _), graph = (rows, metadata) | tft_beam.AnalyzeAndTransformDataset(function)
            _ = graph | tft_beam.WriteTransformFn(str(tmp_path / "graph"))
        return transformed, tft.TFTransformOutput(str(tmp_path / "graph"))

    return run


def plain(row):
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items() if name != "key"}


def test_single_texts_become_ids_counts_and_a_label(transform, config):
    rows = [
        {"text": [b"pain fells"], "label": [b"RESULTS"]},
        {"text": ["a\u200d no xyz. pain".encode()], "label": [b"METHODS"]},
        {"text": [b""], "label": [b"METHODS"]},
    ]

    transformed, _ = transform(rows, {"text": DENSE, "label": DENSE}, config)

    assert [plain(row) for row in transformed] == [
        {"input_ids": [2, 4, 5, 6, 3], "length": 5, "unknown": 0, "truncated": 0, "label": 1},
        {"input_ids": [2, 9, 7, 1, 8, 3], "length": 6, "unknown": 1, "truncated": 1, "label": 0},
        {"input_ids": [2, 3], "length": 2, "unknown": 0, "truncated": 0, "label": 0},
    ]


def test_pairs_have_segments_and_an_absent_pair_is_empty(transform, config):
    config |= {"pairs": True, "passthrough": ["journal"]}
    rows = [
        {"text": [b"pain"], "text_pair": [b"no"], "label": [b"RESULTS"], "journal": [b"J"]},
        {"text": [b"pain"], "text_pair": [], "label": [b"RESULTS"], "journal": []},
    ]
    features = {"text": DENSE, "text_pair": SPARSE, "label": SPARSE, "journal": SPARSE}

    transformed, _ = transform(rows, features, config)

    assert [plain(row) for row in transformed] == [
        {"input_ids": [2, 4, 3, 7, 3], "segment_ids": [0, 0, 0, 1, 1], "length": 5, "unknown": 0, "truncated": 0}
        | {"label": 1, "journal": [b"J"]},
        {"input_ids": [2, 4, 3, 3], "segment_ids": [0, 0, 0, 1], "length": 4, "unknown": 0, "truncated": 0}
        | {"label": 1, "journal": []},
    ]


def test_sentences_before_and_after_are_segments_of_their_own(transform, config):
    config |= {"pairs": True, "neighbours": True, "max_length": 8}
    contexts = [b"no\npain pain", b"\nno", b"no\n", b"no", b"\xff pain\n\xff no", b""]
    rows = [{"text": [b"pain"], "text_pair": [context], "label": [b"RESULTS"]} for context in contexts]

    transformed, _ = transform(rows, {"text": DENSE, "text_pair": SPARSE, "label": SPARSE}, config)

    assert [row["input_ids"].tolist() for row in transformed] == [
        [2, 4, 3, 7, 3, 4, 4, 3],
        [2, 4, 3, 3, 7, 3],
        [2, 4, 3, 7, 3, 3],
        [2, 4, 3, 7, 3, 3],
        [2, 4, 3, 4, 3, 7, 3],
        [2, 4, 3, 3, 3],
    ]
    assert transformed[1]["segment_ids"].tolist() == [0, 0, 0, 1, 2, 2]
    assert transformed[2]["segment_ids"].tolist() == [0, 0, 0, 1, 1, 2]


def test_several_labels_become_a_multi_hot_row(transform, config):
    config |= {"task": "multilabel", "labels": ["A", "B", "C"]}
    rows = [{"text": [b"no"], "labels": labels} for labels in ([b"C", b"A"], [], [b"B"])]

    transformed, output = transform(rows, {"text": DENSE, "labels": SPARSE}, config)

    assert [row["labels"].tolist() for row in transformed] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert output.transformed_feature_spec()["labels"] == tf.io.FixedLenFeature([3], tf.float32)


def test_serving_without_labels_gives_the_same_ids_from_raw_strings(transform, config, tmp_path):
    rows = [{"text": [b"pain"], "label": [b"RESULTS"]}]
    _, output = transform(rows, {"text": DENSE, "label": DENSE}, config)
    module = tf.Module()
    module.layer = output.transform_features_layer()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serve(text):
        features = module.layer({"text": text[:, tf.newaxis]})
        return {"input_ids": tf.sparse.to_dense(features["input_ids"]), "length": features["length"]}

    tf.saved_model.save(module, str(tmp_path / "model"), signatures=serve)
    served = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    answer = served(text=tf.constant(["pain fells", b"\xff", "[SEP]", "x" * 1_000_000]))

    assert answer["input_ids"].numpy().tolist() == [[2, 4, 5, 6, 3], [2, 3, 0, 0, 0], [2, 1, 1, 1, 3], [2, 1, 3, 0, 0]]
    assert answer["length"].numpy().tolist() == [5, 2, 5, 3]


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_label_outside_the_configuration_fails_by_name_of_the_check(config, task):
    name = "labels" if task == "multilabel" else "label"

    @tf.function
    def run(label):
        return preprocessing_fn({"text": tf.constant([["no"]]), name: label}, config | {"task": task})[name]

    assert run(tf.constant([["RESULTS"]])).numpy().tolist() in ([1], [[0.0, 1.0]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="label_is_not_one_of_the_configured_labels"):
        run(tf.constant([["result"]]))


def test_a_feature_that_the_examples_lack_is_named(config):
    with pytest.raises(DataError, match="no feature 'label', only text"):
        preprocessing_fn({"text": tf.constant(["no"])}, config)
