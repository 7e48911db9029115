"""The behaviours of TensorFlow Serving's file_system_storage_path_source_test.cc, on empty version folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.source import FileSystemSource, Target, VersionPolicy


class Watched:
    """A source and what it reported last, by model: version → name of the folder."""

    def __init__(self, interval_s: float):
        self.seen: dict[str, dict[int, str]] = {}
        self.calls: list[str] = []
        self.source = FileSystemSource(self._told, interval_s)

    def _told(self, name: str, versions: dict[int, str]) -> None:
        self.seen[name] = {version: Path(path).name for version, path in versions.items()}
        self.calls.append(name)

    def watch(self, *targets: tuple[str, Path, VersionPolicy]) -> list[str]:
        return self.source.set_targets([Target(name, str(path), policy) for name, path, policy in targets])


@pytest.fixture
def watched() -> Iterator:
    made: list[Watched] = []

    def make(interval_s: float = 0.0) -> Watched:
        made.append(Watched(interval_s))
        return made[-1]

    yield make
    for one in made:
        one.source.stop()


def folders(base: Path, *names: str) -> Path:
    for name in names:
        (base / name).mkdir(parents=True)
    return base


ALL, LATEST = VersionPolicy("all"), VersionPolicy()


def test_no_version_at_the_start_is_reported_and_those_that_appear_are_found(tmp_path, watched, eventually):
    found = watched(interval_s=0.02)
    assert found.watch(("m", tmp_path, LATEST)) == ["m"]
    assert found.seen == {"m": {}}
    folders(tmp_path, "non_numerical_child", "3")
    eventually(lambda: found.seen == {"m": {3: "3"}})
    folders(tmp_path, "4")
    eventually(lambda: found.seen == {"m": {4: "4"}})


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (LATEST, {17: "00017"}), (VersionPolicy(latest=3), {17: "00017", 9: "9", 5: "0005"}),
        (VersionPolicy(latest=50), {17: "00017", 9: "9", 5: "0005", 1: "1"}),
        (ALL, {17: "00017", 9: "9", 5: "0005", 1: "1"}),
        (VersionPolicy("specific", specific=(5, 17)), {17: "00017", 5: "0005"}),
        (VersionPolicy("specific", specific=(5, 6)), {5: "0005"}),
        (VersionPolicy("specific"), {}),
    ],
)  # fmt: skip
def test_the_policy_picks_versions_leading_zeros_or_not(tmp_path, watched, policy, expected):
    found = watched()
    found.watch(("m", folders(tmp_path, "non_numerical_child", "1", "0005", "9", "00017"), policy))
    assert found.seen == {"m": expected}


def test_a_timestamp_is_a_version(tmp_path, watched):
    found = watched()
    found.watch(("m", folders(tmp_path, "20170111173521", "20170111173520"), LATEST))
    assert found.seen == {"m": {20170111173521: "20170111173521"}}


def test_the_set_of_models_changes(tmp_path, watched):
    a, b, c = (folders(tmp_path / name, "1", version) for name, version in (("a", "2"), ("b", "3"), ("c", "4")))
    found = watched()
    found.watch(("a", a, LATEST), ("b", b, LATEST))
    assert found.seen == {"a": {2: "2"}, "b": {3: "3"}}
    found.watch(("b", b, LATEST), ("c", c, LATEST))
    assert found.seen == {"a": {}, "b": {3: "3"}, "c": {4: "4"}}
    found.calls.clear()
    found.watch(("b", b, LATEST), ("c", c, LATEST))
    assert found.calls == ["b", "c"]  # the model that went was told of once


def test_the_policy_changes(tmp_path, watched):
    base = folders(tmp_path, "1", "2", "3", "5", "8")
    found = watched()
    found.watch(("m", base, VersionPolicy(latest=2)))
    assert found.seen == {"m": {8: "8", 5: "5"}}
    found.watch(("m", base, VersionPolicy("specific", specific=(2, 3))))
    assert found.seen == {"m": {3: "3", 2: "2"}}


def test_versions_that_are_renamed_or_deleted_are_no_versions_any_more(tmp_path, watched):
    base = folders(tmp_path, "1", "2", "3", "5", "8")
    found = watched()
    found.watch(("m", base, ALL))
    assert sorted(found.seen["m"]) == [1, 2, 3, 5, 8]
    for version in ("2", "5"):
        (base / version).rename(base / f"{version}.denied")
    (base / "8").rmdir()
    found.watch(("m", base, ALL))
    assert sorted(found.seen["m"]) == [1, 3]


def test_of_several_folders_of_one_number_one_is_reported(tmp_path, watched):
    found = watched()
    found.watch(("m", folders(tmp_path, "0001", "001", "00001"), ALL))
    assert list(found.seen["m"]) == [1]


def test_the_last_version_may_be_taken_away(tmp_path, watched):
    found = watched()
    found.watch(("m", folders(tmp_path, "42"), LATEST))
    assert found.seen == {"m": {42: "42"}}
    (tmp_path / "42").rmdir()
    assert found.watch(("m", tmp_path, LATEST)) == ["m"]
    assert found.seen == {"m": {}}


def test_with_interval_0_the_folder_is_looked_at_once(tmp_path, watched):
    found = watched(interval_s=0)
    found.watch(("m", folders(tmp_path, "3"), LATEST))
    folders(tmp_path, "4")
    assert found.source._thread is None
    assert (found.seen, found.calls) == ({"m": {3: "3"}}, ["m"])


def test_a_folder_that_cannot_be_listed_holds_up_no_other_model(tmp_path, watched):
    odd, plain = folders(tmp_path / "odd", "1"), folders(tmp_path / "plain", "2")
    os.mkdir(os.fsencode(odd) + b"/\xff")  # not UTF-8
    found = watched()
    assert found.watch(("odd", odd, LATEST), ("plain", plain, LATEST)) == ["odd"]
    assert found.seen == {"plain": {2: "2"}}


def test_polling_goes_on_after_a_failure_that_nobody_foresaw(tmp_path, watched, eventually, monkeypatch, caplog):
    def broken(target):
        raise RuntimeError("a secret")

    found = watched(interval_s=0.02)
    found.watch(("m", folders(tmp_path, "3"), LATEST))
    with monkeypatch.context() as patched:
        patched.setattr("serving.source.poll", broken)
        eventually(lambda: "a look at the base paths failed: RuntimeError at " in caplog.text)
    folders(tmp_path, "4")
    eventually(lambda: found.seen == {"m": {4: "4"}})
    assert "secret" not in caplog.text
