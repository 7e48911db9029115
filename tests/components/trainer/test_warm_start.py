"""A training that starts from an exported model has its weights, whatever its own shape would have given."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from components.classifier.model import build_classifier
from components.config import HeadConfig
from components.encoder.config import BertGeometry
from components.errors import CheckpointError
from components.trainer.run_fn import run_fn
from components.trainer.warm_start import MEANING, meaning, warm_start, write_meaning

GEOMETRY = BertGeometry(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=16,
)  # fmt: skip


def build(labels: int = 3):
    return build_classifier(GEOMETRY, HeadConfig(widths=(1, 2), filters=(4,)), "multiclass", labels, 1, 16)


def config_of(folder: Path, **changed) -> dict:
    """A Trainer's configuration; `tokens` is written to a vocabulary file."""
    tokens = changed.pop("tokens", ["[PAD]", "[UNK]", "a", "b"])
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    head = {"widths": (1, 2), "filters": (4,)} | changed.pop("head", {})
    return {
        "task": "multiclass", "labels": ["x", "y", "z"], "pairs": False, "lower_case": False, "head": head,
        "vocab_file": str(folder / "vocab.txt"),
    } | changed  # fmt: skip


@pytest.fixture
def facts(tmp_path: Path) -> dict:
    return meaning(config_of(tmp_path), GEOMETRY)


def save(model, folder: Path, facts: dict, *more: tf.Variable) -> str:
    """The variables as `export` writes them, and what they mean."""
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables] + list(more)
    tf.saved_model.save(module, str(folder))
    write_meaning(str(folder), facts)
    return str(folder)


def test_weights_are_taken_over_and_generators_are_not(tmp_path: Path, facts: dict) -> None:
    live, model = build(), build()
    before = [variable.numpy() for variable in model.variables]
    done = warm_start(model, save(live, tmp_path / "live", facts), facts)
    changed = 0
    for ours, theirs, own in zip(model.variables, live.variables, before, strict=True):
        if ours.numpy().dtype.kind == "f":
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
            changed += 1
        else:
            np.testing.assert_array_equal(ours.numpy(), own)
    assert done == {"source": str(tmp_path / "live"), "tensors": changed}
    assert changed > 10


def test_model_of_another_shape_is_refused_and_nothing_is_changed(tmp_path: Path, facts: dict) -> None:
    model = build(labels=3)
    before = [variable.numpy() for variable in model.variables]
    with pytest.raises(CheckpointError, match=r"tensor \d+ is \(\d+, 5\) there and \(\d+, 3\) here"):
        warm_start(model, save(build(labels=5), tmp_path / "live", facts), facts)
    for variable, own in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), own)


def test_model_with_more_tensors_is_refused(tmp_path: Path, facts: dict) -> None:
    path = save(build(), tmp_path / "live", facts, tf.Variable(tf.zeros([2])))
    with pytest.raises(CheckpointError, match=r"is \(2,\) there and absent here"):
        warm_start(build(), path, facts)


@pytest.mark.parametrize(
    ("changed", "geometry", "key"),
    [
        ({"labels": ["z", "x", "y"]}, {}, 'labels = \\["x", "y", "z"\\], the configured one \\["z", "x", "y"\\]'),
        ({"task": "multilabel"}, {}, "task"),
        ({"lower_case": True}, {}, "tokenizer.lower_case"),
        ({"tokens": ["[PAD]", "[UNK]", "b", "a"]}, {}, "tokenizer.vocab"),
        ({"pairs": True, "neighbours": True}, {}, "data.neighbours"),
        ({}, {"num_attention_heads": 4}, "encoder.num_attention_heads = 2, the configured one 4"),
        ({}, {"layer_norm_eps": 1e-5}, "encoder.layer_norm_eps"),
        ({"head": {"kind": "attention"}}, {}, "head.kind"),
        ({"head": {"widths": (2, 1)}}, {}, "head.widths"),
    ],
)
def test_model_of_the_same_shape_and_another_meaning_is_refused(
    tmp_path: Path, facts: dict, changed: dict, geometry: dict, key: str
) -> None:
    path, model = save(build(), tmp_path / "live", facts), build()
    before = [variable.numpy() for variable in model.variables]
    with pytest.raises(CheckpointError, match=f"has {key}.*window.warm_start = false"):
        warm_start(model, path, meaning(config_of(tmp_path, **changed), replace(GEOMETRY, **geometry)))
    for variable, own in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), own)


def test_what_changes_no_meaning_is_accepted(tmp_path: Path, facts: dict) -> None:
    path = save(build(), tmp_path / "live", facts)
    config = config_of(tmp_path, head={"dropout": 0.1, "l2": 0.1, "output_scale": 0.1, "filters": (4, 4)})
    changed = replace(GEOMETRY, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.0)
    assert warm_start(build(), path, meaning(config, changed))["source"] == path


def test_model_that_does_not_say_what_it_means_is_refused(tmp_path: Path, facts: dict) -> None:
    path = save(build(), tmp_path / "live", facts)
    (Path(path) / MEANING).unlink()
    with pytest.raises(CheckpointError, match="does not say what its weights mean"):
        warm_start(build(), path, facts)


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
