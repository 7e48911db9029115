"""After a push, on the project's own model server under load: a bad version is rolled back, and its record says so."""

import pytest

from components.push.base_path import published
from components.push.publish import publish
from pipeline import records, versions
from pipeline.retraining.config import WatchConfig
from pipeline.retraining.state import State
from pipeline.retraining.watch import ServerWatch

BOUNDS = {"watch_s": 60.0, "poll_s": 0.1, "load_timeout_s": 120.0, "min_requests": 3}


class Pushes:
    """A run that pushes a toy model: the seam `Launch`."""

    def __init__(self, project, toys) -> None:
        self.project, self.toys, self.fault = project, toys, ""

    def __call__(self, request, stop, lock) -> dict:
        root = self.project.root
        model = root / f"model-{request.newest}"
        if self.fault == "does not load":
            model.mkdir(parents=True)
            (model / "saved_model.pb").write_bytes(b"no graph")
        else:
            self.toys.ToyModel(seed=request.newest, fault=self.fault).export(model)
        done = publish(model, self.project.config.serving_dir, 100, lambda number: {"blessed": True})
        record = {"run_id": records.new_run_id(root), "status": "pushed", "version": done.version,
                  "trigger": request.key}  # fmt: skip
        records.write_record(root, record)
        return record


@pytest.mark.parametrize(
    ("fault", "bounds", "reason", "answered"),
    [
        ("does not load", {}, "failed to load (status code", False),
        (
            "breaks_on_bytes",
            {"max_error_share": 0.5},
            "requests failed, more than watch.max_error_share = 50.00%",
            False,
        ),
        ("slow", {"max_latency_ms": 50.0}, "ms each on average, more than watch.max_latency_ms = 50", True),
    ],
)
def test_bad_version_is_rolled_back_and_the_record_of_its_run_says_so(
    project, serve, toys, fault: str, bounds: dict, reason: str, answered: bool
) -> None:
    push = Pushes(project, toys)
    serving = project.config.serving_dir
    assert project.scheduler(start=push).look().run.status == "pushed"
    (first,) = published(serving)
    server = serve(serving, "--max_num_load_retries=0", "--file_system_poll_wait_seconds=1")
    load = server.load(b"\xff")  # no UTF-8: "breaks_on_bytes" fails on it
    load.wait_for(first)
    url = f"http://{server.rest}/monitoring/prometheus/metrics"
    watch = ServerWatch(WatchConfig(target=server.grpc, metrics_url=url, **BOUNDS | bounds), "m", serving)

    push.fault = fault
    project.add_span(1)
    run = project.scheduler(start=push, watch=watch).look().run

    second = run.result["version"]
    assert second > first
    assert run.status == "rolled_back"
    found = run.result["rolled_back"]
    assert found.startswith(f"version {second}")
    assert reason in found
    assert found.endswith(f"version {first} is live again")
    record = records.read_records(project.root)[-1]
    assert (record["version"], record["rolled_back"]) == (second, found)
    assert {v.number: v.state for v in versions.list_versions(serving)} == {first: "live", second: "rolled_back"}
    state = State(project.root)
    assert [event for _, event, *_ in state.outbox()] == ["pushed", "rolled_back"]
    state.close()
    load.wait_for(first)
    load.stop()
    assert (second in load.seen) is answered
    assert bool(load.failures) is (fault == "breaks_on_bytes")
    assert load.seen[-1] == first
    assert not project.scheduler(start=push, watch=watch).look().decision.run, "the span is not run on again"


def test_good_version_stays(project, serve, toys) -> None:
    push = Pushes(project, toys)
    serving = project.config.serving_dir
    project.scheduler(start=push).look()
    server = serve(serving, "--file_system_poll_wait_seconds=1")
    load = server.load()
    url = f"http://{server.rest}/monitoring/prometheus/metrics"
    bounds = BOUNDS | {"watch_s": 0.5, "max_latency_ms": 60_000.0}
    watch = ServerWatch(WatchConfig(target=server.grpc, metrics_url=url, **bounds), "m", serving)
    project.add_span(1)
    run = project.scheduler(start=push, watch=watch).look().run
    assert run.status == "pushed"
    assert "rolled_back" not in records.read_records(project.root)[-1]
    load.wait_for(run.result["version"])
    load.stop()
    assert load.failures == []
