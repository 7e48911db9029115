"""Looks at a server in a table; then the watch over time, with a scripted server and with a real one's metrics page."""
# ruff: noqa: E501 - a row of a table stands on one line

import http.server
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import grpc
import pytest

from components.push.base_path import published, read_journal
from pipeline.records import read_records
from pipeline.retraining.config import WatchConfig
from pipeline.retraining.launch import Stopped
from pipeline.retraining.state import State
from pipeline.retraining.watch import (
    Before,
    Counts,
    NotRolledBack,
    NotWatched,
    Seen,
    Server,
    ServerWatch,
    judge,
    read_counts,
)
from serving import protos
from serving.metrics import Metrics

START, LOADING, AVAILABLE, UNLOADING, END = 10, 20, 30, 40, 50
BEFORE = Counts(1000, 5, 1000, 1000 * 20_000)
UNKNOWN = Before()


def after(requests: float, failed: float, milliseconds: float = 20.0) -> Counts:
    return Counts(1000 + requests, 5 + failed, 1000 + requests, BEFORE.latency_us + requests * milliseconds * 1000)


JUDGE_TABLE = [
    # what                                  before  seen                                         verdict        reason holds
    ("the server does not answer",          BEFORE, Seen(False),                                 "unreachable", ""),
    ("not known yet",                       None,   Seen(True),                                  "waiting",     ""),
    ("loading",                             None,   Seen(True, LOADING),                         "waiting",     ""),
    ("failed to load",                      None,   Seen(True, END, 3),                          "rollback",    "failed to load (status code 3)"),
    ("unloaded without an error",           BEFORE, Seen(True, END, 0),                          "waiting",     ""),
    ("loaded",                              None,   Seen(True, AVAILABLE, 0, BEFORE),            "serving",     ""),
    ("loaded, no metrics",                  None,   Seen(True, AVAILABLE),                       "serving",     ""),
    ("few requests are not judged",         BEFORE, Seen(True, AVAILABLE, 0, after(19, 19)),     "serving",     ""),
    ("errors within",                       BEFORE, Seen(True, AVAILABLE, 0, after(100, 1)),     "serving",     ""),
    ("errors beyond",                       BEFORE, Seen(True, AVAILABLE, 0, after(100, 2)),     "rollback",    "2.00% of 100 requests failed"),
    ("as many errors as before it",         Counts(100, 40), Seen(True, AVAILABLE, 0, Counts(200, 80)), "serving", ""),
    ("latency within",                      BEFORE, Seen(True, AVAILABLE, 0, after(100, 0, 50)), "serving",     ""),
    ("latency beyond",                      BEFORE, Seen(True, AVAILABLE, 0, after(100, 0, 51)), "rollback",    "took 51.0 ms each on average"),
    ("the server was started anew",         BEFORE, Seen(True, AVAILABLE, 0, Counts(50, 0, 50, 1.0)), "serving", ""),
]  # fmt: skip


@pytest.mark.parametrize(("before", "seen", "verdict", "reason"), [row[1:] for row in JUDGE_TABLE],
                         ids=[row[0] for row in JUDGE_TABLE])  # fmt: skip
def test_judge(before, seen, verdict, reason) -> None:
    config = WatchConfig(target="host:1", max_latency_ms=50.0)
    found, why = judge(config, 7, before, seen)
    assert found == verdict
    assert reason in why
    assert bool(why) is (verdict == "rollback")


