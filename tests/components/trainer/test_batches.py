"""Examples in memory and the plans of batches."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from components.errors import DataError
from components.trainer.batches import Examples, ahead, plan_epoch, plan_prediction, read_examples

SPEC = {
    "input_ids": tf.io.VarLenFeature(tf.int64),
    "segment_ids": tf.io.VarLenFeature(tf.int64),
    "key": tf.io.FixedLenFeature([], tf.int64),
    "truncated": tf.io.FixedLenFeature([], tf.int64),
    "label": tf.io.FixedLenFeature([], tf.int64),
    "labels": tf.io.FixedLenFeature([2], tf.float32),
}
ROWS = [  # key, ids, segments, label
    (30, [5, 6, 7], [0, 0, 1], 2),
    (10, [1], [0], 0),
    (20, [2, 3], [0, 1], 1),
    (10, [1], [0], 1),
]


def ints(values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def write(path, rows):
    with tf.io.TFRecordWriter(str(path), options="GZIP") as writer:
        for key, ids, segments, label in rows:
            features = {"key": ints([key]), "input_ids": ints(ids), "segment_ids": ints(segments)}
            features |= {"label": ints([label]), "truncated": ints([int(key == 10)])}
            features["labels"] = tf.train.Feature(float_list=tf.train.FloatList(value=[label % 2, label // 2]))
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def test_examples_come_sorted_by_content_whatever_the_files(tmp_path):
    for name, rows in {"a": ROWS, "b": ROWS[::-1]}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "0.gz", rows[:3])
        write(tmp_path / name / "1.gz", rows[3:])
    first, second = (read_examples([str(tmp_path / name / "*")], SPEC, False, True) for name in "ab")
    assert first.keys.tolist() == [10, 10, 20, 30]
    assert first.labels.tolist() == [0, 1, 1, 2]
    assert first.ids.tolist() == [1, 1, 2, 3, 5, 6, 7]
    assert first.segments.tolist() == [0, 0, 0, 1, 0, 0, 1]
    assert first.lengths.tolist() == [1, 1, 2, 3]
    assert first.truncated == 2
    assert first.digest() == second.digest()


def test_labels_of_a_multilabel_task_are_a_matrix(tmp_path):
    write(tmp_path / "0.gz", ROWS)
    examples = read_examples([str(tmp_path / "*")], SPEC, True, False)
    assert examples.segments is None
    assert examples.labels.tolist() == [[0, 0], [1, 0], [1, 0], [0, 1]]


def test_no_examples_at_all_is_an_error(tmp_path):
    write(tmp_path / "0.gz", [])
    with pytest.raises(DataError, match="no examples"):
        read_examples([str(tmp_path / "*")], SPEC, False, False)


def test_a_batch_is_packed_in_the_order_asked_for():
    ids = np.arange(6, dtype=np.int32)
    examples = Examples(ids, ids * 10, np.array([1, 2, 3], np.int32), np.zeros(3, np.int32), np.zeros(3, np.int64))
    batch = examples.batch(np.array([2, 0]))
    assert {name: value.tolist() for name, value in batch.items()} == {
        "ids": [3, 4, 5, 0],
        "segments": [30, 40, 50, 0],
        "row_lengths": [3, 1],
    }


def test_a_changed_label_changes_the_digest():
    ids = np.arange(3, dtype=np.int32)
    one = [Examples(ids, None, ids, np.array([0, label]), ids).digest() for label in (0, 1)]
    assert one[0] != one[1]


@pytest.mark.parametrize("buckets", [None, (4, 8, 16)])
@pytest.mark.parametrize("count", [1, 7, 64, 65])
def test_an_epoch_visits_every_example_once(buckets, count):
    lengths = np.random.default_rng(0).integers(2, 17, count)
    batches = plan_epoch(lengths, 8, seed=3, epoch=0, buckets=buckets)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert len(batches) == -(-count // 8)
    assert max(len(rows) for rows in batches) <= 8


def test_epochs_and_seeds_differ_and_repeat():
    lengths = np.full(40, 5)

    def order(seed, epoch):
        return np.concatenate(plan_epoch(lengths, 8, seed, epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_full_batches_hold_texts_of_one_bucket():
    lengths = np.repeat([3, 10, 16], 16)
    for rows in plan_epoch(lengths, 8, seed=0, epoch=0, buckets=(4, 12, 16)):
        assert len(set(lengths[rows])) == 1


def test_texts_longer_than_the_last_bucket_make_one_of_their_own():
    lengths = np.repeat([3, 500], 8)
    assert len(plan_epoch(lengths, 8, seed=0, epoch=0, buckets=(4, 16))) == 2


@pytest.mark.parametrize("buckets", [None, (4, 8, 16)])
@pytest.mark.parametrize("count", [1, 7, 300])
def test_batches_by_tokens_are_as_full_as_the_budget_lets_them(buckets, count):
    lengths = np.random.default_rng(0).integers(2, 17, count)
    batches = plan_epoch(lengths, 8, seed=3, epoch=0, buckets=buckets, tokens=64)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    sizes = [(len(rows) * lengths[rows].max() if buckets else lengths[rows].sum()) for rows in batches]
    assert max(sizes) <= 64
    if count == 300:
        # what one more text could not have been added to, but for what is left over of a bucket
        assert sum(size > 64 - 16 for size in sizes) >= len(sizes) - 3
        counts = {len(plan_epoch(lengths, 8, 3, epoch, buckets, 48)) for epoch in range(5)}
        assert len(counts) > 1
        short = [rows for rows in batches if lengths[rows].max() <= 4]
        assert bool(short) == bool(buckets)
        assert all(len(rows) >= 16 for rows in short)


def test_a_text_of_more_than_the_budget_stands_alone():
    found = plan_epoch(np.array([3, 50, 3, 3]), 8, seed=0, epoch=0, tokens=6)
    assert sorted(map(len, found)) in ([1, 1, 1, 1], [1, 1, 2])
    assert [1] in [rows.tolist() for rows in found]


def test_prediction_batches_stay_within_their_tokens_but_for_a_single_text():
    lengths = np.array([3, 50, 4, 20, 5])
    batches = [rows.tolist() for rows in plan_prediction(lengths, tokens=20)]
    assert batches == [[1], [3], [4, 2, 0]]


def test_what_is_made_ahead_comes_in_order_and_no_further_than_two():
    begun, third = [], threading.Event()

    def make(number):
        begun.append(number)
        if number == 2:
            third.set()
        return number * 10

    made = ahead(make, range(6))
    assert next(made) == 0
    assert third.wait(30)  # before it is asked for
    assert begun == [0, 1, 2]
    assert list(made) == [10, 20, 30, 40, 50]
    assert begun == [0, 1, 2, 3, 4, 5]
    assert list(ahead(make, [])) == []


def test_an_error_in_what_is_made_ahead_is_raised_at_its_place():
    def make(number):
        if number == 1:
            raise ValueError("the second")
        return number

    made = ahead(make, range(3))
    assert next(made) == 0
    with pytest.raises(ValueError, match="the second"):
        next(made)
