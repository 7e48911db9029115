from collections import Counter

import pytest

from components.examples.leaks import Leak
from components.examples.merge import Dropped, Roles, merge, place, prefix_of, span_of

TEST, EVAL = Roles("test"), Roles("eval")
NEWEST, UNGUARDED = Roles("test", evaluate_newest=True), Roles("test", evaluate_newest=True, guard=False)
LEARN_ONE = Roles("test", learn_last=1)
CHOICES = [
    # split  age roles | goes to
    ("train", 1, TEST, "train"),
    ("test", 1, TEST, "test"),
    ("test", 0, TEST, "test"),
    ("train", 0, NEWEST, "test"),
    ("eval", 0, NEWEST, "test"),
    ("test", 0, NEWEST, "test"),
    ("train", 1, NEWEST, "train"),
    ("eval", 1, NEWEST, "eval"),
    ("test", 1, NEWEST, "test"),
    ("test", 1, UNGUARDED, "train"),
    ("train", 0, LEARN_ONE, "train"),
    ("eval", 1, LEARN_ONE, None),
    ("train", 1, LEARN_ONE, None),
    ("test", 1, LEARN_ONE, "test"),
    ("train", 1, Roles("test", evaluate_newest=True, learn_last=1), "train"),
    ("train", 2, Roles("test", evaluate_newest=True, learn_last=1), None),
    ("test", 2, Roles("test", evaluate_newest=True, learn_last=1), "test"),
    ("test", 2, Roles("test", evaluate_newest=True, learn_last=1, guard=False), None),
    ("eval", 1, EVAL, "eval"),
    ("eval", 1, Roles("eval", evaluate_newest=True, guard=False), "train"),
]


@pytest.mark.parametrize(("split", "age", "roles", "target"), CHOICES)
def test_place(split, age, roles, target) -> None:
    assert place(split, age, roles) == target


def report(span: int, train: int, test: int, bad: int = 0) -> dict:
    def split(rows: int) -> dict:
        return {"rows": rows, "labels": {"yes": rows - 1}, "without_label": 1}

    return {
        "span": span, "version": None, "rows": train + test, "splits": {"train": split(train), "test": split(test)},
        "bad": {"rows": bad, "share": 0.0, "reasons": {"empty text": bad} if bad else {}},
        "leaked": [], "dropped": {}, "files": [{"file": f"span-{span}/train.csv", "split": "train", "sha256": "x"}],
    }  # fmt: skip


def test_reports_of_a_window_add_up() -> None:
    found = merge([report(2, 10, 4, bad=1), report(3, 20, 5)], TEST)
    assert (found["span"], found["rows"]) == (3, 39)
    assert found["spans"] == [{"span": 2, "version": None, "rows": 14}, {"span": 3, "version": None, "rows": 25}]
    assert found["splits"] == {
        "train": {"rows": 30, "labels": {"yes": 28}, "without_label": 2},
        "test": {"rows": 9, "labels": {"yes": 7}, "without_label": 2},
    }
    assert found["bad"] == {"rows": 1, "share": 1 / 40, "reasons": {"empty text": 1}}
    assert (found["leaked"], found["dropped"]) == ([], {})
    assert [(file["span"], file["file"]) for file in found["files"]] == [
        (2, "span-2/train.csv"),
        (3, "span-3/train.csv"),
    ]


def test_newest_span_as_evaluation_data_leaves_none_of_it_to_learn_from() -> None:
    reports = [report(2, 10, 4), report(3, 20, 5)]
    guarded = merge(reports, NEWEST)
    assert {name: split["rows"] for name, split in guarded["splits"].items()} == {"train": 10, "test": 29}
    unguarded = merge(reports, UNGUARDED)
    assert {name: split["rows"] for name, split in unguarded["splits"].items()} == {"train": 14, "test": 25}


def test_old_spans_that_are_only_evaluated_on_guard_against_forgetting() -> None:
    found = merge([report(1, 50, 7), report(2, 10, 4), report(3, 20, 5)], LEARN_ONE)
    assert {name: split["rows"] for name, split in found["splits"].items()} == {"test": 16, "train": 20}


def test_rows_that_the_window_dropped_are_counted_no_longer() -> None:
    leak = Leak(("train", "test"), 1, (3, 1))
    found = merge([report(2, 10, 4), report(3, 20, 5)], TEST, [leak], Dropped(3, Counter({"yes": 2, "": 1})))
    assert found["splits"]["train"] == {"rows": 27, "labels": {"yes": 26}, "without_label": 1}
    assert found["splits"]["test"] == {"rows": 9, "labels": {"yes": 7}, "without_label": 2}
    assert (found["rows"], found["dropped"]) == (39, {"train": 3})
    assert found["leaked"] == [{"splits": ["train", "test"], "texts": 1, "rows": {"train": 3, "test": 1}}]


def test_files_of_a_window_name_their_span() -> None:
    assert span_of(f"/x/Split-test/{prefix_of(20261101, 'test')}data_tfrecord-00000-00000.gz") == 20261101
    assert span_of("/span-3-x/Split-test/data_tfrecord-00000-00000.gz") is None
