"""Low-rank updates: nothing at first, alone in what learns, and gone from the exported model."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft

from components.config import EncoderConfig, HeadConfig, TrainingConfig
from components.encoder.config import BertGeometry
from components.errors import ConfigError
from components.trainer import fit
from components.trainer.batches import read_examples
from components.trainer.lora import enable_lora, merged_values
from components.trainer.options import check_options
from components.trainer.run_fn import run_fn
from components.trainer.steps import make_logits_step, predict

OPTIONS = {"layers": 1, "epochs": 1, "prepare": lambda model: enable_lora(model, 2, 3.0)}


def values(variables):
    return [variable.numpy() for variable in variables]


@pytest.fixture(scope="module")
def trained(tiny_loop, tmp_path_factory):
    """A finished run with updates of rank 2, the logits of its model before, and all its weights before."""
    loop = tiny_loop(tmp_path_factory.mktemp("trained"), **OPTIONS)
    before = predict(make_logits_step(loop.model), loop.train), values(loop.model.variables)
    loop.run()
    return loop, *before


def test_updates_start_as_the_very_model_without(trained, tiny_loop, tmp_path):
    _, logits, _ = trained
    plain = tiny_loop(tmp_path, layers=1)
    np.testing.assert_array_equal(logits, predict(make_logits_step(plain.model), plain.train))


def test_only_updates_and_head_learn(trained):
    loop, _, before = trained
    moved = {
        variable.path.removeprefix("classifier/")
        for variable, old in zip(loop.model.variables, before, strict=True)
        if "seed" not in variable.path and not np.array_equal(variable.numpy(), old)
    }
    kernels = ("attention/qkv", "attention/output", "intermediate", "output")
    updates = {f"encoder/layer_0/{kernel}/lora_kernel_{part}" for kernel in kernels for part in "ab"}
    assert {path for path in moved if path.startswith("encoder")} == updates
    assert {path.split("/")[0] for path in moved} == {"encoder", "head", "output"}


def test_merged_weights_answer_as_kernels_and_updates_do(trained, tiny_loop, tmp_path):
    loop, before, _ = trained
    plain = tiny_loop(tmp_path, layers=1).model
    for target, value in zip(plain.weights, merged_values(loop.model), strict=True):
        target.assign(value)
    found = predict(make_logits_step(plain), loop.train)
    np.testing.assert_allclose(found, predict(make_logits_step(loop.model), loop.train), rtol=0, atol=1e-6)
    assert np.abs(found - before).max() > 0.01


@pytest.mark.slow
def test_a_run_cut_off_goes_on_to_the_same_bits(trained, tiny_loop, cut_at, resumed, tmp_path):
    cut_at(tiny_loop(tmp_path, **OPTIONS), 3)
    again, first = resumed(**OPTIONS)
    assert first == 3
    for a, b in zip(values(trained[0].model.variables), values(again.model.variables), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_export_has_no_more_tensors_than_without_and_answers_as_trained(fn_args, weights_alone, monkeypatch):
    trained_models = []
    original = fit.Loop

    def loop(model, *args, **kwargs):
        trained_models.append(model)
        return original(model, *args, **kwargs)

    monkeypatch.setattr(fit, "Loop", loop)
    args = fn_args(training={"lora_rank": 2, "learning_rate": 0.05})
    run_fn(args)
    (model,) = trained_models
    reader = tf.train.load_checkpoint(f"{args.serving_model_dir}/variables/variables")
    shapes = [s for name, s in reader.get_variable_to_shape_map().items() if name.startswith("weights/")]
    assert len(shapes) == len(model.variables) - 2 * 4
    check = json.loads((Path(args.model_run_dir) / "check.json").read_text())
    spec = tft.TFTransformOutput(args.transform_output).transformed_feature_spec()
    evaluation = read_examples(args.eval_files, spec, False, False)
    logits = predict(make_logits_step(model), evaluation)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    by_key = dict(zip(evaluation.keys.tolist(), p, strict=True))
    expected = [by_key[key] for key in check["keys"]]
    np.testing.assert_allclose(check["probabilities"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("training", "encoder", "layers", "message"),
    [
        ({"lora_rank": 4}, {"trainable": False}, 2, r"training\.lora_rank: .* encoder\.trainable is false"),
        ({"lora_rank": 4}, {}, 0, r"the encoder has no layers \(encoder\.num_hidden_layers is 0\)"),
        ({"lora_rank": 16}, {}, 2, r"16 is no low rank for kernels of 16 columns; give less"),
    ],
)
def test_updates_without_effect_are_refused(training, encoder, layers, message):
    geometry = BertGeometry(vocab_size=20, num_hidden_layers=layers, hidden_size=16, intermediate_size=32)
    with pytest.raises(ConfigError, match=message):
        check_options(TrainingConfig(**training), EncoderConfig(**encoder), geometry, 16, HeadConfig(), False)


def test_a_scale_without_updates_is_refused():
    with pytest.raises(ValueError, match="lora_alpha: needs lora_rank"):
        TrainingConfig(lora_alpha=8)
