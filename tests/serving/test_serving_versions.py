"""Versions that come, go, break and are swapped while requests are answered."""

from __future__ import annotations

import shutil
import signal
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

FAST = {"file_system_poll_wait_seconds": 1, "max_num_load_retries": 0}


def ask(channel, x=2.0, version=None, name="default") -> tuple[float, int]:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([[x]], np.float32)))
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, 20)
    return response.outputs["y"].float_val[0], response.model_spec.version.value


def states(channel, name="default") -> dict[int, tuple[str, int, str]]:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    found = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, 20).model_version_status
    return {s.version: (s.State.Name(s.state), s.status.error_code, s.status.error_message) for s in found}


def put(source, base, version: int):
    """Publishes a version in one step, as the Pusher does."""
    hidden = base / f".tmp-{version}"
    shutil.copytree(source, hidden)
    hidden.rename(base / str(version))
    return base / str(version)


@pytest.fixture
def base(tmp_path, toys):
    path = tmp_path / "model"
    path.mkdir()
    put(toys.half_plus_two / "123", path, 1)
    return path


def test_a_new_version_takes_over_without_a_failed_request(serve, toys, base, eventually):
    running = serve(base, **FAST)
    three = toys.half_plus_three / "123"
    answers, failures, done = [], [], threading.Event()

    def load() -> None:
        while not done.is_set():
            try:
                answers.append(ask(running.channel))
            except grpc.RpcError as error:
                failures.append(error.code())

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in (2, 3, 4):
        put(three if version % 2 == 0 else toys.half_plus_two / "123", base, version)
        eventually(lambda version=version: ask(running.channel)[1] == version)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(answers) <= {(3.0, 1), (4.0, 2), (3.0, 3), (4.0, 4)}
    assert len(answers) > 20
    eventually(lambda: {v: s[0] for v, s in states(running.channel).items()} == {
        4: "AVAILABLE", 3: "END", 2: "END", 1: "END",
    })  # fmt: skip


@pytest.mark.parametrize("fault", ["empty", "garbage", "half copied", "no variables"])
def test_a_broken_version_never_replaces_one_that_works(serve, toys, base, eventually, fault):
    running = serve(base, **FAST)
    if fault == "empty":
        (base / "2").mkdir()
    else:
        broken = base / ".tmp"
        shutil.copytree(toys.half_plus_two / "123", broken)
        if fault == "garbage":
            (broken / "saved_model.pb").write_bytes(b"\x00garbage" * 100)
        elif fault == "no variables":
            shutil.rmtree(broken / "variables")
        else:
            data = next((broken / "variables").glob("*.data*"))
            data.write_bytes(data.read_bytes()[:-3])
        broken.rename(base / "2")
    eventually(lambda: states(running.channel).get(2, ("",))[0] == "END")
    state = states(running.channel)
    assert state[1] == ("AVAILABLE", 0, "")
    assert state[2][1] != 0
    assert f"Could not load SavedModel at {base}/2" in state[2][2]
    assert ask(running.channel) == (3.0, 1)


def test_a_version_that_fails_its_warm_up_never_takes_over(serve, toys, base, eventually):
    running = serve(base, **FAST)
    broken = base / ".tmp"
    shutil.copytree(toys.half_plus_three / "123", broken)
    (broken / "assets.extra").mkdir()
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.name = "default"
    log.predict_log.request.inputs["wrong"].CopyFrom(tf.make_tensor_proto([1.0]))
    with tf.io.TFRecordWriter(str(broken / "assets.extra/tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())
    broken.rename(base / "2")
    eventually(lambda: states(running.channel).get(2, ("",))[0] == "END")
    assert states(running.channel)[2][2].startswith("Warm-up failed: ")
    assert ask(running.channel) == (3.0, 1)


def test_warm_up_requests_run_before_the_version_answers(serve, toys, tmp_path):
    base = tmp_path / "warm"
    shutil.copytree(toys.counter, base)
    (base / "123" / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(base / "123/assets.extra/tf_serving_warmup_requests")) as writer:
        log = prediction_log_pb2.PredictionLog()
        log.predict_log.request.model_spec.signature_name = "incr_counter"
        for _ in range(3):
            writer.write(log.SerializeToString())
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "default", "get_counter"

    def counted(**flags):
        running = serve(base, **flags)
        call = prediction_service_pb2_grpc.PredictionServiceStub(running.channel).Predict
        return call(request, 20).outputs["output"].float_val[0]

    assert counted() == 3.0
    assert counted(num_request_iterations_for_warmup=2) == 6.0
    assert counted(enable_model_warmup=False) == 0.0


def test_a_version_that_is_completed_later_loads_on_a_further_try(serve, toys, base, eventually):
    running = serve(base, file_system_poll_wait_seconds=1, max_num_load_retries=50, load_retry_interval_micros=100_000)
    (base / "2").mkdir()
    eventually(lambda: states(running.channel).get(2, ("", 0))[1] != 0)
    assert states(running.channel)[2][0] == "LOADING"
    shutil.copytree(toys.half_plus_three / "123", base / "2", dirs_exist_ok=True)
    eventually(lambda: ask(running.channel) == (4.0, 2))


def test_a_newer_version_does_not_wait_for_the_retries_of_a_broken_one(serve, toys, base, eventually):
    running = serve(
        base, file_system_poll_wait_seconds=1, max_num_load_retries=5, load_retry_interval_micros=3600 * 10**6
    )
    (base / "2").mkdir()
    eventually(lambda: states(running.channel).get(2, ("", 0))[1] != 0)
    put(toys.half_plus_three / "123", base, 3)
    eventually(lambda: ask(running.channel) == (4.0, 3))


def test_the_older_version_comes_back_when_the_newest_is_deleted(serve, toys, base, eventually):
    put(toys.half_plus_three / "123", base, 2)
    running = serve(base, **FAST)
    assert ask(running.channel) == (4.0, 2)
    shutil.rmtree(base / "2")
    eventually(lambda: ask(running.channel) == (3.0, 1))


def test_a_base_path_that_goes_away_and_comes_back_changes_nothing(serve, toys, base, eventually):
    running = serve(base, **FAST)
    base.rename(base.with_name("elsewhere"))
    import time

    end = time.monotonic() + 2.5  # two polls at least
    while time.monotonic() < end:
        assert ask(running.channel) == (3.0, 1)
    base.with_name("elsewhere").rename(base)
    put(toys.half_plus_three / "123", base, 2)
    eventually(lambda: ask(running.channel) == (4.0, 2))


def test_a_model_that_cannot_load_at_the_start_ends_the_server_with_its_reason(spawn, tmp_path):
    (tmp_path / "m" / "1").mkdir(parents=True)
    process = spawn(f"--model_base_path={tmp_path}/m", "--max_num_load_retries=0", wait=False)
    assert process.popen.wait(120) == 1
    log = (tmp_path / "server-0.log").read_text()
    assert "Failed to start server" in log
    assert f"Could not load SavedModel at {tmp_path}/m/1" in log
    assert "Traceback" not in log


def test_the_process_announces_its_port_answers_and_stops_gracefully_on_sigterm(spawn, toys, tmp_path):
    process = spawn(f"--model_base_path={toys.text}", "--model_name=m")
    assert process.target.startswith("127.0.0.1:")
    from serving.client import Client

    secret = "patient-name-never-logged"
    with Client(process.target, "m") as client:
        assert client.predict([secret])[0].label == "long"
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            client.predict([secret], [secret])
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(60) == 0
    assert secret not in (tmp_path / "server-0.log").read_text()
