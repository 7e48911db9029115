"""Clients that take their answer, or send their request, slowly or never: they hold up nobody."""

from __future__ import annotations

import dataclasses
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving import protos
from serving.admission import Pool
from serving.client_core import PREDICT_METHOD

COUNT = 60_000  # texts; the answer is megabytes, more than sockets hold for a client that does not read
MEMORY_MB = 200  # what the test itself may keep of such answers: its server is in the same process


@pytest.fixture
def running(serve, toys):
    """One worker for REST and two for gRPC: were slow readers to hold them, the load would not be answered."""
    return serve(toys.text, model_name="m", rest_api_port=-1, rest_api_num_threads=1, grpc_max_threads=2)


def ask_rest(running) -> socket.socket:
    """Sends a request over a socket that holds little, and reads the status line of its answer."""
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.settimeout(30)
    slow.connect(("127.0.0.1", running.server.rest_port))
    body = json.dumps({"instances": ["a"] * COUNT})
    slow.sendall(f"POST /v1/models/m:predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    assert slow.recv(15) == b"HTTP/1.1 200 \r\n"
    return slow


def test_a_slow_reader_of_rest(running, under_load):
    with under_load(running, MEMORY_MB) as load:
        with ask_rest(running) as slow, slow.makefile("rb") as answer:
            load.goes_on()
            headers = dict(line.strip().lower().split(b": ") for line in iter(answer.readline, b"\r\n"))
            found = json.loads(answer.read(int(headers[b"content-length"])))
        assert [p["label"] for p in found["predictions"]] == ["short"] * COUNT


def test_a_reader_of_rest_that_never_reads_is_cut_off(running, eventually, under_load):
    rest = running.server._rest
    rest._limits = dataclasses.replace(rest._limits, transfer_s=1.0)
    with under_load(running, MEMORY_MB) as load, ask_rest(running):
        assert len(rest._open) == 2
        eventually(lambda: len(rest._open) == 1)  # the load's
        load.goes_on()


# === gRPC, by hand: HTTP/2's flow control lets the client say how much it takes ===

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, WINDOW_UPDATE = 0, 1, 4, 8
INITIAL_WINDOW_SIZE = 4  # a setting
END_STREAM, END_HEADERS = 1, 4  # flags
FEW = 1000  # bytes


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def call_frame(stream: int, method: str = PREDICT_METHOD) -> bytes:
    """The headers of a call, whose message is still to come."""
    fields = [
        (":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "a"), ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]  # fmt: skip
    # HPACK: literal fields, neither indexed nor compressed.
    block = b"".join(b"\0" + b"".join(bytes([len(part)]) + part.encode() for part in pair) for pair in fields)
    return frame(HEADERS, END_HEADERS, stream, block)


def message_frame(stream: int, message: bytes) -> bytes:
    return frame(DATA, END_STREAM, stream, b"\0" + struct.pack(">I", len(message)) + message)


def predict_request(count: int) -> bytes:
    request = protos.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["text"].dtype = protos.DT_STRING
    request.inputs["text"].tensor_shape.dim.add().size = count
    request.inputs["text"].string_val.append(b"a")  # repeated to the shape: a small request, a large answer
    return request.SerializeToString()


def predict_frames() -> bytes:
    """A connection that takes few bytes of a stream at first, and one call of Predict on it."""
    few = struct.pack(">HI", INITIAL_WINDOW_SIZE, FEW)
    return PREFACE + frame(SETTINGS, 0, 0, few) + call_frame(1) + message_frame(1, predict_request(COUNT))


def frames(connection) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, flags, stream, payload) of what comes, until the connection ends."""
    while head := connection.read(9):
        yield head[3], head[4], int.from_bytes(head[5:9], "big"), connection.read(int.from_bytes(head[:3], "big"))


class SlowReader:
    """A connection with one call of Predict, of whose answer it takes few bytes at first; a context manager."""

    def __init__(self, port: int):
        self._socket = socket.create_connection(("127.0.0.1", port), 30)
        self._incoming = self._socket.makefile("rb")
        self._frames, self.answer, self._ended = frames(self._incoming), b"", False
        self._socket.sendall(predict_frames())
        while len(self.answer) < FEW and not self._ended:
            self._take()

    def _take(self) -> None:
        kind, flags, stream, payload = next(self._frames)
        if stream == 1:
            self.answer += payload if kind == DATA else b""
            self._ended = bool(flags & END_STREAM)

    def take_the_rest(self) -> None:
        for stream in (0, 1):
            self._socket.sendall(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1 << 26)))
        while not self._ended:
            self._take()

    def __enter__(self) -> SlowReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._incoming.close()
        self._socket.close()


def test_slow_readers_of_grpc(running, under_load):
    with under_load(running, MEMORY_MB) as load, ExitStack() as stack:
        readers = [stack.enter_context(SlowReader(running.server.grpc_port)) for _ in range(2)]
        assert [len(reader.answer) for reader in readers] == [FEW, FEW]
        load.goes_on()
        for reader in readers:
            reader.take_the_rest()
            assert reader.answer[:5] == b"\0" + struct.pack(">I", len(reader.answer) - 5)
            outputs = protos.PredictResponse.FromString(reader.answer[5:]).outputs
            assert list(outputs["label"].string_val) == [b"short"] * COUNT


# === Calls without a message ===


@contextmanager
def calls_without_a_message(port: int, count: int, method: str = PREDICT_METHOD) -> Iterator[socket.socket]:
    """One connection with so many calls, of which the headers alone were sent."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(
            PREFACE + frame(SETTINGS, 0, 0, b"") + b"".join(call_frame(2 * n + 1, method) for n in range(count))
        )
        yield connection


def predict(channel: grpc.Channel) -> bytes:
    return channel.unary_unary(PREDICT_METHOD)(predict_request(1), timeout=20)


def live(channel: grpc.Channel) -> int:
    request = health_pb2.HealthCheckRequest(service="liveness")
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=20).status


