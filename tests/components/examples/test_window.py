"""The component that puts the Examples of a window's spans together."""

import json
import os
from pathlib import Path

import pytest
from tfx.types import artifact_utils, standard_artifacts

from components.errors import DataError
from components.examples.window import Executor


def examples_of(folder: Path, span: int):
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder / f"examples_{span}")
    artifact.split_names = artifact_utils.encode_split_names(["train", "test"])
    artifact.span = span
    artifact.set_string_custom_property("payload_format", "FORMAT_TF_EXAMPLE")
    artifact.set_string_custom_property("file_format", "tfrecords_gzip")
    splits = {}
    for split in ("train", "test"):
        path = Path(artifact.uri) / f"Split-{split}"
        path.mkdir(parents=True)
        (path / "data_tfrecord-00000-00000.gz").write_text(f"{split} of {span}")
        splits[split] = {"rows": 1, "labels": {"yes": 1}, "without_label": 0}
    report = {
        "span": span, "version": None, "rows": 2, "splits": splits, "bad": {"rows": 0, "share": 0.0, "reasons": {}},
        "leaked": [], "dropped": {}, "files": [{"file": f"span-{span}.csv", "split": "train", "sha256": "x"}],
    }  # fmt: skip
    (Path(artifact.uri) / "ingest_report.json").write_text(json.dumps(report))
    return artifact


def put_together(folder: Path, spans: list[int], **roles):
    window = standard_artifacts.Examples()
    window.uri = str(folder / "window")
    Path(window.uri).mkdir()
    inputs = [examples_of(folder, span) for span in spans]
    config = {"roles": {"evaluated": "test", "evaluate_newest": False, "guard": True, "learn_last": None} | roles}
    Executor(None).Do({"spans": inputs}, {"examples": [window]}, {"custom_config": json.dumps(config)})
    return window


def files(window) -> dict[str, list[str]]:
    return {
        split: sorted(path.read_text() for path in (Path(window.uri) / f"Split-{split}").iterdir())
        for split in ("train", "test")
    }


@pytest.mark.parametrize("linked", [True, False])
def test_splits_of_all_spans_come_together_in_one_artifact(tmp_path: Path, monkeypatch, linked: bool) -> None:
    if not linked:

        def refuse(*args) -> None:
            raise OSError("another file system")

        monkeypatch.setattr(os, "link", refuse)
    window = put_together(tmp_path, [9, 10, 2])
    assert files(window) == {
        "train": ["train of 10", "train of 2", "train of 9"], "test": ["test of 10", "test of 2", "test of 9"],
    }  # fmt: skip
    assert window.span == 10
    assert artifact_utils.decode_split_names(window.split_names) == ["train", "test"]
    assert window.get_string_custom_property("payload_format") == "FORMAT_TF_EXAMPLE"
    report = json.loads((Path(window.uri) / "ingest_report.json").read_text())
    assert [entry["span"] for entry in report["spans"]] == [2, 9, 10]
    assert {name: split["rows"] for name, split in report["splits"].items()} == {"train": 3, "test": 3}


def test_linked_files_outlive_the_spans_that_they_came_from(tmp_path: Path) -> None:
    window = put_together(tmp_path, [1, 2])
    for path in (tmp_path / "examples_1").rglob("*.gz"):
        path.unlink()
    assert files(window)["train"] == ["train of 1", "train of 2"]


def test_newest_span_is_evaluated_on_and_not_learned_from(tmp_path: Path) -> None:
    window = put_together(tmp_path, [1, 2], evaluate_newest=True)
    assert files(window) == {"train": ["train of 1"], "test": ["test of 1", "test of 2", "train of 2"]}


def test_newest_span_alone_cannot_be_evaluated_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the window holds one span, so there is none to learn from"):
        put_together(tmp_path, [1], evaluate_newest=True)
