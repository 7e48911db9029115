"""A rollback under the eyes of the model server: it goes back and forth, and no request fails meanwhile."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from components.push.publish import publish
from pipeline import versions

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests" / "components" / "serving_check" / "toy_model.py"


class Load:
    """Asks the server all the time; remembers which version answered, in order, and every failure."""

    def __init__(self, address: str) -> None:
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        self.seen: list[int] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        predict = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address)).Predict
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "m"
        request.inputs["text"].CopyFrom(tf.make_tensor_proto(["a text"]))

        def ask() -> None:
            while not self._stop.is_set():
                try:
                    version = predict(request, timeout=30).model_spec.version.value
                    if not self.seen or self.seen[-1] != version:
                        self.seen.append(version)
                except grpc.RpcError as error:
                    self.failures.append(error.code().name)

        self._thread = threading.Thread(target=ask)
        self._thread.start()

    def wait_for(self, version: int) -> None:
        """Until `version` answers."""
        deadline = time.monotonic() + 60
        while not (self.seen and self.seen[-1] == version):
            assert time.monotonic() < deadline, f"version {version} never answered: {self.seen}, {self.failures[:3]}"
            time.sleep(0.02)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_server_follows_rollback_restore_and_push_without_a_failed_request(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("toy_model", TOY)
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    serving = tmp_path / "serving"

    def push(seed: int) -> int:
        model = toy.ToyModel(seed=seed).export(tmp_path / f"model{seed}")
        version = publish(model, serving, 5, lambda number: {"blessed": True}, clock=lambda: 100.0).version
        assert version is not None
        return version

    first, second = push(1), push(2)
    log = tmp_path / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "serving.server", "--port=0", "--model_name=m", f"--model_base_path={serving}"],
            stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    load = None
    try:
        found = None
        while found is None:
            assert server.poll() is None, log.read_text()
            found = re.search(r"listening on grpc (\S+)", log.read_text())
            time.sleep(0.05)
        load = Load(found.group(1))
        load.wait_for(second)
        assert versions.rollback(serving) == first
        load.wait_for(first)
        assert versions.restore(serving) == second
        load.wait_for(second)
        versions.rollback(serving)
        load.wait_for(first)
        third = push(3)
        load.wait_for(third)
    finally:
        if load is not None:
            load.stop()
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    assert load.failures == []
    assert load.seen == [second, first, second, first, third]
