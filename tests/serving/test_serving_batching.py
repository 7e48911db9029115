"""The batcher, alone with a recording runner, and in a server."""

from __future__ import annotations

import shutil
import socket
import struct
import threading
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.batching import Batcher
from serving.batching_options import BatchingOptions, read_options
from serving.errors import Code, StartError, StatusError
from serving.loader import Call
from serving.metrics import Metrics
from serving.token_counter import token_counter


class Recorder:
    """Doubles its input; remembers each batch; waits at the gate before it computes."""

    def __init__(self, open_gate: bool = True):
        self.batches: list[list[float]] = []
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        if open_gate:
            self.gate.set()

    def run(self, feeds, fetches, call=None):
        self.entered.release()
        assert self.gate.wait(30)
        x = feeds["x"]
        self.batches.append(x.ravel().tolist())
        if np.any(x < 0):
            raise StatusError(Code.INVALID_ARGUMENT, "negative")
        return [x * 2]

    def close(self):
        pass


def column(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, np.float32)}


class Crowd:
    """Callers in threads of their own; each outcome is a list of numbers or an error."""

    def __init__(self, batcher: Batcher):
        self._batcher = batcher
        self._threads: list[threading.Thread] = []
        self.outcomes: dict[int, object] = {}

    def call(self, *values: float, call: Call | None = None, feeds: dict | None = None) -> None:
        number = len(self._threads)

        def body() -> None:
            try:
                out = self._batcher.run(feeds or column(*values), ["y"], call or Call())
                self.outcomes[number] = out[0].ravel().tolist()
            except StatusError as error:
                self.outcomes[number] = error.code

        thread = threading.Thread(target=body)
        self._threads.append(thread)
        thread.start()

    def join(self) -> dict[int, object]:
        for thread in self._threads:
            thread.join(30)
        return dict(sorted(self.outcomes.items()))


@pytest.fixture
def busy():
    """A batcher of one thread that is busy with a first request until the gate opens."""
    made = []

    def make(count_tokens=lambda feeds: None, **options):
        runner = Recorder(open_gate=False)
        metrics = Metrics()
        batcher = Batcher(runner, BatchingOptions(num_threads=1, **options), count_tokens, metrics, "m")
        crowd = Crowd(batcher)
        crowd.call(0.0)
        assert runner.entered.acquire(timeout=30)
        made.append((runner, batcher))
        return runner, batcher, crowd, metrics

    yield make
    for runner, batcher in made:
        runner.gate.set()
        batcher.close()


def waiting(batcher, rows: int, eventually) -> None:
    eventually(lambda: batcher._waiting_rows == rows)


