"""Figures by document, where rows are its sentences: a document has every label that one of its sentences has.

The BLUE benchmark's measure for the Hallmarks of Cancer (Peng et al., 2019, arXiv:1906.05474; its code takes the union
of the sentences' labels): precision and recall of each document, their means, and the F1 of the two means. Documents
without a label have no recall, and are left out, as they are there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.evaluation import bootstrap, scores
from components.evaluation.rows import parse_row, read_records
from components.evaluation.scores import Array


def read_documents(files: Sequence[str]) -> Array | None:
    """The number of each row's document, int64 [rows], ordered by the rows' keys; None where rows have no feature
    `id`, or each has its own."""
    rows = [parse_row(record, ("id",)) for record in read_records(files)]
    rows.sort(key=lambda row: row.key)
    if not all(row.columns[0] for row in rows):
        return None
    names, number = np.unique(np.array([row.columns[0][0] for row in rows], object), return_inverse=True)
    return number if len(names) < len(rows) else None


def document_scores(
    documents: Array, truth: Array, model: Array, baseline: Array | None, samples: int, seed: int
) -> dict[str, tuple[float, float, float]]:
    """F1 over the labelled documents, of which there must be one, with bootstrap intervals over these.

    Args:
      documents: int64 [rows], the document of each.
      truth, model, baseline: masks [rows, labels] bool.
      samples: resamples, at least 1.
      seed: of the draws.

    Returns:
      Value and interval (low, high) of `model`; with a baseline, also of `baseline` and `difference`.
    """
    whole = _by_document(documents, truth)
    labelled = whole.any(axis=1)
    whole, count = whole[labelled], int(labelled.sum())
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
    f1, drawn = _f1(whole, _by_document(documents, model)[labelled], weights)
    found = {"model": (f1, *bootstrap.interval(drawn))}
    if baseline is not None:
        other, of_other = _f1(whole, _by_document(documents, baseline)[labelled], weights)
        found["baseline"] = (other, *bootstrap.interval(of_other))
        found["difference"] = (f1 - other, *bootstrap.interval(drawn - of_other))
    return found


def _by_document(documents: Array, masks: Array) -> Array:
    """Which labels any row of each document has, bool [documents, labels]."""
    found = np.zeros((documents.max() + 1, masks.shape[1]), bool)
    np.logical_or.at(found, documents, masks)
    return found


def _f1(truth: Array, decision: Array, weights: Array) -> tuple[float, Array]:
    """F1 of the documents, and of each resample, float64 [samples]; `weights` int [samples, documents]."""
    hits = (truth & decision).sum(axis=1)
    by_document = np.stack([scores.ratio(hits, decision.sum(axis=1)), scores.ratio(hits, truth.sum(axis=1))], axis=1)

    def harmonic(means: Array) -> Array:
        return scores.ratio(2 * means.prod(axis=-1), means.sum(axis=-1))

    return float(harmonic(by_document.mean(axis=0))), harmonic(weights @ by_document / len(truth))
