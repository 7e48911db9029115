"""Training in stages: what moves, what stays to the bit, what is computed once, and how fast each layer learns."""

import errno
import os

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from components import progress
from components.config import EncoderConfig, HeadConfig, Stage, TrainingConfig
from components.encoder.config import BertGeometry
from components.errors import ConfigError, PipelineError
from components.trainer.hidden import remove_hidden, with_hidden
from components.trainer.optimizer import AdamW
from components.trainer.options import check_options
from components.trainer.stages import rate_scales, stages_of

FROZEN = {"layers": 0, "epochs": 2}
TOP = {"layers": 1, "epochs": 1}
ALL = {"layers": "all", "epochs": 1, "learning_rate": 0.002}
OPTIONS = {"stages": [FROZEN, TOP, ALL], "layer_decay": 0.5}


def values(variables):
    return [variable.numpy() for variable in variables]


def same(first, second):
    return [np.array_equal(a, b) for a, b in zip(first, second, strict=True)]


@pytest.fixture(scope="module")
def staged(tiny_loop, tmp_path_factory):
    """A run of three stages: its loop, the weights before it and after each epoch, and the files kept meanwhile."""
    folder = tmp_path_factory.mktemp("staged")
    loop = tiny_loop(folder, **OPTIONS)
    weights, files = [values(loop.model.variables)], []

    def look(_, report):
        if report["step"] % 5 == 0 and len(weights) == report["step"] // 5:
            weights.append(values(loop.model.variables))
            files.append(sorted(file.name for file in (folder / "checkpoint").glob("hidden*")))

    with progress.listening(look):
        loop.run()
    return loop, weights, files


def moved(loop, before, after):
    """The parts of the model of which a trainable variable changed."""
    changed = {id(v) for v, same_ in zip(loop.model.variables, same(before, after), strict=True) if not same_}
    encoder = loop.model.encoder
    parts = {"embeddings": encoder.embeddings, "lower": encoder.blocks[0], "upper": encoder.blocks[1]}
    parts |= {"head": loop.model.head, "output": loop.model.output_dense}
    return {name for name, part in parts.items() if any(id(v) in changed for v in part.trainable_variables)}


def test_each_stage_moves_its_own_layers_and_leaves_the_others_to_the_bit(staged):
    loop, weights, _ = staged
    assert moved(loop, weights[0], weights[2]) == {"head", "output"}
    # a stage starts from the best epoch before it, which need not be the last one
    assert moved(loop, weights[0], weights[3]) == {"upper", "head", "output"}
    assert moved(loop, weights[3], weights[4]) == {"embeddings", "lower", "upper", "head", "output"}
    assert [entry["stage"] for entry in loop.progress.history] == [1, 1, 2, 3]


def test_kept_outputs_stay_while_their_stage_lasts(staged):
    *_, files = staged
    assert files == [[f"hidden-{split}-{n}.npy" for split in ("eval", "train")] for n in (0, 0, 1)] + [[]]


@pytest.mark.slow
def test_a_run_cut_off_twice_goes_on_to_the_same_bits(staged, tiny_loop, cut_at, resumed, tmp_path):
    whole, *_ = staged
    cut_at(tiny_loop(tmp_path, **OPTIONS), 11)  # the first step of the second stage
    cut_at(tiny_loop(tmp_path, **OPTIONS), 18)  # inside the third
    again, first = resumed(**OPTIONS)
    assert first == 18  # from the checkpoint of the 17th, not from the start
    assert [e["loss"] for e in again.progress.history] == [e["loss"] for e in whole.progress.history]
    assert all(same(values(whole.model.variables), values(again.model.variables)))


@pytest.mark.slow
def test_patience_ends_a_stage_and_the_next_starts_from_the_best_weights(tiny_loop, tmp_path):
    # a rate of nothing brings no better metric after the first epoch
    nothing = {"epochs": 5, "learning_rate": 1e-12}
    loop = tiny_loop(tmp_path, layers=0, stages=[{"layers": 0, **nothing}, {"layers": "all", **nothing}], patience=1)
    done = loop.run()
    assert [entry["stage"] for entry in done.history] == [1, 1, 2]
    assert (done.best_epoch, done.epoch) == (0, 3)


