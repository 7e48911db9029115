"""Clients that take their answer slowly, or never: they hold up nobody, and those that come back get it whole."""

from __future__ import annotations

import dataclasses
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from serving import protos
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

DATA, HEADERS, SETTINGS, WINDOW_UPDATE = 0, 1, 4, 8
INITIAL_WINDOW_SIZE = 4  # a setting
END_STREAM, END_HEADERS = 1, 4  # flags
FEW = 1000  # bytes


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def predict_frames() -> bytes:
    """A connection that takes few bytes of a stream at first, and one call of Predict on it."""
    request = protos.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["text"].dtype = protos.DT_STRING
    request.inputs["text"].tensor_shape.dim.add().size = COUNT
    request.inputs["text"].string_val.append(b"a")  # repeated to the shape: a small request, a large answer
    message = request.SerializeToString()
    fields = [
        (":method", "POST"), (":scheme", "http"), (":path", PREDICT_METHOD), (":authority", "a"), ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]  # fmt: skip
    # HPACK: literal fields, neither indexed nor compressed.
    block = b"".join(b"\0" + b"".join(bytes([len(part)]) + part.encode() for part in pair) for pair in fields)
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, FEW))
        + frame(HEADERS, END_HEADERS, 1, block)
        + frame(DATA, END_STREAM, 1, b"\0" + struct.pack(">I", len(message)) + message)
    )


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
