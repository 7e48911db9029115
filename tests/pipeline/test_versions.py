import json
import os
from pathlib import Path

import pytest

from components.errors import PushError
from components.push import base_path
from components.push.publish import publish
from pipeline import versions


@pytest.fixture
def serving(tmp_path: Path) -> Path:
    """A base path with the versions 1000, 1001 and 1002."""
    for run in ("a", "b", "c"):
        push(tmp_path, run)
    return tmp_path / "serving"


def push(folder: Path, run: str, blessed: bool | None = True, keep: int = 5) -> int | None:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "saved_model.pb").write_text(run)
    facts = {
        "blessed": blessed, "run": {"fingerprint": f"run {run}"}, "data": {"span": 7},
        "metrics": {"macro_f1": {"value": 0.75, "low": 0.7, "high": 0.8}, "pr_auc": None},
    }  # fmt: skip
    return publish(model, folder / "serving", keep, lambda number: facts, f"run {run}", clock=lambda: 1000.0).version


def states(serving: Path) -> dict[int, str]:
    return {version.number: version.state for version in versions.list_versions(serving)}


def test_versions_are_listed_newest_first_with_what_is_known_of_them(serving: Path) -> None:
    listed = versions.list_versions(serving)
    assert [version.number for version in listed] == [1002, 1001, 1000]
    assert [version.state for version in listed] == ["live", "kept", "kept"]
    assert listed[0].path == serving / "1002"
    assert listed[0].blessed is True
    assert listed[0].metrics == {"macro_f1": 0.75}
    assert listed[0].span == 7
    assert listed[0].pushed_at is not None
    assert [entry["event"] for entry in listed[0].journal] == ["push"]
    assert json.loads(json.dumps(listed[0].to_json()))["path"] == str(serving / "1002")


def test_empty_or_missing_base_path_has_no_versions(tmp_path: Path) -> None:
    assert versions.list_versions(tmp_path / "none") == []
    with pytest.raises(PushError, match="no version has been pushed yet"):
        versions.find_version(tmp_path / "none")
    with pytest.raises(PushError, match="no version has been pushed yet"):
        versions.rollback(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_find_version_is_the_live_one_or_the_one_asked_for(serving: Path) -> None:
    assert versions.find_version(serving).number == 1002
    assert versions.find_version(serving, 1000).number == 1000
    with pytest.raises(PushError, match="there is no version 7; there are 1000, 1001, 1002"):
        versions.find_version(serving, 7)


def test_rollback_goes_to_the_version_before_and_keeps_its_number(serving: Path) -> None:
    assert versions.rollback(serving, reason="wrong on trials") == 1001
    assert states(serving) == {1002: "rolled_back", 1001: "live", 1000: "kept"}
    assert sorted(name for name in os.listdir(serving) if name.isdigit()) == ["1000", "1001"]
    entry = base_path.read_journal(serving)[-1]
    assert (entry["event"], entry["version"], entry["to"]) == ("rollback", 1002, 1001)
    assert entry["reason"] == "wrong on trials"
    assert "@" in entry["by"]
    assert entry["at"].endswith("+00:00")


def test_rollback_to_a_named_version_takes_all_newer_ones_away(serving: Path) -> None:
    assert versions.rollback(serving, 1000) == 1000
    assert states(serving) == {1002: "rolled_back", 1001: "rolled_back", 1000: "live"}


def test_restore_brings_versions_back_one_by_one(serving: Path) -> None:
    versions.rollback(serving, 1000)
    assert versions.restore(serving) == 1002
    assert states(serving) == {1002: "live", 1001: "rolled_back", 1000: "kept"}
    assert versions.restore(serving, 1001) == 1001
    assert states(serving) == {1002: "live", 1001: "kept", 1000: "kept"}
    assert versions.rollback(serving) == 1001
    with pytest.raises(PushError, match="version 1001 is not rolled back; those that are: 1002"):
        versions.restore(serving, 1001)


def test_restore_with_nothing_rolled_back_is_refused(serving: Path) -> None:
    with pytest.raises(PushError, match="nothing to restore"):
        versions.restore(serving)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (1002, "version 1002 is the live one; blessed versions to go back to: 1000, 1001"),
        (5, "there is no version 5; blessed versions to go back to: 1000, 1001"),
    ],
)
def test_rollback_to_a_wrong_version_names_the_possible_ones(serving: Path, number: int, message: str) -> None:
    with pytest.raises(PushError, match=message):
        versions.rollback(serving, number)
    assert states(serving) == {1002: "live", 1001: "kept", 1000: "kept"}


