"""A graph that fails on what it was fed: neither the server's log nor its answer holds it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

CANARY = "Zx9 canary"


def _asserted(x):
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(x == "other"), [x])]):
        return tf.identity(x)


# Each says in its error message what it was fed.
OPS = {
    "to_number": tf.strings.to_number, "assert": _asserted, "decode_json_example": tf.io.decode_json_example,
}  # fmt: skip


@pytest.fixture
def failing(tmp_path) -> Path:
    def signature(op):
        return tf.function(lambda x: {"y": op(x)}, [tf.TensorSpec([None], tf.string, "x")])

    tf.saved_model.save(tf.Module(), str(tmp_path / "failing" / "1"), {name: signature(op) for name, op in OPS.items()})
    return tmp_path / "failing"


def test_what_a_graph_fails_on_is_neither_logged_nor_quoted(spawn, failing, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")  # the server's own default holds
    process = spawn(f"--model_base_path={failing}", rest=True)
    answers = []
    with grpc.insecure_channel(process.target) as channel:
        for name in OPS:
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = "default", name
            request.inputs["x"].CopyFrom(tf.make_tensor_proto([CANARY]))
            with pytest.raises(grpc.RpcError) as refused:
                prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, 30)
            answers.append(refused.value.details())
            body = json.dumps({"signature_name": name, "instances": [CANARY]}).encode()
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(process.rest + "/v1/models/default:predict", body, timeout=30)
            answers.append(refused.value.read().decode())
    assert process.stop() == 0
    assert all("The model's graph failed: " in answer and "canary" not in answer for answer in answers)
    log = (tmp_path / "server-0.log").read_text()
    assert "available after" in log
    assert "canary" not in log
