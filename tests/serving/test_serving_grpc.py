"""The behaviours of TensorFlow Serving's tensorflow_model_server_test.py over gRPC, on models of the same shapes."""

from __future__ import annotations

import resource

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.rpc import truncated


def predict_request(name="default", signature="", version=None, **inputs) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return request


def stub(running):
    return prediction_service_pb2_grpc.PredictionServiceStub(running.channel)


def models(running):
    return model_service_pb2_grpc.ModelServiceStub(running.channel)


def status_of(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("model", ["half_plus_two", "half_plus_two_tf2"])
def test_predict_returns_values_and_the_model_spec(serve, toys, model):
    running = serve(getattr(toys, model))
    # Also where the signature says [-1, 1]: TensorFlow Serving leaves the shape to the graph.
    request = predict_request(x=np.array([2.0, 4.0], np.float32))
    response = stub(running).Predict(request, 20)
    assert tf.make_ndarray(response.outputs["y"]).ravel().tolist() == [3.0, 4.0]
    assert list(response.outputs["y"].float_val) == [3.0, 4.0]
    assert response.model_spec.name == "default"
    assert response.model_spec.signature_name == "serving_default"
    assert response.model_spec.version.value == 123


def test_predict_runs_a_tf1_model_with_reference_variables(serve, toys):
    running = serve(toys.half_plus_three)
    response = stub(running).Predict(predict_request(x=np.array([[2.0]], np.float32)), 20)
    assert list(response.outputs["y"].float_val) == [4.0]


def test_counter_keeps_its_state_between_requests(serve, toys):
    predict = stub(serve(toys.counter)).Predict
    seen = [
        predict(predict_request(signature=s, **i), 20).outputs["output"].float_val[0]
        for s, i in [
            ("get_counter", {}), ("incr_counter", {}), ("incr_counter", {}),
            ("incr_counter_by", {"delta": np.float32(3.0)}), ("reset_counter", {}), ("get_counter", {}),
        ]
    ]  # fmt: skip
    assert seen == [0.0, 1.0, 2.0, 5.0, 0.0, 0.0]


def test_predict_takes_any_signature_of_a_tf2_export(serve, tmp_path):
    root = tf.train.Checkpoint()
    spec = [tf.TensorSpec(None, tf.float32, "x")]
    root.f = tf.function(lambda x: {"y": tf.fill(tf.shape(x), 1.0)}, spec)
    root.g = tf.function(lambda x: {"y": tf.fill(tf.shape(x), 2.0)}, spec)
    folder = tmp_path / "model" / "00000123"
    tf.saved_model.save(root, str(folder), {"serving_default": root.f, "custom_signature_key": root.g})
    predict = stub(serve(folder.parent)).Predict
    for signature, expected in (("custom_signature_key", 2.0), ("", 1.0)):
        response = predict(predict_request(signature=signature, x=np.array([2.0], np.float32)), 20)
        assert list(response.outputs["y"].float_val) == [expected]
        assert response.model_spec.signature_name == (signature or "serving_default")
        assert response.model_spec.version.value == 123


def test_predict_returns_only_the_outputs_that_the_filter_names(serve, toys):
    running = serve(toys.text)
    request = predict_request(text=[b"a", b"a much longer text"])
    request.output_filter.append("label")
    response = stub(running).Predict(request, 20)
    assert sorted(response.outputs) == ["label"]
    assert list(response.outputs["label"].string_val) == [b"short", b"long"]


def test_predict_reads_both_encodings_of_numbers_and_strings(serve, toys):
    numbers = predict_request(x=np.array([[2.0], [4.0]], np.float32))
    assert numbers.inputs["x"].tensor_content
    typed = predict_pb2.PredictRequest.FromString(numbers.SerializeToString())
    typed.inputs["x"].ClearField("tensor_content")
    typed.inputs["x"].float_val.extend([2.0, 4.0])
    running = serve(toys.half_plus_two)
    answers = [list(stub(running).Predict(r, 20).outputs["y"].float_val) for r in (numbers, typed)]
    assert answers == [[3.0, 4.0], [3.0, 4.0]]
    running = serve(toys.text)
    content = predict_request(text=[b"a", b"bb"])
    content.inputs["text"].ClearField("string_val")
    content.inputs["text"].tensor_content = b"\x01\x02abb"
    response = stub(running).Predict(content, 20)
    expected = np.array([1 / 11, 2 / 12], np.float32)
    np.testing.assert_allclose(tf.make_ndarray(response.outputs["probabilities"])[:, 1], expected, rtol=1e-6)


def test_predict_refuses_what_does_not_fit_the_signature(serve, toys):
    running = serve(toys.half_plus_two)
    good = np.array([[2.0]], np.float32)
    predict = stub(running).Predict
    bad_type = predict_request(x=np.array([[2]], np.int64))
    bad_filter = predict_request(x=good)
    bad_filter.output_filter.append("nope")
    twice = predict_request(x=good)
    twice.output_filter.extend(["y", "y"])
    assert status_of(lambda: predict(predict_request(signature="nope", x=good), 20)) == (
        grpc.StatusCode.FAILED_PRECONDITION, 'Serving signature key "nope" not found.',
    )  # fmt: skip
    assert status_of(lambda: predict(predict_request(), 20)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}.",
    )
    assert status_of(lambda: predict(predict_request(z=good), 20)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Signature input alias: x(feed name: x:0) not found in request and no default value provided. "
        "Inputs expected to be in the request {z}, or default input alias set: ",
    )
    assert status_of(lambda: predict(predict_request(x=good, z=good), 20)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. Missing but required: {}.",
    )
    assert status_of(lambda: predict(bad_type, 20)) == (
        grpc.StatusCode.INVALID_ARGUMENT, "Expects arg[0] to be float but int64 is provided",
    )  # fmt: skip
    assert status_of(lambda: predict(predict_request(x=[[b"a"]]), 20)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "The model's graph failed: Expects arg[0] to be float but string is provided",
    )
    no_type = predict_request(x=good)
    no_type.inputs["x"].dtype = 0
    code, words = status_of(lambda: predict(no_type, 20))
    assert (code, words[:24]) == (grpc.StatusCode.INVALID_ARGUMENT, "tensor parsing error: x:")
    assert status_of(lambda: predict(bad_filter, 20))[1].startswith("output tensor alias not found in signature: nope")
    assert status_of(lambda: predict(twice, 20))[1] == "duplicate output tensor alias: y"


