"""What a user gets in seconds without a network: TF-IDF of words and word pairs, and a linear SVM (scikit-learn).

Trained and scored by every run on the very rows that the network sees, so that the run says what the network is
worth. Settings: uncased words, logarithmic term counts, terms of at least 2 rows, C = 0.5; where a row has several
labels one SVM a label, classes balanced (else it leaves nearly all rows without a label). A pair, and the sentences
before and after, have terms of their own. On pmc_rct_sections, trained on train and dev, scored on test: accuracy
0.816, macro-F1 0.645.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC

from components.config import NEIGHBOUR_BREAK, Task
from components.errors import DataError
from components.evaluation.rows import Row, parse_row, read_records
from components.evaluation.scores import Array

MAX_TRAIN_ROWS = 200_000  # bounds memory and time; rows at equal distances are taken
_FEW_ROWS = 1000  # below, a term of one row counts as well
_CHUNK = 20_000  # rows vectorised at once when scoring


@dataclass(frozen=True)
class BaselineResult:
    """The decisions of TF-IDF + SVM on the evaluated split, ordered by the rows' keys."""

    keys: Array  # [rows] int64
    truth: Array  # [rows, labels] bool
    decision: Array  # [rows, labels] bool
    train_rows: int  # rows that there were to train on
    used_rows: int  # rows that it was trained on

    def part(self, rows: Sequence[int]) -> BaselineResult:
        """The same of some of the evaluated rows."""
        return replace(self, keys=self.keys[rows], truth=self.truth[rows], decision=self.decision[rows])


def score_baseline(
    train_files: Sequence[str],
    eval_files: Sequence[str],
    task: Task,
    labels: Sequence[str],
    pairs: bool,
    neighbours: bool = False,
    max_train_rows: int = MAX_TRAIN_ROWS,
) -> BaselineResult:
    """Trains TF-IDF + SVM on raw examples and decides the rows of another split.

    Args:
      train_files, eval_files: TFRecords of tf.Example with `text`, `text_pair`, `label` or `labels`.
      task: binary, multiclass or multilabel.
      labels: the names, in the order of the columns of the result.
      pairs: whether `text_pair` gives further features (terms of its own vocabulary).
      neighbours: whether these are of the sentences before and of those after, each with a vocabulary of its own.
      max_train_rows: more rows than that are thinned evenly.

    Raises:
      DataError: if the training rows hold no words, or no rows.
    """
    total = sum(1 for _ in read_records(train_files))
    rows = list(_thinned(read_records(train_files), total, max_train_rows))
    if not rows:
        raise DataError("the baseline has no rows to train on; set evaluation.baseline = false, or add data")
    model = _Baseline(task, labels, pairs, neighbours).fit(rows)
    keys, truth, decision = [], [], []
    scored = (parse_row(record) for record in read_records(eval_files))
    while chunk := list(islice(scored, _CHUNK)):
        keys.append(np.array([row.key for row in chunk], np.int64))
        truth.append(_masks(chunk, labels))
        decision.append(model.decide(chunk))
    if not keys:
        raise DataError("the baseline has no rows to score: the evaluated split is empty")
    order = np.argsort(np.concatenate(keys), kind="stable")
    return BaselineResult(
        keys=np.concatenate(keys)[order],
        truth=np.concatenate(truth)[order],
        decision=np.concatenate(decision)[order],
        train_rows=total,
        used_rows=len(rows),
    )


class _Baseline:
    def __init__(self, task: Task, labels: Sequence[str], pairs: bool, neighbours: bool):
        self._labels = list(labels)
        self._multilabel = task == "multilabel"
        if neighbours:
            self._segments = [_text, _before, _after]
        else:
            self._segments = [_text, _pair] if pairs else [_text]
        self._terms: list[TfidfVectorizer | None] = []  # by segment; None where that has no terms
        self._svm: Any = None  # None where all rows have the same label
        self._only: Array | None = None

    def fit(self, rows: Sequence[Row]) -> _Baseline:
        min_rows = 1 if len(rows) < _FEW_ROWS else 2
        # Pairs may all be empty (documents of one sentence): then they say nothing, and have no features.
        fitted = [_fit_terms(map(segment, rows), min_rows) for segment in self._segments]
        self._terms = [terms for terms, _ in fitted]
        if self._terms[0] is None:
            raise DataError("the baseline finds no words in the texts; set evaluation.baseline = false")
        features = sparse.hstack([part for _, part in fitted if part is not None]).tocsr()
        truth = _masks(rows, self._labels)
        if self._multilabel:
            svm = LinearSVC(C=0.5, class_weight="balanced", random_state=0)
            self._svm = OneVsRestClassifier(svm).fit(features, truth.astype(int))
        elif len(np.unique(truth.argmax(1))) == 1:
            self._only = truth[0]
        else:
            self._svm = LinearSVC(C=0.5, random_state=0).fit(features, truth.argmax(1))
        return self

    def decide(self, rows: Sequence[Row]) -> Array:
        """Masks `[rows, labels]` bool."""
        if self._only is not None:
            return np.tile(self._only, (len(rows), 1))
        answer = self._svm.predict(self._features(rows))
        if self._multilabel:
            return np.asarray(answer).reshape(len(rows), -1).astype(bool)
        return np.arange(len(self._labels)) == np.asarray(answer)[:, None]

    def _features(self, rows: Sequence[Row]) -> Any:
        both = zip(self._segments, self._terms, strict=True)
        parts = [terms.transform(map(segment, rows)) for segment, terms in both if terms is not None]
        return sparse.hstack(parts).tocsr()


def _text(row: Row) -> str:
    return row.text


def _pair(row: Row) -> str:
    return row.text_pair


def _before(row: Row) -> str:
    return row.text_pair.partition(NEIGHBOUR_BREAK)[0]


def _after(row: Row) -> str:
    return row.text_pair.partition(NEIGHBOUR_BREAK)[2]


def _fit_terms(texts: Iterable[str], min_rows: int) -> tuple[TfidfVectorizer | None, Any]:
    """Words and word pairs with their weights, and the features of the texts; None, None where there is no term."""
    terms = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=min_rows)
    try:
        features = terms.fit_transform(texts)
    except ValueError as error:  # scikit-learn's way to say so, and it has no other
        if "empty vocabulary" in str(error) or "no terms remain" in str(error):
            return None, None
        raise
    return terms, features


def _masks(rows: Sequence[Row], labels: Sequence[str]) -> Array:
    """The labels of rows as masks `[rows, labels]` bool."""
    index = {label: i for i, label in enumerate(labels)}
    masks = np.zeros((len(rows), len(labels)), bool)
    for mask, row in zip(masks, rows, strict=True):
        mask[[index[label] for label in row.labels]] = True
    return masks


def _thinned(records: Iterable[bytes], total: int, most: int) -> Iterator[Row]:
    """All rows, or `most` of them at equal distances."""
    most = min(most, total)
    for i, record in enumerate(records):
        if (i + 1) * most // total > i * most // total:
            yield parse_row(record)
