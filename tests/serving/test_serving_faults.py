"""Faults under a steady load: no wrong answer, no failed good request; memory, threads, files as they were before."""

from __future__ import annotations

import collections
import http.client
import json
import random
import shutil
import signal
import socket
import string
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from serving.client import Client
from serving.client_core import PREDICT_METHOD, STATUS_METHOD, status_request

WEIGHT_MB = 40
CLIENTS = 24


@pytest.fixture(scope="module")
def heavy(toys, tmp_path_factory) -> Path:
    """One version whose weights show in the memory of a process that should have let go of them."""
    return toys.export_text(tmp_path_factory.mktemp("heavy") / "1", weight_mb=WEIGHT_MB)


@pytest.fixture
def faulty(spawn, heavy, tmp_path):
    """A server process with batching, on a base path that a test may harm."""
    base = tmp_path / "model"
    shutil.copytree(heavy, base / "1")
    parameters = tmp_path / "batching_parameters.txt"
    parameters.write_text("max_batch_size { value: 32 } batch_timeout_micros { value: 500 }")
    process = spawn(
        f"--model_base_path={base}", "--model_name=m", "--enable_batching", f"--batching_parameters_file={parameters}",
        "--grpc_max_threads=32", "--max_num_load_retries=0", rest=True,
    )  # fmt: skip
    process.base = base
    return process


def publish(source: Path, base: Path, version: int, spoil=lambda folder: None) -> None:
    hidden = base / f".tmp-{version}"
    shutil.copytree(source, hidden)
    spoil(hidden)
    hidden.rename(base / str(version))


def versions(process) -> dict[int, str]:
    with urllib.request.urlopen(process.rest + "/v1/models/m", timeout=30) as response:
        found = json.loads(response.read())["model_version_status"]
    return {int(s["version"]): s["state"] for s in found}


def replace(process, heavy, eventually, numbers: range) -> None:
    """Publishes a version every second, and waits for the last one to be the only one."""
    for version in numbers:
        publish(heavy, process.base, version)
        shutil.rmtree(process.base / str(version - 2), ignore_errors=True)
        time.sleep(1.0)
    eventually(lambda: [v for v, state in versions(process).items() if state == "AVAILABLE"] == [numbers[-1]])


def harm(process, heavy, eventually, newest: int) -> None:
    """Publishes faults, as a careless hand would, on top of the newest version."""
    base = process.base
    publish(heavy, base, newest + 1, lambda f: (f / "saved_model.pb").write_bytes(b"\xff" * 500))
    publish(heavy, base, newest + 2, lambda f: shutil.rmtree(f / "variables"))
    eventually(lambda: versions(process).get(newest + 2) == "END")
    assert versions(process)[newest] == "AVAILABLE"
    shutil.rmtree(base / str(newest + 1))
    shutil.rmtree(base / str(newest + 2))
    publish(heavy, base, newest + 3)
    eventually(lambda: versions(process).get(newest + 3) == "AVAILABLE")
    shutil.rmtree(base / str(newest + 3))
    eventually(lambda: versions(process).get(newest) == "AVAILABLE")
    base.rename(base.with_name("gone"))
    time.sleep(1.5)
    base.with_name("gone").rename(base)
    publish(heavy, base, newest + 4)
    eventually(lambda: versions(process).get(newest + 4) == "AVAILABLE")


def test_versions_come_break_and_go_under_load_and_leave_nothing_behind(faulty, heavy, eventually, under_load):
    # Eight versions come; malloc's own ups and downs are within 100 MB.
    with under_load(faulty, memory_mb=4 * WEIGHT_MB) as load:
        replace(faulty, heavy, eventually, range(2, 5))
        harm(faulty, heavy, eventually, 4)
        load.mark()
        last = max(versions(faulty))
        for version in range(last + 1, last + 9):
            publish(heavy, faulty.base, version)
            eventually(lambda version=version: versions(faulty).get(version) == "AVAILABLE")
        eventually(lambda: list(versions(faulty).values()).count("AVAILABLE") == 1)


@pytest.mark.slow
def test_a_new_version_every_second_for_a_minute(faulty, heavy, eventually, under_load):
    with under_load(faulty, memory_mb=4 * WEIGHT_MB) as load:
        replace(faulty, heavy, eventually, range(2, 5))
        load.mark()
        replace(faulty, heavy, eventually, range(5, 62))
        assert (
            len(load.versions & set(range(5, 62))) >= 10
        )  # the others come and go while one is loaded, which takes its time
        harm(faulty, heavy, eventually, 61)
        eventually(lambda: list(versions(faulty).values()).count("AVAILABLE") == 1)


