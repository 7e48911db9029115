"""Training speed: packed batches and row-wise AdamW against the same network from stock Keras layers.

    python tests/benchmarks/training.py                     # embeddings + CNN, and a small transformer + CNN
    python tests/benchmarks/training.py --layers 12 --hidden 768 --heads 12 --inner 3072 --batch 16 --steps 3

Shipped sentences, the same batches for all, taken in turn step by step in one process. "stock" is what a Keras user
writes: Embedding, MultiHeadAttention, Conv1D, GlobalMaxPooling1D, keras.optimizers.AdamW with global_clipnorm, compiled
by tf.function; batches of similar lengths padded to the longest, or all padded to 128. Prints texts per second
(medians) and ratios; a ratio above 1 says that the packed step is the faster.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from components.classifier.model import build_classifier  # noqa: E402
from components.config import HeadConfig  # noqa: E402
from components.encoder.config import BertGeometry  # noqa: E402
from components.trainer.batches import Examples, plan_epoch  # noqa: E402
from components.trainer.losses import example_losses  # noqa: E402
from components.trainer.optimizer import AdamW  # noqa: E402
from components.transform.wordpiece import WordPiece  # noqa: E402

MAX_LENGTH, LABELS, RATE = 128, 5, 1e-3
WIDTHS, FILTERS = (2, 3, 4, 5), 160
BUCKETS = (16, 32, 48, 64, 96, 128)
Step = Callable[[np.ndarray], None]


def load_examples(count: int) -> tuple[Examples, int]:
    """The first shipped training sentences, tokenised; and the size of the vocabulary."""
    data = ROOT / "pipeline" / "data"
    with open(data / "pmc_rct_sections" / "train.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))[:count]
    names = sorted({row["label"] for row in rows})
    wordpiece = WordPiece(data / "biobert" / "vocab.txt")
    ids = wordpiece.encode([row["text"] for row in rows], max_length=MAX_LENGTH).input_ids
    labels = np.array([names.index(row["label"]) for row in rows], np.int32)
    lengths = ids.row_lengths().numpy().astype(np.int32)
    return Examples(ids.values.numpy(), None, lengths, labels, np.arange(len(rows))), wordpiece.vocab_size


def packed_step(geometry: BertGeometry, examples: Examples) -> Step:
    model = build_classifier(geometry, HeadConfig(widths=WIDTHS, filters=(FILTERS,)), "multiclass", LABELS)
    optimizer = AdamW(model.trainable_variables, weight_decay=0.01, clip_norm=1.0)
    variables = [variable.value for variable in model.trainable_variables]
    spec = {name: tf.TensorSpec([None], tf.int32) for name in ("ids", "row_lengths")}

    @tf.function(input_signature=[spec, tf.TensorSpec([None], tf.int32)], autograph=False)
    def train(batch, truth):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(example_losses(model(batch, training=True), truth, "multiclass"))
        optimizer.apply(tape.gradient(loss, variables), tf.constant(RATE))
        return loss

    return lambda rows: train(examples.batch(rows), examples.labels[rows]).numpy()


def stock_model(g: BertGeometry) -> keras.Model:
    ids = keras.Input([None], dtype="int32")
    mask = keras.ops.not_equal(ids, 0)
    x = keras.layers.Embedding(g.vocab_size, g.hidden_size)(ids)
    x = x + keras.layers.Embedding(g.max_position_embeddings, g.hidden_size)(
        keras.ops.cumsum(keras.ops.ones_like(ids), 1) - 1
    )
    x = keras.layers.Dropout(g.hidden_dropout_prob)(keras.layers.LayerNormalization()(x))
    for _ in range(g.num_hidden_layers):
        size = g.hidden_size // g.num_attention_heads
        attention = keras.layers.MultiHeadAttention(g.num_attention_heads, size, dropout=g.attention_probs_dropout_prob)
        attended = attention(x, x, attention_mask=mask[:, None, :])
        x = keras.layers.LayerNormalization()(x + keras.layers.Dropout(g.hidden_dropout_prob)(attended))
        inner = keras.ops.gelu(keras.layers.Dense(g.intermediate_size)(x), approximate=False)
        outer = keras.layers.Dropout(g.hidden_dropout_prob)(keras.layers.Dense(g.hidden_size)(inner))
        x = keras.layers.LayerNormalization()(x + outer)
    x = x * keras.ops.cast(mask, x.dtype)[:, :, None]
    convolutions = [keras.layers.Conv1D(FILTERS, width, padding="same", activation="relu") for width in WIDTHS]
    pooled = [keras.layers.GlobalMaxPooling1D()(convolution(x)) for convolution in convolutions]
    x = keras.layers.Dropout(0.5)(keras.layers.Concatenate()(pooled))
    return keras.Model(ids, keras.layers.Dense(LABELS)(x))


def stock_step(geometry: BertGeometry, examples: Examples, fixed: bool) -> Step:
    model = stock_model(geometry)
    optimizer = keras.optimizers.AdamW(RATE, weight_decay=0.01, global_clipnorm=1.0)
    optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(
        input_signature=[tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)], autograph=False
    )
    def train(ids, truth):
        with tf.GradientTape() as tape:
            loss = loss_of(truth, model(ids, training=True))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        return loss

    def step(rows: np.ndarray) -> None:
        lengths = examples.lengths[rows]
        block = np.zeros((len(rows), MAX_LENGTH if fixed else lengths.max()), np.int32)
        for n, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            block[n, :length] = examples.ids[examples.ends[row] - length : examples.ends[row]]
        train(block, examples.labels[rows]).numpy()

    return step


def compare(geometry: BertGeometry, examples: Examples, batch: int, steps: int) -> None:
    mixed = plan_epoch(examples.lengths, batch, seed=1, epoch=0)
    bucketed = plan_epoch(examples.lengths, batch, seed=1, epoch=0, buckets=BUCKETS)
    packed, stock, fixed = (
        packed_step(geometry, examples),
        stock_step(geometry, examples, fixed=False),
        stock_step(geometry, examples, fixed=True),
    )
    # Without layers there is no attention, and packed batches need no texts of similar length.
    runs: dict[str, tuple[Step, list[np.ndarray]]] = {
        "packed": (packed, bucketed if geometry.num_hidden_layers else mixed),
        "stock, similar lengths": (stock, bucketed),
        "stock, padded to 128": (fixed, mixed),
    }
    for step, plan in runs.values():
        step(plan[0])
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for n in range(steps):
        for name, (step, plan) in runs.items():
            rows = plan[1 + n % (len(plan) - 1)]
            started = time.perf_counter()
            step(rows)
            seconds[name].append((time.perf_counter() - started) / len(rows))
    g = geometry
    print(f"\n{g.num_hidden_layers} layers of {g.hidden_size}, batch {batch}, {steps} steps each")
    speeds = {name: 1 / statistics.median(times) for name, times in seconds.items()}
    for name, speed in speeds.items():
        print(f"  {name:24} {speed:8.0f} texts/s   packed is {speeds['packed'] / speed:.2f} x as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="one geometry instead of the default two")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--inner", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    examples, vocab_size = load_examples(max(2048, 2 * arguments.batch))
    for layers in (0, 2) if arguments.layers is None else (arguments.layers,):
        geometry = BertGeometry(
            vocab_size=vocab_size,
            hidden_size=arguments.hidden,
            num_hidden_layers=layers,
            num_attention_heads=arguments.heads,
            intermediate_size=arguments.inner,
        )
        compare(geometry, examples, arguments.batch, arguments.steps)


if __name__ == "__main__":
    main()
