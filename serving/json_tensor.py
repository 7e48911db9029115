"""JSON of the REST API ↔ messages of the gRPC API.

Formats and wording follow TensorFlow Serving (g3doc/api_rest.md, util/json_tensor.cc), but for one thing: an error
names the place and the type of a wrong value and never quotes it, because it may be a patient's text.
"""

from __future__ import annotations

import base64
import codecs
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, predict_pb2, regression_pb2

from serving.errors import Code, StatusError, invalid, quotable
from serving.tensors import base_dtype, dtype_name, to_array

_DECODER = json.JSONDecoder()
_INT_FIELDS: dict[int, tuple[str, int, int]] = {
    types_pb2.DT_INT32: ("int_val", -(2**31), 2**31 - 1),
    types_pb2.DT_INT16: ("int_val", -(2**15), 2**15 - 1),
    types_pb2.DT_INT8: ("int_val", -(2**7), 2**7 - 1),
    types_pb2.DT_UINT8: ("int_val", 0, 2**8 - 1),
    types_pb2.DT_INT64: ("int64_val", -(2**63), 2**63 - 1),
    types_pb2.DT_UINT32: ("uint32_val", 0, 2**32 - 1),
    types_pb2.DT_UINT64: ("uint64_val", 0, 2**64 - 1),
}
_FLOAT_FIELDS = {types_pb2.DT_FLOAT: "float_val", types_pb2.DT_DOUBLE: "double_val"}
_PADDING = bytes.maketrans(b".", b"=")
# What Python's parser says, as rapidjson says it, on whose words TensorFlow Serving's users depend.
_PARSE_ERRORS = (
    ("Expecting property name", "Missing a name for object member."),
    ("Illegal trailing comma before end of object", "Missing a name for object member."),  # since Python 3.13
    ("Expecting ':'", "Missing a colon after a name of object member."),
    ("Expecting ','", "Missing a comma or } after an object member, or a comma or ] after an array element."),
    ("Unterminated string", "Missing a closing quotation mark in string."),
    ("Invalid control character", "Invalid encoding in string."),
    ("Invalid \\escape", "Invalid escape character in string."),
    ("Invalid \\uXXXX", "Incorrect hex digit after \\u escape in string."),
    ("", "Invalid value."),
)


