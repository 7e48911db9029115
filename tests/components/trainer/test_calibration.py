"""Temperature scaling against hand computations, and in a model."""

import numpy as np
import pytest

from components.trainer.calibration import calibrate, calibration_error, fit_temperature, negative_log_likelihood
from components.trainer.steps import make_logits_step, predict


def drawn(task, seed=0, count=4000):
    """Logits, and truths drawn from what they say; so the best temperature is 1."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, {"multiclass": 3, "binary": 1, "multilabel": 2}[task])) * 2
    if task == "multiclass":
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        return z, (p.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    truth = (rng.random(z.shape) < 1 / (1 + np.exp(-z))).astype(np.int64)
    return z, truth[:, 0] if task == "binary" else truth


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_a_known_temperature_is_found_and_is_the_best(task):
    z, truth = drawn(task)
    true = fit_temperature(z, truth, task)
    assert true == pytest.approx(1.0, abs=0.1)
    found = fit_temperature(3 * z, truth, task)
    assert found == pytest.approx(3 * true, rel=1e-9)
    best = negative_log_likelihood(3 * z, truth, task, found)
    for other in (found * 1.01, found / 1.01, 1.0):
        assert negative_log_likelihood(3 * z, truth, task, other) > best


def test_the_likelihood_is_that_of_the_truth():
    p = np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    found = negative_log_likelihood(2 * np.log(p), np.array([2, 0]), "multiclass", 2.0)
    assert found == pytest.approx(-np.log([0.5, 0.1]).mean())
    z = np.array([[2.0], [-1.0]])
    found = negative_log_likelihood(z, np.array([1, 1]), "binary")
    assert found == pytest.approx(np.log1p(np.exp([-2.0, 1.0])).mean())


@pytest.mark.parametrize("truth", [[0, 1, 1], [1, 0, 0]])  # without a mistake, and all wrong
def test_no_temperature_is_better_than_one_without_end(truth):
    assert fit_temperature(np.array([[-3.0], [2.0], [1.0]]), np.array(truth), "binary") is None


def test_the_error_is_the_distance_of_confidence_from_truth_by_bin():
    said = np.array([[0.10, 0.90], [0.12, 0.88], [0.4, 0.6], [0.97, 0.03]])
    # 15 bins: 0.88 and 0.90 are in the 14th, one of two right; 0.6 wrong; 0.97 right
    expected = (abs(0.90 + 0.88 - 1) + abs(0.6 - 0) + abs(0.97 - 1)) / 4
    assert calibration_error(said, np.array([1, 0, 0, 0]), "binary") == pytest.approx(expected)
    # two curves, of two texts each: 0.2 not so, 0.9 so; 0.7 so and 0.71 not so, in one bin
    said = np.array([[0.2, 0.7], [0.9, 0.71]])
    expected = ((0.2 + 0.1) / 2 + abs(0.7 + 0.71 - 1) / 2) / 2
    assert calibration_error(said, np.array([[0, 1], [1, 0]]), "multilabel") == pytest.approx(expected)


def test_a_model_says_what_is_so_and_decides_as_before(tiny_loop, tmp_path):
    loop = tiny_loop(tmp_path, layers=0)
    model, examples = loop.model, loop.train
    for variable in model.output_dense.weights:  # random, and far too sure of itself
        variable.assign(variable * 100 + 0.5)
    before = predict(make_logits_step(model), examples)
    # some right, so that there is something to be sure of
    right = np.arange(len(examples)) % 3 > 0
    examples.labels[right] = before.argmax(axis=1)[right]
    examples.labels[~right] = (before.argmax(axis=1)[~right] + 1) % 3
    found = calibrate(model, examples, "multiclass")
    after = predict(make_logits_step(model), examples)
    np.testing.assert_allclose(after, before / found["temperature"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after.argmax(axis=1), before.argmax(axis=1))
    assert found["loss_after"] < found["loss_before"]
    assert found["loss_after"] == pytest.approx(negative_log_likelihood(after, examples.labels, "multiclass"))
    assert found["error_after"] < found["error_before"]
    again = calibrate(model, examples, "multiclass")
    assert again["temperature"] == pytest.approx(1.0, rel=1e-4)


def test_a_model_that_nothing_can_be_fitted_for_stays_as_it_is(tiny_loop, tmp_path):
    loop = tiny_loop(tmp_path, layers=0)
    logits = predict(make_logits_step(loop.model), loop.train)
    loop.train.labels[:] = logits.argmax(axis=1)
    found = calibrate(loop.model, loop.train, "multiclass")
    assert found["temperature"] is None
    assert found["loss_after"] == found["loss_before"]
    np.testing.assert_array_equal(predict(make_logits_step(loop.model), loop.train), logits)
