import pytest

from components.examples.merge import merge, place

CHOICES = [
    # split    newest  evaluated  evaluate_newest guard | goes to
    ("train", False, "test", False, True, "train"),
    ("test", False, "test", False, True, "test"),
    ("test", True, "test", False, True, "test"),
    ("train", True, "test", True, True, "test"),
    ("eval", True, "test", True, True, "test"),
    ("test", True, "test", True, True, "test"),
    ("train", False, "test", True, True, "train"),
    ("eval", False, "test", True, True, "eval"),
    ("test", False, "test", True, True, "test"),
    ("test", False, "test", True, False, "train"),
    ("eval", False, "eval", True, True, "eval"),
    ("eval", False, "eval", True, False, "train"),
]


@pytest.mark.parametrize(("split", "newest", "evaluated", "evaluate_newest", "guard", "target"), CHOICES)
def test_place(split, newest, evaluated, evaluate_newest, guard, target) -> None:
    assert place(split, newest, evaluated=evaluated, evaluate_newest=evaluate_newest, guard=guard) == target


def report(span: int, train: int, test: int, bad: int = 0) -> dict:
    def split(rows: int) -> dict:
        return {"rows": rows, "labels": {"yes": rows - 1}, "without_label": 1}

    return {
        "span": span, "version": None, "rows": train + test, "splits": {"train": split(train), "test": split(test)},
        "bad": {"rows": bad, "share": 0.0, "reasons": {"empty text": bad} if bad else {}},
        "leaked": [{"splits": ["train", "test"], "texts": 1, "rows": {"train": 1, "test": 1}}] if span == 2 else [],
        "dropped": {"train": 1}, "files": [{"file": f"span-{span}/train.csv", "split": "train", "sha256": "x"}],
    }  # fmt: skip


def test_reports_of_a_window_add_up() -> None:
    found = merge([report(2, 10, 4, bad=1), report(3, 20, 5)], evaluated="test", evaluate_newest=False, guard=True)
    assert (found["span"], found["rows"]) == (3, 39)
    assert found["spans"] == [{"span": 2, "version": None, "rows": 14}, {"span": 3, "version": None, "rows": 25}]
    assert found["splits"] == {
        "train": {"rows": 30, "labels": {"yes": 28}, "without_label": 2},
        "test": {"rows": 9, "labels": {"yes": 7}, "without_label": 2},
    }
    assert found["bad"] == {"rows": 1, "share": 1 / 40, "reasons": {"empty text": 1}}
    assert found["dropped"] == {"train": 2}
    assert [leak["span"] for leak in found["leaked"]] == [2]
    assert [(file["span"], file["file"]) for file in found["files"]] == [
        (2, "span-2/train.csv"),
        (3, "span-3/train.csv"),
    ]


def test_newest_span_as_evaluation_data_leaves_none_of_it_to_learn_from() -> None:
    reports = [report(2, 10, 4), report(3, 20, 5)]
    guarded = merge(reports, evaluated="test", evaluate_newest=True, guard=True)
    assert {name: split["rows"] for name, split in guarded["splits"].items()} == {"train": 10, "test": 29}
    unguarded = merge(reports, evaluated="test", evaluate_newest=True, guard=False)
    assert {name: split["rows"] for name, split in unguarded["splits"].items()} == {"train": 14, "test": 25}
