"""AdamW against a computation by hand, rows alone for embeddings, and the rate of each step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from components.classifier.model import build_classifier
from components.config import HeadConfig, TrainingConfig
from components.encoder.config import BertGeometry
from components.trainer.optimizer import AdamW, learning_rate


def variable(value, path):
    *scopes, name = path.split("/")
    with keras.name_scope("/".join(scopes)):
        return keras.Variable(np.array(value, np.float32), name=name)


def by_hand(w, gradients, rate, decay):
    m = v = 0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - rate * decay * w
        w = w - rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)
    return w


@pytest.mark.parametrize(("path", "decay"), [("dense/kernel", 0.5), ("dense/bias", 0), ("block_norm/gamma", 0)])
def test_dense_steps_are_adamws_and_biases_and_norms_do_not_decay(path, decay):
    w = variable([1.0, -2.0], path)
    optimizer = AdamW([w], weight_decay=0.5, clip_norm=100.0)
    gradients = [np.array([0.3, -0.1], np.float32), np.array([-0.2, 0.4], np.float32)]
    for g in gradients:
        optimizer.apply([tf.constant(g)], tf.constant(0.1))
    np.testing.assert_allclose(w.numpy(), by_hand(np.array([1.0, -2.0]), gradients, 0.1, decay), rtol=1e-5)


CONVOLUTIONS = {
    "flatten": {"convolutions_0/kernel_2", "convolutions_1/kernel_3"},
    "stacked": {"convolutions_0/kernel_2", "convolutions_1/kernel_3"},
    "global_max": {"convolutions_0/kernel_2", "convolutions_1/kernel_3"},
    "multi_width": {"convolutions_0/kernel_2", "convolutions_0/kernel_3"},
    "attention": {"convolutions_0/kernel_2", "convolutions_0/kernel_3", "score_hidden/kernel", "score/kernel"},
    "cls": set(),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_what_decays_of_a_model_is_its_kernels_and_tables(kind):
    geometry = BertGeometry(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    head = HeadConfig(kind=kind, widths=(2, 3), filters=(3,), dense_units=4, batch_norm=kind != "cls")
    variables = build_classifier(geometry, head, "multiclass", 3).trainable_variables
    decays = AdamW(variables, 0.5, 1.0)._decayed
    found = {v.path.removeprefix("classifier/") for v, decayed in zip(variables, decays, strict=True) if decayed}
    kernels = ("attention/qkv", "attention/output", "intermediate", "output")
    expected = {f"encoder/embeddings/{name}_embeddings" for name in ("word", "position", "segment")}
    expected |= {f"encoder/layer_0/{name}/kernel" for name in kernels} | {"hidden/kernel", "output/kernel"}
    assert found == expected | {f"head/{name}" for name in CONVOLUTIONS[kind]}
    assert len(variables) > len(found)


def test_sparse_steps_touch_the_batchs_rows_alone_and_sum_repeated_ones():
    w = variable([[1.0], [2.0], [3.0]], "embeddings/word_embeddings")
    optimizer = AdamW([w], weight_decay=0.5, clip_norm=100.0)
    gradient = tf.IndexedSlices(tf.constant([[0.1], [0.3], [0.2]]), tf.constant([2, 0, 2]), tf.constant([3, 1]))
    optimizer.apply([gradient], tf.constant(0.1))
    expected = [by_hand(1.0, [0.3], 0.1, 0.5), 2.0, by_hand(3.0, [0.3], 0.1, 0.5)]
    np.testing.assert_allclose(w.numpy()[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_of_known_shapes_is_the_same_step(compiled):
    """Two steps, the second without some rows that the first had: their moments stand still."""
    found = []
    for static in (False, True):
        w = variable(np.linspace(-1, 1, 10).reshape(5, 2), "embeddings/word_embeddings")
        b = variable([0.5], "dense/bias")
        optimizer = AdamW([w, b], weight_decay=0.5, clip_norm=0.3, scales=[0.5, 1.0])

        def step(rows, values, static=static, optimizer=optimizer):
            gradient = tf.IndexedSlices(values, rows, tf.constant([5, 2]))
            return optimizer.apply([gradient, tf.constant([0.2])], tf.constant(0.1), static)

        if static and compiled:
            step = tf.function(step, jit_compile=True, autograph=False)
        for rows in ([3, 0, 3], [4, 4, 0]):
            norm = step(tf.constant(rows), tf.constant([[0.1, 0.2], [0.3, -0.1], [0.2, 0.4]]))
        found.append([norm.numpy(), w.numpy(), b.numpy(), *(variable.numpy() for variable in optimizer.state)])
    np.testing.assert_array_equal(found[1][1][[1, 2]], np.linspace(-1, 1, 10).reshape(5, 2).astype(np.float32)[[1, 2]])
    for plain, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, plain, rtol=1e-5)


def test_the_norm_is_that_of_the_dense_gradient_and_is_clipped():
    w = variable([[0.0], [0.0]], "embeddings/word_embeddings")
    b = variable([0.0], "dense/bias")
    optimizer = AdamW([w, b], weight_decay=0.0, clip_norm=1.0)
    gradient = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([1, 1]), tf.constant([2, 1]))
    norm = optimizer.apply([gradient, tf.constant([4.0])], tf.constant(0.1))
    assert float(norm) == 5.0
    np.testing.assert_allclose(optimizer._m[0].numpy(), [[0.0], [0.1 * 3 / 5]], rtol=1e-6)
    np.testing.assert_allclose(optimizer._m[1].numpy(), [0.1 * 4 / 5], rtol=1e-6)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_rate_warms_up_and_decays(decay, expected):
    training = TrainingConfig(learning_rate=1.0, warmup_share=1 / 3, decay=decay)
    found = [learning_rate(step, 6, training) for step in range(6)]
    assert found == pytest.approx(expected)


def test_without_warmup_the_first_step_has_the_full_rate():
    assert learning_rate(0, 10, TrainingConfig(learning_rate=0.5, warmup_share=0.0)) == 0.5
