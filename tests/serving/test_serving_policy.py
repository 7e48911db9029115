"""The version policy by state tables, and the source that finds versions; both without a model."""

from __future__ import annotations

import pytest

from serving.policy import Act, Action, Snapshot, State, next_action
from serving.source import FileSystemSource, Target, VersionPolicy, aspired_versions, index_versions, parse_version

NEW, LOADING, READY, ERROR, UNLOADING = State.NEW, State.LOADING, State.READY, State.ERROR, State.UNLOADING


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([], None),
        ([(1, NEW, True)], (Act.LOAD, 1)),
        ([(1, NEW, True), (2, NEW, True)], (Act.LOAD, 2)),
        ([(1, READY, True)], None),
        # A new version is loaded before the old one goes, and only a ready one lets it go.
        ([(1, READY, False), (2, NEW, True)], (Act.LOAD, 2)),
        ([(1, READY, False), (2, LOADING, True)], None),
        ([(1, READY, False), (2, ERROR, True)], None),
        ([(1, READY, False), (2, READY, True)], (Act.UNLOAD, 1)),
        # Of several leftovers all but the newest may go at once.
        ([(1, READY, False), (2, READY, False), (3, NEW, True)], (Act.UNLOAD, 1)),
        ([(2, READY, False), (3, NEW, True)], (Act.LOAD, 3)),
        # Nothing aspired: all go, the lowest first.
        ([(4, READY, False), (3, READY, False)], (Act.UNLOAD, 3)),
        ([(3, UNLOADING, False)], None),
        ([(3, NEW, False)], None),
        # Rolled back: the lower version is aspired and new.
        ([(2, READY, False), (1, NEW, True)], (Act.LOAD, 1)),
        ([(1, READY, True), (2, NEW, True), (3, ERROR, True)], (Act.LOAD, 2)),
    ],
)
def test_next_action(table, expected):
    found = next_action(Snapshot(*row) for row in table)
    assert found == (None if expected is None else Action(*expected))
    assert found == next_action(Snapshot(*row) for row in reversed(table))  # the order tells nothing


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("1", 1), ("00000123", 123), ("-4", -4), ("+5", 5), ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", None), ("1a", None), ("", None), ("v1", None), (".tmp-1", None), ("1.0", None),
        ("²", None), ("1_000", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_version_folders(name, version):
    assert parse_version(name) == version


def test_of_two_folders_of_one_number_one_is_used():
    assert index_versions(["1", "001", "x", "2"]) == {1: "1", 2: "2"}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (VersionPolicy(), [9]), (VersionPolicy(latest=2), [9, 5]), (VersionPolicy(latest=10), [9, 5, 1]),
        (VersionPolicy("all"), [9, 5, 1]), (VersionPolicy("specific", specific=(1, 5, 7)), [5, 1]),
    ],
)  # fmt: skip
def test_aspired_versions(policy, expected):
    assert aspired_versions(policy, [5, 1, 9]) == expected


def test_the_source_reports_versions_and_keeps_silent_about_what_it_cannot_read(tmp_path):
    seen: dict[str, dict] = {}
    source = FileSystemSource(lambda name, versions: seen.update({name: dict(versions)}), interval_s=0)
    (tmp_path / "a" / "3").mkdir(parents=True)
    (tmp_path / "a" / "12").mkdir()
    (tmp_path / "a" / "tmp").mkdir()
    (tmp_path / "empty").mkdir()
    targets = [Target("a", f"{tmp_path}/a"), Target("gone", f"{tmp_path}/gone"), Target("empty", f"{tmp_path}/empty")]
    assert source.set_targets(targets) == ["gone", "empty"]
    assert seen == {"a": {12: f"{tmp_path}/a/12"}, "empty": {}}
    (tmp_path / "a").rename(tmp_path / "b")
    source.set_targets([Target("a", f"{tmp_path}/a")])
    assert seen["a"] == {12: f"{tmp_path}/a/12"}
    source.set_targets([])
    assert seen["a"] == {}
    source.stop()
