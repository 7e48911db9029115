"""A run is repeated exactly when data, configuration or code have changed."""

import errno
import fcntl
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from components.errors import BusyError, ConfigError
from pipeline.config import Config, load_config
from pipeline.fingerprint import (
    FileHashes,
    code_fingerprint,
    code_revision,
    file_hash,
    run_fingerprint,
    serving_logs,
    weight_files,
)
from pipeline.records import is_held, new_run_id, read_records, root_lock, write_record
from pipeline.steps import STEPS, check_steps, steps_of

TOML = """
task = "binary"
labels = ["no", "yes"]
[data]
input = "rows"
splits = { train = "span-{SPAN}/train.csv", eval = "span-{SPAN}/dev.csv" }
[evaluation]
split = "eval"
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    add_span(tmp_path, 1)
    (tmp_path / "c.toml").write_text(TOML)
    return load_config(tmp_path / "c.toml", [f"paths.root={tmp_path}/root"])


def add_span(folder: Path, span: int) -> None:
    (folder / "rows" / f"span-{span}").mkdir(parents=True)
    for name in ("train.csv", "dev.csv"):
        (folder / "rows" / f"span-{span}" / name).write_text("text,label\na,yes\n")


def fingerprint(config: Config) -> str:
    return run_fingerprint(config, FileHashes(config.root / "hashes.json"))


def test_one_configuration_has_one_fingerprint_however_its_paths_are_written(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    first = fingerprint(config)
    for folder, path, root in (
        (".", "c.toml", "root"),
        ("rows", "../c.toml", f"{tmp_path}/root"),
        ("elsewhere", "../rows/../c.toml", "../root"),
    ):
        monkeypatch.chdir(tmp_path / folder)
        other = load_config(path, [f"paths.root={root}"])
        assert (other.root, other.serving_dir, other.data.input) == (config.root, config.serving_dir, config.data.input)
        assert fingerprint(other) == first
    (tmp_path / "link").symlink_to(tmp_path / "rows" / "span-1")  # link/.. is rows
    assert load_config(tmp_path / "c.toml", [f"paths.root={tmp_path}/link/../root"]).root.resolve() == (
        tmp_path / "rows" / "root"
    )


def test_files_of_a_checkpoint_with_a_bracket_in_its_name_are_watched(tmp_path: Path) -> None:
    add_span(tmp_path, 1)
    (tmp_path / "c.toml").write_text(TOML)
    for suffix in ("index", "data-00000-of-00001"):
        (tmp_path / f"model[1].ckpt.{suffix}").write_text("")
    found = weight_files(load_config(tmp_path / "c.toml", [f"encoder.weights={tmp_path}/model[1].ckpt"]))
    assert [path.name for path in found] == ["model[1].ckpt.data-00000-of-00001", "model[1].ckpt.index"]


def test_fingerprint_is_stable_and_follows_data_configuration_and_spans(config: Config, tmp_path: Path) -> None:
    first = fingerprint(config)
    assert fingerprint(config) == first
    changed = load_config(tmp_path / "c.toml", [f"paths.root={tmp_path}/root", "training.epochs=2"])
    assert fingerprint(changed) != first
    add_span(tmp_path, 2)
    assert fingerprint(config) != first


def test_touching_a_file_changes_nothing_and_rewriting_it_does(config: Config, tmp_path: Path) -> None:
    first = fingerprint(config)
    rows = tmp_path / "rows" / "span-1" / "train.csv"
    os.utime(rows, ns=(1, 1))
    assert fingerprint(config) == first
    rows.write_text("text,label\nb,yes\n")
    assert fingerprint(config) != first


def test_hash_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("one")
    hashes = FileHashes(tmp_path / "cache.json")
    assert hashes.of(file) == file_hash(file)
    hashes.save()
    file.write_text("two!")
    assert FileHashes(tmp_path / "cache.json").of(file) == file_hash(file)


def test_code_fingerprint_is_that_of_the_named_part() -> None:
    whole, part = code_fingerprint(), code_fingerprint("components/schema")
    assert whole != part
    assert part == code_fingerprint("components/schema")


def test_code_fingerprint_follows_code_and_what_code_reads_beside_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.fingerprint._ROOT", tmp_path)
    (tmp_path / "part" / "__pycache__").mkdir(parents=True)
    found = []
    for name in ("code.py", "rules.txt", "__pycache__/code.pyc"):
        (tmp_path / "part" / name).write_text("one")
        found.append(code_fingerprint("part"))
    assert found[0] != found[1] == found[2]


def test_code_revision_is_the_commit_of_a_checkout_wherever_and_whosever_it_is(tmp_path: Path, monkeypatch) -> None:
    checkout = tmp_path / "a check out"
    checkout.mkdir()
    monkeypatch.setattr("pipeline.fingerprint._ROOT", checkout)
    assert code_revision().startswith("biobert-cnn "), "no checkout"

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", f"safe.directory={checkout}", *arguments]
        return subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout.strip()

    (checkout / "code.py").write_text("one\n")
    git("init")
    git("add", "code.py")
    git("commit", "-m", "one")
    if os.getuid() == 0:  # git refuses a checkout of another user unless told to trust it
        os.chown(checkout, 65534, 65534)
    commit = git("rev-parse", "HEAD")
    assert code_revision() == commit
    (checkout / "code.py").write_text("two\n")
    assert code_revision() == f"{commit}+changes"


def test_request_logs_are_found_in_folders_with_wildcards_too(config: Config, tmp_path: Path) -> None:
    logged = load_config(
        tmp_path / "c.toml", [f"paths.root={tmp_path}/root", f"validation.serving_logs={tmp_path}/log/*/served*"]
    )
    assert serving_logs(logged) == []
    before = fingerprint(logged)
    for day in ("2", "1"):
        (tmp_path / "log" / day).mkdir(parents=True)
        (tmp_path / "log" / day / "served.tfrecord").write_text(day)
    assert serving_logs(logged) == [tmp_path / "log" / day / "served.tfrecord" for day in ("1", "2")]
    assert fingerprint(logged) != before
    assert serving_logs(config) == []


def test_second_run_on_a_root_is_refused_with_the_holder_named(tmp_path: Path) -> None:
    refused = pytest.raises(BusyError, match=rf"another run \(process {os.getpid()}\) holds the pipeline root")
    with root_lock(tmp_path, wait=False), refused, root_lock(tmp_path, wait=False):
        raise AssertionError("two runs held one root")
    with root_lock(tmp_path, wait=False):
        assert (tmp_path / "run.lock").read_text() == str(os.getpid())


def test_a_reader_that_looks_at_the_lock_refuses_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.lock").write_text("4711")  # of a run before
    with (tmp_path / "run.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        with root_lock(tmp_path, wait=False):
            assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_a_lock_that_may_not_be_read_is_not_known_to_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with root_lock(tmp_path, wait=False):
        monkeypatch.setattr(Path, "open", refuse)  # the superuser may read everything
        assert not is_held(tmp_path)
        monkeypatch.undo()
        assert is_held(tmp_path)


def test_run_that_waits_for_the_root_says_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)

    def wait() -> None:
        with root_lock(tmp_path, wait=True):
            order.append("waited")

    thread = threading.Thread(target=wait)
    with root_lock(tmp_path, wait=False):
        thread.start()
        while not said.getvalue().endswith("\n"):
            assert thread.is_alive(), "the waiting run ended and said nothing"
            time.sleep(0.01)
        order.append("held")
    thread.join()
    assert said.getvalue() == f"waiting: another run (process {os.getpid()}) holds the pipeline root {tmp_path}\n"
    assert order == ["held", "waited"]


def test_run_ids_grow_even_when_the_clock_is_set_back(tmp_path: Path) -> None:
    write_record(tmp_path, {"run_id": "29991231T235959", "status": "pushed"})
    second = new_run_id(tmp_path)
    assert second == "29991231T235959-0001"
    write_record(tmp_path, {"run_id": second, "status": "pushed"})
    assert new_run_id(tmp_path) == "29991231T235959-0002"
    assert [record["run_id"] for record in read_records(tmp_path)] == ["29991231T235959", second]


def test_unknown_or_reversed_steps_are_named() -> None:
    check_steps("trainer", "push")
    with pytest.raises(ConfigError, match="there is no such step; the steps are examples, statistics"):
        check_steps("train", None)
    with pytest.raises(ConfigError, match="examples comes first"):
        check_steps("push", STEPS[0])
    with pytest.raises(ConfigError, match="there is no such step"):
        check_steps("tuner", None)


def test_a_configured_search_is_a_step(minimal: Path) -> None:
    assert steps_of(load_config(minimal)) == STEPS
    searched = steps_of(load_config(minimal, ["tuner.space.head.kind=['cls', 'attention']"]))
    assert [step for step in searched if step not in STEPS] == ["tuner"]
    check_steps("tuner", "trainer", searched)


def test_damaged_state_files_are_made_anew_or_named(tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_bytes(b"\xff[1]")
    file = tmp_path / "f"
    file.write_text("one")
    assert FileHashes(tmp_path / "cache.json").of(file) == file_hash(file)
    (tmp_path / "cache.json").write_text("[1]")
    assert FileHashes(tmp_path / "cache.json").of(file) == file_hash(file)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "20260101T000000.json").write_text("")
    assert read_records(tmp_path) == [{"run_id": "20260101T000000", "status": "unreadable"}]
