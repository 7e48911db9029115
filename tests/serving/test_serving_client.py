"""The client against a real server, and alone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
import pytest

from serving import protos
from serving.aio import AsyncClient
from serving.client import Client, Options, Retry
from serving.client_core import make_requests, read_response
from serving.errors import (
    AuthenticationError,
    DeadlineError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    ServerError,
    UnavailableError,
)


def test_predict_returns_one_prediction_a_text_in_order(serve, toys):
    running = serve(toys.text, model_name="m")
    texts = ["a" * n for n in (1, 40, 3, 90, 10)]
    with Client(running.target, "m", batch_size=2) as client:
        found = client.predict(texts)
        assert client.available_versions() == [1]
    assert [p.label for p in found] == ["short", "long", "short", "long", "short"]
    assert [round(p.probabilities["long"], 6) for p in found] == [round(n / (n + 10), 6) for n in (1, 40, 3, 90, 10)]
    assert {p.model_version for p in found} == {1}
    assert {p.labels for p in found} == {None}


def test_predict_sends_pairs_as_the_second_segment(serve, toys):
    running = serve(toys.text_pair, model_name="m")
    with Client(running.target, "m") as client:
        found = client.predict(["aaaaa", "a"], pairs=["bbbbb", ""])
    assert [p.probabilities["long"] for p in found] == pytest.approx([0.5, 1 / 11])


def test_predict_of_a_multilabel_model_returns_the_labels_that_apply(serve, toys):
    running = serve(toys.text_multi, model_name="m")
    with Client(running.target, "m") as client:
        found = client.predict(["a", "a" * 90])
    assert [p.labels for p in found] == [("a", "b"), ("c",)]
    assert [p.label for p in found] == [None, None]


def test_predict_of_nothing_asks_nobody():
    with Client("127.0.0.1:1", "m") as client:
        assert client.predict([]) == []


def test_predict_reads_a_response_in_tensor_content(serve, toys):
    running = serve(toys.text, model_name="m", enable_serialization_as_tensor_content=True)
    with Client(running.target, "m") as client:
        assert [p.label for p in client.predict(["a", "a" * 90])] == ["short", "long"]


def test_errors_say_what_kind_they_are(serve, toys):
    running = serve(toys.text, model_name="m")
    with Client(running.target, "other") as client, pytest.raises(ModelNotFoundError, match=r"Latest\(other\)"):
        client.predict(["a"])
    with Client(running.target, "m", signature_name="nope") as client, pytest.raises(InvalidRequestError):
        client.predict(["a"])
    with Client(running.target, "m", timeout_s=1e-9) as client, pytest.raises(DeadlineError):
        client.predict(["a"])
    with Client("127.0.0.1:1", "m", timeout_s=2.0) as client, pytest.raises(UnavailableError):
        client.predict(["a"])


def test_a_request_over_the_server_s_limit_is_no_overload(serve, toys):
    running = serve(toys.text, model_name="m", max_message_bytes=1000)
    with Client(running.target, "m") as client, pytest.raises(InvalidRequestError, match="larger than max"):
        client.predict(["a" * 5000])


class Scripted(grpc.GenericRpcHandler):
    """Answers `Predict` with the given status codes in turn; counts the calls.

    With `together` it answers so many at once, when they have all come: `most` is how many were ever under way.
    """

    def __init__(self, codes: list[grpc.StatusCode], together: int = 1):
        self._codes, self.calls = codes, 0
        self._all_here, self._lock = threading.Barrier(together), threading.Lock()
        self.under_way = self.most = 0
        self.server = grpc.server(futures.ThreadPoolExecutor(4 * together), handlers=[self])
        self.target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, request, context) -> bytes:
        with self._lock:
            code = self._codes[self.calls]
            self.calls += 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        self._all_here.wait(30)
        if self._all_here.parties > 1:
            time.sleep(0.02)  # for one too many to be seen
        with self._lock:
            self.under_way -= 1
        if code is not grpc.StatusCode.OK:
            context.abort(code, "scripted")
        response = protos.PredictResponse()
        response.outputs["probabilities"].dtype = protos.DT_FLOAT
        response.outputs["probabilities"].float_val[:] = [0.25, 0.75]
        response.outputs["classes"].string_val[:] = [b"no", b"yes"]
        return response.SerializeToString()


@pytest.fixture
def scripted():
    """Arguments as of `Scripted`: such a server, stopped at the end of the test."""
    started = []

    def start(*args):
        started.append(Scripted(*args))
        return started[-1]

    yield start
    for one in started:
        one.server.stop(None).wait()


OK, FULL, NOWHERE, DROPPED, BROKEN = (
    grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
)  # fmt: skip


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("codes", "calls", "outcome"),
    [
        ([FULL, NOWHERE, OK], 3, "yes"), ([FULL] * 4, 3, OverloadedError), ([NOWHERE] * 4, 3, UnavailableError),
        ([DROPPED, OK], 2, "yes"), ([DROPPED] * 4, 3, UnavailableError),
        ([BROKEN, OK], 1, ServerError), ([grpc.StatusCode.INVALID_ARGUMENT, OK], 1, InvalidRequestError),
        ([grpc.StatusCode.DEADLINE_EXCEEDED, OK], 1, DeadlineError),
        ([grpc.StatusCode.UNAUTHENTICATED, OK], 1, AuthenticationError),
    ],
)  # fmt: skip
def test_only_a_full_server_or_none_is_asked_again(scripted, asynchronous, codes, calls, outcome):
    server = scripted(codes)
    options = Options(retry=Retry(attempts=3, initial_s=0.001))

    async def ask_asynchronously():
        async with AsyncClient(server.target, "m", options) as client:
            return await client.predict(["a"])

    def ask():
        if asynchronous:
            return asyncio.run(ask_asynchronously())
        with Client(server.target, "m", options) as client:
            return client.predict(["a"])

    if outcome == "yes":
        assert [p.label for p in ask()] == ["yes"]
    else:
        with pytest.raises(outcome) as caught:
            ask()
        assert type(caught.value) is outcome
    assert server.calls == calls


def test_a_closed_client_asks_no_more(scripted):
    """gRPC tells a call of a channel that is closed meanwhile by the code that it has for one that a server dropped."""
    server = scripted([OK, OK], 2)  # the answer waits for a second request
    client = Client(server.target, "m", Options(retry=Retry(attempts=3, initial_s=0.001)))
    with futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(client.predict, ["a"])
        with Client(server.target, "m") as other:
            while not server.under_way:
                time.sleep(0.005)
            client.close()
            with pytest.raises(UnavailableError, match="this client is closed"):
                asked.result(30)
            other.predict(["a"])  # lets the first one go
    for call in (lambda: client.predict(["a"]), client.available_versions):
        with pytest.raises(UnavailableError, match="this client is closed"):
            call()
    assert server.calls == 2


def test_a_closed_asyncio_client_asks_no_more_and_cancels_nobody(scripted):
    server = scripted([OK, OK], 2)

    async def ask():
        client = AsyncClient(server.target, "m")
        under_way = asyncio.create_task(client.predict(["a"]))
        while not server.under_way:
            await asyncio.sleep(0.005)
        await client.close()
        for call in (under_way, client.predict(["a"]), client.available_versions()):
            with pytest.raises(UnavailableError, match="this client is closed"):
                await call
        async with AsyncClient(server.target, "m") as other:
            cancelled = asyncio.create_task(other.predict(["a"]))
            while server.calls < 2:
                await asyncio.sleep(0.005)
            cancelled.cancel()  # the caller's own
            with pytest.raises(asyncio.CancelledError):
                await cancelled

    asyncio.run(ask())


@pytest.mark.parametrize("given", [("a text", None), (b"a text", None), (["a text"], "its pair")])
def test_one_str_is_not_taken_for_a_list_of_texts(given):
    with pytest.raises(InvalidRequestError, match=r"is one (str|bytes); give a list"):
        list(make_requests("m", Options(), *given))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_more_requests_are_under_way_than_the_options_say(scripted, asynchronous):
    server = scripted([OK] * 9, 3)
    options = Options(batch_size=1, concurrency=3)

    async def ask_asynchronously():
        async with AsyncClient(server.target, "m", options) as client:
            return await client.predict(["a"] * 9)

    if asynchronous:
        found = asyncio.run(ask_asynchronously())
    else:
        with Client(server.target, "m", options) as client:
            found = client.predict(["a"] * 9)
    assert [p.label for p in found] == ["yes"] * 9
    assert (server.calls, server.most) == (9, 3)


@pytest.mark.parametrize(("kind", "module"), [(Client, grpc), (AsyncClient, grpc.aio)])
def test_a_silent_connection_is_probed(monkeypatch, kind, module):
    given = []
    made = module.insecure_channel

    def make(target, options):
        given.extend(options)
        return made(target, options)

    monkeypatch.setattr(module, "insecure_channel", make)

    async def begin():  # the asyncio client needs a loop
        client = kind("127.0.0.1:1", "m", keepalive_s=20)
        if kind is AsyncClient:
            await client.close()
        else:
            client.close()

    asyncio.run(begin())
    assert {("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000)} <= set(given)


def test_a_text_that_cannot_be_encoded_is_named_by_its_number_only():
    with pytest.raises(InvalidRequestError, match=r"^text 1 is not") as caught:
        list(make_requests("m", Options(), ["fine", "secret\ud800"], None))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_texts_and_pairs_of_different_number_are_refused():
    with pytest.raises(InvalidRequestError, match="differ in number"):
        list(make_requests("m", Options(), ["a", "b"], ["c"]))


def test_requests_are_split_by_number_and_by_bytes():
    counts = [n for n, _ in make_requests("m", Options(batch_size=3, batch_bytes=10), ["aaaa"] * 5 + ["b" * 50], None)]
    assert counts == [2, 2, 1, 1]


def test_a_response_without_classes_is_a_server_error():
    response = protos.PredictResponse()
    response.outputs["y"].float_val.append(1.0)
    with pytest.raises(ServerError, match=r"returned \['y'\]"):
        read_response(response, 1)


def test_the_client_imports_little():
    """What makes it fast; how fast it is, tests/benchmarks/model_server.py tells."""
    code = (
        "import sys; before = set(sys.modules); import serving.client, serving.aio; "
        "new = set(sys.modules) - before; "
        "print(len(new), *sorted({n.partition('.')[0] for n in new} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *packages = done.stdout.split()
    own, grpc_s = {"components", "serving"}, {"google", "typing_extensions", "cython_runtime"}
    assert {p for p in packages if not p.startswith(("grpc", "_cython"))} <= own | grpc_s
    assert int(count) < 210


def test_the_client_s_messages_are_the_installed_protocol_s():
    from tensorflow.core.framework import tensor_pb2
    from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

    def shape(descriptor, seen=()):
        found = {}
        for f in descriptor.fields:
            enum = f.type == f.TYPE_ENUM  # carried as its number: the same bytes
            kind = f.TYPE_INT32 if enum else f.type
            nested = None
            if f.message_type and f.message_type.name not in ("TensorProto", *seen):
                nested = shape(f.message_type, (*seen, descriptor.name))
            oneof = f.containing_oneof.name if f.containing_oneof else None
            found[f.name] = (f.number, kind, f.is_repeated, oneof, nested)
        return found

    for ours, theirs in [
        (protos.PredictRequest, predict_pb2.PredictRequest),
        (protos.PredictResponse, predict_pb2.PredictResponse),
        (protos.GetModelStatusRequest, get_model_status_pb2.GetModelStatusRequest),
        (protos.GetModelStatusResponse, get_model_status_pb2.GetModelStatusResponse),
    ]:
        mine, real = shape(ours.DESCRIPTOR), shape(theirs.DESCRIPTOR)
        assert {k: v for k, v in real.items() if k in mine} == mine
    mine, real = shape(protos.TensorProto.DESCRIPTOR), shape(tensor_pb2.TensorProto.DESCRIPTOR)
    assert {k: v for k, v in real.items() if k in mine} == mine
    assert set(real) - set(mine) == {"resource_handle_val", "variant_val", "float8_val"}


def test_the_asyncio_client_answers_as_the_synchronous_one(serve, toys):
    running = serve(toys.text, model_name="m")
    texts = ["a" * n for n in range(1, 30)]

    async def ask():
        async with AsyncClient(running.target, "m", batch_size=3) as client:
            with pytest.raises(InvalidRequestError):
                await client.predict(["x\ud800"])
            return await client.predict(texts), await client.available_versions()

    with Client(running.target, "m") as client:
        assert asyncio.run(ask()) == (client.predict(texts), client.available_versions())


# The fields of TensorFlow Serving 2.20.0's messages that are in no package (Apache 2.0; ssl_config.proto and
# monitoring_config.proto in tensorflow_serving/config, session_bundle_config.proto in servables/tensorflow).
UNPACKAGED = {
    protos.SSLConfig: """
        1 server_key optional string
        2 server_cert optional string
        3 custom_ca optional string
        4 client_verify optional bool""",
    protos.MonitoringConfig: """
        1 prometheus_config optional tensorflow.serving.PrometheusConfig
        1.1 enable optional bool
        1.2 path optional string""",
    protos.BatchingParameters: """
        1 max_batch_size optional google.protobuf.Int64Value
        2 batch_timeout_micros optional google.protobuf.Int64Value
        3 max_enqueued_batches optional google.protobuf.Int64Value
        4 num_batch_threads optional google.protobuf.Int64Value
        5 thread_pool_name optional google.protobuf.StringValue
        6 allowed_batch_sizes repeated int64
        7 pad_variable_length_inputs optional bool
        8 enable_large_batch_splitting optional google.protobuf.BoolValue
        9 max_execution_batch_size optional google.protobuf.Int64Value""",
}


@pytest.mark.parametrize("message", UNPACKAGED, ids=lambda m: m.DESCRIPTOR.name)
def test_the_messages_of_configuration_files_are_tensorflow_serving_s(message):
    def table(descriptor, prefix="") -> list[list[str]]:
        rows = []
        for f in sorted(descriptor.fields, key=lambda f: f.number):
            scalars = {f.TYPE_STRING: "string", f.TYPE_BOOL: "bool", f.TYPE_INT64: "int64"}
            kind = f.message_type.full_name if f.message_type else scalars[f.type]
            rows.append([f"{prefix}{f.number}", f.name, "repeated" if f.is_repeated else "optional", kind])
            if kind.startswith("tensorflow."):
                rows += table(f.message_type, f"{prefix}{f.number}.")
        return rows

    assert message.DESCRIPTOR.full_name == f"tensorflow.serving.{message.DESCRIPTOR.name}"
    assert table(message.DESCRIPTOR) == [line.split() for line in UNPACKAGED[message].strip().splitlines()]
