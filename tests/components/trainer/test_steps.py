"""One step on several batches, and the moving average of the weights."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from components import progress
from components.encoder.packing import layout
from components.errors import DivergenceError
from components.trainer.average import MovingAverage
from components.trainer.batches import plan_epoch
from components.trainer.metrics import scores
from components.trainer.optimizer import AdamW
from components.trainer.statistics import estimated
from components.trainer.steps import halved, make_predict_step, predict

ROWS = np.array([3, 0, 39, 7, 21, 22, 5, 8, 11])
OPTIONS = {"accumulate_steps": 3, "ema_decay": 0.5, "focal_gamma": 2.0, "batch_size": 4, "epochs": 1, "layers": 1}
OPTIONS |= {"head": {"batch_norm": True}}


def values(variables):
    return [variable.numpy() for variable in variables]


def first_step(loop, batches):
    """The loss of a step, and its gradients, clipped: what Adam's first moments are a tenth of."""
    loop._begin_stage({})
    loss = float(loop._train_step(loop._train_step.inputs(batches), 0.01))
    count = len(loop.optimizer.targets)
    return loss, [10 * m.numpy() for m in loop.optimizer.state[1 : 1 + count]]


@pytest.mark.slow
def test_several_batches_give_the_gradient_of_one(tiny_loop, tmp_path):
    options = {"layers": 1, "dropout": 0.0, "head": {"l2": 0.1}, "clip_norm": 100.0}
    whole, parts = tiny_loop(tmp_path, **options), tiny_loop(tmp_path, accumulate_steps=3, **options)
    own = values(whole.model.variables)
    for batches in (
        [ROWS[:2], ROWS[2:3], ROWS[3:]],
        [ROWS[:5], ROWS[5:]],  # fewer batches than asked for
        [ROWS[:2]],  # fewer texts than batches asked for
    ):
        loss, gradients = first_step(whole, [np.concatenate(batches)])
        found = first_step(parts, batches)
        assert found[0] == pytest.approx(loss, abs=1e-6)
        assert sum(np.abs(g).max() > 1e-3 for g in gradients) > 10
        for one, several in zip(gradients, found[1], strict=True):
            np.testing.assert_allclose(several, one, rtol=1e-6, atol=1e-6)
        for loop in (whole, parts):
            loop._assign(loop.model.variables, own)


