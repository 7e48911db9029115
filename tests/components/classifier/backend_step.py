"""`KERAS_BACKEND=jax python backend_step.py WEIGHTS OUT`: one step of training, of a classifier with each head, on
whichever backend Keras has; WEIGHTS and OUT are .npz files."""

from __future__ import annotations

import sys

import keras
import numpy as np
from keras import ops

from components.classifier.model import TextClassifier, build_classifier
from components.config import HeadConfig
from components.encoder.config import BertGeometry
from components.trainer.losses import example_losses

GEOMETRY = BertGeometry(
    vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.5,
)  # fmt: skip
# By name: the head, how many segments, and the overlap of windows.
MODELS = {
    **{kind: (kind, 2, None) for kind in ("flatten", "stacked", "global_max", "multi_width", "attention", "cls")},
    "windows": ("multi_width", 1, 2),
}
RATE = 0.1


def batch_of(segments: int, windows: bool) -> dict[str, np.ndarray]:
    """Packed texts, some shorter than a filter is wide and one longer than a window."""
    rng = np.random.default_rng(0)
    lengths = np.array([2, 3, 24, 5, 11], np.int32)
    batch = {"ids": rng.integers(0, 30, lengths.sum()).astype(np.int32), "row_lengths": lengths}
    if not windows:  # of which no shape is known beforehand
        batch["steps"] = np.arange(lengths.max(), dtype=np.int32)
    if segments > 1:
        batch["segments"] = np.concatenate([(np.arange(n) >= n // 2).astype(np.int32) for n in lengths])
    return batch


def build(name: str) -> tuple[TextClassifier, dict[str, np.ndarray]]:
    """A classifier, and a batch for it."""
    kind, segments, overlap = MODELS[name]
    head = HeadConfig(kind=kind, widths=(2, 5), filters=(3, 4), dropout=0.0, dense_units=4, l2=0.01)
    max_length = 24 if overlap is None else 8
    model = build_classifier(GEOMETRY, head, "multiclass", 3, segments, max_length, overlap=overlap)
    return model, batch_of(segments, overlap is not None)


def step(model: TextClassifier, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits in training, gradients by variable, and the logits in inference after a step down them."""
    truth = np.array([0, 1, 2, 1, 0], np.int32)

    def loss_of(logits):
        return ops.mean(example_losses(logits, truth, "multiclass"))

    trainable = model.trainable_variables

    def infer():
        return model(batch, training=False)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            logits = model(batch, training=True)
            loss = loss_of(logits)
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, [v.value for v in trainable])]
    elif keras.backend.backend() == "jax":
        import jax

        def stateless(values, others):
            logits, others = model.stateless_call(values, others, batch, training=True)
            return loss_of(logits), (logits, others)

        def values():
            return [[v.value for v in group] for group in (trainable, model.non_trainable_variables)]

        compiled = jax.jit if "steps" in batch else lambda function: function  # as one trains, where shapes are known
        gradients, (logits, others) = compiled(jax.grad(stateless, has_aux=True))(*values())
        infer = lambda: compiled(lambda *v: model.stateless_call(*v, batch, training=False)[0])(*values())  # noqa: E731
        for variable, value in zip(model.non_trainable_variables, others, strict=True):
            variable.assign(value)
    else:
        logits = model(batch, training=True)
        loss_of(logits).backward()
        gradients = [v.value.grad for v in trainable]
    found = {"logits": ops.convert_to_numpy(logits)}
    for n, (variable, gradient) in enumerate(zip(trainable, gradients, strict=True)):
        found[f"gradient-{n}"] = ops.convert_to_numpy(gradient)
        variable.assign(ops.convert_to_numpy(variable) - RATE * found[f"gradient-{n}"])
    return found | {"after": ops.convert_to_numpy(infer())}


def main(weights: str, out: str) -> None:
    """Every classifier with the stored weights, whose order is that of `model.weights`."""
    stored, found = np.load(weights), {}
    for name in MODELS:
        model, batch = build(name)
        for n, variable in enumerate(model.weights):
            variable.assign(stored[f"{name}/{n}"])
        found |= {f"{name}/{key}": value for key, value in step(model, batch).items()}
    np.savez(out, **found)
    foreign = {"tensorflow", "jax", "torch"} & sys.modules.keys() - {keras.backend.backend()}
    print(keras.backend.backend(), *sorted(foreign))


if __name__ == "__main__":
    main(*sys.argv[1:])
