"""The matrix products of one BERT-base layer in TensorFlow, by how their weights are held: why batch 1 is slow.

    python tests/benchmarks/products.py                  # float32 and bfloat16; about two minutes

Rows are tokens: one sentence, a batch of 8, a batch of 32. Ways, all of TensorFlow's oneDNN kernels: `variable` (the
float32 export), `constant`, `transposed` (a variable, [out, in]: the bfloat16 export), `packed` (a variable whose
reordered copy oneDNN keeps), `convolution` (1 x 1, constant). They take turns; printed are the medians of GFLOP/s, and
their share of the peak, which is a product of 2,048 rows and columns in the same process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

LAYERS = 12  # each with weights of its own, as in the model: none of them stays in the cache
PRODUCTS = {"qkv": (768, 2304), "attention output": (768, 768), "intermediate": (768, 3072), "output": (3072, 768)}
ROWS = (33, 264, 1056)
Way = Callable[[tf.Tensor, tf.Variable, tf.Variable, np.ndarray], tf.Tensor]


def packed(x: tf.Tensor, kernel: tf.Variable) -> tf.Tensor:
    """x [rows, in] times kernel [in, out], by the op that the graph optimiser makes of a product with constants."""
    value = attr_value_pb2.AttrValue
    attributes = {
        "T": value(type=x.dtype.as_datatype_enum),
        "num_args": value(i=1),
        "transpose_a": value(b=False),
        "transpose_b": value(b=False),
        "fused_ops": value(list=value.ListValue(s=[b"BiasAdd"])),
        "is_filter_const": value(b=True),
        "_kernel": value(s=b"MklNameChangeOp"),
    }
    inputs = [x, tf.convert_to_tensor(kernel), tf.zeros([kernel.shape[1]], x.dtype)]
    graph = tf.compat.v1.get_default_graph()
    return graph.create_op("_MklNativeFusedMatMul", inputs, [x.dtype], attrs=attributes, name="product").outputs[0]


WAYS: dict[str, Way] = {
    "variable": lambda x, kernel, _transposed, _value: tf.matmul(x, kernel),
    "constant": lambda x, _kernel, _transposed, value: tf.matmul(x, tf.constant(value, x.dtype)),
    "transposed": lambda x, _kernel, transposed, _value: tf.matmul(x, transposed, transpose_b=True),
    "packed": lambda x, kernel, _transposed, _value: packed(x, kernel),
    "convolution": lambda x, _kernel, _transposed, value: tf.nn.conv2d(
        x[None, None], tf.constant(value[None, None], x.dtype), 1, "VALID"
    )[0, 0],
}


def layers(way: Way, size: tuple[int, int], dtype: tf.DType) -> Callable[[tf.Tensor], tf.Tensor]:
    """LAYERS products of the same rows; a single number of each, so that nothing is left out."""
    rng = np.random.default_rng(0)
    values = [rng.normal(size=size, scale=0.03).astype(np.float32) for _ in range(LAYERS)]
    kernels = [tf.Variable(tf.cast(value, dtype)) for value in values]
    transposed = [tf.Variable(tf.cast(value.T, dtype)) for value in values]

    @tf.function(input_signature=[tf.TensorSpec([None, size[0]], dtype)], autograph=False)
    def run(x: tf.Tensor) -> tf.Tensor:
        found = [way(x, *weights) for weights in zip(kernels, transposed, values, strict=True)]
        return tf.add_n([tf.cast(y[0, 0], tf.float32) for y in found])

    run.held = kernels, transposed
    return run


def rates(
    runs: dict[str, Callable[[tf.Tensor], tf.Tensor]], x: tf.Tensor, work: float, repeats: int
) -> dict[str, float]:
    """GFLOP/s of each, the median of `repeats` turns; the first turn packs and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run(x).numpy()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: work / statistics.median(found) / 1e9 for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    for dtype in (tf.float32, tf.bfloat16):
        square = tf.cast(tf.random.normal([2048, 2048]), dtype)
        peak = rates({"peak": lambda _, a=square: tf.matmul(a, a)[0, 0]}, square, 2.0 * 2048**3, 9)["peak"]
        print(f"\n{dtype.name}, peak {peak:.0f} GFLOP/s: GFLOP/s and their share of it")
        print(f"{'':<18}{'rows':>5}" + "".join(f"{way:>20}" for way in WAYS))
        for name, size in PRODUCTS.items():
            runs = {way: layers(function, size, dtype) for way, function in WAYS.items()}
            for rows in ROWS:
                x = tf.cast(tf.random.normal([rows, size[0]]), dtype)
                found = rates(runs, x, 2.0 * LAYERS * rows * size[0] * size[1], arguments.repeats)
                cells = "".join(f"{rate:>13.0f}{rate / peak:>7.2f}" for rate in found.values())
                print(f"{name:<18}{rows:>5}{cells}", flush=True)


if __name__ == "__main__":
    main()
