"""A rollback under the eyes of the model server: it goes back and forth, and no request fails meanwhile."""

from pathlib import Path

from components.push.publish import publish
from pipeline import versions


def test_server_follows_rollback_restore_and_push_without_a_failed_request(tmp_path: Path, serve, toys) -> None:
    serving = tmp_path / "serving"

    def push(seed: int) -> int:
        model = toys.ToyModel(seed=seed).export(tmp_path / f"model{seed}")
        version = publish(model, serving, 5, lambda number: {"blessed": True}, clock=lambda: 100.0).version
        assert version is not None
        return version

    first, second = push(1), push(2)
    load = serve(serving).load()
    load.wait_for(second)
    assert versions.rollback(serving) == first
    load.wait_for(first)
    assert versions.restore(serving) == second
    load.wait_for(second)
    versions.rollback(serving)
    load.wait_for(first)
    third = push(3)
    load.wait_for(third)
    load.stop()
    assert load.failures == []
    assert load.seen == [second, first, second, first, third]