def test_predict_of_an_unknown_model_or_version_is_not_found(serve, toys):
    predict = stub(serve(toys.half_plus_two)).Predict
    good = np.array([[2.0]], np.float32)
    assert status_of(lambda: predict(predict_request(name="half", x=good), 20)) == (
        grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(half)",
    )  # fmt: skip
    assert status_of(lambda: predict(predict_request(version=7, x=good), 20)) == (
        grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(default, 7)",
    )  # fmt: skip
    assert status_of(lambda: predict(predict_request(name="", x=good), 20)) == (
        grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified.",
    )  # fmt: skip
    assert status_of(lambda: predict(predict_pb2.PredictRequest(), 20)) == (
        grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec",
    )  # fmt: skip


def test_a_message_longer_than_a_kilobyte_is_cut():
    assert truncated("a" * 1024) == "a" * 1024
    assert truncated("é" * 600) == "é" * 512 + "...TRUNCATED"


def test_model_status_says_available(serve, toys):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "default"
    result = models(serve(toys.half_plus_two)).GetModelStatus(request, 20)
    assert len(result.model_version_status) == 1
    found = result.model_version_status[0]
    assert (found.version, found.state, found.status.error_code) == (123, found.AVAILABLE, 0)


def test_model_status_of_an_unknown_model_is_not_found(serve, toys):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "nope"
    call = models(serve(toys.half_plus_two)).GetModelStatus
    assert status_of(lambda: call(request, 20)) == (
        grpc.StatusCode.NOT_FOUND, "Could not find any versions of model nope",
    )  # fmt: skip


def test_model_metadata_holds_the_signatures(serve, toys):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "default"
    result = stub(serve(toys.half_plus_two)).GetModelMetadata(request, 20)
    assert (result.model_spec.name, result.model_spec.version.value) == ("default", 123)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert result.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["x"].name == "x:0"
    assert signatures.signature_def["regress_x_to_y"].method_name == "tensorflow/serving/regress"
    assert len(signatures.signature_def) == 5


def test_the_server_takes_as_many_open_files_as_the_system_lets_it(spawn, toys):
    """Most shells start a process with 1,024, and each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server = spawn(f"--model_base_path={toys.half_plus_two}")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(server.popen.pid, resource.RLIMIT_NOFILE) == (hard, hard)


def test_a_failure_that_nobody_foresaw_is_answered_without_its_words(serve, toys, monkeypatch, caplog):
    def fail(*_):
        raise ValueError("a text of a patient")

    running = serve(toys.half_plus_two)
    monkeypatch.setattr("serving.core.ServerCore.metadata", fail)
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "default"
    status = status_of(lambda: stub(running).GetModelMetadata(request, 20))
    assert status == (grpc.StatusCode.INTERNAL, "Internal error of the server")
    assert "ValueError at " in caplog.text
    assert "patient" not in caplog.text