@pytest.mark.parametrize("padded", [True, False])
def test_the_last_step_of_an_epoch_stays_within_the_budget_of_tokens(padded):
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(8, 17, 300), rng.integers(300, 513, 30)])
    most = []
    for epoch, count in itertools.product(range(10), (2, 3, 4, 5)):
        batches = plan_epoch(lengths, 32, 0, epoch, (16, 32, 64, 512) if padded else None, tokens=2048)
        last = batches[len(batches) // count * count :] or batches[:1]
        parts = halved(last, count)
        assert len(parts) == count
        np.testing.assert_array_equal(np.concatenate(parts), np.concatenate(last))
        most.append(max(len(p) * lengths[p].max() if padded else lengths[p].sum() for p in filter(len, parts)))
    assert 1800 < max(most) <= 2048


def test_of_fewer_texts_than_parts_some_parts_are_empty_but_not_the_first():
    parts = halved([np.array([7]), np.array([3, 5])], 5)
    assert [part.tolist() for part in parts] == [[7], [], [], [3], [5]]


def test_the_average_is_that_of_the_weights_after_each_step():
    with keras.name_scope("dense"):
        variable = keras.Variable(np.array([1.0, -2.0], np.float32), name="kernel")
    average, optimizer = MovingAverage([variable], 0.75), AdamW([variable], 0.0, 100.0)
    seen = []
    for gradient in ([0.3, -0.1], [0.2, 0.2], [-1.0, 0.5]):
        optimizer.apply([tf.constant(gradient)], tf.constant(0.1))
        average.update(optimizer.step)
        seen.append(variable.numpy())
    expected = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    np.testing.assert_allclose(average.state[0].numpy(), expected, rtol=1e-6)
    with average.applied():
        np.testing.assert_array_equal(variable.numpy(), average.state[0].numpy())
    np.testing.assert_array_equal(variable.numpy(), seen[2])


def test_the_average_is_keras_own():
    ours, theirs = (keras.Variable(np.array([1.0, -2.0], np.float32), name="kernel") for _ in range(2))
    sgd = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
    average = MovingAverage([ours], 0.9)
    for step, gradient in enumerate(([0.3, -0.1], [0.2, 0.2], [-1.0, 0.5]), 1):
        sgd.apply([tf.constant(gradient)], [theirs])
        ours.assign(theirs.numpy())
        average.update(tf.Variable(step, dtype=tf.int64))
    (expected,) = sgd._model_variables_moving_average
    np.testing.assert_allclose(average.state[0].numpy(), expected.numpy(), rtol=1e-6)


@pytest.fixture(scope="module")
def averaged(tiny_loop, tmp_path_factory):
    """A finished run with every option of this file."""
    loop = tiny_loop(tmp_path_factory.mktemp("averaged"), **OPTIONS)
    loop.run()
    return loop


def test_the_average_is_what_is_measured_and_kept(averaged):
    assert int(averaged.optimizer.step) == 4  # of 40 texts: three steps of three batches of 4, and one of 4 texts
    for found, average in zip(values(averaged.model.trainable_variables), averaged.average.state, strict=True):
        np.testing.assert_array_equal(found, average.numpy())
    # the evaluation of the only epoch was of these weights
    found = predict(make_predict_step(averaged.model, "multiclass"), averaged.evaluation)
    (entry,) = averaged.progress.history
    assert scores(found, averaged.evaluation.labels, "multiclass")["pr_auc"] == entry["pr_auc"]


@pytest.mark.slow
def test_a_run_cut_off_goes_on_to_the_same_bits(averaged, tiny_loop, cut_at, resumed, tmp_path):
    cut_at(tiny_loop(tmp_path, **OPTIONS), 3)
    again, first = resumed(**OPTIONS)
    assert first == 3
    assert [e["loss"] for e in again.progress.history] == [e["loss"] for e in averaged.progress.history]
    for a, b in zip(values(averaged.model.variables), values(again.model.variables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_statistics_are_the_mean_of_the_batches_and_come_back_to_the_bit():
    norm = keras.layers.BatchNormalization(momentum=0.9)
    norm.build((None, 2))
    norm.moving_mean.assign([0.1, 0.7])
    norm.moving_variance.assign([3.0, 0.3])
    batches = [{"x": np.array([[1.0, 0.0], [3.0, 0.0]], np.float32)}, {"x": np.array([[5.0, -2.0]], np.float32)}]
    with estimated([norm], lambda batch: norm(batch["x"], training=True), batches):
        np.testing.assert_allclose(norm.moving_mean.numpy(), [3.5, -1.0], rtol=1e-6)
        np.testing.assert_allclose(norm.moving_variance.numpy(), [0.5, 0.0], rtol=1e-6)
    assert norm.moving_mean.numpy().tolist() == np.array([0.1, 0.7], np.float32).tolist()
    assert norm.moving_variance.numpy().tolist() == np.array([3.0, 0.3], np.float32).tolist()


def test_an_average_is_kept_with_statistics_of_its_own(tiny_loop, tmp_path):
    # the frozen layer's outputs are kept, so these are what the statistics are measured from
    options = {"stages": [{"layers": 0, "epochs": 1}], "layers": 1, "dropout": 0.0, "learning_rate": 0.1}
    loop = tiny_loop(tmp_path, ema_decay=0.9, head={"kind": "stacked"}, **options)
    loop.run()
    norm, means, variances = loop.model.head.norms[0], [], []
    for (rows,) in loop._plan(0):
        batch = loop.train.batch(rows)
        (found,) = loop.model.head.stages[0](loop.model.encoder(batch), layout(batch).rows)
        means.append(np.mean(found, axis=0))
        variances.append(np.var(found, axis=0))
    np.testing.assert_allclose(norm.moving_mean.numpy(), np.mean(means, axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance.numpy(), np.mean(variances, axis=0), rtol=1e-4, atol=1e-5)


def test_weights_that_the_last_step_made_no_numbers_are_told(tiny_loop, tmp_path):
    loop = tiny_loop(tmp_path, layers=0, batch_size=64, learning_rate=1e38, warmup_share=0.0)
    with pytest.raises(DivergenceError, match=r"not finite after epoch 1; lower training\.learning_rate"):
        loop.run()


@pytest.mark.slow
def test_batches_by_tokens_are_counted_epoch_by_epoch(tiny_loop, cut_at, every_step, tmp_path):
    options = {"layers": 0, "batch_tokens": 20, "batch_size": 32, "epochs": 4, "patience": 4}
    whole = tiny_loop(tmp_path / "whole", **options)
    told = []
    with progress.listening(lambda _, report: told.append((report["step"], report["steps"]))):
        whole.run()
    planned = [len(whole._plan(epoch)) for epoch in range(4)]
    assert len(set(planned)) > 1
    assert told[-1] == (sum(planned), sum(planned))
    assert [step for step, _ in told] == sorted(step for step, _ in told)
    cut_at(tiny_loop(tmp_path / "cut", **options), planned[0] + 3)
    again = tiny_loop(tmp_path / "cut", **options)
    again.run()
    assert [e["loss"] for e in again.progress.history] == [e["loss"] for e in whole.progress.history]
    for a, b in zip(values(whole.model.variables), values(again.model.variables), strict=True):
        np.testing.assert_array_equal(a, b)
