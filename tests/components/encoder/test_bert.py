"""BERT over packed tokens, against plain NumPy written text by text, and the packing itself."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from components.encoder import bert, packing
from components.encoder.bert import BertEncoder, Dense
from components.encoder.config import BertGeometry
from components.encoder.packing import cells, layout, padded, shifted

GEOMETRY = BertGeometry(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=20,
    layer_norm_eps=1e-3,  # large enough for a wrong or ignored value to show
    initializer_range=0.5,
)
RNG = np.random.default_rng(1)
TEXTS = [RNG.integers(0, 30, length).astype(np.int32) for length in (2, 9, 20, 3, 9)]


def packed(texts, segments=True):
    batch = {
        "ids": np.concatenate(texts),
        "row_lengths": np.array([len(text) for text in texts], np.int32),
    }
    if segments:
        batch["segments"] = np.concatenate([(np.arange(len(t)) > len(t) // 2).astype(np.int32) for t in texts])
    return batch


def test_segments_after_the_second_are_embedded_as_the_second():
    encoder = encoder_of(GEOMETRY)
    batch = packed(TEXTS)
    third = batch | {"segments": 2 * batch["segments"]}
    np.testing.assert_array_equal(encoder(third), encoder(batch))


def encoder_of(geometry):
    encoder = BertEncoder(geometry)
    encoder.build()
    for variable in encoder.weights:  # no bias stays 0, no gamma 1
        variable.assign(variable.numpy() + RNG.normal(size=variable.shape, scale=0.3))
    return encoder


@pytest.mark.parametrize("layers", [0, 1])
def test_places_differ_from_the_start_only_where_there_is_attention(layers):
    encoder = BertEncoder(dataclasses.replace(GEOMETRY, num_hidden_layers=layers))
    encoder.build()
    assert np.any(encoder.embeddings.position.numpy()) == bool(layers)
    assert np.any(encoder.embeddings.word.numpy())


def norm(x, layer, epsilon):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * layer.gamma.numpy() + layer.beta.numpy()


def dense(x, layer):
    return x @ layer.kernel.numpy() + layer.bias.numpy()


def reference(encoder, ids, segments):
    """One text through BERT as the paper defines it, float64 [tokens] -> [tokens, hidden]."""
    g = encoder.geometry
    e = encoder.embeddings
    x = e.word.numpy().astype(np.float64)[ids] + e.position.numpy()[: len(ids)] + e.segment.numpy()[segments]
    x = norm(x, e.norm, g.layer_norm_eps)
    for block in encoder.blocks:
        query, key, value = np.split(dense(x, block.attention.qkv), 3, axis=-1)
        context = []
        for head in range(g.num_attention_heads):
            part = slice(head * 4, head * 4 + 4)
            scores = query[:, part] @ key[:, part].T / math.sqrt(4)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            context.append(weights / weights.sum(-1, keepdims=True) @ value[:, part])
        attended = dense(np.concatenate(context, -1), block.attention.output_dense)
        x = norm(x + attended, block.attention_norm, g.layer_norm_eps)
        inner = dense(x, block.intermediate)
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(x + dense(inner, block.output_dense), block.output_norm, g.layer_norm_eps)
    return x


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_hidden_states_are_those_of_the_paper(layers):
    encoder = encoder_of(BertGeometry(**{**vars(GEOMETRY), "num_hidden_layers": layers}))
    batch = packed(TEXTS)
    found = ops.convert_to_numpy(encoder(batch))
    ends = np.cumsum(batch["row_lengths"])[:-1]
    expected = [
        reference(encoder, ids, segments)
        for ids, segments in zip(TEXTS, np.split(batch["segments"], ends), strict=True)
    ]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=0, atol=1e-5)


def test_without_segments_every_token_is_of_the_first():
    encoder = encoder_of(GEOMETRY)
    batch = packed(TEXTS, segments=False)
    zeros = batch | {"segments": np.zeros(len(batch["ids"]), np.int32)}
    np.testing.assert_array_equal(ops.convert_to_numpy(encoder(batch)), ops.convert_to_numpy(encoder(zeros)))


def test_a_text_does_not_feel_the_others_in_its_batch():
    encoder = encoder_of(GEOMETRY)
    together = ops.convert_to_numpy(encoder(packed(TEXTS)))
    alone = np.concatenate([ops.convert_to_numpy(encoder(packed([text]))) for text in TEXTS])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_dropout_acts_in_training_alone():
    encoder = encoder_of(GEOMETRY)
    batch = packed(TEXTS)
    assert np.array_equal(ops.convert_to_numpy(encoder(batch)), ops.convert_to_numpy(encoder(batch)))
    assert not np.array_equal(ops.convert_to_numpy(encoder(batch, training=True)), ops.convert_to_numpy(encoder(batch)))


def test_layout_places_every_token():
    place = layout({"ids": np.zeros(6, np.int32), "row_lengths": np.array([2, 3, 1], np.int32)})
    assert ops.convert_to_numpy(place.rows).tolist() == [0, 0, 1, 1, 1, 2]
    assert ops.convert_to_numpy(place.positions).tolist() == [0, 1, 0, 1, 2, 0]
    assert ops.convert_to_numpy(place.starts).tolist() == [0, 2, 5]


def test_shifted_views_end_with_their_text():
    x = np.array([[1.0], [2.0], [3.0], [4.0]], np.float32)
    views = [ops.convert_to_numpy(v)[:, 0].tolist() for v in shifted(x, np.array([0, 0, 0, 1], np.int32), 2, 1)]
    assert views == [[0, 0, 1, 0], [0, 1, 2, 0], [1, 2, 3, 4], [2, 3, 0, 0]]


def test_padded_blocks_crop_and_mask():
    x = np.arange(1, 5, dtype=np.float32)[:, None]
    place = layout({"ids": np.zeros(4, np.int32), "row_lengths": np.array([3, 1], np.int32)})
    block, mask = padded(x, place, 2)
    assert ops.convert_to_numpy(mask).tolist() == [[True, True], [True, False]]
    assert (ops.convert_to_numpy(block)[:, :, 0] * ops.convert_to_numpy(mask)).tolist() == [[1, 2], [4, 0]]


@pytest.fixture
def own_gradients(monkeypatch):
    """Gradients as they are on a GPU."""
    monkeypatch.setattr(packing, "_pays", lambda: True)


def test_attentions_gradients_are_those_of_plain_gatherings(own_gradients, monkeypatch):
    """The block's own gradients hold only where nothing that is made of padding reaches the loss."""
    block = cells(layout({"ids": np.zeros(9, np.int32), "row_lengths": np.array([4, 0, 2, 3], np.int32)}))
    qkv = tf.constant(RNG.normal(size=(9, 24)), tf.float32)
    above = tf.constant(RNG.normal(size=(9, 8)), tf.float32)

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(qkv)
            loss = tf.reduce_sum(bert.attend(qkv, block, 2) * above)
        return tf.convert_to_tensor(tape.gradient(loss, qkv))

    own = gradient()
    monkeypatch.setattr(bert, "to_block", lambda x, block: tf.gather(x, block.tokens))
    monkeypatch.setattr(bert, "from_block", lambda x, block: tf.gather(x, block.cell))
    assert np.abs(own).min() > 0
    np.testing.assert_allclose(own, gradient(), rtol=1e-5, atol=1e-6)


def test_a_dense_layer_and_its_gradients_are_kerass(own_gradients):
    x = tf.constant(RNG.normal(size=(7, 4)), tf.float32)
    found = []
    for kind in (Dense, keras.layers.Dense):
        dense = kind(5)
        dense.build((None, 4))
        dense.set_weights([np.arange(20.0).reshape(4, 5) / 10, np.arange(5.0)])
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.sin(dense(x)))
        found.append([loss, *tape.gradient(loss, [x, *(v.value for v in dense.trainable_variables)])])
    for ours, kerass in zip(*found, strict=True):
        np.testing.assert_allclose(ours, kerass, rtol=1e-5, atol=1e-6)
