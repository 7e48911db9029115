"""`TensorProto` ↔ numpy, both encodings, without trust in what a client sends.

TensorFlow's own `tf.make_ndarray` does not read strings from `tensor_content` and allocates whatever the shape asks
for; a server must do the first and refuse the second. Semantics follow `Tensor::FromProto` in
tensorflow/core/framework/tensor.cc: of typed fields, a list shorter than the shape repeats its last value, and of a
longer one the rest is dropped.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.dtypes import as_dtype

from serving.errors import Code, StatusError, invalid

# One repeated value can stand for any shape; what it may unfold to is bounded by this many bytes.
MAX_TENSOR_BYTES = 1 << 30

# DataType -> the repeated field of TensorProto that holds its values.
_FIELDS: dict[int, str] = {
    types_pb2.DT_HALF: "half_val",
    types_pb2.DT_BFLOAT16: "half_val",
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_INT32: "int_val",
    types_pb2.DT_INT16: "int_val",
    types_pb2.DT_INT8: "int_val",
    types_pb2.DT_UINT8: "int_val",
    types_pb2.DT_UINT16: "int_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_COMPLEX64: "scomplex_val",
    types_pb2.DT_COMPLEX128: "dcomplex_val",
    types_pb2.DT_STRING: "string_val",
}
_NUMPY = {d: as_dtype(d).as_numpy_dtype for d in _FIELDS if d != types_pb2.DT_STRING}


def base_dtype(dtype: int) -> int:
    """The type of the value in a reference variable: `DT_FLOAT_REF` (101) is `DT_FLOAT` (1)."""
    return dtype - 100 if dtype > 100 else dtype


def dtype_name(dtype: int) -> str:
    """TensorFlow's short name of a `DataType` number: `float`, `string`, `int64` …"""
    names = {types_pb2.DT_FLOAT: "float", types_pb2.DT_DOUBLE: "double", types_pb2.DT_HALF: "half"}
    if dtype in names:
        return names[dtype]
    try:
        return as_dtype(dtype).name
    except TypeError:
        return f"unknown dtype {dtype}"


def to_array(proto: tensor_pb2.TensorProto) -> np.ndarray:
    """Decodes a tensor of a request.

    Returns:
        An array of the proto's shape; strings as an object array of `bytes`.

    Raises:
        StatusError: `INVALID_ARGUMENT` if type, shape and values do not fit together.
    """
    field = _FIELDS.get(proto.dtype)
    if field is None:
        raise invalid(f"Tensor dtype {dtype_name(proto.dtype)} is not supported in a request")
    if proto.tensor_shape.unknown_rank:
        raise invalid("Tensor shape has unknown rank; a request must give every dimension")
    shape = [d.size for d in proto.tensor_shape.dim]
    if any(d < 0 for d in shape):
        raise invalid(f"Tensor shape {shape} has a negative dimension")
    count = math.prod(shape)
    is_string = proto.dtype == types_pb2.DT_STRING
    item = 16 if is_string else np.dtype(_NUMPY[proto.dtype]).itemsize
    # Zeros aside: numpy bounds the product of the others, too.
    if math.prod(d or 1 for d in shape) * item > MAX_TENSOR_BYTES or len(shape) > 32:
        raise invalid(f"Tensor shape {shape} is larger than {MAX_TENSOR_BYTES} bytes")
    if proto.tensor_content:
        if is_string:
            return _object_array(_decode_strings(proto.tensor_content, count), shape)
        if len(proto.tensor_content) != count * item:
            raise invalid(
                f"Tensor content has {len(proto.tensor_content)} bytes; shape {shape} of "
                f"{dtype_name(proto.dtype)} needs {count * item}"
            )
        return np.frombuffer(proto.tensor_content, _NUMPY[proto.dtype]).reshape(shape)
    values: Any = getattr(proto, field)
    if field in ("scomplex_val", "dcomplex_val"):
        if len(values) % 2:
            raise invalid("Complex tensor has an odd number of parts")
        values = [complex(values[i], values[i + 1]) for i in range(0, len(values), 2)]
    values = values[:count]
    if is_string:
        flat = _object_array(list(values), [len(values)])
    else:
        try:
            if field == "half_val":
                flat = np.array(values, np.uint16).view(_NUMPY[proto.dtype])
            else:
                flat = np.array(values, _NUMPY[proto.dtype])
        except OverflowError as error:
            raise invalid(f"{field} holds a value outside {dtype_name(proto.dtype)}") from error
    if len(flat) < count:
        last = flat[-1] if len(flat) else (b"" if is_string else 0)
        flat = np.concatenate([flat, np.full(count - len(flat), last, flat.dtype)])
    return flat.reshape(shape)


def _object_array(values: list[bytes], shape: list[int]) -> np.ndarray:
    flat = np.empty(len(values), object)
    flat[:] = values
    return flat.reshape(shape)


def _decode_strings(content: bytes, count: int) -> list[bytes]:
    """TensorFlow's string encoding: `count` varint lengths, then the bytes one after another."""
    lengths, at = [], 0
    if count > len(content):
        raise invalid("Tensor content of strings is shorter than its shape")
    for _ in range(count):
        length = shift = 0
        while True:
            if at >= len(content) or shift > 28:
                raise invalid("Tensor content of strings is malformed")
            byte = content[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if at + sum(lengths) != len(content):
        raise invalid("Tensor content of strings does not have the length that it states")
    values = []
    for length in lengths:
        values.append(content[at : at + length])
        at += length
    return values


def to_proto(array: np.ndarray, dtype: int, out: tensor_pb2.TensorProto, as_content: bool = False) -> None:
    """Encodes an output into `out`: typed fields, or `tensor_content` as the flag of TensorFlow Serving asks.

    Args:
        array: what the model returned; strings as an object array of `bytes`.
        dtype: its `DataType` number.
        out: the message to fill.
        as_content: raw bytes in place of typed fields.

    Raises:
        StatusError: `UNIMPLEMENTED` for a type that no field holds.
    """
    dtype = base_dtype(dtype)
    field = _FIELDS.get(dtype)
    if field is None:
        raise StatusError(Code.UNIMPLEMENTED, f"Output dtype {dtype_name(dtype)} cannot be put into a response")
    out.dtype = dtype
    out.tensor_shape.SetInParent()
    for size in np.shape(array):
        out.tensor_shape.dim.add().size = size
    if dtype == types_pb2.DT_STRING:
        values = np.ravel(array).tolist()
        if as_content:
            out.tensor_content = b"".join(map(_varint, map(len, values))) + b"".join(values)
        else:
            out.string_val.extend(values)
    elif as_content:
        out.tensor_content = np.ascontiguousarray(array).tobytes()
    elif field == "half_val":
        out.half_val.extend(np.ravel(array).view(np.uint16).tolist())
    elif field in ("scomplex_val", "dcomplex_val"):
        parts = np.ravel(array).view(np.float32 if field == "scomplex_val" else np.float64)
        getattr(out, field).extend(parts.tolist())
    else:
        getattr(out, field).extend(np.ravel(array).tolist())


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
