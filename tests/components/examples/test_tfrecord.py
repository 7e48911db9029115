import gzip

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from components.examples.rows import Row, RowSpec
from components.examples.tfrecord import encode_example, frame, row_encoder


def decoded(data):
    features = tf.train.Example.FromString(data).features.feature
    return {name: list(feature.bytes_list.value) for name, feature in features.items()}


@settings(deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.lists(st.binary(), max_size=3)))
def test_tensorflow_reads_what_is_encoded(features):
    data = encode_example((name.encode(), values) for name, values in features.items())
    assert decoded(data) == features


@pytest.mark.parametrize("size", [0, 1, 105, 127, 128, 16383, 16384, 2_097_152])
def test_lengths_at_the_edges_of_varints_are_right(size):
    assert decoded(encode_example([(b"text", [b"x" * size])])) == {"text": [b"x" * size]}


def test_feature_without_values_is_present_and_empty():
    example = tf.train.Example.FromString(encode_example([(b"labels", [])]))
    assert example.features.feature["labels"].WhichOneof("kind") == "bytes_list"


def test_features_follow_the_configuration():
    spec = RowSpec(
        "csv", "body", "tags", frozenset([b"x"]), multilabel=True, text_pair="title", id="pmid", slices=("year",)
    )
    encode = row_encoder(spec)
    assert decoded(encode(Row(1, b"t", b"p", (b"x", b"y"), b"7", (b"2001",)))) == {
        "text": [b"t"],
        "text_pair": [b"p"],
        "labels": [b"x", b"y"],
        "id": [b"7"],
        "year": [b"2001"],
    }
    single = row_encoder(RowSpec("csv", "text", "label", frozenset([b"x"])))
    assert decoded(single(Row(1, b"t", None, (b"x",), None, ()))) == {"text": [b"t"], "label": [b"x"]}


def test_tensorflow_reads_the_records(tmp_path):
    records = [b"", b"a", b"x" * 100_000]
    path = tmp_path / "records.gz"
    path.write_bytes(gzip.compress(b"".join(map(frame, records))))
    dataset = tf.data.TFRecordDataset(str(path), compression_type="GZIP")
    assert [record.numpy() for record in dataset] == records
