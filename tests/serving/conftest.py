"""Toy SavedModels of the shapes that TensorFlow Serving's own tests use, servers on loopback, and a load for them."""

from __future__ import annotations

import gc
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import grpc
import pytest

from serving.client_core import PREDICT_METHOD
from serving.server import allow_open_files

ROOT = Path(__file__).resolve().parents[2]
allow_open_files()  # a test may be a thousand clients


def _export_tf1(path: Path, addend: float, resource: bool = True) -> Path:
    """y = x / 2 + addend, as TensorFlow Serving's TF1 half_plus_* models: predict, regress and classify."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        a = v1.get_variable("a", initializer=0.5, use_resource=resource)
        b = v1.get_variable("b", initializer=addend, use_resource=resource)
        examples = v1.placeholder(tf.string, [None], name="tf_example")
        spec = {"x": tf.io.FixedLenFeature([1], tf.float32), "x2": tf.io.FixedLenFeature([1], tf.float32, [0.0])}
        parsed = tf.io.parse_example(examples, spec)
        x = tf.identity(parsed["x"], name="x")
        y = tf.add(tf.multiply(a, x), b, name="y")
        y2 = tf.add(tf.multiply(a, x), 3.0, name="y2")
        x2 = tf.identity(parsed["x2"], name="x2")
        y3 = tf.add(tf.multiply(a, x2), 3.0, name="y3")
        session.run(v1.global_variables_initializer())
        info = v1.saved_model.build_tensor_info

        def signature(i: dict, o: dict, method: str):
            return v1.saved_model.signature_def_utils.build_signature_def(
                {k: info(t) for k, t in i.items()}, {k: info(t) for k, t in o.items()}, f"tensorflow/serving/{method}"
            )

        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": signature({"x": x}, {"y": y}, "predict"),
                "regress_x_to_y": signature({"inputs": examples}, {"outputs": y}, "regress"),
                "regress_x_to_y2": signature({"inputs": examples}, {"outputs": y2}, "regress"),
                "regress_x2_to_y3": signature({"inputs": x2}, {"outputs": y3}, "regress"),
                "classify_x_to_y": signature({"inputs": examples}, {"scores": y}, "classify"),
            },
        )
        builder.save()
    return path


def _export_counter(path: Path) -> Path:
    """A counter in a reference variable: get, add one, add a given number, reset."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        counter = v1.Variable(0.0, dtype=tf.float32, name="counter", use_resource=False)
        delta = v1.placeholder(tf.float32, name="delta")
        info = v1.saved_model.build_tensor_info

        def signature(i: dict, output):
            return v1.saved_model.signature_def_utils.build_signature_def(
                i, {"output": info(output)}, "tensorflow/serving/predict"
            )

        signatures = {
            "get_counter": signature({}, counter),
            "incr_counter": signature({}, counter.assign_add(1.0)),
            "incr_counter_by": signature({"delta": info(delta)}, counter.assign_add(delta)),
            "reset_counter": signature({}, counter.assign(0.0)),
        }
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    return path


