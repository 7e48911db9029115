"""Models of any type of value, over gRPC and REST, batched or not."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

NUMBERS = [
    tf.int64, tf.int32, tf.int16, tf.int8, tf.uint64, tf.uint32, tf.uint16, tf.uint8, tf.half, tf.bfloat16, tf.float32,
    tf.float64, tf.complex64,
]  # fmt: skip
# By the names that TensorFlow's C++ code has for them.
VALUES = {"half" if d is tf.half else d.name: (d, [1, 2, 3]) for d in NUMBERS} | {
    "bool": (tf.bool, [True, False, True]),
    "string": (tf.string, [b"a", b"", b"\xff\x00"]),
}
NO_JSON = {"half", "bfloat16", "uint16", "complex64"}  # nor has TensorFlow Serving a form for them


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A signature for each type that returns its input, and some that take or return what is not one dense tensor."""

    def same(dtype):
        return tf.function(lambda x: {"y": tf.identity(x)}, [tf.TensorSpec([None], dtype, "x")])

    def takes(body, spec):
        return tf.function(lambda x: {"y": body(x)}, [spec])

    string = tf.TensorSpec([None], tf.string, "x")
    signatures = {name: same(dtype) for name, (dtype, _) in VALUES.items()}
    signatures |= {
        "words": takes(lambda x: tf.strings.split(x).row_lengths(), string),
        "returns_ragged": takes(tf.strings.split, string),
        "returns_sparse": takes(lambda x: tf.strings.split(x).to_sparse(), string),
        "takes_ragged": takes(lambda x: tf.reduce_sum(x, 1), tf.RaggedTensorSpec([None, None], tf.int64)),
        "takes_sparse": takes(lambda x: tf.sparse.reduce_sum(x, 1), tf.SparseTensorSpec([None, None], tf.int64)),
    }
    base = tmp_path_factory.mktemp("values")
    tf.saved_model.save(tf.Module(), str(base / "1"), signatures)
    return base


@pytest.fixture(params=[False, True], ids=["alone", "batched"])
def running(request, serve, model):
    return serve(model, rest_api_port=-1, enable_batching=request.param)


def predict(running, signature: str, **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "default", signature
    for alias, tensor in inputs.items():
        request.inputs[alias].CopyFrom(tensor)
    return prediction_service_pb2_grpc.PredictionServiceStub(running.channel).Predict(request, 20).outputs


def rest(running, body: dict) -> tuple[int, dict]:
    request = urllib.request.Request(running.rest + "/v1/models/default:predict", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_every_type_goes_in_and_out_over_grpc_and_so_does_nothing_of_it(running):
    for signature, (dtype, values) in VALUES.items():
        for sent in (values, []):
            (output,) = predict(running, signature, x=tf.make_tensor_proto(sent, dtype, [len(sent)])).values()
            assert (output.dtype, tf.make_ndarray(output).tolist()) == (dtype.as_datatype_enum, sent)


def test_every_type_that_json_has_goes_in_and_out_over_rest(running):
    for signature, (_, values) in VALUES.items():
        sent = ["a", "é", ""] if signature == "string" else values
        status, found = rest(running, {"signature_name": signature, "instances": sent})
        if signature in NO_JSON:
            assert status == 400
            assert found["error"].endswith(f"UNIMPLEMENTED: Conversion of JSON Value to type: {signature}")
        else:
            assert (status, found) == (200, {"predictions": sent})
            assert rest(running, {"signature_name": signature, "inputs": []}) == (200, {"outputs": []})


def test_more_values_than_the_shape_holds_are_dropped_and_fewer_repeated(running):
    for values, expected in (([1, 2, 3], [1, 2]), ([7], [7, 7]), ([], [0, 0])):
        tensor = tf.make_tensor_proto([0, 0], tf.int64)
        tensor.ClearField("tensor_content")
        tensor.int64_val[:] = values
        assert list(predict(running, "int64", x=tensor)["y"].int64_val) == expected


def test_sparse_and_ragged_inputs_are_taken_as_the_tensors_they_are_made_of(serve, model):
    running = serve(model)
    int64 = tf.int64
    splits = tf.make_tensor_proto([0, 2, 3], int64)
    found = predict(running, "takes_ragged", x=tf.make_tensor_proto([1, 2, 5], int64), x_1=splits)
    assert list(found["y"].int64_val) == [3, 5]
    found = predict(
        running, "takes_sparse", x=tf.make_tensor_proto([[0, 0], [1, 1]], int64),
        x_1=tf.make_tensor_proto([4, 6], int64), x_2=tf.make_tensor_proto([2, 2], int64),
    )  # fmt: skip
    assert list(found["y"].int64_val) == [4, 6]


@pytest.mark.parametrize("signature", ["returns_ragged", "returns_sparse"])
def test_sparse_and_ragged_outputs_are_refused_in_tensorflow_s_words(running, signature):
    with pytest.raises(grpc.RpcError) as caught:
        predict(running, signature, x=tf.make_tensor_proto([b"a b"]))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details().startswith("FetchOutputs node : not found")
    status, found = rest(running, {"signature_name": signature, "instances": ["a b"]})
    assert (status, found["error"][:29]) == (404, "FetchOutputs node : not found")


def test_a_string_of_the_wrong_shape_is_refused_with_its_shape_and_without_the_string(running):
    with pytest.raises(grpc.RpcError) as caught:
        predict(running, "words", x=tf.make_tensor_proto([[[b"secret"], [b"secret"]]]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "[1, 2, 1]" in caught.value.details()
    assert "secret" not in caught.value.details()
