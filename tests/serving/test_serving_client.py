"""The client against a real server, and alone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
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
    """Answers `Predict` with the given status codes in turn; counts the calls."""

    def __init__(self, codes: list[grpc.StatusCode]):
        self._codes, self.calls = codes, 0
        self.server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[self])
        self.target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, request, context) -> bytes:
        self.calls += 1
        code = self._codes[self.calls - 1]
        if code is not grpc.StatusCode.OK:
            context.abort(code, "scripted")
        response = protos.PredictResponse()
        response.outputs["probabilities"].dtype = protos.DT_FLOAT
        response.outputs["probabilities"].float_val[:] = [0.25, 0.75]
        response.outputs["classes"].string_val[:] = [b"no", b"yes"]
        return response.SerializeToString()


@pytest.fixture
def scripted():
    """A function of status codes: a `Scripted` server, stopped at the end of the test."""
    started = []

    def start(codes):
        started.append(Scripted(codes))
        return started[-1]

    yield start
    for one in started:
        one.server.stop(None).wait()


OK, FULL, NOWHERE, BROKEN = (
    grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL,
)  # fmt: skip


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("codes", "calls", "outcome"),
    [
        ([FULL, NOWHERE, OK], 3, "yes"), ([FULL] * 4, 3, OverloadedError), ([NOWHERE] * 4, 3, UnavailableError),
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


def test_the_client_imports_fast_and_without_tensorflow():
    code = (
        "import sys, time; t = time.perf_counter(); import serving.client, serving.aio; "
        "heavy = {'tensorflow', 'numpy', 'pandas', 'keras', 'pydantic'} & set(sys.modules); "
        "print(sorted(heavy))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


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
