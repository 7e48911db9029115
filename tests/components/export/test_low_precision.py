"""Encoders of low precision: near float32, the same whatever stands beside a text, and exact where they claim it."""

import numpy as np
import pytest
import tensorflow as tf

from components.classifier.model import build_classifier
from components.config import HeadConfig
from components.encoder.config import BertGeometry
from components.export.classifier import served
from components.export.encoder import Dense, EncoderFunction, dense_layers, named_layers
from components.export.int8 import Int8, Simulated, calibrate
from components.trainer.hardware import has_bfloat16

RNG = np.random.default_rng(3)
TINY = BertGeometry(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=32, initializer_range=0.3,
)  # fmt: skip
LENGTHS = (2, 3, 32, 9, 2, 17)


def packed(texts, pairs=False):
    batch = {"ids": np.concatenate([np.zeros(0, np.int32), *texts]), "row_lengths": np.array([len(t) for t in texts])}
    if pairs:
        thirds = [np.arange(len(t)) * 3 // len(t) for t in texts]
        batch["segments"] = np.concatenate([np.zeros(0, np.int32), *thirds])
    return {name: values.astype(np.int32) for name, values in batch.items()}


def texts_of(geometry, lengths):
    return [RNG.integers(0, geometry.vocab_size, length).astype(np.int32) for length in lengths]


def compiled(classifier, pairs=False):
    names = ("ids", "row_lengths", "segments") if pairs else ("ids", "row_lengths")
    spec = [{name: tf.TensorSpec([None], tf.int32) for name in names}]
    return tf.function(lambda batch: classifier(batch), input_signature=spec, autograph=False)


@pytest.fixture(scope="module")
def tiny():
    """A classifier of sentences with neighbours whose biases and norms are not those of a new one."""
    model = build_classifier(TINY, HeadConfig(widths=(2, 3), filters=(5,), dense_units=4), "multiclass", 3, 3, 32)
    for variable in model.trainable_weights:
        variable.assign(variable.numpy() + RNG.normal(size=variable.shape, scale=0.05))
    return model


@pytest.fixture(scope="module")
def calibration():
    return [packed(texts_of(TINY, LENGTHS), pairs=True) for _ in range(8)]


@pytest.mark.parametrize(("precision", "difference"), [("bfloat16", 0.03), ("int8", 0.12)])
def test_logits_are_near_those_of_float32(tiny, calibration, precision, difference):
    batch = packed(texts_of(TINY, LENGTHS), pairs=True)
    expected = tiny(batch).numpy()
    found = compiled(served(tiny, precision, calibration)[0], pairs=True)(batch).numpy()
    greatest = np.abs(expected).max()
    assert greatest > 0.5
    assert 0 < np.abs(found - expected).max() < difference * greatest


# Sums in another order may fall to the other side of a rounding: one step of bfloat16, or of int8; and two steps of
# logits of 2 to 4 where the CPU has no bfloat16.
@pytest.mark.parametrize(
    ("precision", "difference"), [("bfloat16", 0.02 if has_bfloat16() else 2 * 2.0**-6), ("int8", 0.02)]
)
def test_an_answer_does_not_depend_on_the_texts_beside_it(tiny, calibration, precision, difference):
    answer = compiled(served(tiny, precision, calibration)[0], pairs=True)
    texts = texts_of(TINY, LENGTHS)
    together = answer(packed(texts, pairs=True)).numpy()
    alone = np.concatenate([answer(packed([text], pairs=True)) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=0, atol=difference)
    assert np.abs(np.diff(alone, axis=0)).max() > 10 * difference  # what a neighbour's tokens would change
    assert answer(packed([], pairs=True)).shape == (0, 3)


def test_float32_is_the_models_own_function_of_its_own_variables(tiny, calibration):
    exact, reference = served(tiny, "float32", calibration)
    assert reference is None
    assert [id(variable) for variable in exact.variables] == [id(variable.value) for variable in tiny.variables]
    answer = compiled(exact, pairs=True)
    for lengths in (LENGTHS, (17,), (2,), tuple(sorted(LENGTHS * 2)), ()):
        batch = packed(texts_of(TINY, lengths), pairs=True)
        np.testing.assert_allclose(answer(batch), tiny(batch), rtol=0, atol=1e-5)


def test_no_variable_of_the_encoder_is_exported_in_two_precisions(tiny, calibration):
    for precision, dtypes in (("bfloat16", {"bfloat16", "float32"}), ("int8", {"bfloat16", "float32", "int8"})):
        low, _ = served(tiny, precision, calibration)
        assert {variable.dtype.name for variable in low.variables} == dtypes
        dense = {id(layer.kernel.value) for layer in named_layers(tiny.encoder).values()}
        assert not dense & {id(variable) for variable in low.variables}
        assert len({id(variable) for variable in low.variables}) == len(low.variables)


def test_the_reference_of_int8_has_the_very_weights_that_are_exported(tiny, calibration):
    low, exact = served(tiny, "int8", calibration)
    weights = [[id(v) for v in one.variables if v.dtype == tf.int8] for one in (low, exact)]
    assert weights[0] == weights[1]
    assert len(weights[0]) == 8


def test_a_product_of_the_greatest_values_is_exact_on_a_cpu_whose_sums_of_two_saturate():
    # Every pair of products is 2 * 255 * 64; with weights of 127 it would be above 32767.
    kernel = np.ones((64, 8), np.float32) * np.where(np.arange(8) % 2, 1.0, -1.0)
    layers = {"only": Dense(kernel.astype(np.float32), np.arange(8, dtype=np.float32))}
    int8 = Int8(layers, {"only": (0.0, 2.0)})
    exact = Simulated(int8)
    x = tf.fill([3, 64], 2.0)
    found = tf.function(lambda: int8.dense("only", x, tf.ones([3, 8])))().numpy()
    np.testing.assert_allclose(found, exact.dense("only", x, tf.ones([3, 8])), rtol=1e-6)
    np.testing.assert_allclose(found[0], 128.0 * np.where(np.arange(8) % 2, 1, -1) + np.arange(8) + 1, rtol=1e-6)


def test_values_beyond_the_calibrated_range_count_as_its_ends():
    layers = {"only": Dense(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))}
    int8 = Int8(layers, {"only": (-1.0, 3.0)})
    x = np.array([[-9.0, -0.5, 2.0, 50.0]], np.float32)
    found = tf.function(lambda: int8.dense("only", tf.constant(x)))().numpy()
    np.testing.assert_allclose(found, [[-1.0, -0.5, 2.0, 3.0]], atol=4 / 255)


def test_calibration_finds_the_range_of_every_layer_and_zero_is_in_it(tiny, calibration):
    layers = dense_layers(tiny.encoder)
    ranges = calibrate(tiny.encoder, layers, calibration)
    names = ("qkv", "attention_output", "intermediate", "output")
    assert set(ranges) == {f"{layer}/{name}" for layer in (0, 1) for name in names} == set(layers)
    assert all(low <= 0 <= high and low < high for low, high in ranges.values())
    # What GELU gives is above -0.17 (the least value of x * Phi(x)).
    assert -0.171 < ranges["0/output"][0] < 0


@pytest.mark.slow
def test_a_layer_of_berts_size_keeps_its_direction_in_both_precisions():
    geometry = BertGeometry(vocab_size=200, num_hidden_layers=1)  # 768, 12 heads, 3072
    model = build_classifier(geometry, HeadConfig(widths=(2,), filters=(4,)), "multiclass", 3, 1, 128)
    encoder, layers = model.encoder, dense_layers(model.encoder)
    batches = [packed(texts_of(geometry, (37, 12, 60))) for _ in range(3)]
    batch = packed(texts_of(geometry, (37, 5, 51)))
    expected = encoder(batch).numpy()
    int8 = Int8(layers, calibrate(encoder, layers, batches))
    for precision, arithmetic, least, greatest in (
        ("bfloat16", None, 0.9999, 0.06),
        ("int8", int8, 0.999, 0.2),
    ):
        low = served(model, precision, batches)[0] if arithmetic is None else None
        function = low._encode if low else EncoderFunction(encoder, arithmetic)
        found = compiled(function)(batch).numpy()
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((found * expected).sum(axis=1) / norms).min() > least
        assert np.abs(found - expected).max() < greatest
    exact = compiled(EncoderFunction(encoder, Simulated(int8)))(batch).numpy()
    # A value on the other side of a rounding moves a row by one step of 255; products that saturate, by tens.
    assert np.abs(found - exact).max() < 0.05
    assert np.abs(found - exact).mean() < 1e-3