def test_what_waits_together_is_computed_together_and_each_gets_its_own_rows(busy, eventually):
    runner, batcher, crowd, metrics = busy(max_batch_size=8)
    for i, values in enumerate([(1.0, 2.0), (3.0,), (4.0, 5.0, 6.0)]):
        crowd.call(*values)
        waiting(batcher, [2, 3, 6][i], eventually)
    runner.gate.set()
    assert crowd.join() == {0: [0.0], 1: [2.0, 4.0], 2: [6.0], 3: [8.0, 10.0, 12.0]}
    assert runner.batches == [[0.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
    assert metrics.processed_batch_size.count("m") == 2
    assert metrics.queuing_latency.count("m") == 4


def test_a_batch_is_padded_to_an_allowed_size_and_the_padding_is_not_returned(busy, eventually):
    runner, batcher, crowd, _ = busy(max_batch_size=4, allowed_sizes=(1, 4))
    crowd.call(1.0, 2.0, 3.0)
    waiting(batcher, 3, eventually)
    runner.gate.set()
    assert crowd.join() == {0: [0.0], 1: [2.0, 4.0, 6.0]}
    assert runner.batches == [[0.0], [1.0, 2.0, 3.0, 1.0]]


def test_a_full_queue_refuses_at_once_and_serves_what_it_took(busy, eventually):
    runner, batcher, crowd, _ = busy(max_batch_size=2, max_enqueued_batches=2)
    for i in range(4):
        crowd.call(float(i + 1))
        waiting(batcher, i + 1, eventually)
    with pytest.raises(StatusError, match="queue to which this task was submitted is full") as caught:
        batcher.run(column(9.0), ["y"])
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    runner.gate.set()
    assert crowd.join() == {0: [0.0], 1: [2.0], 2: [4.0], 3: [6.0], 4: [8.0]}


def test_a_request_whose_client_has_gone_is_not_computed(busy, eventually):
    runner, batcher, crowd, _ = busy(max_batch_size=8)
    alive = [True]
    crowd.call(1.0, call=Call(alive=lambda: alive[0]))
    crowd.call(2.0)
    waiting(batcher, 2, eventually)
    alive[0] = False
    runner.gate.set()
    assert crowd.join() == {0: [0.0], 1: Code.CANCELLED, 2: [4.0]}
    assert runner.batches == [[0.0], [2.0]]


def test_a_request_whose_deadline_passes_in_the_queue_is_not_computed(busy, eventually):
    runner, batcher, crowd, _ = busy(max_batch_size=8)
    with pytest.raises(StatusError) as caught:
        batcher.run(column(1.0), ["y"], Call(remaining_s=lambda: 0.05))
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    waiting(batcher, 0, eventually)
    runner.gate.set()
    crowd.join()
    assert runner.batches == [[0.0]]


def test_one_bad_request_does_not_fail_the_others_of_its_batch(busy, eventually):
    runner, batcher, crowd, _ = busy(max_batch_size=8)
    for i, value in enumerate((1.0, -1.0, 2.0)):
        crowd.call(value)
        waiting(batcher, i + 1, eventually)
    runner.gate.set()
    assert crowd.join() == {0: [0.0], 1: [2.0], 2: Code.INVALID_ARGUMENT, 3: [4.0]}


def test_requests_of_different_shape_are_batched_apart_or_padded(busy, eventually):
    for pad, expected in ((False, [[0.0], [1.0, 2.0], [3.0]]), (True, [[0.0], [1.0, 2.0, 3.0, 3.0]])):
        runner, batcher, crowd, _ = busy(max_batch_size=8, pad_variable=pad)
        crowd.call(feeds={"x": np.array([[1.0, 2.0]], np.float32)})
        waiting(batcher, 1, eventually)
        crowd.call(feeds={"x": np.array([[3.0]], np.float32)})
        waiting(batcher, 2, eventually)
        runner.gate.set()
        crowd.join()
        assert runner.batches == expected


def test_a_long_text_does_not_make_short_ones_pay(busy, eventually):
    runner, batcher, crowd, metrics = busy(lambda feeds: feeds["x"].astype(int), max_batch_size=64)
    for i in range(6):
        crowd.call(500.0 if i == 2 else 20.0 + i)
        waiting(batcher, i + 1, eventually)
    runner.gate.set()
    crowd.join()
    assert runner.batches == [[0.0], [20.0, 21.0, 23.0, 24.0, 25.0], [500.0]]
    assert metrics.tokens.value("m") == 20 + 21 + 23 + 24 + 25 + 500
    assert metrics.padded_tokens.value("m") == 5 * 25 + 500


def test_requests_of_long_and_short_texts_alike_go_together(busy, eventually):
    """What a request's own texts are to one another is its own affair."""
    runner, batcher, crowd, _ = busy(lambda feeds: feeds["x"].astype(int).ravel(), max_batch_size=64)
    for i in range(2):
        crowd.call(feeds=column(20.0, 90.0, 20.0, 20.0))
        waiting(batcher, 4 * (i + 1), eventually)
    runner.gate.set()
    crowd.join()
    assert [len(b) for b in runner.batches] == [1, 8]


def test_texts_that_a_batch_has_left_behind_go_before_newcomers(eventually):
    """Though a newcomer is nearer to the oldest one in length: no text may wait for batch after batch."""
    gate, batches = threading.Event(), []

    class Arriving:
        def run(self, feeds, fetches, call):
            batches.append(feeds["x"].ravel().tolist())
            if batches[-1] == [0.0]:
                assert gate.wait(60)
            elif batches[-1] == [20.0, 21.0]:
                ask(41.0)
            return [feeds["x"]]

        def close(self) -> None: ...

    def ask(value: float) -> None:
        batcher.start(column(value), ["y"], Call(), lambda values, error: None)

    options = BatchingOptions(max_batch_size=2, num_threads=1)
    batcher = Batcher(Arriving(), options, lambda feeds: feeds["x"].astype(int).ravel())
    ask(0.0)
    eventually(lambda: batches == [[0.0]])
    for value in (20.0, 40.0, 30.0, 21.0):
        ask(value)
    gate.set()
    eventually(lambda: len(batches) == 4)
    batcher.close()
    assert batches == [[0.0], [20.0, 21.0], [40.0, 30.0], [41.0]]


def test_a_batch_keeps_within_its_tokens(busy, eventually):
    runner, batcher, crowd, _ = busy(lambda feeds: feeds["x"].astype(int), max_batch_size=64, max_tokens=1000)
    for i in range(5):
        crowd.call(400.0)
        waiting(batcher, i + 1, eventually)
    runner.gate.set()
    crowd.join()
    assert [len(b) for b in runner.batches] == [1, 2, 2, 1]


def token_signatures() -> dict[str, SignatureDef]:
    def signature(text: str) -> SignatureDef:
        return text_format.Parse(text, SignatureDef())

    lengths = 'outputs { key: "row_lengths" value { name: "n:0" dtype: DT_INT64 tensor_shape { dim { size: -1 } } } }'
    return {
        "serving_default": signature('inputs { key: "text" value { name: "default:0" dtype: DT_STRING } }'),
        "explain": signature('inputs { key: "text" value { name: "explain:0" dtype: DT_STRING } }'),
        "classify": signature('inputs { key: "inputs" value { name: "classify:0" dtype: DT_STRING } }'),
        "serialized_examples": signature('inputs { key: "examples" value { name: "examples:0" dtype: DT_STRING } }'),
        "numbers": signature('inputs { key: "inputs" value { name: "numbers:0" dtype: DT_FLOAT } }'),
        "tokens": signature('inputs { key: "text" value { name: "tokens:0" dtype: DT_STRING } }' + lengths),
    }


def test_tokens_that_cannot_be_counted_are_told_at_the_load(caplog):
    class Failing:
        def run(self, feeds, fetches, call):
            raise StatusError(Code.INVALID_ARGUMENT, "secret")

    count = token_counter(Failing(), token_signatures())
    assert [record.getMessage() for record in caplog.records] == [
        "the signature `tokens` fails on an empty text: INVALID_ARGUMENT"
    ]
    assert count({"default:0": np.array([b"abc"], object)}) is None
    assert len(caplog.records) == 1


class Counting:
    """Counts bytes; remembers what it was fed."""

    def __init__(self) -> None:
        self.fed: list[dict[str, list[bytes]]] = []

    def run(self, feeds, fetches, call):
        self.fed.append({name: text.tolist() for name, text in feeds.items()})
        return [np.array([len(t) for t in text]) for text in feeds.values()]


def test_tokens_are_counted_once_at_the_load_so_that_the_first_request_does_not_wait_for_the_graph():
    runner, feeds = Counting(), {"default:0": np.array([b"abc", b"d"], object)}
    count = token_counter(runner, token_signatures())
    assert runner.fed == [{"tokens:0": [b""]}]
    assert count(feeds).tolist() == [3, 1]
    assert token_counter(runner, {})(feeds) is None
    assert runner.fed[1:] == [{"tokens:0": [b"abc", b"d"]}]


def test_tokens_are_counted_for_every_signature_that_takes_the_texts():
    def example(*texts: bytes) -> bytes:
        feature = {"text": tf.train.Feature(bytes_list=tf.train.BytesList(value=texts))}
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    count = token_counter(Counting(), token_signatures())

    def counted(name: str, *values: bytes) -> list[int] | None:
        found = count({name: np.array(values, object)})
        return None if found is None else found.tolist()

    assert counted("explain:0", b"abc", b"d") == [3, 1]
    for name in ("classify:0", "examples:0"):
        assert counted(name, example(b"abc"), example(), tf.train.Example().SerializeToString()) == [3, 0, 0]
        assert counted(name, example(b"abc"), b"no example") is None
    assert counted("numbers:0", b"abc") is None
    assert counted("other:0", b"abc") is None


def test_a_large_request_is_refused_or_split():
    runner = Recorder()
    batcher = Batcher(runner, BatchingOptions(max_batch_size=2))
    with pytest.raises(StatusError, match="Task size 3 is larger than maximum input batch size 2"):
        batcher.run(column(1.0, 2.0, 3.0), ["y"])
    batcher.close()
    batcher = Batcher(runner, BatchingOptions(max_batch_size=5, split_large=True, max_execution_size=2, num_threads=1))
    assert batcher.run(column(1.0, 2.0, 3.0, 4.0, 5.0), ["y"])[0].tolist() == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert runner.batches == [[1.0, 2.0], [3.0, 4.0], [5.0]]
    batcher.close()


@pytest.mark.parametrize("timeout_s", [0.0, 0.001])
def test_every_request_is_answered_once_whatever_the_threads_do(timeout_s):
    """Many callers and several batch threads, with clients that leave: nothing is lost, mixed up or told twice."""
    batcher = Batcher(Recorder(), BatchingOptions(max_batch_size=4, timeout_s=timeout_s, num_threads=4))
    outcomes: dict[tuple[int, int], list[object]] = {}

    def body(caller: int) -> None:
        for number in range(150):
            value, told = float(caller * 1000 + number), threading.Event()
            found = outcomes[caller, number] = []

            def done(values, error, found=found, told=told) -> None:
                found.append(error or values[0].ravel().tolist())
                told.set()

            rows = [value] * (1 + number % 3)
            withdraw = batcher.start(column(*rows), ["y"], Call(), done)
            if number % 5 == 4:
                withdraw()  # it may be in a batch already
            else:
                assert told.wait(60)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(t.is_alive() for t in threads)
    batcher.close()
    assert batcher._waiting_rows == 0
    for (caller, number), found in outcomes.items():
        expected = [2.0 * (caller * 1000 + number)] * (1 + number % 3)
        assert found == [expected] or (number % 5 == 4 and found == [])
    assert len(outcomes) == 12 * 150


def test_a_batch_that_fills_up_is_seen_also_after_others_have_left(eventually):
    """What fills the batch is reckoned anew when requests leave; else it would lie until its time is up."""
    runner = Recorder()
    batcher = Batcher(runner, BatchingOptions(max_batch_size=4, timeout_s=600, num_threads=1))
    told = []

    def done(values, error) -> None:
        told.append(error or values[0].ravel().tolist())

    batcher.start(column(1.0), ["y"], Call(), done)
    other = {"x": np.ones((3, 2), np.float32)}  # of another shape, and so of another batch
    withdraw = batcher.start(other, ["y"], Call(), done)
    eventually(lambda: batcher._wake_at == 1 + 3 + 3)
    withdraw()
    batcher.start(column(2.0, 3.0, 4.0), ["y"], Call(), done)
    eventually(lambda: len(told) == 2, 20)
    assert told == [[2.0], [4.0, 6.0, 8.0]]
    assert runner.batches == [[1.0, 2.0, 3.0, 4.0]]
    batcher.close()


def test_a_deadline_or_client_that_cannot_be_told_ends_its_own_request_only(busy, eventually):
    runner, batcher, crowd, _ = busy(max_batch_size=8)
    told = []

    def broken() -> bool:
        if told:
            raise OSError("connection state unknown")
        told.append(True)  # the check on entry passes
        return True

    outcome = []
    batcher.start(column(1.0), ["y"], Call(alive=broken), lambda values, error: outcome.append(error))
    crowd.call(2.0)
    waiting(batcher, 2, eventually)
    runner.gate.set()
    assert crowd.join() == {0: [0.0], 1: [4.0]}
    assert [type(e) for e in outcome] == [OSError]


def test_a_request_without_a_deadline_is_batched(serve, toys):
    running = serve(toys.text, enable_batching=True)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"a"]))
    response = prediction_service_pb2_grpc.PredictionServiceStub(running.channel).Predict(request)
    assert list(response.outputs["label"].string_val) == [b"short"]


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_request_over_rest_whose_client_has_gone_is_not_computed(serve, toys, tmp_path, eventually, reset):
    parameters, monitoring = tmp_path / "p.txt", tmp_path / "monitoring.config"
    parameters.write_text("max_batch_size { value: 2 } batch_timeout_micros { value: 600000000 }")
    monitoring.write_text("prometheus_config { enable: true }")
    running = serve(
        toys.text, rest_api_port=-1, monitoring_config_file=monitoring, enable_batching=True,
        batching_parameters_file=parameters,
    )  # fmt: skip

    def batch_sizes(which: str) -> list[float]:
        with urllib.request.urlopen(running.rest + "/monitoring/prometheus/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        name = f":tensorflow:serving:batching_session:{which}_sum"
        return [float(line.split()[-1]) for line in lines if line.startswith(name)]

    body = b'{"instances": ["aa"]}'
    with socket.create_connection(("127.0.0.1", running.server.rest_port), 30) as gone:
        gone.sendall(b"POST /v1/models/default:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 21\r\n\r\n" + body)
        eventually(lambda: batch_sizes("input_batch_size") == [1])
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
    assert batch_sizes("processed_batch_size") == []  # it waits; the page comes by the loop that sees the client go
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"a"]))
    # It fills the batch.
    response = prediction_service_pb2_grpc.PredictionServiceStub(running.channel).Predict(request, 30)
    assert list(response.outputs["label"].string_val) == [b"short"]
    assert batch_sizes("processed_batch_size") == [1]


