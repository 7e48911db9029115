"""The request log, as the pipeline reads it back, and the load generator."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading

import grpc
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    classification_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving import bench
from serving.errors import StartError
from serving.metrics import Metrics
from serving.request_log import LogOptions, RequestLog, _Writer


def config(base, logging: str) -> str:
    return (
        f'model_config_list {{ config {{ name: "m" base_path: "{base}" model_platform: "tensorflow" '
        f"logging_config {{ {logging} }} }} }}"
    )


def to_files(prefix, rate: float = 1.0) -> str:
    return (
        f'log_collector_config {{ type: "file" filename_prefix: "{prefix}" }} '
        f"sampling_config {{ sampling_rate: {rate} }}"
    )


def records(path) -> list[bytes]:
    return list(tf.compat.v1.io.tf_record_iterator(str(path)))


def test_logged_requests_are_read_back_by_the_pipeline_s_reader(serve, toys, tmp_path):
    from components.validation.serving_logs import request_texts

    path = tmp_path / "models.config"
    path.write_text(config(toys.text, to_files(tmp_path / "log" / "m")))
    running = serve(model_config_file=path)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(running.channel)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"one", b"two"]))
    stub.Predict(request, 20)
    for size in (1, 3):  # more values than the shape asks for, and fewer
        request.inputs["text"].tensor_shape.dim[0].size = size
        stub.Predict(request, 20)
    request.inputs["text"].tensor_shape.dim[0].size = 2
    request.inputs["text"].ClearField("string_val")
    request.inputs["text"].tensor_content = b"\x05\x04threefour"
    stub.Predict(request, 20)
    examples = classification_pb2.ClassificationRequest()
    examples.model_spec.name, examples.model_spec.signature_name = "m", "classify"
    examples.input.example_list.examples.add().features.feature["text"].bytes_list.value.append(b"five")
    stub.Classify(examples, 20)
    running.server.stop()
    files = list((tmp_path / "log").iterdir())
    assert [f.suffix for f in files] == [".tfrecord"]
    found = records(files[0])
    assert [request_texts(r) for r in found] == [
        [b"one", b"two"], [b"one"], [b"one", b"two", b"two"], [b"three", b"four"], [b"five"],
    ]  # fmt: skip
    log = prediction_log_pb2.PredictionLog.FromString(found[0])
    assert (log.log_metadata.model_spec.version.value, log.log_metadata.sampling_config.sampling_rate) == (1, 1.0)
    assert list(log.predict_log.response.outputs["label"].string_val) == [b"short", b"short"]


@pytest.fixture
def request_log(tmp_path, monkeypatch) -> RequestLog:
    """A log of all requests to model `m`, each in a file of its own below the folder `log`."""
    options = LogOptions(str(tmp_path / "log" / "m"), 1.0, max_bytes=1)
    monkeypatch.setattr("serving.request_log.log_options", lambda config: {"m": options})
    return RequestLog(Metrics())


def test_files_are_for_their_owner_alone_and_texts_in_them_are_warned_of(request_log, tmp_path, caplog):
    umask = os.umask(0)
    try:
        request_log.configure(ModelServerConfig())
        for _ in range(2):
            request_log.log("m", "Predict", predict_pb2.PredictRequest(), predict_pb2.PredictResponse())
        request_log.close()
    finally:
        os.umask(umask)
    folder = tmp_path / "log"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [(f.suffix, stat.S_IMODE(f.stat().st_mode)) for f in folder.iterdir()] == [(".tfrecord", 0o600)] * 2
    assert f"1 of the requests are written to {folder}/m-*.tfrecord, texts included" in caplog.text


def test_files_that_a_killed_server_left_are_finished_up_to_their_last_whole_record(request_log, tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    for name, missing in {"whole": 0, "cut": 1, "cut-in-length": 20, "nothing-whole": 30, "held": 0}.items():
        path = folder / f"m-{name}.open"
        with tf.io.TFRecordWriter(str(path)) as file:
            file.write(b"first")  # 21 bytes
            file.write(b"second")
        os.truncate(path, path.stat().st_size - missing)
    with open(folder / "m-held.open", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as a server does that is writing it
        request_log.configure(ModelServerConfig())
        request_log.close()
    assert {f.name: records(f) for f in folder.iterdir()} == {
        "m-whole.tfrecord": [b"first", b"second"], "m-cut.tfrecord": [b"first"], "m-cut-in-length.tfrecord": [b"first"],
        "m-nothing-whole.open": [], "m-held.open": [b"first", b"second"],
    }  # fmt: skip


def test_a_config_whose_log_folder_cannot_be_made_is_not_taken_over(serve, toys, tmp_path, eventually, caplog):
    path = tmp_path / "models.config"
    path.write_text(config(toys.text, to_files(tmp_path / "m", 0.0)))
    running = serve(model_config_file=path, model_config_file_poll_wait_seconds=1)
    below_a_file = config(toys.text, to_files(path / "log" / "m"))
    words = "model m: request log: cannot make the folder "
    path.write_text(below_a_file)
    eventually(lambda: f"the configuration file is not taken over: FAILED_PRECONDITION: {words}" in caplog.text)
    request = model_management_pb2.ReloadConfigRequest(config=text_format.Parse(below_a_file, ModelServerConfig()))
    with pytest.raises(grpc.RpcError) as refused:
        model_service_pb2_grpc.ModelServiceStub(running.channel).HandleReloadConfigRequest(request, 20)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.value.details().startswith(words)
    path.write_text(config(toys.text, to_files(tmp_path / "log" / "m")))
    eventually((tmp_path / "log").is_dir)


def test_a_log_folder_that_cannot_be_made_ends_the_start_with_one_message(spawn, toys, tmp_path):
    path = tmp_path / "models.config"
    path.write_text(config(toys.text, to_files(path / "log" / "m")))
    assert spawn(f"--model_config_file={path}", wait=False).popen.wait(120) == 1
    log = (tmp_path / "server-0.log").read_text()
    assert log.splitlines()[-1] == (
        "Failed to start server. Error: FAILED_PRECONDITION: model m: request log: cannot make the folder "
        f"{path}/log: Not a directory"
    )
    assert "Traceback" not in log


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
    path.write_text(config(toys.text, to_files(tmp_path / "m", 0.5)))
    running = serve(model_config_file=path)
    call = prediction_service_pb2_grpc.PredictionServiceStub(running.channel).Predict
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"one"]))
    for _ in range(400):
        call(request, 20)
    running.server.stop()
    count = sum(len(records(f)) for f in tmp_path.glob("*.tfrecord"))
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


def test_the_request_log_holds_no_more_than_its_bytes_and_fails_no_answer(tmp_path, monkeypatch):
    metrics, go_on = Metrics(), threading.Event()
    monkeypatch.setattr("serving.request_log._QUEUED_BYTES", 1000)
    written = _Writer._write

    def held(self: _Writer, record: bytes) -> None:
        go_on.wait(30)
        written(self, record)

    monkeypatch.setattr(_Writer, "_write", held)
    log = RequestLog(metrics)
    log.configure(text_format.Parse(config(tmp_path, to_files(tmp_path / "log")), ModelServerConfig()))
    request, response = predict_pb2.PredictRequest(), predict_pb2.PredictResponse()
    request.inputs["text"].string_val.append(b"a" * 600)
    for _ in range(4):  # one is being written at most, one waits
        log.log("m", "Predict", request, response)
    count = metrics.request_log_count
    assert count.value("m", "dropped") in (2, 3)
    log.log("m", "Predict", request, None)  # no response that could be logged
    assert count.value("m", "failed") == 1
    go_on.set()
    log.close()
    assert count.value("m", "OK") + count.value("m", "dropped") == 4
