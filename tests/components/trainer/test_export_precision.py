"""run_fn with a low precision: what it exports, what it notes for the serving check, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from components.classifier.model import build_classifier
from components.config import HeadConfig
from components.encoder.config import read_geometry
from components.errors import ExportError
from components.export import admission, int8
from components.export.paths import float32_dir
from components.trainer.fit import meaning_of
from components.trainer.run_fn import run_fn
from components.trainer.warm_start import warm_start
from components.transform.keys import text_key

TEXTS = [" ".join(["be"] * n) for n in range(11)]  # among the evaluated ones
HOSTILE = ["", "b" * 300 + " c" * 900, "[SEP] \x00 a", "\u200d"]


@pytest.fixture
def asked(monkeypatch):
    """Exports are not asked in processes of their own, which takes long; gives what would have been asked."""
    calls = []
    monkeypatch.setattr(admission, "check_answers", lambda *arguments: calls.append(arguments))
    return calls


def ops_of(folder):
    saved = saved_model_pb2.SavedModel.FromString((Path(folder) / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    return {node.op for function in functions for node in function.node_def}


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_the_export_is_noted_with_its_own_answers_and_float32_stands_beside_it(fn_args, asked, trained_once, precision):
    args = fn_args(export={"precision": precision, "tolerance": 0.015})
    run_fn(args)
    low, whole = (tf.saved_model.load(path) for path in (args.serving_model_dir, float32_dir(args.serving_model_dir)))
    assert ("_QuantizedMatMul" in ops_of(args.serving_model_dir)) is (precision == "int8")
    assert "_QuantizedMatMul" not in ops_of(float32_dir(args.serving_model_dir))
    size = [sum(np.prod(v.shape) * v.dtype.size for v in model.weights) for model in (low, whole)]
    assert size[0] < 0.75 * size[1]  # of so small a model the head, in float32, is a good part
    ((path, texts, pairs, tolerance),) = asked
    assert (path, pairs, tolerance) == (args.serving_model_dir, False, 0.015)
    assert len(texts) > 12

    check = json.loads((Path(args.model_run_dir) / "check.json").read_text())
    assert check["tolerance"] == 0.015
    noted = dict(zip(check["keys"], check["probabilities"], strict=True))
    keys = [int(key) for key in text_key(tf.constant(TEXTS), None)]
    shared = [n for n, key in enumerate(keys) if key in noted]
    assert len(shared) > 1
    expected = np.array([noted[keys[n]] for n in shared])
    answers = [model.signatures["serving_default"](text=tf.constant(TEXTS))["probabilities"] for model in (low, whole)]
    np.testing.assert_allclose(answers[0].numpy()[shared], expected, atol=1e-3)
    assert 0 < np.abs(answers[0].numpy() - answers[1].numpy()).max() < 0.2

    found = low.signatures["serving_default"](text=tf.constant(HOSTILE))
    np.testing.assert_allclose(found["probabilities"].numpy().sum(axis=1), 1, atol=1e-5)
    examples = [tf.train.Example() for _ in HOSTILE]
    for example, text in zip(examples, HOSTILE, strict=True):
        example.features.feature["text"].bytes_list.value.append(text.encode())
    parsed = low.signatures["serialized_examples"](examples=tf.constant([e.SerializeToString() for e in examples]))
    np.testing.assert_allclose(parsed["probabilities"], found["probabilities"], atol=1e-6)
    if precision == "bfloat16":
        assert_warm_start_gives_float32(args, answers[1].numpy())


def assert_warm_start_gives_float32(args, expected):
    """A model that starts from the export has the weights of its float32 counterpart."""
    config = args.custom_config
    geometry = read_geometry(config["encoder_config_file"], vocab_size=22)
    model = build_classifier(geometry, HeadConfig.model_validate(config["head"]), "multiclass", 3, 1, 16)
    assert warm_start(model, args.serving_model_dir, meaning_of(config))["source"] == float32_dir(
        args.serving_model_dir
    )
    tokens = tf.saved_model.load(args.serving_model_dir).signatures["tokens"](text=tf.constant(TEXTS))
    batch = {"ids": tokens["input_ids"], "row_lengths": tokens["row_lengths"]}
    logits = model({name: tf.cast(values, tf.int32) for name, values in batch.items()})
    np.testing.assert_allclose(tf.nn.softmax(logits), expected, atol=1e-6)


def test_int8_products_that_saturate_are_refused(fn_args, asked, trained_once, weights_alone, monkeypatch):
    exact = int8._product

    def saturating(x, layer, **options):
        return tf.minimum(exact(x, layer, **options), 0.1)

    monkeypatch.setattr(int8, "_product", saturating)
    with pytest.raises(ExportError, match=r"int8 products are wrong: a probability is .* off, and export.tolerance"):
        run_fn(fn_args(export={"precision": "int8"}))


def test_long_texts_are_read_in_windows_in_training_and_in_serving(fn_args, asked):
    args = fn_args(export={"precision": "int8"}, training={"epochs": 1})
    # Transform gives up to 16 tokens: windows of 8 that share 2 make up to 3 of them.
    args.custom_config |= {"max_length": 8, "overlap": 2}
    run_fn(args)
    check = json.loads((Path(args.model_run_dir) / "check.json").read_text())
    noted = dict(zip(check["keys"], check["probabilities"], strict=True))
    keys = [int(key) for key in text_key(tf.constant(TEXTS), None)]
    shared = [n for n, key in enumerate(keys) if key in noted]
    assert max(shared) >= 6  # of 14 tokens
    low, whole = (tf.saved_model.load(path) for path in (args.serving_model_dir, float32_dir(args.serving_model_dir)))
    found = low.signatures["serving_default"](text=tf.constant(TEXTS))["probabilities"].numpy()
    np.testing.assert_allclose(found[shared], [noted[keys[n]] for n in shared], atol=1e-3)
    exact = whole.signatures["serving_default"](text=tf.constant(TEXTS))["probabilities"].numpy()
    np.testing.assert_allclose(found, exact, atol=0.1)