def test_outputs_that_are_not_batched_are_refused():
    class Wrong(Recorder):
        def run(self, feeds, fetches, call=None):
            return [np.zeros(7, np.float32)]

    batcher = Batcher(Wrong(), BatchingOptions(max_batch_size=4))
    with pytest.raises(StatusError, match="does not equal the sum of the 0th dimension") as caught:
        batcher.run(column(1.0), ["y"])
    assert caught.value.code is Code.FAILED_PRECONDITION
    batcher.close()


def test_parameters_are_read_with_the_defaults_of_tensorflow_serving(tmp_path):
    assert read_options("", 0) == BatchingOptions(1000, 0.0, 10, BatchingOptions().num_threads)
    path = tmp_path / "batching_parameters.txt"
    path.write_text(
        "max_batch_size { value: 128 }\nbatch_timeout_micros { value: 1500 }\nmax_enqueued_batches { value: 7 }\n"
        "num_batch_threads { value: 8 }\nallowed_batch_sizes: 32\nallowed_batch_sizes: 128\n"
    )
    assert read_options(str(path), 0) == BatchingOptions(128, 0.0015, 7, 8, (32, 128))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_batch_size: 3", r"Error parsing text-format tensorflow\.serving\.BatchingParameters"),
        ("max_batch_size { value: 0 }", "max_batch_size must be 1 or more"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "must match max_batch_size"),
        ("max_batch_size { value: 4 } allowed_batch_sizes: 8 allowed_batch_sizes: 4", "monotonically increasing"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(tmp_path, text, words):
    path = tmp_path / "p.txt"
    path.write_text(text)
    with pytest.raises(StartError, match=words):
        read_options(str(path), 0)


def test_a_server_with_batching_answers_as_one_without(serve, toys, tmp_path):
    parameters = tmp_path / "p.txt"
    parameters.write_text("max_batch_size { value: 16 } batch_timeout_micros { value: 2000 }")
    running = serve(toys.text, enable_batching=True, batching_parameters_file=parameters, grpc_max_threads=32)
    call = prediction_service_pb2_grpc.PredictionServiceStub(running.channel).Predict
    futures = []
    for i in range(32):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "default"
        request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"a" * (i + 1)]))
        futures.append(call.future(request, 20))
    found = [f.result().outputs["probabilities"].float_val[1] for f in futures]
    assert found == pytest.approx([(i + 1) / (i + 11) for i in range(32)], rel=1e-6)