class Clock:
    """Time that passes only while the watch waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, stop: Event, seconds: float) -> bool:
        self.now += seconds
        return stop.is_set()


@pytest.fixture
def serving_dir(tmp_path: Path) -> Path:
    for number in (1, 2):
        folder = tmp_path / "serving" / str(number) / "assets.extra"
        folder.mkdir(parents=True)
        (folder / "lineage.json").write_text(json.dumps({"blessed": True}))
    return tmp_path / "serving"


def watched(serving_dir: Path, looks: list[Seen], before: Before = UNKNOWN) -> tuple[str | None, Clock]:
    clock = Clock()
    script = iter(looks)
    last = [looks[0]]

    def look(version: int) -> Seen:
        last[0] = next(script, last[0])
        return last[0]

    config = WatchConfig(target="host:1", watch_s=60, poll_s=5, load_timeout_s=30)
    return ServerWatch(config, "m", serving_dir, look, clock, clock.wait)(2, before, Event()), clock


def test_good_version_is_watched_for_its_time_from_when_it_was_loaded(serving_dir: Path) -> None:
    looks = [Seen(True), Seen(True, LOADING), Seen(True, AVAILABLE, 0, BEFORE)]
    reason, clock = watched(serving_dir, looks)
    assert (reason, clock.now) == (None, 70.0)
    assert sorted(published(serving_dir)) == [1, 2]


@pytest.mark.parametrize(
    ("looks", "reason"),
    [
        ([Seen(True, LOADING), Seen(True, END, 13)], "version 2 failed to load (status code 13)"),
        ([Seen(True, AVAILABLE, 0, BEFORE), Seen(True, AVAILABLE, 0, after(100, 50))], "50.00% of 100 requests failed"),
        ([Seen(True, LOADING)], "was not loaded within watch.load_timeout_s = 30"),
        ([Seen(True, AVAILABLE, 0, BEFORE), Seen(False)], "the model server has not answered for 35 s since version 2"),
        ([Seen(True, AVAILABLE), Seen(True, LOADING)], "was loaded and has not been served any more for 35 s"),
        ([Seen(True, AVAILABLE), Seen(True, END)], "was loaded and has not been served any more for 35 s"),
        ([Seen(True, AVAILABLE), Seen(True)], "was loaded and has not been served any more for 35 s"),
    ],
)
def test_bad_version_is_rolled_back_and_the_journal_says_why(serving_dir: Path, looks, reason) -> None:
    found, _ = watched(serving_dir, looks)
    assert reason in found
    assert found.endswith("version 1 is live again")
    assert sorted(published(serving_dir)) == [1]
    assert reason in read_journal(serving_dir)[-1]["reason"]


def test_server_that_answered_neither_before_nor_after_the_push_is_no_fault_of_the_version(serving_dir: Path) -> None:
    with pytest.raises(NotWatched, match="no model server answers at host:1"):
        watched(serving_dir, [Seen(False)])
    assert sorted(published(serving_dir)) == [1, 2]


def test_server_that_answered_before_the_run_and_not_after_the_push_was_taken_down_by_it(serving_dir: Path) -> None:
    reason, _ = watched(serving_dir, [Seen(False)], Before(answered=True))
    assert reason == "the model server has not answered for 35 s since version 2; version 1 is live again"
    assert sorted(published(serving_dir)) == [1]


@pytest.mark.parametrize("trouble", [Seen(False), Seen(True, LOADING)])
def test_version_that_is_in_trouble_when_its_time_is_over_is_watched_on(serving_dir: Path, trouble: Seen) -> None:
    good = [Seen(True, AVAILABLE)] * 11  # until 50 s of 60
    assert watched(serving_dir, [*good, *[trouble] * 4, good[0]])[1].now == 75.0
    reason, clock = watched(serving_dir, [*good, trouble])
    assert clock.now == 85.0
    assert reason.endswith("version 1 is live again")


@pytest.mark.parametrize(
    ("seen", "before"),
    [
        (Seen(False), Before(False)),
        (Seen(True), Before(True)),
        (Seen(True, AVAILABLE, 0, Counts(100, 40)), Before(True, 0.4)),
        (Seen(True, AVAILABLE, 0, Counts(19, 19)), Before(True)),
    ],
)
def test_server_is_looked_at_before_a_run(serving_dir: Path, seen: Seen, before: Before) -> None:
    looks = []

    def look(version: int) -> Seen:
        looks.append(version)
        return seen

    assert ServerWatch(WatchConfig(target="host:1"), "m", serving_dir, look).before() == before
    assert looks == [2], "the live version"


def test_errors_before_the_run_are_the_measure_not_those_until_the_version_was_seen(serving_dir: Path) -> None:
    seen = [Seen(True, AVAILABLE, 0, Counts(100, 40)), Seen(True, AVAILABLE, 0, Counts(200, 80))]
    assert watched(serving_dir, seen, Before(True, 0.4))[0] is None
    assert "than before it (0.50%)" in watched(serving_dir, seen, Before(True, 0.005))[0]


def test_record_of_a_run_says_that_no_server_was_there_to_watch(project) -> None:
    config = WatchConfig(target="host:1", load_timeout_s=0.01, poll_s=0.01)
    watch = ServerWatch(config, "m", project.config.serving_dir, lambda version: Seen(False))
    assert project.scheduler(watch=watch).look().run.status == "pushed"
    assert read_records(project.root)[-1]["not_watched"] == "no model server answers at host:1"


def test_server_that_was_there_before_a_schedule_was_killed_is_remembered(project) -> None:
    there = [True]

    class Killed(BaseException):
        pass

    def killed(request, stop, lock):
        project.run(request, stop, lock)
        there.clear()
        raise Killed

    project.scheduler().look()
    project.add_span(1)
    project.pass_time(days=1)
    config = WatchConfig(target="host:1", load_timeout_s=0.01, poll_s=0.01)
    watch = ServerWatch(config, "m", project.config.serving_dir, lambda version: Seen(bool(there)))
    with pytest.raises(Killed):
        project.scheduler(start=killed, watch=watch).look()
    run = project.scheduler(watch=watch).look().run
    assert run.status == "rolled_back"
    assert run.result["rolled_back"].startswith("the model server has not answered for ")
    assert len(project.effects()) == 2, "nothing was trained again"


def test_short_silence_is_borne(serving_dir: Path) -> None:
    serving = Seen(True, AVAILABLE, 0, BEFORE)
    looks = [serving, *[Seen(False)] * 5, serving]
    assert watched(serving_dir, looks)[0] is None


def test_first_version_cannot_be_rolled_back_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "serving" / "2").mkdir(parents=True)
    with pytest.raises(NotRolledBack, match=r"it stays live, for it could not be rolled back: .* no blessed version"):
        watched(tmp_path / "serving", [Seen(True, END, 3)])
    assert sorted(published(tmp_path / "serving")) == [2]


def test_run_whose_version_cannot_be_rolled_back_has_failed_and_can_be_watched_again(project) -> None:
    arguments = (WatchConfig(target="host:1", watch_s=0.01, poll_s=0.01), "m", project.config.serving_dir)
    run = project.scheduler(watch=ServerWatch(*arguments, lambda version: Seen(True, END, 3))).look().run
    assert run.status == "failed"
    assert run.result["cause"].startswith(f"version {run.result['version']} failed to load (status code 3); it stays")
    state = State(project.root)
    [(_, event, body, *_)] = state.outbox()
    assert (event, body["cause"]) == ("failed", run.result["cause"])
    state.reopen(run)
    state.close()
    serving = ServerWatch(*arguments, lambda version: Seen(True, AVAILABLE))
    assert project.scheduler(watch=serving).look().run.status == "pushed"
    assert len(project.effects()) == 1, "nothing was trained again"


def test_version_that_another_has_replaced_is_watched_no_longer(serving_dir: Path) -> None:
    (serving_dir / "3").mkdir()
    reason, clock = watched(serving_dir, [Seen(True, END, 3)])
    assert (reason, clock.now) == (None, 0.0)


def test_rollback_whose_watch_was_killed_before_it_could_tell_is_told_by_the_next(make_project) -> None:
    """Killed between the rollback and the settling of the run: the next look settles it as rolled back."""
    project = make_project()
    project.scheduler().look()
    project.add_span(1)
    project.pass_time(days=1)

    class Killed(BaseException):
        pass

    class KilledWatch(ServerWatch):
        def _roll_back(self, version: int, reason: str) -> str:
            super()._roll_back(version, reason)
            raise Killed

    arguments = (WatchConfig(target="host:1"), "m", project.config.serving_dir, lambda version: Seen(True, END, 3))
    with pytest.raises(Killed):
        project.scheduler(watch=KilledWatch(*arguments)).look()
    run = project.scheduler(watch=ServerWatch(*arguments)).look().run
    [live] = published(project.config.serving_dir)
    reason = f"version {run.result['version']} failed to load (status code 3); version {live} is live again"
    assert (run.status, run.result["rolled_back"]) == ("rolled_back", reason)
    assert read_records(project.root)[-1]["rolled_back"] == reason


def test_watch_stops_when_told(serving_dir: Path) -> None:
    stop = Event()
    stop.set()
    with pytest.raises(Stopped):
        ServerWatch(WatchConfig(target="host:1"), "m", serving_dir, lambda version: Seen(True))(2, UNKNOWN, stop)


def test_counts_are_read_from_the_servers_own_page_and_only_of_this_model() -> None:
    metrics = Metrics()
    metrics.request_count.add("m", "OK", by=90)
    metrics.request_count.add("m", "INTERNAL", by=7)
    metrics.request_count.add("m", "CANCELLED", by=3)
    metrics.request_count.add("other", "INTERNAL", by=50)
    for _ in range(4):
        metrics.request_latency.observe(2500.0, "m", "predict", "GRPC")
    metrics.request_latency.observe(1.0, "m", "", "REST")  # a probe for its state
    metrics.request_latency.observe(1e9, "other", "predict", "GRPC")
    assert read_counts(metrics.page(), "m") == Counts(100, 7, 4, 10_000)
    assert read_counts("", "m") == Counts()


def test_errors_of_requests_that_never_came_to_the_version_are_not_its_own() -> None:
    metrics = Metrics()
    for status in ("OK", "NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED", "CANCELLED"):
        metrics.request_count.add("m", status)
    assert read_counts(metrics.page(), "m") == Counts(5, 0)
    for status in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL"):
        metrics.request_count.add("m", status)
    assert read_counts(metrics.page(), "m") == Counts(10, 5)


class FakeServer:
    """GetModelStatus over gRPC, and a metrics page over HTTP, as a model server gives them."""

    def __init__(self) -> None:
        self.states: dict[int, tuple[int, int]] = {}
        self.code: grpc.StatusCode | None = None
        self.metrics = Metrics()
        server = self

        def status(request, context):
            assert request.model_spec.name == "m"
            if server.code is not None:
                context.abort(server.code, "no")
            response = protos.GetModelStatusResponse()
            for version, (state, code) in server.states.items():
                item = response.model_version_status.add()
                item.version, item.state, item.status.error_code = version, state, code
            return response

        handler = grpc.unary_unary_rpc_method_handler(
            status, protos.GetModelStatusRequest.FromString, protos.GetModelStatusResponse.SerializeToString
        )
        self.grpc = grpc.server(ThreadPoolExecutor(2))
        self.grpc.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", {"GetModelStatus": handler}),)
        )
        self.port = self.grpc.add_insecure_port("127.0.0.1:0")
        self.grpc.start()

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = server.metrics.page().encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args) -> None:
                pass

        self.http = http.server.HTTPServer(("127.0.0.1", 0), Page)
        self.thread = Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def config(self) -> WatchConfig:
        url = f"http://127.0.0.1:{self.http.server_port}/monitoring/prometheus/metrics"
        return WatchConfig(target=f"127.0.0.1:{self.port}", metrics_url=url, poll_s=0.01, watch_s=5.0)

    def close(self) -> None:
        self.grpc.stop(None).wait()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


def test_server_is_asked_for_its_versions_and_its_metrics(server: FakeServer) -> None:
    look = Server(server.config, "m").look
    server.states = {1: (AVAILABLE, 0), 2: (LOADING, 0)}
    server.metrics.request_count.add("m", "OK", by=3)
    assert look(2) == Seen(True, LOADING, 0, Counts(3))
    assert look(3) == Seen(True), "not known there yet"
    server.states = {1: (AVAILABLE, 0), 2: (END, 3)}
    assert look(2) == Seen(True, END, 3, Counts(3))
    server.code = grpc.StatusCode.NOT_FOUND
    assert look(2) == Seen(True), "a server without any version is a server"
    server.code = grpc.StatusCode.UNAVAILABLE
    assert look(2) == Seen(False)


def test_metrics_that_cannot_be_had_leave_the_status(server: FakeServer) -> None:
    server.states = {2: (AVAILABLE, 0)}
    config = server.config.model_copy(update={"metrics_url": "http://127.0.0.1:9/none"})
    assert Server(config, "m").look(2) == Seen(True, AVAILABLE)


COUNTED = b':tensorflow:serving:request_count{model_name="m",status="OK"} 1'


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + COUNTED + b"0\n", Counts(10)),
        (b"HTTP/1.1 200 OK\r\n\r\n" + COUNTED, None),
        (b"HTTP/1.1 200 OK\r\n\r\n<!DOCTYPE html>\n<html>\n<p>Sign in</p>\n", None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nab", None),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", None),
        (b"garbage\r\n\r\n", None),
        (b"", None),
    ],
)
def test_odd_answer_for_metrics_is_no_answer(server: FakeServer, answer_with, answer: bytes, counts) -> None:
    server.states = {2: (AVAILABLE, 0)}
    config = server.config.model_copy(update={"metrics_url": answer_with(answer)})
    assert Server(config, "m").look(2) == Seen(True, AVAILABLE, 0, counts)


def test_version_that_fails_requests_on_a_live_server_is_rolled_back(server: FakeServer, serving_dir: Path) -> None:
    server.states = {1: (AVAILABLE, 0), 2: (AVAILABLE, 0)}
    server.metrics.request_count.add("m", "OK", by=100)
    looks = []

    def wait(stop: Event, seconds: float) -> bool:
        looks.append(seconds)
        server.metrics.request_count.add("m", "INTERNAL", by=10)
        return False

    reason = ServerWatch(server.config, "m", serving_dir, wait=wait)(2, UNKNOWN, Event())
    assert reason.startswith("version 2: 100.00% of 20 requests failed")
    assert sorted(published(serving_dir)) == [1]
    assert len(looks) == 2, "ten requests are too few to judge"
