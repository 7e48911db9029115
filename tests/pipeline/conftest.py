"""What tests of the pipeline share: the smallest configuration there is, and a model server under load."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

MINIMAL = """
task = "binary"
labels = ["no", "yes"]
[data]
input = "rows"
splits = { train = "train.csv", eval = "dev.csv" }
[evaluation]
split = "eval"
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    (tmp_path / "rows").mkdir()
    for name in ("train.csv", "dev.csv"):
        (tmp_path / "rows" / name).write_text("text,label\na,yes\n")
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    return path


@pytest.fixture(scope="session")
def toys() -> ModuleType:
    """The module toy_model.py (tests are no package)."""
    path = ROOT / "tests" / "components" / "serving_check" / "toy_model.py"
    spec = importlib.util.spec_from_file_location("toy_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Load:
    """Asks the server steadily; remembers which version answered, in order, and every failure."""

    def __init__(self, address: str, text: bytes) -> None:
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        self.seen: list[int] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        predict = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address)).Predict
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "m"
        request.inputs["text"].CopyFrom(tf.make_tensor_proto([text]))

        def ask() -> None:
            while not self._stop.wait(0.01):  # without pause it would take the time of the server and the test
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


class Served:
    """The project's model server on a base path, as model `m`: where it listens, and the load on it."""

    def __init__(self, serving: Path, folder: Path, *flags: str) -> None:
        log, monitoring = folder / "server.log", folder / "monitoring.config"
        monitoring.write_text('prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }')
        self.loads: list[Load] = []
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.server", "--port=0", "--rest_api_port=-1", "--model_name=m",
                 f"--model_base_path={serving}", f"--monitoring_config_file={monitoring}", *flags],
                stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        found: dict[str, str] = {}
        while len(found) < 2:
            assert self._process.poll() is None, log.read_text()
            found = dict(re.findall(r"listening on (grpc|rest) (\S+)", log.read_text()))
            time.sleep(0.05)
        self.grpc, self.rest = found["grpc"], found["rest"]

    def load(self, text: bytes = b"a text") -> Load:
        """Starts a client that asks until the end."""
        self.loads.append(Load(self.grpc, text))
        return self.loads[-1]

    def stop(self) -> None:
        for load in self.loads:
            load.stop()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts model servers: base path and flags in; they end with the test."""
    servers: list[Served] = []

    def start(serving: Path, *flags: str) -> Served:
        servers.append(Served(serving, tmp_path, *flags))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
