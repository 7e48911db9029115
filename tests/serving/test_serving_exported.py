"""A model of this project's own making, exported by its own code, behind the server."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_service_pb2_grpc

from serving.client import Client

LONG = "Aspirin reduced the risk of death in patients with heart failure. " * 40
SHORT = ["Aspirin helped.", "No.", "It was a trial of placebo."]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = Path(__file__).with_name("exported_model.py")
    spec = importlib.util.spec_from_file_location("exported_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    base = tmp_path_factory.mktemp("exported") / "model"
    module.export_random_model(base / "1", "tiny")
    return base


def request(texts: list[str], signature: str = "") -> predict_pb2.PredictRequest:
    found = predict_pb2.PredictRequest()
    found.model_spec.name, found.model_spec.signature_name = "m", signature
    found.inputs["text"].CopyFrom(tf.make_tensor_proto([t.encode() for t in texts]))
    return found


def metrics(running) -> dict[str, float]:
    with urllib.request.urlopen(running.rest + "/monitoring/prometheus/metrics", timeout=30) as response:
        lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {re.sub(r'[{,](model_name|entrypoint)="\w+"', "", k).rstrip("}"): float(v) for k, v in map(str.split, lines)}


@pytest.fixture
def served(serve, exported, tmp_path):
    """Batches of 60, by tokens; nothing is ever computed because time has passed."""
    monitoring, batching = tmp_path / "monitoring.config", tmp_path / "batching.txt"
    monitoring.write_text("prometheus_config { enable: true }")
    batching.write_text(
        "max_batch_size { value: 60 } batch_timeout_micros { value: 600000000 } num_batch_threads { value: 1 }"
    )
    return serve(
        exported, model_name="m", rest_api_port=-1, monitoring_config_file=monitoring, enable_batching=True,
        batching_parameters_file=batching, max_batch_tokens=1000, grpc_max_threads=100,
    )  # fmt: skip


def classify_request(text: str) -> classification_pb2.ClassificationRequest:
    found = classification_pb2.ClassificationRequest()
    found.model_spec.name, found.model_spec.signature_name = "m", "classify"
    found.input.example_list.examples.add().features.feature["text"].bytes_list.value.append(text.encode())
    return found


def probabilities(answer) -> list[float]:
    if isinstance(answer, predict_pb2.PredictResponse):
        return list(answer.outputs["probabilities"].float_val)
    return [c.score for c in answer.result.classifications[0].classes]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "make"),
    [
        ("Predict", lambda text: request([text])), ("Predict", lambda text: request([text], "explain")),
        ("Classify", classify_request),
    ],
    ids=["serving_default", "explain", "classify"],
)  # fmt: skip
def test_one_long_text_does_not_make_sixty_short_ones_pay(served, serve, exported, eventually, method, make):
    plain = serve(exported, model_name="m")  # does not batch: what the tokeniser and the model say of each text
    shorts = [SHORT[i % 3] for i in range(60)]
    direct = prediction_service_pb2_grpc.PredictionServiceStub(plain.channel)
    lengths = list(direct.Predict(request([*SHORT, LONG], "tokens"), 60).outputs["row_lengths"].int64_val)
    assert lengths[3] == 128
    assert max(lengths[:3]) < 12
    with Client(plain.target, "m") as client:
        expected = [list(p.probabilities.values()) for p in client.predict([*SHORT, LONG])]

    call = getattr(prediction_service_pb2_grpc.PredictionServiceStub(served.channel), method)
    size = ":tensorflow:serving:batching_session:processed_batch_size"
    tokens, padded = ":biobert_cnn:serving:tokens", ":biobert_cnn:serving:padded_tokens"
    in_flight = ":biobert_cnn:serving:requests_in_flight"
    asked = ":tensorflow:serving:batching_session:input_batch_size_count"
    calls = [call.future(make(text), 600) for text in shorts[:30]]
    eventually(lambda: metrics(served).get(asked) == 30)  # the oldest, which others join, is a short one
    long = call.future(make(LONG), 600)
    calls += [call.future(make(text), 600) for text in shorts[30:59]]
    eventually(lambda: metrics(served).get(in_flight) == 60)
    assert f"{size}_count" not in metrics(served)  # 59 short texts and a long one wait; no batch is full

    calls.append(call.future(make(shorts[59]), 600))  # the sixtieth short one fills theirs
    answers = [one.result(60) for one in calls]
    found = metrics(served)
    assert (found[f"{size}_count"], found[f"{size}_sum"]) == (1, 60)
    assert found[tokens] == 20 * sum(lengths[:3])
    assert found[padded] == 60 * max(lengths[:3])
    assert not long.done()

    # Eight long ones are more tokens than a batch may have: seven go.
    more = [call.future(make(LONG), 600) for _ in range(7)]
    answers.append(long.result(60))
    eventually(lambda: sum(one.done() for one in more) == 6)
    answers += [one.result(60) for one in more if one.done()]
    found = metrics(served)
    assert (found[f"{size}_count"], found[f"{size}_sum"]) == (2, 67)
    assert found[tokens] == 20 * sum(lengths[:3]) + 7 * 128
    assert found[padded] == 60 * max(lengths[:3]) + 7 * 128
    for one in more:
        one.cancel()
    eventually(lambda: metrics(served)[in_flight] == 0)

    got = np.array([probabilities(answer) for answer in answers])
    wanted = np.array([expected[i % 3] for i in range(60)] + [expected[3]] * 7)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.slow
def test_a_withdrawn_request_leaves_the_queue(served, eventually):
    call = prediction_service_pb2_grpc.PredictionServiceStub(served.channel).Predict
    waiting = [call.future(request([text]), 600) for text in SHORT]
    eventually(lambda: metrics(served).get(":biobert_cnn:serving:requests_in_flight") == 3)
    for one in waiting:
        one.cancel()
    eventually(lambda: metrics(served)[":biobert_cnn:serving:requests_in_flight"] == 0)
    full = call(request(["No."] * 60), 60)  # a whole batch at once; what was withdrawn is not part of it
    assert len(full.outputs["label"].string_val) == 60
    found = metrics(served)
    assert found[":tensorflow:serving:batching_session:processed_batch_size_sum"] == 60
    with pytest.raises(grpc.RpcError) as caught:
        call(request(["No."]), 0.2)  # its deadline passes while it waits
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: metrics(served)[":biobert_cnn:serving:requests_in_flight"] == 0)


@pytest.mark.parametrize("distributed", [False, True])
def test_a_sequential_keras_model_is_served(serve, tmp_path, distributed):
    import keras

    strategy = tf.distribute.MirroredStrategy(["/cpu:0"]) if distributed else tf.distribute.get_strategy()
    with strategy.scope():
        dense = keras.layers.Dense(1, kernel_initializer="ones", bias_initializer="ones", name="y")
        model = keras.Sequential([keras.layers.Input((1,), name="x"), dense])
    model.export(str(tmp_path / "model" / "00000123"), verbose=False)
    channel = serve(tmp_path / "model", model_name="m").channel
    asked = predict_pb2.PredictRequest()
    asked.model_spec.name = "m"
    asked.inputs["x"].CopyFrom(tf.make_tensor_proto([[2.0], [3.0]]))
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(asked, 30)
    (output,) = response.outputs.values()
    assert list(output.float_val) == [3.0, 4.0]
    assert response.model_spec.version.value == 123


@pytest.mark.slow
def test_the_server_does_without_keras_and_tf_text_s_package():
    """Seconds and a hundred megabytes of each server; a text model's ops are there all the same."""
    code = (
        "import sys, serving.server; serving.server._freeze_imports(); import tensorflow as tf; "
        "from tensorflow.python.framework import op_def_registry; "
        "assert op_def_registry.get('NormalizeUTF8') and op_def_registry.get('FastWordpieceTokenizeWithOffsets'); "
        "print(*[name for name in ('keras', 'tf_keras', 'tensorflow_text', 'pandas') if sys.modules.get(name)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr[-2000:]
