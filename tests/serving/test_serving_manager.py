"""The manager with a loader that a test holds back: order of loads and unloads, retries, handles."""

from __future__ import annotations

import threading

import pytest
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving.core import ServerCore
from serving.errors import Code, StatusError
from serving.loader import Servable
from serving.manager import LoadOptions, Manager
from serving.policy import State


class HeldLoader:
    """Loads when it is let; fails for versions in `broken`."""

    def __init__(self):
        self.gates: dict[int, threading.Event] = {}
        self.begun: list[int] = []
        self.closed: list[int] = []
        self.broken: set[int] = set()

    def hold(self, version: int) -> threading.Event:
        return self.gates.setdefault(version, threading.Event())

    def load(self, name, version, path):
        self.begun.append(version)
        if version in self.gates:
            assert self.gates[version].wait(30)
        if version in self.broken:
            raise StatusError(Code.DATA_LOSS, "broken")
        loader = self

        class Runner:
            def run(self, feeds, fetches, call):
                return []

            def close(self):
                loader.closed.append(version)

        return Servable(name, version, path, {}, Runner())


@pytest.fixture
def managed():
    loader = HeldLoader()
    manager = Manager(loader, LoadOptions(max_retries=0))
    yield loader, manager
    for gate in loader.gates.values():
        gate.set()
    manager.stop(10)


def aspire(manager, *versions: int) -> None:
    manager.set_aspired("m", {v: f"/m/{v}" for v in versions})


def ready(manager) -> list[int]:
    return [s.version for s in manager.statuses("m") if s.state is State.READY]


def test_the_old_version_stays_while_a_load_that_nobody_wants_any_more_goes_on(managed, eventually):
    loader, manager = managed
    aspire(manager, 1)
    eventually(lambda: ready(manager) == [1])
    gate = loader.hold(2)
    aspire(manager, 2)
    eventually(lambda: loader.begun == [1, 2])
    last = loader.hold(3)
    aspire(manager, 3)  # 2 still loads, is not aspired any more, and 3 is new
    assert ready(manager) == [1]
    assert loader.closed == []
    gate.set()
    eventually(lambda: loader.begun == [1, 2, 3])
    eventually(lambda: ready(manager) == [2])  # of two leftovers the newer stays
    last.set()
    eventually(lambda: ready(manager) == [3])
    eventually(lambda: loader.closed == [1, 2])


def test_a_version_that_is_in_use_is_closed_only_after_the_last_handle(managed, eventually):
    loader, manager = managed
    aspire(manager, 1)
    eventually(lambda: ready(manager) == [1])
    with manager.acquire("m") as held:
        assert held.version == 1
        aspire(manager, 2)
        eventually(lambda: ready(manager) == [2])
        with manager.acquire("m") as other:
            assert other.version == 2
        assert loader.closed == []
    eventually(lambda: loader.closed == [1])


def test_a_version_that_fails_is_reported_and_not_tried_again_until_it_was_gone(managed, eventually):
    loader, manager = managed
    loader.broken.add(2)
    aspire(manager, 1)
    eventually(lambda: ready(manager) == [1])
    aspire(manager, 2)
    eventually(lambda: manager.statuses("m")[0].state is State.ERROR)
    aspire(manager, 2)
    failed, old = manager.statuses("m")
    assert (failed.version, failed.code, failed.message) == (2, Code.DATA_LOSS, "broken")
    assert (old.version, old.state, loader.begun) == (1, State.READY, [1, 2])
    aspire(manager, 1)
    loader.broken.clear()
    aspire(manager, 2)
    eventually(lambda: ready(manager) == [2])


def test_a_failing_load_is_tried_again_as_often_as_asked(eventually):
    loader = HeldLoader()
    loader.broken.add(1)
    manager = Manager(loader, LoadOptions(max_retries=3, retry_interval_s=0.001))
    aspire(manager, 1)
    eventually(lambda: manager.statuses("m")[0].state is State.ERROR)
    assert loader.begun == [1, 1, 1, 1]
    manager.stop(10)


