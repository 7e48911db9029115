"""F1 by document: the benchmark's own arithmetic, written out, and its intervals."""

import numpy as np
import pytest

from components.evaluation.documents import document_scores, read_documents
from components.evaluation.rows import parse_row, read_records

# Documents 0 and 1 have labels, 2 has none and is left out.
DOCUMENTS = np.array([0, 1, 0, 2, 1])
TRUTH = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0], [0, 1, 0]], bool)
MODEL = np.array([[1, 0, 1], [0, 0, 0], [0, 0, 1], [1, 1, 1], [0, 1, 0]], bool)


def test_precision_and_recall_are_means_over_labelled_documents():
    found = document_scores(DOCUMENTS, TRUTH, MODEL, TRUTH, samples=200, seed=0)
    precision, recall = (1 / 2 + 1) / 2, (1 / 2 + 1) / 2
    f1 = 2 * precision * recall / (precision + recall)
    assert found["model"][0] == pytest.approx(f1)
    assert found["baseline"] == (1.0, 1.0, 1.0)
    assert found["difference"][0] == pytest.approx(f1 - 1)
    # Drawn twice, one of the two documents alone: 1/2 and 1.
    assert found["model"][1:] == (0.5, 1.0)
    assert sorted(document_scores(DOCUMENTS, TRUTH, MODEL, None, samples=1, seed=0)) == ["model"]


def test_nothing_decided_is_no_precision():
    found = document_scores(DOCUMENTS, TRUTH, np.zeros_like(TRUTH), None, samples=10, seed=0)
    assert found["model"] == (0.0, 0.0, 0.0)


def test_rows_documents_are_in_the_order_of_the_keys(workshop):
    rows = [{"text": text, "id": name, "labels": []} for text, name in zip("abcdef", "zxzxyz", strict=True)]
    examples = workshop.examples({"test": rows, "alone": rows[:2], "without": [{"text": "a", "labels": []}]})
    files = {s: [f"{examples.uri}/Split-{s}/data_tfrecord-00000-of-00001.gz"] for s in ("test", "alone", "without")}
    keys = [
        (parse_row(record).key, "xyz".index(row["id"]))
        for record, row in zip(read_records(files["test"]), rows, strict=True)
    ]
    assert read_documents(files["test"]).tolist() == [number for _, number in sorted(keys)]
    assert read_documents(files["alone"]) is None
    assert read_documents(files["without"]) is None
