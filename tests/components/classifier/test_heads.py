"""Every head: against NumPy written text by text, and the same answer however a batch is put together."""

from dataclasses import replace
from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from keras import ops

from components.classifier.heads import Head
from components.classifier.model import build_classifier, probabilities
from components.config import HeadConfig
from components.encoder.config import BertGeometry
from components.trainer.static_shapes import StaticShapes

KINDS = ("flatten", "stacked", "global_max", "multi_width", "attention", "cls")
# Some take seconds to compile.
MARKED = [
    pytest.param(kind, marks=pytest.mark.slow) if kind in ("flatten", "stacked", "global_max") else kind
    for kind in KINDS
]
GEOMETRY = BertGeometry(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=24,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.5,
)
EMBEDDINGS = replace(GEOMETRY, num_hidden_layers=0)  # where it is the head that is looked at
RNG = np.random.default_rng(2)
# The shortest is [CLS] [SEP] alone, shorter than most filters.
TEXTS = [RNG.integers(0, 30, length).astype(np.int32) for length in (2, 3, 24, 5, 2, 11, 7, 24)]


def packed(texts, pairs):
    batch = {
        "ids": np.concatenate(texts),
        "row_lengths": np.array([len(text) for text in texts], np.int32),
    }
    if pairs:
        batch["segments"] = np.concatenate([(np.arange(len(t)) >= len(t) // 2).astype(np.int32) for t in texts])
    return batch


def classifier(kind, pairs, geometry=GEOMETRY, **settings):
    config = HeadConfig(kind=kind, widths=(2, 3, 4, 5), filters=(3, 4, 5, 6), dropout=0.0, dense_units=4, **settings)
    model = build_classifier(geometry, config, "multiclass", 3, 1 + pairs, max_length=24)
    for variable in model.trainable_weights:  # no bias stays 0, no gamma 1
        variable.assign(variable.numpy() + RNG.normal(size=variable.shape, scale=0.05))
    return model


@cache
def answers_of(kind, pairs):
    """A compiled classifier, the same for batches with padding, and its answers to each text alone."""
    model = classifier(kind, pairs, GEOMETRY if pairs else EMBEDDINGS)
    names = ("ids", "row_lengths", "segments") if pairs else ("ids", "row_lengths")
    answer, answer_padded = (
        tf.function(model, input_signature=[dict.fromkeys(keys, tf.TensorSpec([None], tf.int32))], autograph=False)
        for keys in (names, (*names, "steps"))
    )
    return answer, answer_padded, np.concatenate([answer(packed([text], pairs)) for text in TEXTS])


@pytest.mark.parametrize("pairs", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("kind", MARKED)
@settings(max_examples=25, deadline=None, phases=[Phase.generate])
@given(data=st.data())
def test_an_answer_does_not_depend_on_order_grouping_or_padding(kind, pairs, data):
    answer, answer_padded, expected = answers_of(kind, pairs)
    order = data.draw(st.permutations(range(len(TEXTS))))
    cut = data.draw(st.integers(1, len(TEXTS) - 1))
    for group in (order[:cut], order[cut:]):
        batch = packed([TEXTS[n] for n in group], pairs)
        rows = data.draw(st.none() | st.integers(len(group), len(TEXTS) + 3))
        if rows is None:
            found = answer(batch)
        else:  # so many rows of the greatest length, which padding fills
            shapes = StaticShapes(data.draw(st.sampled_from([(24,), (4, 12, 24)])), rows, None)
            padded, *_ = shapes.padded(batch, np.zeros(len(group), np.int32), np.float32(1))
            found = answer_padded(padded)[-len(group) :]
        np.testing.assert_allclose(found, expected[group], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_no_text_has_no_answers(kind):
    none = dict.fromkeys(("ids", "row_lengths"), np.zeros(0, np.int32))
    config = HeadConfig(kind=kind, widths=(2, 3), filters=(3,), dense_units=4)
    for segments, overlap in ((1, None), (2, None), (1, 2)):
        model = build_classifier(EMBEDDINGS, config, "multiclass", 3, segments, 8, overlap=overlap)
        batch = none | ({"segments": none["ids"]} if segments > 1 else {})
        assert model(batch).shape == (0, 3)
        batch = batch if model.windows is None else model.windows.split(batch)
        assert model.head.ngrams(model.encoder(batch), batch).shape[0] == 0


@cache
def trained_step_of(kind, pairs):
    """A classifier and its weights; its answers in training to all texts as they stand, and its weights after that."""
    model = classifier(kind, pairs, EMBEDDINGS, batch_norm=kind != "cls")
    start = [variable.numpy() for variable in model.weights]
    answers = ops.convert_to_numpy(model(packed(TEXTS, pairs), training=True))
    return model, start, answers, [variable.numpy() for variable in model.weights]


@pytest.mark.parametrize("pairs", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("kind", MARKED)
@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(order=st.permutations(range(len(TEXTS))))
def test_batch_statistics_do_not_depend_on_the_order(kind, pairs, order):
    model, start, answers, statistics = trained_step_of(kind, pairs)
    for variable, value in zip(model.weights, start, strict=True):
        variable.assign(value)
    found = ops.convert_to_numpy(model(packed([TEXTS[n] for n in order], pairs), training=True))
    np.testing.assert_allclose(found, answers[order], rtol=0, atol=1e-5)
    for variable, value in zip(model.weights, statistics, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=0, atol=1e-5)


def test_batch_statistics_are_over_real_tokens_alone():
    head = Head(HeadConfig(kind="stacked", widths=(1,), filters=(2,), dropout=0.0), segments=1, max_length=8)
    hidden = np.array([[1.0], [2.0], [6.0]], np.float32)
    batch = {"ids": np.zeros(3, np.int32), "row_lengths": np.array([2, 1], np.int32)}
    head(hidden, batch)
    convolution, normalisation = head.stages[0], head.norms[0]
    convolution.kernels[0].assign([[1.0, -1.0]])
    head(hidden, batch, training=True)
    np.testing.assert_allclose(normalisation.moving_mean.numpy(), [0.3, -0.3], rtol=1e-6)  # 0.9 × 0 + 0.1 × ±3
    np.testing.assert_allclose(normalisation.moving_variance.numpy(), [0.9 + 14 / 30] * 2, rtol=1e-5)


def convolved(x, kernel, bias, width, norm=None):
    """'Same' convolution of one text with zeros beyond its ends, normalised, and ReLU: [tokens, filters]."""
    left = (width - 1) // 2
    spread = np.pad(x, [[left, width // 2], [0, 0]])
    windows = np.stack([spread[t : t + width].reshape(-1) for t in range(len(x))])
    found = windows @ kernel + bias
    if norm is not None:
        mean, variance, gamma, beta = (
            variable.numpy() for variable in (norm.moving_mean, norm.moving_variance, norm.gamma, norm.beta)
        )
        found = (found - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    return np.maximum(found, 0)


def one_after_the_other(head, x):
    for stage, norm in zip(head.stages, head.norms or [None] * len(head.stages), strict=True):
        x = convolved(x, stage.kernels[0].numpy(), stage.biases[0].numpy(), stage.widths[0], norm)
    return x


def reference(head, x, segments):
    config = head.config
    if config.kind in ("multi_width", "attention"):
        stage = head.stages[0]
        parameters = zip(stage.kernels, stage.biases, stage.widths, strict=True)
        features = np.concatenate([convolved(x, k.numpy(), b.numpy(), w) for k, b, w in parameters], -1)
    else:
        features = one_after_the_other(head, x)
    if config.kind == "flatten":
        block = np.zeros((-(-head.max_length // 2) * 2, features.shape[1]))
        kept = features[: head.max_length]
        block[: len(kept)] = kept
        return block.reshape(-1, 2, features.shape[1]).max(1).reshape(-1)
    groups = [features[segments == s] for s in range(head.segments)] if head.segments > 1 else [features]
    if config.kind == "attention":
        pooled = []
        for group in groups:
            inner = np.tanh(group @ head.hidden_score.kernel.numpy() + head.hidden_score.bias.numpy())
            weight = np.exp(inner @ head.score.kernel.numpy())
            pooled.append((group * weight).sum(0) / max(weight.sum(), 1e-9))
        return np.concatenate(pooled)
    return np.concatenate([group.max(0, initial=0) for group in groups])


def drawn(kind, segments):
    """A head with random weights and statistics, and hidden states and batch of TEXTS."""
    config = HeadConfig(kind=kind, widths=(1, 2, 3, 6), filters=(3, 4, 5, 6), pool_size=2)
    head = Head(config, segments=segments, max_length=9)
    batch = packed(TEXTS, False)
    batch["segments"] = np.concatenate([np.arange(len(t), dtype=np.int32) * segments // len(t) for t in TEXTS])
    hidden = RNG.normal(size=(len(batch["ids"]), 8)).astype(np.float32)
    head(hidden, batch)
    for variable in head.weights:
        variable.assign(variable.numpy() + RNG.normal(size=variable.shape, scale=0.2))
    return head, hidden, batch


@pytest.mark.parametrize("segments", [1, 2, 3])
@pytest.mark.parametrize("kind", ["multi_width", "global_max", "stacked", "attention", "flatten"])
def test_features_are_those_of_a_text_by_text_computation(kind, segments):
    head, hidden, batch = drawn(kind, segments)
    found = ops.convert_to_numpy(head(hidden, batch))
    ends = np.cumsum(batch["row_lengths"])[:-1]
    expected = [
        reference(head, x.astype(np.float64), s)
        for x, s in zip(np.split(hidden, ends), np.split(batch["segments"], ends), strict=True)
    ]
    np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=1e-5)


def found_ngrams(head, x, segments):
    """Token by token: each feature, and the n-gram that it comes from."""
    config = head.config
    if config.kind in ("multi_width", "attention"):
        stage = head.stages[0]
        parameters = zip(stage.kernels, stage.biases, stage.widths, strict=True)
        values = np.concatenate([convolved(x, k.numpy(), b.numpy(), w) for k, b, w in parameters], -1)
        reach = [((w - 1) // 2, w // 2) for w, n in zip(config.widths, config.filters, strict=True) for _ in range(n)]
    else:
        values = one_after_the_other(head, x)
        reach = [tuple(sum(side(w) for w in config.widths) for side in (lambda w: (w - 1) // 2, lambda w: w // 2))]
        reach *= config.filters[-1]
    if config.kind == "attention":
        inner = np.tanh(values @ head.hidden_score.kernel.numpy() + head.hidden_score.bias.numpy())
        values = values * np.exp(inner @ head.score.kernel.numpy())
    places = np.arange(len(x))
    if config.kind == "flatten":  # cells of 2 of 9 places: one before the first is for padding
        cells = [[p for p in (2 * n, 2 * n + 1) if p < min(len(x), 9)] for n in range(5)]
    else:
        cells = [places[segments == s] for s in range(head.segments)] if head.segments > 1 else [places]
    spans = []
    for cell in cells:
        for feature, (before, after) in enumerate(reach):
            column = [values[p, feature] for p in cell]
            if not column or max(column) <= 0:
                spans.append((0, 0))
                continue
            place = cell[int(np.argmax(column))]
            first = max(place - before, 1)
            spans.append((first, max(min(place + after + 1, len(x) - 1), first)))
    return spans


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("kind", ["multi_width", "global_max", "stacked", "attention", "flatten"])
def test_ngrams_are_where_a_text_by_text_computation_finds_the_maximum(kind, segments):
    head, hidden, batch = drawn(kind, segments)
    ends = np.cumsum(batch["row_lengths"])[:-1]
    expected = [
        found_ngrams(head, x, s) for x, s in zip(np.split(hidden, ends), np.split(batch["segments"], ends), strict=True)
    ]
    found = ops.convert_to_numpy(head.ngrams(hidden, batch))
    np.testing.assert_array_equal(found, expected)
    assert found.shape[1] == head(hidden, batch).shape[1]
    assert (found[:, :, 1] > found[:, :, 0]).mean() > 0.1
    # in another order, beside other texts, they are the same
    order = RNG.permutation(len(TEXTS))[:5]
    parts = [np.split(values, ends) for values in (hidden, batch["segments"])]
    some = packed([TEXTS[n] for n in order], False) | {"segments": np.concatenate([parts[1][n] for n in order])}
    again = ops.convert_to_numpy(head.ngrams(np.concatenate([parts[0][n] for n in order]), some))
    np.testing.assert_array_equal(again, found[order])


def test_cls_tells_of_no_ngram():
    head = Head(HeadConfig(kind="cls"), segments=1, max_length=9)
    found = ops.convert_to_numpy(
        head.ngrams(np.ones((6, 4), np.float32), packed([TEXTS[0], TEXTS[0], TEXTS[0]], False))
    )
    assert found.shape == (3, 4, 2)
    assert not found.any()


def test_cls_takes_the_first_token_of_each_text():
    head = Head(HeadConfig(kind="cls"), segments=1, max_length=9)
    hidden = np.arange(6, dtype=np.float32)[:, None]
    found = head(hidden, {"ids": np.zeros(6, np.int32), "row_lengths": np.array([2, 3, 1], np.int32)})
    assert ops.convert_to_numpy(found).tolist() == [[0], [2], [5]]


@pytest.mark.parametrize("kind", ["multi_width", "attention"])
def test_an_empty_second_segment_pools_to_zero(kind):
    head = Head(HeadConfig(kind=kind, widths=(1,), filters=(3,)), segments=2, max_length=9)
    batch = packed([TEXTS[1]], False) | {"segments": np.zeros(3, np.int32)}
    found = ops.convert_to_numpy(head(RNG.normal(size=(3, 8)).astype(np.float32), batch))
    assert found[0, 3:].tolist() == [0, 0, 0]


def test_filters_that_only_find_negatives_pool_to_zero():
    head = Head(HeadConfig(kind="multi_width", widths=(1,), filters=(2,)), segments=1, max_length=9)
    batch = packed([TEXTS[1]], False)
    head(np.ones((3, 8), np.float32), batch)
    head.stages[0].kernels[0].assign(-np.ones((8, 2)))
    assert ops.convert_to_numpy(head(np.ones((3, 8), np.float32), batch)).tolist() == [[0, 0]]


def test_one_number_of_filters_serves_all_widths():
    model = build_classifier(EMBEDDINGS, HeadConfig(widths=(2, 3), filters=(7,)), "multiclass", 3)
    assert [kernel.shape for kernel in model.head.stages[0].kernels] == [(16, 7), (24, 7)]


def test_output_scale_scales_the_first_output_kernel_and_nothing_else():
    kernels = []
    for scale in (1.0, 0.1):
        keras.utils.set_random_seed(3)
        model = build_classifier(EMBEDDINGS, HeadConfig(filters=(3,), output_scale=scale), "multiclass", 3)
        kernels.append([model.output_dense.kernel.numpy(), model.head.stages[0].kernels[0].numpy()])
    limit = np.sqrt(6 / sum(kernels[0][0].shape))  # Glorot and Bengio 2010
    assert 0.5 * limit < np.abs(kernels[0][0]).max() <= limit
    np.testing.assert_allclose(kernels[1][0], kernels[0][0] * 0.1, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(kernels[1][1], kernels[0][1])


def test_l2_adds_a_loss_for_kernels_alone():
    model = build_classifier(
        EMBEDDINGS, HeadConfig(kind="multi_width", widths=(2,), filters=(3,), l2=0.1), "multiclass", 3
    )
    kernels = [model.head.stages[0].kernels[0], model.output_dense.kernel]
    expected = sum(0.1 * np.square(kernel.numpy()).sum() for kernel in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("task", "labels", "outputs"), [("binary", 2, 1), ("multiclass", 4, 4), ("multilabel", 4, 4)])
def test_outputs_by_task(task, labels, outputs):
    model = build_classifier(EMBEDDINGS, HeadConfig(filters=(3,)), task, labels)
    assert model(packed(TEXTS, False)).shape == (8, outputs)


def test_probabilities_of_known_logits():
    p = 1 / (1 + np.exp(-2.0))
    found = ops.convert_to_numpy(probabilities(np.array([[2.0]], np.float32), "binary"))
    np.testing.assert_allclose(found, [[1 - p, p]], rtol=1e-6)
    found = ops.convert_to_numpy(probabilities(np.array([[2.0, 0.0]], np.float32), "multilabel"))
    np.testing.assert_allclose(found, [[p, 0.5]], rtol=1e-6)
    found = ops.convert_to_numpy(probabilities(np.log([[1.0, 3.0]]).astype(np.float32), "multiclass"))
    np.testing.assert_allclose(found, [[0.25, 0.75]], rtol=1e-6)


def test_a_frozen_encoder_leaves_only_the_head_to_train():
    model = build_classifier(GEOMETRY, HeadConfig(filters=(3,)), "multiclass", 3, encoder_trainable=False)
    assert all("encoder" not in variable.path for variable in model.trainable_variables)
    assert len(model.trainable_variables) == 10


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", MARKED)
def test_every_head_trains_in_either_precision_with_row_gradients_for_words(kind, policy):
    model = build_classifier(GEOMETRY, HeadConfig(kind=kind, filters=(3,)), "multiclass", 3, 2, 24, policy)
    variables = [variable.value for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
        logits = model(packed(TEXTS, True), training=True)
        loss = tf.reduce_sum(logits**2)
    assert logits.dtype == tf.float32
    gradients = dict(zip([v.path for v in model.trainable_variables], tape.gradient(loss, variables), strict=True))
    (words,) = [g for path, g in gradients.items() if path.endswith("word_embeddings")]
    assert isinstance(words, tf.IndexedSlices)
    assert words.values.shape == (sum(map(len, TEXTS)), 8)
    assert all(gradient is not None for gradient in gradients.values())
    assert all(bool(tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(g)))) for g in gradients.values())