def test_batching_by_model_follows_the_file_in_its_folder_and_without_one_there_is_none(serve, toys, tmp_path):
    parameters = tmp_path / "p.txt"
    parameters.write_text("max_batch_size { value: 2 }")
    base = tmp_path / "own"
    shutil.copytree(toys.text, base)
    (base / "1" / "batching_params.pbtxt").write_text("max_batch_size { value: 4 }")
    flags = {"enable_batching": True, "batching_parameters_file": parameters}
    refusals = []

    def largest(model, by_model: bool) -> list[int]:
        running = serve(model, **flags, enable_per_model_batching_parameters=by_model)
        call = prediction_service_pb2_grpc.PredictionServiceStub(running.channel).Predict
        taken = []
        for rows in (2, 3, 5):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "default"
            request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"a"] * rows))
            try:
                call(request, 20)
            except grpc.RpcError as error:
                refusals.append(error.details())
            else:
                taken.append(rows)
        return taken

    assert largest(base, False) == [2]
    assert largest(base, True) == [2, 3]
    assert largest(toys.text, True) == [2, 3, 5]
    assert refusals == [
        f"Task size {n} is larger than maximum input batch size {m}" for n, m in [(3, 2), (5, 2), (5, 4)]
    ]


def test_a_server_refuses_more_requests_than_it_may_work_on(serve, toys, tmp_path):
    parameters = tmp_path / "p.txt"
    parameters.write_text("max_batch_size { value: 2 } batch_timeout_micros { value: 500000 }")
    running = serve(toys.text, enable_batching=True, batching_parameters_file=parameters, grpc_max_threads=1)
    call = prediction_service_pb2_grpc.PredictionServiceStub(running.channel).Predict
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"a"]))
    futures = [call.future(request, 20) for _ in range(8)]
    codes = [f.code() for f in futures]
    assert codes.count(grpc.StatusCode.OK) >= 1
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 1
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_a_full_server_refuses_rest_at_once_and_still_tells_its_state(serve, toys, tmp_path, eventually):
    """One worker and three that may wait for it; each answer needs a second request in its batch."""
    parameters = tmp_path / "p.txt"
    parameters.write_text("max_batch_size { value: 2 } batch_timeout_micros { value: 600000000 }")
    running = serve(
        toys.text, rest_api_port=-1, rest_api_num_threads=1, enable_batching=True, batching_parameters_file=parameters
    )
    url, body = running.rest + "/v1/models/default", b'{"instances": ["a"]}'
    taken: list[int] = []

    def ask() -> None:
        with urllib.request.urlopen(url + ":predict", body, timeout=60) as response:
            taken.append(response.status)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: running.server._rest._inferring == 4)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url + ":predict", body, timeout=30)
    assert caught.value.code == 429
    assert running.server._rest._metrics.request_count.value("default", "RESOURCE_EXHAUSTED") == 1
    with urllib.request.urlopen(url, timeout=30) as response:
        assert response.status == 200
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"a"]))
    for _ in threads:
        prediction_service_pb2_grpc.PredictionServiceStub(running.channel).Predict(request, 30)
    for thread in threads:
        thread.join()
    assert taken == [200] * 4
