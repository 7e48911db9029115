"""Metrics and thresholds, by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from components.trainer.metrics import decisions, scores, tune_thresholds


def test_multiclass_scores_by_hand():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.5, 0.4]])
    found = scores(probabilities, np.array([0, 1, 1, 1]), "multiclass")
    assert found["accuracy"] == found["micro_f1"] == 0.75
    # A: precision 1/2, recall 1; B: precision 1, recall 2/3; C never occurs and counts 0
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.8 + 0) / 3)
    assert found["weighted_f1"] == pytest.approx((2 / 3 + 3 * 0.8) / 4)
    assert found["pr_auc"] == 1.0  # A and B rank perfectly; C has no true example


def test_area_of_a_binary_task_is_that_of_the_positive_label():
    positive = np.random.default_rng(3).random(2000)
    truth = (np.random.default_rng(4).random(2000) < 0.2).astype(np.int64)
    both = np.stack([1 - positive, positive], axis=1)
    found = {task: scores(both, truth, task)["pr_auc"] for task in ("binary", "multiclass")}
    areas = [average_precision_score(truth == label, both[:, label]) for label in (0, 1)]
    assert areas[0] > areas[1] + 0.3
    assert found["binary"] == pytest.approx(areas[1], abs=5e-3)  # TFMA interpolates
    assert found["multiclass"] == pytest.approx(np.mean(areas), abs=5e-3)
    assert scores(both, np.zeros(2000, np.int64), "binary")["pr_auc"] == 0.0


def test_multilabel_scores_need_all_labels_right_for_accuracy():
    probabilities = np.array([[0.9, 0.4], [0.2, 0.6]])
    truth = np.array([[1, 1], [0, 1]])
    assert scores(probabilities, truth, "multilabel")["accuracy"] == 0.5
    found = scores(probabilities, truth, "multilabel", np.array([0.5, 0.3]))
    assert (found["accuracy"], found["macro_f1"], found["micro_f1"]) == (1.0, 1.0, 1.0)


def test_a_probability_that_reaches_its_threshold_decides():
    found = decisions(np.array([[0.5, 0.2]]), "multilabel", np.array([0.5, 0.3]))
    assert found.tolist() == [[1, 0]]


def test_an_even_binary_decision_is_the_first_label():
    assert decisions(np.array([[0.5, 0.5], [0.4, 0.6]]), "binary").tolist() == [0, 1]


def test_thresholds_lie_halfway_where_f1_is_best():
    probabilities = np.array([[0.30], [0.20], [0.10], [0.05]])
    thresholds = tune_thresholds(probabilities, np.array([[1], [1], [0], [0]]))
    np.testing.assert_allclose(thresholds, [0.15], rtol=1e-6)


def test_equal_probabilities_are_never_cut_apart():
    probabilities = np.array([[0.4], [0.4], [0.1]])
    thresholds = tune_thresholds(probabilities, np.array([[1], [0], [0]]))
    np.testing.assert_allclose(thresholds, [0.25], rtol=1e-6)


def test_of_equally_good_thresholds_the_nearest_to_a_half_is_taken():
    probabilities = np.array([[0.9], [0.45], [0.35], [0.1]])
    truth = np.array([[1], [0], [0], [1]])  # at 0.675 F1 is 2/3, with all four 2/3
    np.testing.assert_allclose(tune_thresholds(probabilities, truth), [0.675], rtol=1e-6)


def test_a_label_that_never_occurs_keeps_a_half():
    assert tune_thresholds(np.array([[0.9, 0.3]]), np.array([[0, 1]])).tolist() == [0.5, pytest.approx(0.15)]
