"""The baseline on the shipped data, and what it does with labels, pairs and odd rows."""

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

import pipeline
from components.errors import DataError
from components.evaluation.baseline import score_baseline
from components.evaluation.rows import parse_row, read_records

SECTIONS = ("BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS")


def files(examples, *splits):
    return [str(f) for split in splits for f in sorted((Path(examples.uri) / f"Split-{split}").iterdir())]


@pytest.mark.slow
def test_figures_on_the_shipped_data_are_those_of_a_plain_svm(workshop):
    folder = Path(pipeline.__file__).parent / "data" / "pmc_rct_sections"
    splits = {}
    for split, name in (("train", "train"), ("eval", "dev"), ("test", "test")):
        with (folder / f"{name}.csv").open(encoding="utf-8") as stream:
            splits[split] = [{"text": row["text"], "label": row["label"]} for row in csv.DictReader(stream)]
    examples = workshop.examples(splits)
    train, test = files(examples, "train", "eval"), files(examples, "test")
    result = score_baseline(train, test, "multiclass", SECTIONS, pairs=False)
    truth, decision = result.truth.argmax(1), result.decision.argmax(1)
    assert round(accuracy_score(truth, decision), 3) == 0.816
    assert round(f1_score(truth, decision, average="macro"), 3) == 0.645
    assert (result.train_rows, result.used_rows, len(result.keys)) == (18294, 18294, 2061)
    assert (np.diff(result.keys) >= 0).all()

    thinned = score_baseline(train, test, "multiclass", SECTIONS, pairs=False, max_train_rows=5000)
    assert (thinned.train_rows, thinned.used_rows) == (18294, 5000)
    assert 0.7 < (thinned.truth == thinned.decision).all(1).mean() < 0.816


def test_labels_of_a_row_are_decided_one_by_one(workshop):
    rows = [
        {"text": "red apple", "labels": ["red"]},
        {"text": "blue sky", "labels": ["blue"]},
        {"text": "red and blue flag", "labels": ["red", "blue"]},
        {"text": "green grass", "labels": []},
    ] * 5
    examples = workshop.examples({"train": rows, "test": rows[:4]})
    result = score_baseline(
        files(examples, "train"), files(examples, "test"), "multilabel", ("blue", "red", "never"), pairs=False
    )
    order = np.argsort([parse_row(r).key for r in read_records(files(examples, "test"))])
    expected = np.array([[0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)[order]
    np.testing.assert_array_equal(result.truth, expected)
    np.testing.assert_array_equal(result.decision, expected)


def test_the_pair_has_features_of_its_own(workshop):
    rows = [
        {"text": "same", "text_pair": "before", "label": "a"},
        {"text": "same", "text_pair": "after", "label": "b"},
        {"text": "before", "text_pair": "", "label": "b"},
    ] * 4
    examples = workshop.examples({"train": rows, "test": rows[:3]})
    train, test = files(examples, "train"), files(examples, "test")
    with_pairs = score_baseline(train, test, "multiclass", ("a", "b"), pairs=True)
    np.testing.assert_array_equal(with_pairs.decision, with_pairs.truth)
    without = score_baseline(train, test, "multiclass", ("a", "b"), pairs=False)
    assert (without.decision != without.truth).any()


def test_sentences_before_and_after_have_features_of_their_own(workshop):
    rows = [
        {"text": "same", "text_pair": "word\n", "label": "a"},
        {"text": "same", "text_pair": "\nword", "label": "b"},
        {"text": "word", "text_pair": "\n", "label": "b"},
    ] * 4
    examples = workshop.examples({"train": rows, "test": rows[:3]})
    train, test = files(examples, "train"), files(examples, "test")
    apart = score_baseline(train, test, "multiclass", ("a", "b"), pairs=True, neighbours=True)
    np.testing.assert_array_equal(apart.decision, apart.truth)
    together = score_baseline(train, test, "multiclass", ("a", "b"), pairs=True)
    assert (together.decision != together.truth).any()


def test_pairs_that_are_all_empty_do_no_harm(workshop):
    rows = [{"text": t, "text_pair": "", "label": t} for t in ("left", "right")] * 3
    examples = workshop.examples({"train": rows, "test": rows[:2]})
    result = score_baseline(files(examples, "train"), files(examples, "test"), "binary", ("left", "right"), pairs=True)
    np.testing.assert_array_equal(result.decision, result.truth)


def test_one_label_in_training_is_what_is_always_said(workshop):
    examples = workshop.examples(
        {"train": [{"text": "some words", "label": "a"}], "test": [{"text": "other words", "label": "b"}]}
    )
    result = score_baseline(files(examples, "train"), files(examples, "test"), "binary", ("a", "b"), pairs=False)
    assert result.decision.tolist() == [[True, False]]


def test_texts_without_words_are_named_as_the_reason(workshop):
    rows = [{"text": "!", "label": "a"}, {"text": "?", "label": "b"}]
    examples = workshop.examples({"train": rows, "test": rows})
    with pytest.raises(DataError, match=r"no words.*evaluation\.baseline = false"):
        score_baseline(files(examples, "train"), files(examples, "test"), "binary", ("a", "b"), pairs=False)


def test_a_rows_key_depends_on_text_pair_and_labels_alone():
    import tensorflow as tf

    def key(**values):
        example = tf.train.Example()
        for name, value in values.items():
            example.features.feature[name].bytes_list.value.extend(v.encode() for v in value)
        return parse_row(example.SerializeToString()).key

    base = key(text=["x"], labels=["a", "b"], id=["1"])
    assert base == key(text=["x"], labels=["b", "a"], id=["2"])
    assert 0 <= base < 2**63
    others = [key(text=["xa"], labels=["b"]), key(text=["x"], text_pair=["a"], labels=["b"]), key(text=["x"])]
    assert len({base, *others}) == 4