def test_calls_whose_message_does_not_come_hold_up_nobody(running, eventually):
    admission = running.server._admission
    with calls_without_a_message(running.server.grpc_port, admission.calls._most - 1) as late:
        eventually(lambda: admission.calls._open == admission.calls._most - 1)
        predict(running.channel)
        late.sendall(message_frame(1, predict_request(1)))  # a slow one, at last
        eventually(lambda: admission.calls._open == admission.calls._most - 2)
    eventually(lambda: admission.calls._open == 0)  # its client has gone


def age(pool, seconds: float) -> None:
    """As if those that wait had waited for so much longer."""
    pool._waiting.update({key: (call, since - seconds) for key, (call, since) in list(pool._waiting.items())})


def test_calls_beyond_the_bound_are_refused_at_once_and_probes_are_not(running, eventually, monkeypatch):
    monkeypatch.setattr("serving.admission._GIVES_WAY_AFTER_S", 1e6)
    calls = running.server._admission.calls
    with calls_without_a_message(running.server.grpc_port, calls._most + 5):
        eventually(lambda: calls._open == calls._most)
        with pytest.raises(grpc.RpcError) as refused:
            predict(running.channel)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert live(running.channel) == health_pb2.HealthCheckResponse.SERVING
        assert calls._open == calls._most
        eventually(lambda: len(calls._waiting) == calls._most)
        age(calls, calls.patience_s)
        eventually(lambda: calls._open == 0)  # those that hang are ended
    predict(running.channel)


def test_calls_that_hang_give_way_to_others(running, eventually):
    calls = running.server._admission.calls
    with calls_without_a_message(running.server.grpc_port, calls._most):
        eventually(lambda: len(calls._waiting) == calls._most)
        age(calls, 2.0)
        predict(running.channel)
        eventually(lambda: calls._open == calls._most - 1)


def test_hanging_probes_hold_up_neither_calls_nor_probes(running, eventually):
    probes = running.server._admission._probes
    with calls_without_a_message(running.server.grpc_port, probes._most, "/grpc.health.v1.Health/Check"):
        eventually(lambda: len(probes._waiting) == probes._most)
        predict(running.channel)
        age(probes, 2.0)
        assert live(running.channel) == health_pb2.HealthCheckResponse.SERVING


def test_watched_health_is_bounded(running, eventually):
    probes = running.server._admission._probes
    stub = health_pb2_grpc.HealthStub(running.channel)
    watches = []
    for number in range(1, probes._most + 1):
        watches.append(stub.Watch(health_pb2.HealthCheckRequest(service="")))
        assert next(watches[-1]).status == health_pb2.HealthCheckResponse.SERVING
        eventually(lambda number=number: probes._open == number)  # none holds a thread, but each counts
    with pytest.raises(grpc.RpcError) as refused:
        live(running.channel)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for watch in watches:
        watch.cancel()
    eventually(lambda: probes._open == 0)
    assert live(running.channel) == health_pb2.HealthCheckResponse.SERVING


def test_a_pool_that_cannot_start_a_thread_keeps_its_places():
    pool = Pool(1, 1.0, "test")
    pool.shutdown()
    with pytest.raises(RuntimeError):
        pool.submit(print)
    assert pool.has_room()


def test_open_conversations_with_reflection_hold_up_no_call(running, eventually):
    reflections = running.server._admission._reflections
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    done = threading.Event()

    def ask() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        done.wait(60)

    open_calls = [stub.ServerReflectionInfo(ask()) for _ in range(reflections._most)]
    assert all(len(next(call).list_services_response.service) == 4 for call in open_calls)
    assert reflections._open == reflections._most
    predict(running.channel)
    assert live(running.channel) == health_pb2.HealthCheckResponse.SERVING
    done.set()
    eventually(lambda: reflections._open == 0)


def test_strangers_are_refused_before_they_send_their_message(serve, toys, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    running = serve(toys.text, model_name="m", bearer_tokens_file=tokens)
    with calls_without_a_message(running.server.grpc_port, 1) as stranger, stranger.makefile("rb") as incoming:
        statuses = (payload for kind, _, stream, payload in frames(incoming) if (kind, stream) == (HEADERS, 1))
        assert b"A valid bearer token is required" in next(statuses)
    assert running.server._admission.calls._open == 0


def test_a_call_that_ends_without_a_message_is_told_so(running):
    with calls_without_a_message(running.server.grpc_port, 1) as client, client.makefile("rb") as incoming:
        client.sendall(frame(DATA, END_STREAM, 1, b""))
        statuses = (payload for kind, _, stream, payload in frames(incoming) if (kind, stream) == (HEADERS, 1))
        assert b"requires exactly one request message" in next(statuses)