def _type(value: Any) -> str:
    """The JSON type of a value, in rapidjson's words."""
    names = {type(None): "Null", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
    return str(value) if isinstance(value, bool) else names[type(value)]


def parse(body: bytes) -> dict[str, Any]:
    """A request body. What follows the first JSON value is ignored, as TensorFlow Serving does.

    Raises:
        StatusError: `INVALID_ARGUMENT` if it is not a JSON object.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        text = body.decode("utf-8-sig")
        start = len(text) - len(text.lstrip(" \t\r\n"))
        document, _ = _DECODER.raw_decode(text, start)
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid encoding at offset: {_mark(body) + error.start}") from None
    except json.JSONDecodeError as error:
        words = next(ours for theirs, ours in _PARSE_ERRORS if error.msg.startswith(theirs))
        words = words if text.strip() else "The document is empty."
        place = error.pos
        if "trailing comma" in error.msg:  # Python 3.13 gives its place, others the bracket's after it
            place = len(text) - len(text[place + 1 :].lstrip())
        offset = _mark(body) + len(text[:place].encode())
        raise invalid(f"JSON Parse error: {words} at offset: {offset}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists nested by the thousand
        raise invalid(f"JSON Parse error: {type(error).__name__}") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: ({_type(document)}) Is not object")
    return document


def _mark(body: bytes) -> int:
    """Bytes of the mark with which UTF-8 may begin; decoding leaves it out, and offsets count it."""
    return len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0


# === Predict requests ===


def predict_request(
    body: bytes,
    request: predict_pb2.PredictRequest,
    input_infos: Callable[[str], Mapping[str, meta_graph_pb2.TensorInfo]],
) -> bool:
    """Fills `request` from JSON.

    Args:
        body: the JSON.
        request: its model_spec is given; signature and inputs are filled in.
        input_infos: signature name → its inputs.

    Returns:
        True for the row format (`instances`), False for the columnar one (`inputs`).

    Raises:
        StatusError: `INVALID_ARGUMENT`, with the place.
    """
    document = parse(body)
    _fill_signature(document, request)
    infos = input_infos(request.model_spec.signature_name)
    if not infos:
        name = quotable(request.model_spec.signature_name) or "DEFAULT"
        raise invalid(f"Failed to get input map for signature: {name}")
    if "instances" in document and "inputs" in document:
        raise invalid(
            "JSON Value: (Object) Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise invalid("JSON Value: (Object) Expecting 'instances' to be an list/array")
        if not instances:
            raise invalid("JSON Value: (Object) No values in 'instances' array")
        _fill_rows(instances, infos, request)
        return True
    if "inputs" in document:
        _fill_columns(document["inputs"], infos, request)
        return False
    raise invalid("Missing 'inputs' or 'instances' key")


def _fill_signature(document: dict[str, Any], request: Any) -> None:
    if "signature_name" in document:
        name = document["signature_name"]
        if not isinstance(name, str):
            raise invalid("JSON Value: (Object) not formatted correctly. 'signature_name' key must be a string value.")
        request.model_spec.signature_name = _utf8(name).decode()


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _fill_rows(
    instances: list[Any], infos: Mapping[str, meta_graph_pb2.TensorInfo], request: predict_pb2.PredictRequest
) -> None:
    if not isinstance(instances[0], dict) and len(infos) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = _is_named(instances[0])
    shapes: dict[str, list[int]] = {}
    for number, element in enumerate(instances):
        if named and not _is_named(element):
            raise invalid(f"Expecting object but got list at item {number} of input list")
        if not named and _is_named(element):
            raise invalid(f"Expecting value/list but got object at item {number} of input list")
        values = element if named else {next(iter(infos)): element}
        for name, value in values.items():
            try:
                _add_item(value, name, infos, shapes, request)
            except StatusError as error:
                key = f" key: {quotable(name)}" if named else ""
                raise invalid(f"Failed to process element: {number}{key} of 'instances' list. Error: {error}") from None
        if named and set(values) != set(infos):
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: keys must be equal to: "
                f"{','.join(sorted(infos))}"
            )
    for name, shape in shapes.items():
        _finish(request.inputs[name], infos[name], [len(instances), *shape])


def _add_item(
    value: Any,
    name: str,
    infos: Mapping[str, meta_graph_pb2.TensorInfo],
    shapes: dict[str, list[int]],
    request: predict_pb2.PredictRequest,
) -> None:
    if name not in infos:
        raise invalid(f"JSON object: does not have named input: {quotable(name)}")
    shape = _shape(value)
    if name in shapes and math.prod(shapes[name]) != math.prod(shape):
        raise invalid(f"Expecting tensor size: {math.prod(shapes[name])} but got: {math.prod(shape)}")
    if shapes.setdefault(name, shape) != shape:
        raise invalid(f"Expecting shape {shapes[name]} but got: {shape}".replace(" ", "").replace("but", " but "))
    _fill_values(value, shape, base_dtype(infos[name].dtype), request.inputs[name])


def _fill_columns(
    inputs: Any, infos: Mapping[str, meta_graph_pb2.TensorInfo], request: predict_pb2.PredictRequest
) -> None:
    if not _is_named(inputs):
        if len(infos) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        inputs = {next(iter(infos)): inputs}
    for name, info in infos.items():
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        shape = _shape(inputs[name])
        _fill_values(inputs[name], shape, base_dtype(info.dtype), request.inputs[name])
        _finish(request.inputs[name], info, shape)


def _finish(tensor: tensor_pb2.TensorProto, info: meta_graph_pb2.TensorInfo, shape: list[int]) -> None:
    tensor.dtype = base_dtype(info.dtype)
    tensor.tensor_shape.SetInParent()
    for size in shape:
        tensor.tensor_shape.dim.add().size = size


def _shape(value: Any) -> list[int]:
    """The shape of nested lists, taken from the first element at each level."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def _fill_values(value: Any, shape: list[int], dtype: int, tensor: tensor_pb2.TensorProto) -> None:
    flat: list[Any] = []
    _flatten(value, shape, 0, flat)
    if dtype == types_pb2.DT_STRING:
        tensor.string_val.extend([_bytes(v) for v in flat])
    elif dtype == types_pb2.DT_BOOL:
        for v in flat:
            if not isinstance(v, bool):
                raise _type_error(v, dtype)
        tensor.bool_val.extend(flat)
    elif dtype in _FLOAT_FIELDS:
        for v in flat:
            if type(v) is not float and type(v) is not int:
                raise _type_error(v, dtype)
        try:
            numbers = [float(v) for v in flat]
        except OverflowError:
            raise invalid("JSON Value: (Number) is too large for a floating-point number") from None
        if dtype == types_pb2.DT_FLOAT:  # too large for float32: infinity, as a cast in C++ gives
            with np.errstate(over="ignore"):
                numbers = np.array(numbers, np.float32).tolist()
        getattr(tensor, _FLOAT_FIELDS[dtype]).extend(numbers)
    elif dtype in _INT_FIELDS:
        field, low, high = _INT_FIELDS[dtype]
        for v in flat:
            if type(v) is not int or not low <= v <= high:
                raise _type_error(v, dtype)
        getattr(tensor, field).extend(flat)
    else:
        raise StatusError(Code.UNIMPLEMENTED, f"Conversion of JSON Value to type: {dtype_name(dtype)}")


def _flatten(value: Any, shape: list[int], level: int, out: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: ({_type(value)}) found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        out.append(value)
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for item in value:
        _flatten(item, shape, level + 1, out)


def _type_error(value: Any, dtype: int) -> StatusError:
    kind = _type(value)
    return invalid(f"JSON Value: ({kind}) Type: {kind} is not of expected type: {dtype_name(dtype)}")


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return _utf8(value)
    if not isinstance(value, dict):
        raise _type_error(value, types_pb2.DT_STRING)
    if not _is_base64(value):
        raise invalid("JSON Value: (Object) not formatted correctly for base64 data")
    return _base64(value["b64"])


def _base64(text: str) -> bytes:
    """Decodes as `absl::Base64Unescape`: white space anywhere, `=` or `.` as padding, all of it or none."""
    try:
        encoded = text.encode("ascii").translate(_PADDING, delete=b" \t\n\v\f\r")
        data = encoded.rstrip(b"=")
        missing = -len(data) % 4
        if len(encoded) - len(data) not in (0, missing):
            raise invalid("Unable to base64 decode")
        return base64.b64decode(data + b"=" * missing, validate=True)
    except ValueError:
        raise invalid("Unable to base64 decode") from None


def _utf8(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None


# === Classify and Regress requests ===


def examples_request(body: bytes, request: Any) -> None:
    """Fills a ClassificationRequest or RegressionRequest from JSON. Raises `StatusError`: `INVALID_ARGUMENT`."""
    document = parse(body)
    _fill_signature(document, request)
    target: input_pb2.ExampleList | input_pb2.ExampleListWithContext = request.input.example_list
    if "context" in document:
        target = request.input.example_list_with_context
        _fill_example(document["context"], target.context)
    if "examples" not in document:
        raise invalid("JSON Value: (Object) When method is classify, key 'examples' is expected and was not found")
    examples = document["examples"]
    if not isinstance(examples, list):
        raise invalid("JSON Value: (Object) Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid("JSON Value: (Object) 'examples' value is an empty array")
    for value in examples:
        _fill_example(value, target.examples.add())


def _fill_example(value: Any, example: example_pb2.Example) -> None:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {_type(value)}")
    for name, content in value.items():
        key = _utf8(name).decode()
        feature = example.features.feature[key]
        for item in content if isinstance(content, list) else [content]:
            _add_to_feature(item, key, feature)


def _add_to_feature(value: Any, name: str, feature: feature_pb2.Feature) -> None:
    if value is None or isinstance(value, list) or _is_named(value):
        raise invalid(f"Feature: {quotable(name)} has element with unexpected JSON type: {_type(value)}")
    kind: str
    item: bytes | float
    if isinstance(value, (str, dict)):
        kind, item = "bytes_list", _bytes(value)
    elif isinstance(value, float):
        kind, item = "float_list", value
    else:
        kind, item = "int64_list", int(value)
        if not -(2**63) <= int(value) < 2**63:
            raise invalid(f"Feature: {quotable(name)} has uint64_t element. Only int64_t is supported.")
    if feature.WhichOneof("kind") not in (None, kind):
        expected = feature.WhichOneof("kind").removesuffix("_list")
        raise invalid(f"Unexpected element type in feature: {quotable(name)} expecting type: {expected}")
    getattr(feature, kind).value.append(item)


# === Responses ===


def _number(value: float, single: bool) -> str:
    """A number as TensorFlow Serving writes it: six digits if they suffice, else nine (float) or seventeen."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    text = f"{value:.6g}"
    read = float(np.float32(text)) if single else float(text)
    if read != value:
        text = f"{value:.{9 if single else 17}g}"
    return text if "." in text or "e" in text else text + ".0"


def _string(value: bytes) -> str:
    # Bytes that are not UTF-8 pass through as they are.
    return json.dumps(value.decode("utf-8", "surrogateescape"), ensure_ascii=False)


def _writer(name: str, dtype: int) -> Callable[[Any], str]:
    if dtype == types_pb2.DT_STRING:
        if name.endswith("_bytes"):
            return lambda v: json.dumps({"b64": base64.b64encode(v).decode()})
        return _string
    if dtype in _FLOAT_FIELDS:
        return lambda v: _number(v, dtype == types_pb2.DT_FLOAT)
    if dtype == types_pb2.DT_BOOL:
        return lambda v: "true" if v else "false"
    if dtype in _INT_FIELDS:
        return str
    raise invalid(f"Failed to write JSON value for tensor type: {dtype_name(dtype)}")


def _values(tensor: tensor_pb2.TensorProto) -> Any:
    """The values as nested lists; a scalar as itself."""
    return to_array(tensor).tolist()


def _render(value: Any, write: Callable[[Any], str]) -> str:
    if isinstance(value, list):
        return "[" + ", ".join([_render(v, write) for v in value]) + "]"
    return write(value)


def predict_response(outputs: Mapping[str, tensor_pb2.TensorProto], rows: bool) -> str:
    """JSON of a PredictResponse's outputs, in the format of its request.

    Raises:
        StatusError: `INVALID_ARGUMENT` if the outputs are not batched alike (row format), or have no JSON form.
    """
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    found = {n: (_values(t), _writer(n, t.dtype)) for n, t in sorted(outputs.items())}
    if not rows:
        if len(found) == 1:
            value, write = next(iter(found.values()))
            return f'{{\n    "outputs": {_render(value, write)}\n}}'
        parts = [f"        {json.dumps(n)}: {_render(v, w)}" for n, (v, w) in found.items()]
        return '{\n    "outputs": {\n' + ",\n".join(parts) + "\n    }\n}"
    batch = None
    for name in found:
        dims = outputs[name].tensor_shape.dim
        if not dims:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if batch is not None and dims[0].size != batch:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {dims[0].size} expecting: {batch}")
        batch = dims[0].size
    lines = []
    for i in range(batch or 0):
        if len(found) == 1:
            value, write = next(iter(found.values()))
            lines.append(_render(value[i], write))
        else:
            lines.append("{" + ", ".join([f"{json.dumps(n)}: {_render(v[i], w)}" for n, (v, w) in found.items()]) + "}")
    return '{\n    "predictions": [' + ",\n        ".join(lines) + "]\n}"


def classify_response(result: classification_pb2.ClassificationResult) -> str:
    """JSON: for each example, [label, score] pairs. Raises `StatusError` if there is none."""
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    rows = [
        "[" + ", ".join([f"[{_string(c.label.encode())}, {_number(c.score, True)}]" for c in row.classes]) + "]"
        for row in result.classifications
    ]
    return '{\n    "results": [' + ",\n        ".join(rows) + "]\n}"


def regress_response(result: regression_pb2.RegressionResult) -> str:
    """JSON: one number an example. Raises `StatusError` if there is none."""
    if not result.regressions:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    return '{\n    "results": [' + ", ".join([_number(r.value, True) for r in result.regressions]) + "]\n}"


def error_response(message: str) -> str:
    return json.dumps({"error": message}, ensure_ascii=False)