def test_rollback_to_a_version_that_was_rolled_back_points_at_restore(serving: Path) -> None:
    versions.rollback(serving)
    with pytest.raises(PushError, match=r"1002 was itself rolled back; `restore` brings it back"):
        versions.rollback(serving, 1002)


def test_rollback_passes_over_versions_that_are_not_known_to_be_blessed(tmp_path: Path) -> None:
    serving = tmp_path / "serving"
    push(tmp_path, "a")
    push(tmp_path, "b", blessed=False)
    (serving / "1002").mkdir()  # pushed by something else
    push(tmp_path, "c")
    with pytest.raises(PushError, match="1002 is not known to be blessed; blessed versions to go back to: 1000"):
        versions.rollback(serving, 1002)
    assert versions.rollback(serving) == 1000


def test_rollback_without_an_earlier_version_is_refused(tmp_path: Path) -> None:
    push(tmp_path, "a")
    with pytest.raises(PushError, match=r"no blessed version before 1000.*keep_versions"):
        versions.rollback(tmp_path / "serving")
    assert states(tmp_path / "serving") == {1000: "live"}


def test_version_that_was_rolled_back_is_not_pushed_again_until_it_is_restored(serving: Path) -> None:
    versions.rollback(serving)
    model = serving.parent
    assert push(model, "c") is None
    assert states(serving)[1001] == "live"
    # The same run trained again to slightly other weights is still what was taken back.
    (model / "model" / "saved_model.pb").write_text("retrained")
    again = publish(model / "model", serving, 5, lambda number: {}, "run c", clock=lambda: 1000.0)
    assert again.version is None
    assert "version 1002, which was rolled back" in again.reason
    versions.restore(serving)
    assert push(model, "c") == 1002


def test_push_after_a_rollback_is_above_what_was_rolled_back(serving: Path) -> None:
    versions.rollback(serving, 1000)
    assert push(serving.parent, "d") == 1003
    assert states(serving) == {1003: "live", 1002: "rolled_back", 1001: "rolled_back", 1000: "kept"}
    assert versions.rollback(serving) == 1000


def test_what_was_rolled_back_stays_away_even_when_its_folder_is_gone(serving: Path) -> None:
    versions.rollback(serving)
    push(serving.parent, "d", keep=1)
    push(serving.parent, "e", keep=2)
    versions.rollback(serving)
    assert states(serving) == {1004: "rolled_back", 1003: "live", 1002: "rolled_back"}
    assert push(serving.parent, "f", keep=1) == 1005
    assert states(serving) == {1005: "live", 1004: "rolled_back"}
    assert push(serving.parent, "c") is None
    assert push(serving.parent, "e") is None


def test_settled_versions(serving: Path) -> None:
    assert [versions.is_settled(serving, number) for number in (1000, 1002, 1003)] == [False, True, False]
    versions.rollback(serving)
    assert [versions.is_settled(serving, number) for number in (1000, 1001, 1002)] == [False, True, True]
    push(serving.parent, "d", keep=1)
    assert states(serving) == {1003: "live", 1002: "rolled_back"}
    assert [versions.is_settled(serving, number) for number in (1000, 1001, 1002)] == [False, False, True]
    base_path.remove(serving, serving / ".rolled-back" / "1002")
    assert versions.is_settled(serving, 1002)
    assert push(serving.parent, "c") is None


def test_listing_imports_nothing_heavy(serving: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from pipeline import versions\n"
        f"assert len(versions.list_versions(Path({str(serving)!r}))) == 3\n"
        "print(sorted({'tensorflow', 'tfx', 'apache_beam', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout == "[]\n", done.stderr