def broken_messages(real: bytes) -> Iterator[bytes]:
    """Random bytes, and a request cut at every place and with every one of its bits wrong."""
    generator = random.Random(3)
    for _ in range(60):
        yield generator.randbytes(40)
    for at in range(len(real)):
        yield real[:at]
    for bit in range(8 * len(real)):
        flipped = bytearray(real)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


def test_clients_that_misbehave_disturb_nobody(faulty, eventually, under_load, make_request):
    """Connections opened and left, clients that vanish, malformed messages and huge ones."""
    host, port = faulty.rest.removeprefix("http://").split(":")
    grpc_address = (host, int(faulty.target.split(":")[1]))
    channel = grpc.insecure_channel(faulty.target)
    raw = channel.unary_unary(PREDICT_METHOD)
    with under_load(faulty) as load:
        left = [socket.create_connection((host, int(port)), 30) for _ in range(1000)]
        left += [socket.create_connection(grpc_address, 30) for _ in range(1000)]
        eventually(lambda: load.grown().get("files", 0) >= 1990)
        assert "threads" not in load.grown()  # a connection costs none
        for one in left:
            one.close()

        for i in range(60):
            with socket.create_connection((host, int(port)), 30) as one:
                one.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{")
            call = raw.future(make_request([b"a" * i]), timeout=30)
            call.cancel()

        codes = collections.Counter()
        for message in broken_messages(make_request([b"aspirin", b"placebo"])):
            call = raw.future(message, timeout=30)
            codes[call.code()] += 1
            if call.code() is grpc.StatusCode.INTERNAL:
                assert call.details() == "Exception deserializing request!"  # no failure of this server
        few = {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}
        assert codes.keys() <= {grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT} | few
        assert min(codes[grpc.StatusCode.INTERNAL], codes[grpc.StatusCode.INVALID_ARGUMENT]) > 60

        large = make_request([b"a" * (64 << 20)])
        options = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(faulty.target, options) as big:
            from serving import protos

            answer = protos.PredictResponse.FromString(big.unary_unary(PREDICT_METHOD)(large, timeout=120))
        assert answer.outputs["probabilities"].float_val[1] == pytest.approx(1.0, abs=1e-6)

        web = http.client.HTTPConnection(host, int(port), timeout=120)
        for body in [b"{", b"nonsense", b'{"instances": [1, {', b'{"instances": ["\xff"]}'] * 15:
            web.request("POST", "/v1/models/m:predict", body)
            response = web.getresponse()
            assert (response.status, b"JSON Parse error" in response.read()) == (400, True)
        web.request("POST", "/v1/models/m:predict", json.dumps({"instances": ["a" * (64 << 20)]}))
        answer = json.loads(web.getresponse().read())
        assert answer["predictions"][0]["probabilities"][1] == pytest.approx(1.0, abs=1e-6)
        web.close()
    channel.close()
    log = faulty.log.read_bytes().lower()
    assert log
    assert not any(text in log for text in (b"aspirin", b"placebo", b"nonsense", b"aaaaaa"))


def test_connections_beyond_the_limit_are_closed_at_once_and_those_there_are_go_on(serve, toys, make_request):
    running = serve(toys.text, model_name="m", rest_api_port=-1, max_connections=20)
    http = RawHttp(running.server.rest_port)
    channel = running.channel.unary_unary(PREDICT_METHOD)
    body = b'{"instances": ["a"]}'

    def both_answer() -> bool:
        return channel(make_request([b"a"]), timeout=30) and http.ask("POST", "/v1/models/m:predict", body)[0] == 200

    assert both_answer()
    grpc_left, rest_left = (
        [socket.create_connection(("127.0.0.1", port), 30) for _ in range(30)]
        for port in (running.server.grpc_port, running.server.rest_port)
    )
    # gRPC greets each connection with its settings; one that is refused is closed before that, or right after.
    with ThreadPoolExecutor(30) as pool:  # each of those that stay takes a second to tell
        assert sum(pool.map(_closed, grpc_left)) == 30 - 19
    assert [_first_bytes(one)[:12] for one in rest_left[19:]] == [b"HTTP/1.1 503"] * 11
    assert both_answer()
    with (
        grpc.insecure_channel(running.target, [("grpc.channel_id", 2)]) as other,
        pytest.raises(grpc.RpcError) as caught,
    ):
        other.unary_unary(PREDICT_METHOD)(make_request([b"a"]), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    for one in grpc_left + rest_left:
        one.close()
    with Client(running.target, "m", timeout_s=30) as client:  # its retries outlast the closing of the others
        assert client.predict(["a"])[0].label == "short"
    http.close()


def _closed(connection: socket.socket) -> bool:
    """Whether the server has closed a connection, or does so within a second."""
    connection.settimeout(1.0)
    try:
        while connection.recv(4096):
            pass
        return True
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def _first_bytes(connection: socket.socket) -> bytes:
    connection.settimeout(30)
    return connection.recv(4096)


def test_sigterm_lets_requests_be_answered_and_refuses_new_ones(
    spawn, toys, tmp_path, eventually, under_load, make_request
):
    parameters, monitoring = tmp_path / "p.txt", tmp_path / "monitoring.config"
    parameters.write_text("max_batch_size { value: 64 } batch_timeout_micros { value: 3000000 }")
    monitoring.write_text("prometheus_config { enable: true }")
    process = spawn(
        f"--model_base_path={toys.text}", "--model_name=m", "--enable_batching",
        f"--batching_parameters_file={parameters}", f"--monitoring_config_file={monitoring}", "--grpc_max_threads=16",
        rest=True,
    )  # fmt: skip

    def waiting() -> bool:
        with urllib.request.urlopen(process.rest + "/monitoring/prometheus/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        name = ":biobert_cnn:serving:requests_in_flight"
        return {f'{name}{{entrypoint="GRPC"}} 5', f'{name}{{entrypoint="REST"}} 1'} <= set(lines)

    def closed() -> bool:
        host, port = process.rest.removeprefix("http://").split(":")
        try:
            socket.create_connection((host, int(port)), 5).close()
        except ConnectionError:
            return True
        return False

    over_rest: list[int] = []

    def ask_rest() -> None:
        url, body = process.rest + "/v1/models/m:predict", b'{"instances": ["a"]}'
        with urllib.request.urlopen(url, body, timeout=30) as response:
            over_rest.append(response.status)

    thread = threading.Thread(target=ask_rest)
    # The load's requests are whole batches, so that none of them waits for the time of a batch to be up.
    with under_load(process, rows=(64, 64)) as load, grpc.insecure_channel(process.target) as channel:
        predict = channel.unary_unary(PREDICT_METHOD)
        with load.paused():
            thread.start()
            calls = [predict.future(make_request([b"a" * 10]), timeout=30) for _ in range(5)]
            eventually(waiting)  # all in one batch, and nothing else is under way
            process.popen.send_signal(signal.SIGTERM)
            load.ending = True
        eventually(lambda: load.refused == {"grpc", "rest"})
        eventually(closed)  # gRPC's before REST's
        with pytest.raises(grpc.RpcError) as caught:
            predict(make_request([b"late"]), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert [c.code() for c in calls] == [grpc.StatusCode.OK] * 5
    thread.join()
    assert over_rest == [200]
    assert process.popen.wait(60) == 0


def test_clients_of_any_make_are_told_that_the_server_is_unavailable_when_it_stops(spawn, toys):
    """Not that their call was cancelled, which gRPC's core makes of those that it has not yet handed on."""
    process = spawn(f"--model_base_path={toys.text}", "--model_name=m")
    request = status_request("m").SerializeToString()
    codes, asking = collections.Counter(), threading.Barrier(CLIENTS + 1)

    def ask(number: int) -> None:
        options = [("grpc.channel_id", number), ("grpc.enable_retries", 0)]
        with grpc.insecure_channel(process.target, options) as channel:
            status = channel.unary_unary(STATUS_METHOD)
            status(request, timeout=30)
            asking.wait(60)
            try:
                while True:
                    status(request, timeout=30)
            except grpc.RpcError as error:
                codes[error.code()] += 1

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    asking.wait(60)
    time.sleep(0.2)
    assert process.stop() == 0
    for thread in threads:
        thread.join()
    assert codes == {grpc.StatusCode.UNAVAILABLE: CLIENTS}


# === Fuzz ===

_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_json = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
_keys = st.sampled_from(["instances", "inputs", "examples", "context", "signature_name", "x", "b64"])
_bodies = st.one_of(
    st.binary(max_size=40),
    _json.map(lambda v: json.dumps(v).encode()),
    st.dictionaries(_keys, _json | st.dictionaries(_keys, _json, max_size=2), max_size=3).map(
        lambda v: json.dumps(v).encode()
    ),
    st.lists(st.floats(width=32) | st.lists(st.floats(width=32), max_size=2), min_size=1, max_size=4).map(
        lambda v: json.dumps({"instances": v}).encode()
    ),
)
_paths = st.sampled_from(
    [
        f"/v1/models/{name}{where}:{method}"
        for name in ("default", "nope", "%ff", "a%20b")
        for where in ("", "/versions/123", "/versions/9", "/labels/x")
        for method in ("predict", "classify", "regress")
    ]
) | st.text(string.printable, max_size=20).map(lambda t: "/v1/" + t)
_methods = st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "OPTIONS", "HEAD", "get", "?"])
_requests = st.lists(st.tuples(_methods, _paths, _bodies), min_size=20, max_size=20)
CANARY = "Zx9 canary"


class RawHttp:
    """HTTP/1.1 with nothing between the test and the socket; one connection for as long as the server keeps it."""

    def __init__(self, port: int):
        self._port, self._file, self._socket = port, None, None

    def ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """(status, body), whatever bytes the request line is made of."""
        if self._file is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), 30)
            self._file = self._socket.makefile("rb")
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)
        status = int(self._file.readline().split()[1])
        headers = {}
        while (line := self._file.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip().lower()
        answer = b"" if method == "HEAD" else self._file.read(int(headers.get(b"content-length", b"0")))
        if headers.get(b"connection") == b"close" or "\n" in path:  # a line feed may make two requests of one
            self.close()
        return status, answer

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._socket.close()
            self._file = None


def test_fuzzed_requests_are_answered_or_refused_and_never_quoted(spawn, toys, tmp_path, under_load):
    models = tmp_path / "models.config"
    entries = [
        f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" }}'
        for name, path in (("default", toys.half_plus_two), ("m", toys.text))
    ]
    models.write_text(f"model_config_list {{ {' '.join(entries)} }}")
    process = spawn(f"--model_config_file={models}", rest=True)
    port = int(process.rest.rpartition(":")[2])
    http = RawHttp(port)
    seen: dict[int, int] = {}

    @settings(
        max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )  # fmt: skip
    @given(_requests)
    @example([("POST", "/v1/models/default:predict", b'{"instances": [1.0, 2.0]}')])
    @example([("POST", "/v1/models/nope:predict", b'{"instances": [1.0]}')])
    def fuzz(requests):
        for method, path, body in requests:
            if len(body) % 7 == 0:
                body = body.replace(b'"x"', f'"{CANARY}"'.encode())
            status, answer = http.ask(method, path, body)
            seen[status] = seen.get(status, 0) + 1
            assert status in (200, 400, 404, 501)
            if status != 200 and method != "HEAD":
                message = json.loads(answer)["error"]
                assert isinstance(message, str)
                assert "canary" not in message

    with under_load(process):
        fuzz()
        http.close()
    assert seen.keys() >= {200, 400, 404}
    assert sum(seen.values()) >= 10_000
    assert b"canary" not in process.log.read_bytes()
    one = RawHttp(port)
    assert one.ask("POST", "/v1/models/default:predict", b'{"instances": [2.0]}')[0] == 200
    one.close()


@pytest.mark.slow
def test_fuzzed_tensors_never_crash_the_decoder():
    from tensorflow.core.framework import tensor_pb2

    from serving.errors import Code, StatusError
    from serving.tensors import to_array

    @settings(max_examples=2000, deadline=None, database=None)
    @given(
        st.integers(0, 30), st.lists(st.integers(-2, 5) | st.integers(2**31, 2**62), max_size=3),
        st.binary(max_size=30), st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
        st.lists(st.binary(max_size=3), max_size=4),
    )  # fmt: skip
    def fuzz(dtype, dims, content, ints, strings):
        proto = tensor_pb2.TensorProto(dtype=dtype, tensor_content=content, int_val=ints, string_val=strings)
        proto.half_val.extend(ints)
        for dim in dims:
            proto.tensor_shape.dim.add().size = dim
        try:
            found = to_array(proto)
        except StatusError as error:
            outcomes.append(error.code)
        else:
            outcomes.append(Code.OK if list(found.shape) == dims else Code.UNKNOWN)

    outcomes: list[Code] = []
    fuzz()
    assert set(outcomes) == {Code.OK, Code.INVALID_ARGUMENT}
