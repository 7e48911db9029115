"""Losses and class weights, by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from components.trainer.losses import class_weights, example_losses

LABELS = ("A", "B", "C")


def losses(*args, **kwargs):
    return ops.convert_to_numpy(example_losses(*args, **kwargs))


def test_multiclass_is_the_negative_log_probability():
    logits = np.log([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]).astype(np.float32)
    found = losses(logits, np.array([2, 0]), "multiclass")
    np.testing.assert_allclose(found, -np.log([0.5, 0.1]), rtol=1e-5)


def test_smoothing_spreads_a_share_over_all_classes():
    p = np.array([0.2, 0.3, 0.5])
    found = losses(np.log(p)[None].astype(np.float32), np.array([2]), "multiclass", smoothing=0.3)
    target = np.array([0.1, 0.1, 0.8])
    np.testing.assert_allclose(found, [-(target * np.log(p)).sum()], rtol=1e-5)


def test_weights_multiply_by_true_class():
    logits = np.zeros((2, 3), np.float32)
    weights = np.array([1.0, 2.0, 5.0], np.float32)
    found = losses(logits, np.array([1, 2]), "multiclass", weights=weights)
    np.testing.assert_allclose(found, np.log(3) * np.array([2, 5]), rtol=1e-5)


def test_binary_uses_one_logit():
    logits = np.array([[2.0], [2.0]], np.float32)
    p = 1 / (1 + np.exp(-2.0))
    found = losses(logits, np.array([1, 0]), "binary", weights=np.array([3.0, 1.0], np.float32))
    np.testing.assert_allclose(found, [-np.log(p), -3 * np.log(1 - p)], rtol=1e-5)


def test_multilabel_is_the_mean_over_labels_each_side_weighted():
    logits = np.array([[2.0, -1.0]], np.float32)
    p = 1 / (1 + np.exp(-logits[0]))
    weights = np.array([[1.0, 4.0], [3.0, 1.0]], np.float32)
    found = losses(logits, np.array([[1.0, 0.0]]), "multilabel", weights=weights)
    np.testing.assert_allclose(found, [(-3 * np.log(p[0]) - 4 * np.log(1 - p[1])) / 2], rtol=1e-5)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_extreme_logits_stay_finite(task):
    logits = np.array([[1e4], [-1e4]], np.float32)
    truth = np.array([0, 1]) if task == "binary" else np.array([[0.0], [1.0]])
    assert losses(logits, truth, task).tolist() == [1e4, 1e4]


def test_focus_multiplies_by_what_is_missing_from_one():
    p = np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    weights = np.array([3.0, 1.0, 1.0], np.float32)
    found = losses(np.log(p).astype(np.float32), np.array([2, 0]), "multiclass", weights=weights, focal_gamma=2.0)
    np.testing.assert_allclose(found, [-np.log(0.5) * 0.5**2, -3 * np.log(0.1) * 0.9**2], rtol=1e-5)
    logits = np.array([[2.0], [-1.0]], np.float32)
    q = 1 / (1 + np.exp([-2.0, -1.0]))  # of what is true, the positive label and the negative one
    found = losses(logits, np.array([1, 0]), "binary", focal_gamma=0.5)
    np.testing.assert_allclose(found, -np.log(q) * (1 - q) ** 0.5, rtol=1e-5)


def test_focus_is_that_of_keras_losses():
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(6, 3)).astype(np.float32) * 2, rng.integers(0, 3, 6)
    theirs = keras.losses.categorical_focal_crossentropy(
        np.eye(3)[truth], logits, alpha=1.0, gamma=2.0, from_logits=True
    )
    np.testing.assert_allclose(losses(logits, truth, "multiclass", focal_gamma=2.0), theirs, rtol=1e-4)
    hot = (rng.random((6, 3)) > 0.5).astype(np.float32)
    theirs = keras.losses.binary_focal_crossentropy(hot, logits, gamma=2.0, from_logits=True)
    np.testing.assert_allclose(losses(logits, hot, "multilabel", focal_gamma=2.0), theirs, rtol=1e-4)


@pytest.mark.parametrize(("gamma", "logit"), [(0.5, 1e4), (2.0, -1e4), (0.5, 20.0), (2.0, 0.0)])
def test_focused_gradients_are_finite_and_the_most_wrong_still_pull(gamma, logit):
    logits = tf.constant([[logit, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = example_losses(logits, np.array([1]), "multiclass", focal_gamma=gamma)
    gradient = tape.gradient(loss, logits).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[0, 0] > 0.1) == (logit > -1)


def test_balanced_weights_are_inverse_to_frequency_and_one_on_average():
    truth = np.array([0, 0, 0, 0, 1, 2])
    weights = class_weights("balanced", LABELS, truth, "multiclass")
    assert weights.tolist() == [0.5, 2.0, 2.0]
    assert weights[truth].mean() == 1.0


def test_balanced_multilabel_weights_even_out_both_sides_of_each_label():
    truth = np.array([[1, 1], [0, 1], [0, 1], [0, 0]])
    weights = class_weights("balanced", ("A", "B"), truth, "multilabel")
    np.testing.assert_allclose(weights, [[4 / 6, 2], [2, 4 / 6]], rtol=1e-6)


def test_given_weights_are_by_name_in_the_order_of_the_labels():
    given = {"C": 3.0, "A": 1.0, "B": 2.0}
    assert class_weights(given, LABELS, np.array([0]), "multiclass").tolist() == [1, 2, 3]
    assert class_weights(given, LABELS, np.eye(3), "multilabel").tolist() == [[1, 1, 1], [1, 2, 3]]


def test_none_is_none():
    assert class_weights("none", LABELS, np.array([0]), "multiclass") is None