def test_a_version_that_is_wanted_again_while_it_goes_comes_back(managed, eventually):
    loader, manager = managed
    aspire(manager, 1)
    eventually(lambda: ready(manager) == [1])
    with manager.acquire("m"):
        aspire(manager, 2)
        eventually(lambda: ready(manager) == [2])
        aspire(manager, 1, 2)  # 1 is held, and unloading
    eventually(lambda: ready(manager) == [2, 1])
    assert loader.begun == [1, 2, 1]


def test_the_first_models_load_side_by_side_and_later_ones_in_turn(managed, tmp_path, eventually):
    loader, manager = managed
    gates = {version: loader.hold(version) for version in (1, 2, 3, 4)}
    config = ModelServerConfig()
    for name, version in (("a", 1), ("b", 2)):
        (tmp_path / name / str(version)).mkdir(parents=True)
        config.model_config_list.config.add(name=name, base_path=str(tmp_path / name), model_platform="tensorflow")
    start = threading.Thread(target=ServerCore(manager, poll_s=0).reload_config, args=(config,), daemon=True)
    start.start()
    eventually(lambda: sorted(loader.begun) == [1, 2])
    gates[1].set()
    gates[2].set()
    start.join()
    for name, version in (("c", 3), ("d", 4)):
        manager.set_aspired(name, {version: f"/{name}/{version}"})
    eventually(lambda: len(loader.begun) == 3)
    assert [manager.statuses(name)[0].state for name in "cd"] == [State.LOADING] * 2
    gates[loader.begun[2]].set()
    eventually(lambda: sorted(loader.begun) == [1, 2, 3, 4])


@pytest.fixture
def loading(managed, tmp_path):
    """A core whose only reload waits for a version that a test holds back, and the thread of that reload."""
    loader, manager = managed
    loader.hold(1)
    config = ModelServerConfig()
    (tmp_path / "m" / "1").mkdir(parents=True)
    config.model_config_list.config.add(name="m", base_path=str(tmp_path / "m"), model_platform="tensorflow")
    core, errors = ServerCore(manager, poll_s=0), []

    def reload() -> None:
        try:
            core.reload_config(config)
        except StatusError as error:
            errors.append(error)

    thread = threading.Thread(target=reload, daemon=True)
    thread.start()
    return core, config, thread, errors


def test_a_reload_ends_when_the_version_it_waits_for_fails_and_is_withdrawn(loading, managed, eventually):
    (loader, manager), (_, _, thread, errors) = managed, loading
    eventually(lambda: loader.begun == [1])
    loader.broken.add(1)
    with manager._changed:  # the reload looks only afterwards
        loader.gates[1].set()
        manager._changed.wait_for(lambda: manager.statuses("m")[0].state is State.ERROR, 30)
        manager.set_aspired("m", {})
    thread.join(30)
    [error] = errors
    assert error.message == (
        "1 model(s) did not become available: {{name: m version: 1 due to error: DATA_LOSS: broken}}"
    )


def test_a_reload_waits_for_another_no_longer_than_its_client(loading, managed, eventually):
    (loader, _), (core, config, thread, errors) = managed, loading
    eventually(lambda: loader.begun == [1])
    gone = threading.Event()
    gone.set()
    for timeout_s, stop, code in ((0.01, None, Code.DEADLINE_EXCEEDED), (None, gone, Code.CANCELLED)):
        with pytest.raises(StatusError, match="Another reload of the configuration is still under way") as refused:
            core.reload_config(config, timeout_s, stop)
        assert refused.value.code is code
    loader.gates[1].set()
    thread.join(30)
    assert (errors, core.is_ready()) == ([], True)


def test_states_are_told_in_order():
    seen = []
    manager = Manager(HeldLoader(), LoadOptions(max_retries=0), lambda name, status: seen.append(status.state))
    aspire(manager, 1)
    assert manager.wait_settled(["m"], 30, threading.Event()) == []
    manager.stop(10)
    assert seen == [State.LOADING, State.READY, State.UNLOADING, State.DISABLED]


def test_after_the_end_no_version_is_lent(managed):
    _, manager = managed
    manager.stop(10)
    aspire(manager, 1)
    with pytest.raises(StatusError, match=r"Servable not found for request: Latest\(m\)"), manager.acquire("m"):
        pass
