"""The formulas against scikit-learn, TFMA and values worked out by hand."""

import numpy as np
import pandas as pd
import pytest
import tensorflow_model_analysis as tfma
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from tensorflow_model_analysis.proto import config_pb2

from components.evaluation import scores


def counts(truth, decision):
    return (truth & decision).sum(0), (decision & ~truth).sum(0), (truth & ~decision).sum(0)


def one_hot(labels, count):
    return np.arange(count) == np.asarray(labels)[:, None]


def test_decision_scores_are_those_of_scikit_learn_when_a_label_never_occurs():
    truth, decided = [0, 0, 1, 2, 2, 2, 1], [0, 2, 1, 2, 0, 2, 2]
    t, d = one_hot(truth, 4), one_hot(decided, 4)
    found = scores.decision_scores(*counts(t, d), (t == d).all(1).sum(), np.array(7))
    labels = [0, 1, 2, 3]
    assert found["accuracy"] == accuracy_score(truth, decided)
    for average in ("macro", "micro", "weighted"):
        expected = f1_score(truth, decided, average=average, labels=labels, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(expected, abs=1e-12)
    by_label = scores.label_scores(*counts(t, d))
    expected = precision_recall_fscore_support(truth, decided, labels=labels, zero_division=0)
    np.testing.assert_allclose([by_label["precision"], by_label["recall"], by_label["f1"]], expected[:3], atol=1e-12)


def test_decision_scores_of_rows_with_several_labels_are_those_of_scikit_learn():
    generator = np.random.default_rng(3)
    t, d = generator.random((40, 5)) < 0.3, generator.random((40, 5)) < 0.3
    found = scores.decision_scores(*counts(t, d), (t == d).all(1).sum(), np.array(40))
    assert found["accuracy"] == accuracy_score(t, d)
    for average in ("macro", "micro", "weighted"):
        assert found[f"{average}_f1"] == pytest.approx(f1_score(t, d, average=average, zero_division=0), abs=1e-12)


def test_without_rows_there_is_no_figure():
    nothing = np.zeros(3)
    found = scores.decision_scores(nothing, nothing, nothing, np.array(0), np.array(0))
    assert np.isnan(list(found.values())).all()
    assert np.isnan(scores.calibration_error(np.zeros((1, 15)), np.zeros((1, 15)), np.array(0)))
    assert np.isnan(scores.pr_auc(np.ones((1, 2)), np.array([False, False]), np.array([4, 2])))


@pytest.mark.slow
def test_pr_auc_is_that_of_tfma():
    generator = np.random.default_rng(5)
    probability = np.round(generator.beta(0.4, 0.9, 300), 3).astype(np.float32)  # ties, zeros and ones among them
    probability[:4] = 0.0, 1.0, 1.0, 0.0
    positive = generator.random(300) < 0.2 + 0.5 * probability
    frame = pd.DataFrame({"label": positive.astype(float), "prediction": probability.astype(float)})
    config = config_pb2.EvalConfig(
        model_specs=[config_pb2.ModelSpec(label_key="label", prediction_key="prediction")],
        metrics_specs=tfma.metrics.specs_from_metrics([tfma.metrics.AUCPrecisionRecall()]),
        slicing_specs=[config_pb2.SlicingSpec()],
    )
    result = tfma.analyze_raw_data(frame, config)
    expected = result.get_metrics_for_slice()["auc_precision_recall"]["doubleValue"]
    found = scores.pr_auc(np.ones((1, 300)), positive, scores.threshold_of(probability))
    assert found == pytest.approx([expected], abs=1e-9)
    weights = np.arange(300) % 3
    repeated = np.repeat(np.arange(300), weights)
    assert scores.pr_auc(weights[None], positive, scores.threshold_of(probability)) == pytest.approx(
        scores.pr_auc(np.ones((1, len(repeated))), positive[repeated], scores.threshold_of(probability[repeated]))
    )


def test_pr_auc_over_labels_leaves_out_labels_that_no_row_has():
    by_label = np.array([[0.5, np.nan, 0.7], [np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(scores.mean_pr_auc(by_label, binary=False), [0.6, np.nan])
    np.testing.assert_allclose(scores.mean_pr_auc(by_label, binary=True), [0.7, np.nan])


def test_calibration_error_is_the_weighted_distance_of_confidence_and_truth():
    # Bins of 1/15: 0.9 twice (one right) and 0.5 once (right): (|1.8 - 1| + |0.5 - 1|) / 3.
    probabilities = np.array([[0.1, 0.9], [0.9, 0.1], [0.5, 0.5]])
    truth, decision = one_hot([1, 1, 0], 2), one_hot([1, 0, 0], 2)
    said, so = scores.calibration_points(truth, decision, probabilities, multilabel=False)
    confidence, hits = np.zeros((1, 15)), np.zeros((1, 15))
    np.add.at(confidence[0], scores.calibration_bin(said[:, 0]), said[:, 0])
    np.add.at(hits[0], scores.calibration_bin(said[:, 0]), so[:, 0])
    assert scores.calibration_error(confidence, hits, np.array(3)) == pytest.approx(1.3 / 3)


def test_probabilities_at_the_ends_have_a_bin():
    assert scores.calibration_bin(np.array([0.0, 0.0666, 0.0667, 1.0])).tolist() == [0, 0, 1, 14]
    assert scores.threshold_of(np.array([0.0, 1.0])).tolist() == [0, 9999]
