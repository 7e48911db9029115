import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from components.errors import PushError
from components.push import base_path, publish
from components.push.publish import Published

ROOT = Path(__file__).parents[3]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of something that looks like a SavedModel."""
    folder = tmp_path / "model"
    (folder / "variables").mkdir(parents=True)
    (folder / "assets.extra").mkdir()
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "data").write_bytes(b"weights")
    (folder / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"warm")
    return folder


def push(model: Path, serving: Path, weights: str, now: float = 1000.0, keep: int = 5, run: str = "") -> Published:
    (model / "variables" / "data").write_text(weights)
    facts = {"blessed": True, "run": {"fingerprint": run}}
    return publish.publish(model, serving, keep, lambda number: facts, run, clock=lambda: now)


def test_version_is_unix_time_and_holds_the_model_and_its_lineage(model: Path, tmp_path: Path) -> None:
    serving = tmp_path / "serving"
    result = push(model, serving, "w", now=1764031000.9)
    assert result == Published(1764031000, serving / "1764031000", True)
    version = serving / "1764031000"
    assert (version / "saved_model.pb").read_bytes() == b"graph"
    assert (version / "variables" / "data").read_bytes() == b"w"
    lineage = json.loads((version / "assets.extra" / "lineage.json").read_text())
    assert lineage["version"] == 1764031000
    assert lineage["model"]["files"]["variables/data"] == {
        "bytes": 1,
        "sha256": "50e721e49c013f00c62cf59f2163542a9d8df02464efeb615d31051b0fddc326",
    }
    assert [entry["event"] for entry in base_path.read_journal(serving)] == ["push"]


def test_version_can_be_read_by_another_user(model: Path, tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        path = push(model, tmp_path / "serving", "w").path
    finally:
        os.umask(mask)
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o755
    assert (path / "saved_model.pb").stat().st_mode & 0o777 == 0o644


def test_clock_set_back_still_gives_a_greater_number(model: Path, tmp_path: Path) -> None:
    assert push(model, tmp_path / "s", "a", now=5000).version == 5000
    assert push(model, tmp_path / "s", "b", now=100).version == 5001
    assert push(model, tmp_path / "s", "c", now=5001.5).version == 5002
    assert push(model, tmp_path / "s", "d", now=6000).version == 6000


def test_number_is_above_versions_of_others_and_removed_ones(model: Path, tmp_path: Path) -> None:
    serving = tmp_path / "s"
    (serving / "00007000").mkdir(parents=True)
    assert push(model, serving, "a", now=100).version == 7001
    assert push(model, serving, "b", now=100, keep=1).version == 7002
    base_path.remove(serving, serving / "7002")
    assert push(model, serving, "c", now=100).version == 7003


def test_number_beyond_int64_is_refused(model: Path, tmp_path: Path) -> None:
    serving = tmp_path / "s"
    (serving / str(2**63 - 1)).mkdir(parents=True)
    with pytest.raises(PushError, match="int64"):
        push(model, serving, "a")
    assert sorted(os.listdir(serving / ".staging")) == []


def test_last_versions_are_kept_and_folders_of_others_never_removed(model: Path, tmp_path: Path) -> None:
    serving = tmp_path / "s"
    (serving / "1").mkdir(parents=True)
    for number, weights in enumerate("abcd"):
        push(model, serving, weights, now=1000 + number, keep=2)
    assert sorted(base_path.published(serving)) == [1, 1002, 1003]
    removed = [entry["version"] for entry in base_path.read_journal(serving) if entry["event"] == "remove"]
    assert removed == [1000, 1001]


def test_lineage_of_a_removed_version_is_kept(model: Path, tmp_path: Path) -> None:
    serving = tmp_path / "s"
    for number, weights in enumerate("abc"):
        push(model, serving, weights, now=1000 + number, keep=1, run=weights)
    kept = {number: base_path.read_lineage(path) for number, path in base_path.removed(serving).items()}
    assert {number: facts["run"]["fingerprint"] for number, facts in kept.items()} == {1000: "a", 1001: "b"}
    assert os.listdir(serving / ".staging") == []


def test_same_model_is_not_published_twice(model: Path, tmp_path: Path) -> None:
    serving = tmp_path / "s"
    push(model, serving, "a", now=1000)
    (model / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"other")
    again = push(model, serving, "a", now=2000)
    assert again == Published(1000, serving / "1000", False, "the same model is live already")
    assert list(base_path.published(serving)) == [1000]


def test_same_model_is_published_again_when_the_live_folder_is_damaged(model: Path, tmp_path: Path) -> None:
    serving = tmp_path / "s"
    push(model, serving, "a", now=1000)
    (serving / "1000" / "variables" / "data").unlink()
    assert push(model, serving, "a", now=2000) == Published(2000, serving / "2000", True)


def test_earlier_model_becomes_the_newest_version_when_it_is_pushed_again(model: Path, tmp_path: Path) -> None:
    serving = tmp_path / "s"
    push(model, serving, "a", now=1000)
    push(model, serving, "b", now=2000)
    assert push(model, serving, "a", now=3000).version == 3000
    assert (serving / "3000" / "variables" / "data").read_text() == "a"


def test_folder_that_is_no_saved_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PushError, match=r"no saved_model\.pb"):
        publish.publish(tmp_path / "empty", tmp_path / "s", 1, lambda number: {})
    assert not (tmp_path / "s").exists()


def test_full_disk_is_named_and_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = tmp_path / "s"
    push(model, serving, "a", now=1000)
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PushError, match=r"the disk is full; nothing was pushed.*keep_versions"):
        push(model, serving, "b", now=2000)
    assert len(calls) == 2
    assert list(base_path.published(serving)) == [1000]
    assert os.listdir(serving / ".staging") == []


def test_too_little_space_is_found_before_copying(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = publish.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda path: usage._replace(free=3))
    with pytest.raises(PushError, match=r"the disk is full \(0 MiB needed, 0 free\)"):
        push(model, tmp_path / "s", "a")
    assert base_path.published(tmp_path / "s") == {}


def test_base_path_that_cannot_be_made_is_a_push_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PushError, match=r"paths\.serving"):
        push(model, tmp_path / "file" / "s", "a")


def test_source_that_changes_while_it_is_copied_is_refused(model: Path, tmp_path: Path) -> None:
    serving = tmp_path / "s"
    real = publish.model_digest

    def change(*arguments: object) -> str:
        (model / "variables" / "data").write_text("x")
        return real(*arguments)

    publish.model_digest = change
    try:
        with pytest.raises(PushError, match="changed while it was being copied"):
            push(model, serving, "a")
    finally:
        publish.model_digest = real
    assert base_path.published(serving) == {}
    assert os.listdir(serving / ".staging") == []


def test_pushes_at_once_all_get_numbers_of_their_own(model: Path, tmp_path: Path) -> None:
    results: list[Published] = []

    def one(name: str) -> None:
        source = tmp_path / name
        (source / "variables").mkdir(parents=True)
        (source / "saved_model.pb").write_text(name)
        results.append(publish.publish(source, tmp_path / "s", 9, lambda number: {}, clock=lambda: 1000.0))

    threads = [threading.Thread(target=one, args=(f"m{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.version or 0 for result in results) == [1000, 1001, 1002, 1003, 1004, 1005]


def test_push_waits_no_longer_than_told_for_another(model: Path, tmp_path: Path) -> None:
    with (
        base_path.locked(tmp_path / "s"),
        pytest.raises(PushError, match="has held this folder"),
        base_path.locked(tmp_path / "s", timeout_s=0.05),
    ):
        pytest.fail("two held the lock")


def test_journal_survives_a_line_that_was_cut_off(tmp_path: Path) -> None:
    base_path.write_journal(tmp_path, "push", 1)
    with (tmp_path / base_path.JOURNAL).open("ab") as file:
        file.write(b'{"event": "pu')
    base_path.write_journal(tmp_path, "push", 2)
    assert [entry["version"] for entry in base_path.read_journal(tmp_path)] == [1, 2]


@pytest.mark.parametrize("operation", ["push", "rollback"])
def test_kill_at_any_file_operation_leaves_whole_versions_only(operation: str, model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), operation, str(model), str(tmp_path / "s")],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) > 20
    assert [line["status"] for line in lines] == [-9] * (len(lines) - 1) + [0]
    names = {"saved_model.pb", "variables/data", "assets.extra/tf_serving_warmup_requests", "assets.extra/lineage.json"}
    before, after = ("1000", "1001") if operation == "push" else ("1002", "1000")
    newest = [max(line["killed"]) for line in lines]
    for line in lines:
        for version, files in [*line["killed"].items(), *line["again"].items()]:
            assert set(files) == names
            assert files["saved_model.pb"] == len("graph")
            assert files["variables/data"] == {"1000": 5, "1001": 6, "1002": 5}[version]  # first, second, third
        assert max(line["again"]) == after
        assert line["staging"] == []
    # Up to one moment the server sees the old version, from then on the new one, and never a third.
    assert newest == sorted(newest, reverse=operation == "rollback")
    assert set(newest) == {before, after}