def _export_tf2(path: Path, addend: float = 2.0) -> Path:
    """y = x / 2 + addend as a TF2 export, with regress and classify on examples."""
    import tensorflow as tf

    class Half(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = tf.Variable(0.5), tf.Variable(addend)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def predict(self, x):
            return {"y": self.a * x + self.b}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def regress(self, inputs):
            x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
            return {"outputs": self.a * x + self.b}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def classify(self, inputs):
            return {"scores": self.regress(inputs)["outputs"]}

    half = Half()
    tf.saved_model.save(
        half,
        str(path),
        signatures={
            "serving_default": half.predict, "regress_x_to_y": half.regress, "classify_x_to_y": half.classify,
        },
    )  # fmt: skip
    return path


def _export_text(
    path: Path, labels: tuple[str, ...] = ("short", "long"), pair: bool = False, multi: bool = False, weight_mb: int = 0
):
    """A text classifier with this project's signatures: the more bytes, the more probable the last class.

    `weight_mb` of zeros take part in the answer, so that a version that stays in memory shows.
    """
    import tensorflow as tf
    import tensorflow_text as text_ops

    class Classifier(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(tf.zeros([weight_mb * 2**18])) if weight_mb else tf.constant([0.0])

        def _probabilities(self, text, text_pair=None):
            # One op of TF Text, so that the server must have registered them.
            words = text_ops.WhitespaceTokenizer().tokenize(text)
            size = tf.cast(tf.strings.length(tf.strings.reduce_join(words, axis=-1)), tf.float32)
            if text_pair is not None:
                size += tf.cast(tf.strings.length(text_pair), tf.float32)
            share = size / (size + 10.0 + self.weights[0])
            last = tf.range(len(labels)) == len(labels) - 1
            rest = (1.0 - share) / float(max(1, len(labels) - 1))
            return tf.where(last, share[:, None], rest[:, None])

        def _outputs(self, probabilities):
            classes = tf.tile(tf.constant([labels]), [tf.shape(probabilities)[0], 1])
            out = {"probabilities": probabilities, "classes": classes}
            if multi:
                return {**out, "labels": tf.cast(probabilities >= 0.4, tf.int64)}
            return {**out, "label": tf.gather(tf.constant(labels), tf.argmax(probabilities, -1))}

        def one(self, text):
            return self._outputs(self._probabilities(text))

        def two(self, text, text_pair):
            return self._outputs(self._probabilities(text, text_pair))

        def classify(self, inputs):
            spec = {"text": tf.io.FixedLenFeature([], tf.string)}
            out = self._outputs(self._probabilities(tf.io.parse_example(inputs, spec)["text"]))
            return {"classes": out["classes"], "scores": out["probabilities"]}

        def tokens(self, text):
            words = text_ops.WhitespaceTokenizer().tokenize(text)
            return {"lengths": tf.cast(words.row_lengths(), tf.int32) + 2}

    module = Classifier()
    string = [tf.TensorSpec([None], tf.string, n) for n in ("text", "text_pair")]
    default = tf.function(module.two, string) if pair else tf.function(module.one, string[:1])
    tf.saved_model.save(
        module,
        str(path),
        signatures={
            "serving_default": default,
            "classify": tf.function(module.classify, [tf.TensorSpec([None], tf.string, "inputs")]),
            "tokens": tf.function(module.tokens, string[:1]),
        },
    )
    return path


@pytest.fixture(scope="session")
def toys(tmp_path_factory) -> SimpleNamespace:
    """Base paths of ready models (version 123), and the functions that export more."""
    base = tmp_path_factory.mktemp("toys")
    half = _export_tf1(base / "half_plus_two" / "123", 2.0).parent
    three = _export_tf1(base / "half_plus_three" / "123", 3.0, resource=False).parent
    return SimpleNamespace(
        half_plus_two=half,
        half_plus_three=three,
        half_plus_two_tf2=_export_tf2(base / "half_plus_two_tf2" / "123").parent,
        counter=_export_counter(base / "counter" / "123").parent,
        text=_export_text(base / "text" / "1").parent,
        text_pair=_export_text(base / "text_pair" / "1", pair=True).parent,
        text_multi=_export_text(base / "text_multi" / "1", ("a", "b", "c"), multi=True).parent,
        export_tf1=_export_tf1,
        export_tf2=_export_tf2,
        export_text=_export_text,
    )


@dataclass
class Running:
    """A server under test, in this process, with a channel to it."""

    server: object
    channel: grpc.Channel
    target: str
    rest: str
    stopped: bool = False
    pid: int = os.getpid()

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.channel.close()
            self.server.stop()


@pytest.fixture(scope="module")
def frozen() -> None:
    """As when a server starts: the collector, which goes round at each unload, leaves out what is imported."""
    import serving.server  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture
def serve(frozen: None) -> Iterator[Callable[..., Running]]:
    """Starts servers in this process: `serve(base_path, flag=value, …)`; all stop at the end of the test."""
    from serving.flags import parse
    from serving.server import ModelServer

    running: list[Running] = []

    def start(base_path=None, **flags) -> Running:
        values = {"port": 0, "drain_seconds": 5, "max_num_load_retries": 0, **flags}
        if base_path is not None:
            values["model_base_path"] = base_path
        server = ModelServer(parse([f"--{k}={str(v).lower() if v in (True, False) else v}" for k, v in values.items()]))
        server.start()
        target = f"127.0.0.1:{server.grpc_port}"
        found = Running(server, grpc.insecure_channel(target), target, f"http://127.0.0.1:{server.rest_port}")
        running.append(found)
        return found

    yield start
    for one in running:
        one.stop()


@dataclass
class Process:
    """A server as a process of its own."""

    popen: subprocess.Popen
    target: str
    rest: str
    log: Path  # of its standard error

    @property
    def pid(self) -> int:
        return self.popen.pid

    def stop(self) -> int:
        self.popen.terminate()
        return self.popen.wait(60)


@pytest.fixture
def spawn(tmp_path) -> Iterator[Callable[..., Process]]:
    """Starts servers as processes: `spawn('--model_base_path=…', …)`; waits until they listen."""
    started: list[subprocess.Popen] = []

    def start(*flags: str, rest: bool = False, wait: bool = True) -> Process:
        path = tmp_path / f"server-{len(started)}.log"
        log = path.open("wb")
        popen = subprocess.Popen(
            [sys.executable, "-m", "serving.server", "--port=0", *(["--rest_api_port=-1"] if rest else []), *flags],
            stdout=subprocess.PIPE, stderr=log, cwd=ROOT,
        )  # fmt: skip
        log.close()
        started.append(popen)
        found = {"grpc": "", "rest": ""}
        for _ in range((1 + rest) if wait else 0):
            line = popen.stdout.readline().decode().split()
            assert line[:2] == ["listening", "on"], path.read_text()
            found[line[2]] = line[3]
        return Process(popen, found["grpc"], f"http://{found['rest']}", path)

    yield start
    for popen in started:
        if popen.poll() is None:
            popen.kill()
        popen.wait()
        popen.stdout.close()


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until a condition holds; a test that fails says so after a minute."""

    def wait(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, "the condition never held"
            time.sleep(0.02)

    return wait


# === Faults under a steady load ===

PAUSE_S = 0.01  # between two requests of an interface: a server that is always busy would take all the time of a test


@dataclass(frozen=True)
class Usage:
    """What a process has: resident memory, threads, open files."""

    memory_mb: float
    threads: int
    files: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        status = Path(f"/proc/{pid}/status").read_text()
        memory = int(status.split("VmRSS:")[1].split()[0]) / 1024
        return cls(memory, len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd")))


def _predict_request(texts: list[bytes]) -> bytes:
    from serving import protos

    request = protos.PredictRequest()
    request.model_spec.name = "m"
    tensor = request.inputs["text"]
    tensor.dtype = protos.DT_STRING
    tensor.tensor_shape.dim.add().size = len(texts)
    tensor.string_val.extend(texts)
    return request.SerializeToString()


@pytest.fixture(scope="session")
def make_request() -> Callable[[list[bytes]], bytes]:
    """Texts to a serialised PredictRequest of model `m`."""
    return _predict_request


def _begin_all_threads(server: Running | Process, rows: int) -> None:
    """Bursts of requests until the server begins no more threads: a pool that fills up later would look like a leak."""
    host, port = server.rest.removeprefix("http://").split(":")
    texts = ["a" * 1000] * rows
    message, body = _predict_request([t.encode() for t in texts]), json.dumps({"instances": texts})
    head = f"POST /v1/models/m:predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    most = quiet = 0
    while quiet < 3:
        with grpc.insecure_channel(server.target) as channel:
            call = channel.unary_unary(PREDICT_METHOD)
            calls = [call.future(message, timeout=30) for _ in range(64)]
            connections = [socket.create_connection((host, int(port)), 30) for _ in range(40)]
            for one in connections:
                one.sendall((head + body).encode())
            for one in connections:
                while one.recv(1 << 16):
                    pass
                one.close()
            for one in calls:
                one.exception()  # some are refused: the server is full
        threads = Usage.of(server.pid).threads
        quiet, most = (quiet + 1, most) if threads <= most else (0, threads)


class Load:
    """Asks model `m`, a toy text model, over gRPC and REST steadily and checks every answer; a context manager.

    Entered, all threads of the server have begun. Left, it holds the server to what it had then (`mark`), and no
    answer was wrong and no request failed. The right probability of class `long` for n letters is n / (n + 10).

    Args:
        server: what is asked.
        eventually: see the fixture.
        memory_mb: what memory may grow by; malloc has its ups and downs.
        rows: fewest and most texts in a request.

    Attributes:
        answered: answers so far, by interface.
        versions: of the model, that answered over gRPC.
        ending: the server is being stopped: an interface may refuse from now on, and is then not asked again.
        refused: the interfaces that did.
        before: what the server had at the last `mark`.
    """

    def __init__(self, server: Running | Process, eventually: Callable, memory_mb: float, rows: tuple[int, int]):
        self._server, self._eventually, self._memory_mb, self._rows = server, eventually, memory_mb, rows
        self.answered, self.versions = {"grpc": 0, "rest": 0}, set[int]()
        self.ending, self.refused = False, set[str]()
        self._wrong: list[tuple[list[int], list[float]]] = []
        self._failed: list[str] = []
        self._done, self._going, self._parked = threading.Event(), threading.Event(), threading.Semaphore(0)
        self._going.set()
        self._threads = [threading.Thread(target=ask, daemon=True) for ask in (self._grpc, self._rest)]

    def _grpc(self) -> None:
        from serving.client import Client

        with Client(self._server.target, "m", timeout_s=30, batch_size=64) as client:

            def ask(texts: list[str]) -> list[float]:
                found = client.predict(texts)
                self.versions.update(p.model_version for p in found)
                return [p.probabilities["long"] for p in found]

            self._ask_on("grpc", ask)

    def _rest(self) -> None:
        connection = http.client.HTTPConnection(self._server.rest.removeprefix("http://"), timeout=30)

        def ask(texts: list[str]) -> list[float]:
            try:
                connection.request("POST", "/v1/models/m:predict", json.dumps({"instances": texts}))
                response = connection.getresponse()
                body = json.loads(response.read())
            except Exception:
                connection.close()  # the next request opens another
                raise
            assert response.status == 200, f"{response.status} {body}"
            return [p["probabilities"][1] for p in body["predictions"]]

        self._ask_on("rest", ask)
        connection.close()

    def _ask_on(self, interface: str, ask: Callable[[list[str]], list[float]]) -> None:
        from serving.errors import UnavailableError

        generator = random.Random(interface)
        while not self._done.wait(PAUSE_S):
            if not self._going.is_set():
                self._parked.release()
                self._going.wait()
            sizes = [generator.randint(1, 60) for _ in range(generator.randint(*self._rows))]
            try:
                found = ask(["a" * n for n in sizes])
            except Exception as error:
                if self.ending and isinstance(error, (UnavailableError, ConnectionError)):
                    self.refused.add(interface)
                    return
                self._failed.append(f"{interface}: {type(error).__name__}: {error}")
            else:
                if found != pytest.approx([n / (n + 10) for n in sizes], abs=1e-5):
                    self._wrong.append((sizes, found))
                self.answered[interface] += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """All that was asked is answered, and nothing is asked."""
        self._going.clear()
        for _ in self._threads:
            assert self._parked.acquire(timeout=60)
        try:
            yield
        finally:
            self._going.set()

    def goes_on(self, answers: int = 5) -> None:
        """Waits for so many further answers of each interface."""
        before = dict(self.answered)
        self._eventually(lambda: all(self.answered[i] >= before[i] + answers for i in before))

    def mark(self) -> None:
        """From here on the server must not grow."""
        self.before = Usage.of(self._server.pid)

    def grown(self) -> dict[str, float]:
        """What the server has too much of."""
        now, allowed = Usage.of(self._server.pid), Usage(self._memory_mb, 4, 4)
        more = {name: value - getattr(self.before, name) for name, value in vars(now).items()}
        return {name: value for name, value in more.items() if value > getattr(allowed, name)}

    def __enter__(self) -> Load:
        _begin_all_threads(self._server, max(32, self._rows[1]))
        for thread in self._threads:
            thread.start()
        self.goes_on()
        self.mark()
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        try:
            if kind is None and not self.ending:
                self.goes_on()  # whatever was done to the server
                with suppress(AssertionError):
                    self._eventually(lambda: not self.grown(), 30)
                assert self.grown() == {}
        finally:
            self._done.set()
            for thread in self._threads:
                thread.join()
        assert self._wrong == []
        assert self._failed == []


@pytest.fixture
def under_load(eventually) -> Callable[..., Load]:
    """`with under_load(server) as load:` a server with model `m` is asked on while a test does it harm."""

    def begin(server: Running | Process, memory_mb: float = 60, rows: tuple[int, int] = (1, 4)) -> Load:
        return Load(server, eventually, memory_mb, rows)

    return begin
