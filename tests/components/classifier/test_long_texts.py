"""Classifiers that read long texts in windows: every head pools over all of them, and short texts keep their bits."""

from functools import cache

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from keras import ops

from components.classifier.heads import Head
from components.classifier.model import build_classifier
from components.config import HeadConfig
from components.encoder.config import BertGeometry
from components.encoder.windows import Windows

# Each takes seconds to compile.
KINDS = (
    "multi_width", "attention", "cls",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("flatten", "stacked", "global_max")),
)  # fmt: skip
GEOMETRY = BertGeometry(
    vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.5,
)  # fmt: skip
RNG = np.random.default_rng(4)
LENGTH, OVERLAP = 10, 3
TEXTS = [RNG.integers(0, 30, size).astype(np.int32) for size in (2, 10, 11, 40, 5, 23, 2, 17)]


def packed(texts):
    return {"ids": np.concatenate(texts), "row_lengths": np.array([len(text) for text in texts], np.int32)}


def compiled(model):
    spec = [{name: tf.TensorSpec([None], tf.int32) for name in ("ids", "row_lengths")}]
    return tf.function(lambda batch: model(batch), input_signature=spec, autograph=False)


@cache
def models(kind):
    """The same weights with windows and without; and what the first gives for each text alone."""
    config = HeadConfig(kind=kind, widths=(2, 3), filters=(3, 4), dropout=0.0, dense_units=4)
    arguments = (GEOMETRY, config, "multiclass", 3, 1, LENGTH)
    model, plain = build_classifier(*arguments, overlap=OVERLAP), build_classifier(*arguments)
    for variable, other in zip(model.trainable_weights, plain.trainable_weights, strict=True):
        variable.assign(variable.numpy() + RNG.normal(size=variable.shape, scale=0.05))
        other.assign(variable.numpy())
    answer = compiled(model)
    return answer, compiled(plain), np.concatenate([answer(packed([text])) for text in TEXTS])


@pytest.mark.parametrize("kind", KINDS)
def test_texts_that_fit_give_the_bits_that_they_give_without_windows(kind):
    answer, plain, _ = models(kind)
    batch = packed([text for text in TEXTS if len(text) <= LENGTH])
    np.testing.assert_array_equal(answer(batch).numpy(), plain(batch).numpy())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, phases=[Phase.generate])
@given(data=st.data())
def test_an_answer_does_not_depend_on_order_or_grouping(kind, data):
    answer, _, expected = models(kind)
    order = data.draw(st.permutations(range(len(TEXTS))))
    cut = data.draw(st.integers(1, len(TEXTS) - 1))
    for group in (order[:cut], order[cut:]):
        np.testing.assert_allclose(answer(packed([TEXTS[n] for n in group])), expected[group], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_features_of_a_text_are_pooled_from_those_of_its_windows(kind):
    head = Head(HeadConfig(kind=kind, widths=(2, 3), filters=(3, 4), dropout=0.0), segments=1, max_length=LENGTH)
    batch = Windows(LENGTH, OVERLAP).split(packed(TEXTS))
    hidden = RNG.normal(size=(len(batch["ids"]), 8)).astype(np.float32)
    found = ops.convert_to_numpy(head(hidden, batch))
    alone = ops.convert_to_numpy(head(hidden, {name: batch[name] for name in ("ids", "row_lengths")}))
    texts = np.asarray(batch["text_of_row"])
    assert found.shape == (len(TEXTS), alone.shape[1])
    for n in range(len(TEXTS)):
        windows = alone[texts == n]
        if kind == "attention":  # weights are shared out among all tokens of the text
            assert (found[n] <= windows.max(0) + 1e-6).all()
            assert (found[n] >= windows.min(0) - 1e-6).all()
        else:
            pooled = windows.mean(0) if kind == "cls" else windows.max(0)
            np.testing.assert_allclose(found[n], pooled, rtol=0, atol=1e-6)


def test_what_stands_at_the_end_of_a_long_text_counts():
    answer, _, expected = models("attention")
    changed = TEXTS[3].copy()
    changed[-2] = (changed[-2] + 1) % 30
    assert np.abs(answer(packed([changed])).numpy() - expected[3]).max() > 1e-6