@pytest.mark.slow
def test_kept_outputs_train_as_computed_ones_do(tiny_loop, tmp_path):
    kept, computed = (tiny_loop(tmp_path / str(cache), stages=[{**TOP, "cache": cache}]) for cache in (True, False))
    losses = [[entry["loss"] for entry in loop.run().history] for loop in (kept, computed)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for a, b in zip(kept.model.trainable_variables, computed.model.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=2e-5)
    assert (list(tmp_path.glob("True/*/hidden*")) != [], list(tmp_path.glob("False/*/hidden*"))) == (True, [])


def test_what_is_kept_is_what_the_frozen_layers_give(tiny_loop, tmp_path):
    loop = tiny_loop(tmp_path, stages=[TOP])
    loop._begin_stage({})
    kept, rows = loop._train_step.examples, np.array([3, 0, 39])
    batch = kept.batch(rows)
    expected = loop.model.encoder.lower(loop.train.batch(rows), 1)
    np.testing.assert_allclose(batch["hidden"], expected, rtol=0, atol=1e-6)
    logits = loop.model(batch, frozen=1)
    np.testing.assert_allclose(logits, loop.model(loop.train.batch(rows)), rtol=0, atol=1e-6)
    # nothing below is computed again: other ids change nothing
    np.testing.assert_array_equal(logits, loop.model(batch | {"ids": batch["ids"] * 0}, frozen=1))


def test_rates_fall_by_the_layer_from_the_head_down(tiny_loop, tmp_path):
    model = tiny_loop(tmp_path).model
    scales = rate_scales(model, model.trainable_variables, 0.5)
    found = {}
    for variable, scale in zip(model.trainable_variables, scales, strict=True):
        part = variable.path.removeprefix("classifier/").split("/")[0:2]
        found.setdefault("/".join(part) if part[0] == "encoder" else part[0], set()).add(scale)
    assert found == {
        "encoder/embeddings": {0.125}, "encoder/layer_0": {0.25}, "encoder/layer_1": {0.5},
        "head": {1.0}, "output": {1.0},
    }  # fmt: skip


def test_a_variables_rate_and_decay_are_scaled_exactly():
    import keras

    with keras.name_scope("dense"):
        variables = [keras.Variable(np.full(2, 1.0, np.float32), name="kernel") for _ in range(2)]
    whole, half = AdamW(variables[:1], 0.5, 100.0), AdamW(variables[1:], 0.5, 100.0, [0.25])
    for gradient in ([0.3, -0.1], [0.1, 0.2]):
        whole.apply([tf.constant(gradient)], tf.constant(0.1 * 0.25))
        half.apply([tf.constant(gradient)], tf.constant(0.1))
    np.testing.assert_array_equal(variables[0].numpy(), variables[1].numpy())
    assert not np.any(variables[0].numpy() == 1.0)


def test_bfloat16_outputs_are_kept_to_the_bit_and_found_again(tiny_loop, tmp_path):
    examples, path = tiny_loop(tmp_path).train, str(tmp_path / "new" / "hidden.npy")

    def encode(batch):
        return tf.cast(batch["ids"][:, None], tf.bfloat16) * tf.constant([1.0, 1 / 3], tf.bfloat16)

    kept = with_hidden(examples, path, encode, 2, "bfloat16")
    assert kept.hidden.dtype == ml_dtypes.bfloat16
    expected = np.asarray(encode({"ids": tf.constant(examples.ids)}))
    assert kept.hidden.tobytes() == expected.tobytes()
    again = with_hidden(examples, path, lambda batch: pytest.fail("computed twice"), 2, "bfloat16")
    assert again.hidden.tobytes() == expected.tobytes()
    remove_hidden(path)
    remove_hidden(path)
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.slow
def test_mixed_precision_trains_on_kept_bfloat16_outputs(tiny_loop, tmp_path):
    loop = tiny_loop(tmp_path, layers=1, policy="mixed_bfloat16", stages=[{"layers": 0, "epochs": 1}])
    (entry,) = loop.run().history
    assert np.isfinite(entry["loss"])
    assert loop._train_step.examples.hidden.dtype == ml_dtypes.bfloat16
    batch = loop.train.batch(np.arange(40))
    kept = loop._train_step.examples.batch(np.arange(40))["hidden"]
    expected = np.asarray(loop.model.encoder.lower(batch, 1))
    np.testing.assert_allclose(kept.astype(np.float32), expected.astype(np.float32), rtol=0, atol=0.05)


def test_a_full_disk_is_told_before_anything_is_computed(tiny_loop, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PipelineError, match="set cache = false in that stage"):
        with_hidden(tiny_loop(tmp_path).train, str(tmp_path / "hidden.npy"), None, 8, "float32")
    assert list(tmp_path.glob("hidden*")) == []


def test_without_stages_there_is_one_of_everything():
    assert stages_of(TrainingConfig(epochs=7)) == (Stage(layers="all", epochs=7),)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"stages": [ALL, FROZEN]}, "as many layers as the one before, or more"),
        ({"stages": [FROZEN], "epochs": 3}, "every stage has its own; remove training.epochs or training.stages"),
        ({"stages": [{"layers": -1, "epochs": 1}]}, "greater than or equal to 0"),
        ({"layer_decay": 0.0}, "greater than 0"),
        ({"batch_tokens": 512, "batch_size": 16}, "stands in the place of batch_size"),
        ({"ema_decay": 1.0}, "less than 1"),
        ({"focal_gamma": 1.0, "label_smoothing": 0.1}, "set label_smoothing or focal_gamma to 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(training, message):
    with pytest.raises(ValidationError, match=message):
        TrainingConfig(**training)


@pytest.mark.parametrize(
    ("training", "encoder", "message"),
    [
        ({"stages": [{"layers": 3, "epochs": 1}]}, {}, "stage 1 trains 3 layers, but the encoder has 2"),
        ({"stages": [FROZEN]}, {"trainable": False}, r"training\.stages: .* encoder\.trainable is false"),
        ({"batch_tokens": 100}, {}, r"100 is less than one text may have \(tokenizer\.max_length, 128\)"),
        ({"layer_decay": 0.9}, {"trainable": False}, r"training\.layer_decay: .* encoder\.trainable is false"),
    ],
)
def test_options_that_do_not_fit_the_encoder_are_refused(training, encoder, message):
    geometry = BertGeometry(vocab_size=20, num_hidden_layers=2)
    with pytest.raises(ConfigError, match=message):
        check_options(TrainingConfig(**training), EncoderConfig(**encoder), geometry, 128, HeadConfig(), False)


def test_outputs_of_frozen_layers_are_not_kept_for_windows():
    geometry, head = BertGeometry(vocab_size=20, num_hidden_layers=2), HeadConfig()
    with pytest.raises(ConfigError, match=r'not kept for "windows"; set cache = false in training\.stages'):
        check_options(TrainingConfig(stages=[FROZEN, ALL]), EncoderConfig(), geometry, 128, head, windows=True)
    for stages, windows in (([FROZEN, ALL], False), ([{**FROZEN, "cache": False}, ALL], True), ([ALL], True)):
        check_options(TrainingConfig(stages=stages), EncoderConfig(), geometry, 128, head, windows)


def test_options_that_fit_the_encoder_are_taken():
    training = TrainingConfig(stages=[{"layers": 2, "epochs": 1, "cache": False}], layer_decay=0.9, batch_tokens=128)
    geometry, head = BertGeometry(vocab_size=20, num_hidden_layers=2), HeadConfig()
    check_options(training, EncoderConfig(), geometry, 128, head, windows=True)
    check_options(TrainingConfig(), EncoderConfig(trainable=False), geometry, 128, head, windows=True)
