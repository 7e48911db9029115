"""A training that starts from an exported model has its weights, whatever its own shape would have given."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from components.classifier.model import build_classifier
from components.config import HeadConfig
from components.encoder.config import BertGeometry
from components.errors import CheckpointError
from components.trainer.run_fn import run_fn
from components.trainer.warm_start import warm_start

GEOMETRY = BertGeometry(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=16,
)  # fmt: skip


def build(labels: int = 3):
    return build_classifier(GEOMETRY, HeadConfig(widths=(1, 2), filters=(4,)), "multiclass", labels, 1, 16)


def save(model, folder: Path) -> str:
    """The variables as `export` writes them."""
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    tf.saved_model.save(module, str(folder))
    return str(folder)


def test_weights_are_taken_over_and_generators_are_not(tmp_path: Path) -> None:
    live, model = build(), build()
    before = [variable.numpy() for variable in model.variables]
    facts = warm_start(model, save(live, tmp_path / "live"))
    changed = 0
    for ours, theirs, own in zip(model.variables, live.variables, before, strict=True):
        if ours.numpy().dtype.kind == "f":
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
            changed += 1
        else:
            np.testing.assert_array_equal(ours.numpy(), own)
    assert facts == {"source": str(tmp_path / "live"), "tensors": changed}
    assert changed > 10


def test_model_of_another_shape_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    model = build(labels=3)
    before = [variable.numpy() for variable in model.variables]
    with pytest.raises(CheckpointError, match=r"tensor \d+ is \(\d+, 5\) there and \(\d+, 3\) here"):
        warm_start(model, save(build(labels=5), tmp_path / "live"))
    for variable, own in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), own)


def test_model_with_more_tensors_is_refused(tmp_path: Path) -> None:
    model = build()
    live = build()
    module = tf.Module()
    module.weights = [variable.value for variable in live.variables] + [tf.Variable(tf.zeros([2]))]
    tf.saved_model.save(module, str(tmp_path / "live"))
    with pytest.raises(CheckpointError, match=r"is \(2,\) there and absent here"):
        warm_start(model, str(tmp_path / "live"))


@pytest.mark.slow
def test_training_goes_on_from_the_live_model(make_fn_args, weights_alone, tmp_path: Path) -> None:
    first = make_fn_args(tmp_path / "first", training={"epochs": 6, "patience": 6})
    run_fn(first)
    cold = make_fn_args(tmp_path / "cold", training={"epochs": 1, "learning_rate": 1e-6})
    run_fn(cold)
    warm = make_fn_args(tmp_path / "warm", training={"epochs": 1, "learning_rate": 1e-6})
    warm.base_model = first.serving_model_dir
    run_fn(warm)

    def summary(args) -> dict:
        return json.loads((Path(args.model_run_dir) / "summary.json").read_text())

    assert summary(first)["warm_start"] is None
    assert summary(warm)["warm_start"]["source"] == first.serving_model_dir
    assert summary(warm)["best"] == pytest.approx(summary(first)["best"], abs=0.02)
    assert summary(cold)["best"] < summary(warm)["best"]
