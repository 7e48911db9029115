"""Dense layers in int8: uint8 rows by int8 weights, summed exactly in int32 (oneDNN's `_QuantizedMatMul`).

Rows are quantised with one range a layer, measured beforehand on training texts, and weights with one a column. With
ranges that are fixed, an answer does not depend on the other texts of its batch, and oneDNN does not build its
primitives anew for every range it meets.

Weights take values up to 64, not 127. Where a CPU has no VNNI instructions (most without AVX-512), oneDNN adds
products two by two in 16 bits, which saturate: 2 * 255 * 127 is above 32767, and answers are silently wrong;
2 * 255 * 64 is below. So the sums are the same integers on every CPU.

The range of a row need not be symmetric. With x = low + step * q, for q in 0..255,
    x @ kernel + bias = step * scale * (q @ weights) + (bias + low * sum of the kernel's column),
whose last term is a constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

from components.encoder.bert import BertEncoder
from components.encoder.packing import Batch
from components.export.encoder import Arithmetic, Dense, EncoderFunction

_GREATEST_WEIGHT = 64
_GREATEST_ROW = 255
# QuantizeV2 widens a narrower range by itself; the constants folded into the bias must be of the range that it uses.
_LEAST_WIDTH = 0.02

Ranges = Mapping[str, tuple[float, float]]


class _Quantised(NamedTuple):
    low: float
    high: float
    weights: tf.Variable  # int8 [in, out]
    scale: np.ndarray  # float32 [out]; weights * scale is the kernel, nearly
    bias: np.ndarray  # float32 [out], the constant of the lower end in it


class Int8(Arithmetic):
    """Quantised dense layers.

    Args:
      layers: by name (`components.export.encoder.dense_layers`).
      ranges: of each layer's rows, from `calibrate`.

    Attributes:
      quantised: the layers, by name.
    """

    def __init__(self, layers: Mapping[str, Dense], ranges: Ranges) -> None:
        self.quantised = {name: _quantised(layer, *ranges[name]) for name, layer in layers.items()}
        self.variables = [layer.weights for layer in self.quantised.values()]

    def dense(self, name: str, x: tf.Tensor, residual: tf.Tensor | None = None) -> tf.Tensor:
        """float32 [tokens, out]."""
        return _product(x, self.quantised[name], residual=residual)

    def dense_gelu(self, name: str, x: tf.Tensor) -> tf.Tensor:
        """float32 [tokens, out]."""
        return _product(x, self.quantised[name], gelu=True)


class Simulated(Arithmetic):
    """What `Int8` would give if its products were exact, in float32: the reference that a machine is tried against.

    Args:
      int8: whose quantised layers these are, too.
    """

    def __init__(self, int8: Int8) -> None:
        self._layers = int8.quantised
        self.variables = int8.variables

    def dense(self, name: str, x: tf.Tensor, residual: tf.Tensor | None = None) -> tf.Tensor:
        """float32 [tokens, out]."""
        layer = self._layers[name]
        step = (layer.high - layer.low) / _GREATEST_ROW
        rows = tf.floor((tf.clip_by_value(x, layer.low, layer.high) - layer.low) / step + 0.5)
        y = tf.matmul(rows, tf.cast(layer.weights, tf.float32)) * (layer.scale * np.float32(step)) + layer.bias
        return y if residual is None else y + residual


def calibrate(encoder: BertEncoder, layers: Mapping[str, Dense], batches: Iterable[Batch]) -> Ranges:
    """The least and the greatest value that each dense layer is given, in float32.

    Args:
      encoder: trained.
      layers: its dense layers.
      batches: packed batches of texts like those that will be answered.
    """
    recorder = _Recorder(layers)
    function = EncoderFunction(encoder, recorder)
    for batch in batches:
        function({name: tf.constant(values) for name, values in batch.items()})
    return recorder.ranges


class _Recorder(Arithmetic):
    def __init__(self, layers: Mapping[str, Dense]) -> None:
        self._layers = layers
        self.ranges: dict[str, tuple[float, float]] = {}
        self.variables = []

    def dense(self, name: str, x: tf.Tensor, residual: tf.Tensor | None = None) -> tf.Tensor:
        low, high = self.ranges.get(name, (0.0, 0.0))
        self.ranges[name] = (min(low, float(tf.reduce_min(x))), max(high, float(tf.reduce_max(x))))
        y = tf.matmul(x, self._layers[name].kernel) + self._layers[name].bias
        return y if residual is None else y + residual


def _quantised(layer: Dense, low: float, high: float) -> _Quantised:
    low, high = min(low, 0.0), max(high, 0.0)
    high = max(high, low + _LEAST_WIDTH * max(1.0, -low, high))
    greatest = np.abs(layer.kernel).max(axis=0)
    scale = (np.where(greatest > 0, greatest, 1.0) / _GREATEST_WEIGHT).astype(np.float32)
    weights = np.rint(layer.kernel / scale).astype(np.int8)
    bias = layer.bias + low * scale * weights.sum(axis=0, dtype=np.int64)
    return _Quantised(low, high, tf.Variable(weights, trainable=False), scale, bias.astype(np.float32))


def _product(x: tf.Tensor, layer: _Quantised, residual: tf.Tensor | None = None, gelu: bool = False) -> tf.Tensor:
    """`_QuantizedMatMul`, which has no Python function; another type of its rows than quint8 ends the process.

    It is told that the weights never change, and keeps them in oneDNN's own layout from its first call on.
    """
    rows = tf.raw_ops.QuantizeV2(
        input=x, min_range=layer.low, max_range=layer.high, T=tf.quint8, mode="MIN_COMBINED"
    ).output
    fused = ["BiasAdd", *(["Add"] if residual is not None else []), *(["GeluExact"] if gelu else []), "Dequantize"]
    devices = [rows, tf.bitcast(tf.convert_to_tensor(layer.weights), tf.qint8), tf.constant(layer.bias)]
    if residual is not None:
        devices.append(residual)
    # The kernel takes the greatest value of a range for 255 and 127: these give the steps meant.
    width = tf.constant(layer.high - layer.low)
    greatest = tf.constant(layer.scale * 127)
    hosts = [tf.constant(0.0), width, -greatest, greatest]
    types = {"T1": tf.quint8, "T2": tf.qint8, "Tbias": tf.float32, "U": tf.float32, "Tout": tf.float32}
    lists = {
        "Tdevice_inputs": [tensor.dtype for tensor in devices],
        "Thost_inputs": [tf.float32] * len(hosts),
        "Tdevice_outputs": [tf.float32],
        "Thost_outputs": [],
    }
    attributes = {name: attr_value_pb2.AttrValue(type=dtype.as_datatype_enum) for name, dtype in types.items()}
    for name, dtypes in lists.items():
        value = attr_value_pb2.AttrValue.ListValue(type=[dtype.as_datatype_enum for dtype in dtypes])
        attributes[name] = attr_value_pb2.AttrValue(list=value)
    names = attr_value_pb2.AttrValue.ListValue(s=[name.encode() for name in fused])
    attributes["fused_ops"] = attr_value_pb2.AttrValue(list=names)
    for name in ("input_quant_mode", "output_quant_mode"):
        attributes[name] = attr_value_pb2.AttrValue(s=b"SCALED")
    for name in ("is_weight_const", "is_bias_const"):
        attributes[name] = attr_value_pb2.AttrValue(b=True)
    graph = tf.compat.v1.get_default_graph()
    operation = graph.create_op(
        "_QuantizedMatMul", [*devices, *hosts], [tf.float32], attrs=attributes, name="quantized_matmul"
    )
    product = operation.outputs[0]
    product.set_shape([None, layer.weights.shape[1]])
    return product
