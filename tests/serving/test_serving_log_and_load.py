"""The request log, as the pipeline reads it back, and the load generator."""

from __future__ import annotations

import json

import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc

from serving import bench
from serving.errors import StartError


def config(base, logging: str) -> str:
    return (
        f'model_config_list {{ config {{ name: "m" base_path: "{base}" model_platform: "tensorflow" '
        f"logging_config {{ {logging} }} }} }}"
    )


def test_logged_requests_are_read_back_by_the_pipeline_s_reader(serve, toys, tmp_path):
    from components.validation.serving_logs import request_texts

    path = tmp_path / "models.config"
    path.write_text(
        config(
            toys.text,
            f'log_collector_config {{ type: "file" filename_prefix: "{tmp_path}/log/m" }} '
            "sampling_config { sampling_rate: 1.0 }",
        )
    )
    running = serve(model_config_file=path)
    call = prediction_service_pb2_grpc.PredictionServiceStub(running.channel).Predict
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"one", b"two"]))
    call(request, 20)
    request.inputs["text"].ClearField("string_val")
    request.inputs["text"].tensor_content = b"\x05\x04threefour"
    call(request, 20)
    running.server.stop()
    files = list((tmp_path / "log").iterdir())
    assert [f.suffix for f in files] == [".tfrecord"]
    records = list(tf.compat.v1.io.tf_record_iterator(str(files[0])))
    assert [request_texts(r) for r in records] == [[b"one", b"two"], [b"three", b"four"]]
    log = prediction_log_pb2.PredictionLog.FromString(records[0])
    assert (log.log_metadata.model_spec.version.value, log.log_metadata.sampling_config.sampling_rate) == (1, 1.0)
    assert list(log.predict_log.response.outputs["label"].string_val) == [b"short", b"short"]


def test_nothing_is_logged_unless_asked_for(serve, toys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    running = serve(toys.text, model_name="m")
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"one"]))
    prediction_service_pb2_grpc.PredictionServiceStub(running.channel).Predict(request, 20)
    running.server.stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("logging", "words"),
    [
        ('log_collector_config { type: "other" filename_prefix: "/x" }', "got type 'other'"),
        ('log_collector_config { type: "file" }', "a filename_prefix"),
        ('log_collector_config { type: "file" filename_prefix: "/x" } sampling_config { sampling_rate: 2 }', "2.0 is"),
    ],
)
def test_a_logging_config_that_makes_no_sense_is_refused(serve, toys, tmp_path, logging, words):
    path = tmp_path / "models.config"
    path.write_text(config(toys.text, logging))
    with pytest.raises(StartError, match=words):
        serve(model_config_file=path)


def test_a_rate_of_one_half_logs_about_half(serve, toys, tmp_path):
    path = tmp_path / "models.config"
    where = f'log_collector_config {{ type: "file" filename_prefix: "{tmp_path}/m" }}'
    path.write_text(config(toys.text, where + " sampling_config { sampling_rate: 0.5 }"))
    running = serve(model_config_file=path)
    call = prediction_service_pb2_grpc.PredictionServiceStub(running.channel).Predict
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"one"]))
    for _ in range(400):
        call(request, 20)
    running.server.stop()
    count = sum(1 for f in tmp_path.glob("*.tfrecord") for _ in tf.compat.v1.io.tf_record_iterator(str(f)))
    assert 120 < count < 280  # 8 standard deviations


def test_the_load_generator_reports_answers_and_latencies(serve, toys, capsys):
    running = serve(toys.text, model_name="m", grpc_max_threads=512)
    argv = [
        f"--target={running.target}",
        "--model_name=m",
        "--rate=30",
        "--duration=2",
        "--batch=3",
        "--timeout=60",
        "--json",
    ]
    assert bench.main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["sent"] == len(bench.arrivals(30, 2, 0))
    assert found["answered"] == found["sent"]
    assert found["refused_or_failed"] == {}
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]


def test_the_load_generator_counts_refusals(serve, toys, capsys):
    running = serve(toys.text, model_name="m")
    assert bench.main([f"--target={running.target}", "--model_name=other", "--rate=50", "--duration=1"]) == 1
    assert '"NOT_FOUND": ' in capsys.readouterr().out


def test_arrivals_are_a_poisson_process_of_the_rate():
    times = bench.arrivals(100.0, 100.0, seed=1)
    assert times == sorted(times)
    assert 9500 < len(times) < 10500
    assert times == bench.arrivals(100.0, 100.0, seed=1)
