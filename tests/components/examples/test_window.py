"""The component that puts the Examples of a window's spans together."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from tfx.types import artifact_utils, standard_artifacts

from components.errors import DataError
from components.evaluation.rows import parse_row, read_records
from components.examples import ingest, leaks
from components.examples.tfrecord import encode_example
from components.examples.window import Executor


def examples_of(folder: Path, span: int, rows: dict[str, list[str]]):
    """Examples as the ingest of a span writes them; a row is "text" or "text|text_pair", its label is its first letter.

    A split's rows are in shards of at most two.
    """
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder / f"examples_{span}")
    artifact.split_names = artifact_utils.encode_split_names(list(rows))
    artifact.span = span
    artifact.set_string_custom_property("payload_format", "FORMAT_TF_EXAMPLE")
    artifact.set_string_custom_property("file_format", "tfrecords_gzip")
    splits = {}
    (Path(artifact.uri) / ingest.HASHES).mkdir(parents=True)
    for split, texts in rows.items():
        (Path(artifact.uri) / f"Split-{split}").mkdir()
        for part in range(0, len(texts), 2):
            with (Path(artifact.uri) / f"Split-{split}" / f"data_tfrecord-00000-{part:05d}.gz").open("wb") as file:
                shard = ingest.Shard(file)
                for row in texts[part : part + 2]:
                    text, *pair = row.encode().split(b"|")
                    features = [(b"text", [text]), (b"label", [text[:1]])] + [(b"text_pair", pair)] * len(pair)
                    shard.add(encode_example(features), leaks.text_hash(text, *pair))
                shard.finish()
            path = Path(artifact.uri) / ingest.HASHES / f"hashes-{split}-00000-{part:05d}"
            path.write_bytes(leaks.sorted_hashes(bytes(shard.hashes)))
        labels = Counter(text[0] for text in texts)
        splits[split] = {"rows": len(texts), "labels": dict(labels), "without_label": 0}
    report = {
        "span": span, "version": None, "rows": sum(map(len, rows.values())), "splits": splits,
        "bad": {"rows": 0, "share": 0.0, "reasons": {}}, "leaked": [], "dropped": {},
        "files": [{"file": f"span-{span}.csv", "split": "train", "sha256": "x"}],
    }  # fmt: skip
    (Path(artifact.uri) / "ingest_report.json").write_text(json.dumps(report))
    return artifact


def of_spans(*spans: int) -> dict[int, dict[str, list[str]]]:
    """A row a split, which names its span."""
    return {span: {"train": [f"train of {span}"], "test": [f"test of {span}"]} for span in spans}


def put_together(folder: Path, spans: dict[int, dict[str, list[str]]], drop=False, pairs=False, **roles):
    window = standard_artifacts.Examples()
    window.uri = str(folder / "window")
    Path(window.uri).mkdir()
    inputs = [examples_of(folder, span, rows) for span, rows in spans.items()]
    config = {"roles": {"evaluated": "test", "evaluate_newest": False, "guard": True, "learn_last": None} | roles,
              "drop_leaked": drop, "pairs": pairs}  # fmt: skip
    Executor(None).Do({"spans": inputs}, {"examples": [window]}, {"custom_config": json.dumps(config)})
    return window


def files(window) -> dict[str, list[str]]:
    return {
        split: [
            row.text for row in map(parse_row, read_records(map(str, (Path(window.uri) / f"Split-{split}").iterdir())))
        ]
        for split in ("train", "test")
    }


def report_of(window) -> dict:
    return json.loads((Path(window.uri) / "ingest_report.json").read_text())


@pytest.mark.parametrize("linked", [True, False])
def test_splits_of_all_spans_come_together_in_one_artifact(tmp_path: Path, monkeypatch, linked: bool) -> None:
    if not linked:

        def refuse(*args) -> None:
            raise OSError("another file system")

        monkeypatch.setattr(os, "link", refuse)
    window = put_together(tmp_path, of_spans(9, 10, 2))
    assert files(window) == {
        "train": ["train of 10", "train of 2", "train of 9"], "test": ["test of 10", "test of 2", "test of 9"],
    }  # fmt: skip
    assert window.span == 10
    assert artifact_utils.decode_split_names(window.split_names) == ["train", "test"]
    assert window.get_string_custom_property("payload_format") == "FORMAT_TF_EXAMPLE"
    report = report_of(window)
    assert [entry["span"] for entry in report["spans"]] == [2, 9, 10]
    assert {name: split["rows"] for name, split in report["splits"].items()} == {"train": 3, "test": 3}


def test_linked_files_outlive_the_spans_that_they_came_from(tmp_path: Path) -> None:
    window = put_together(tmp_path, of_spans(1, 2))
    for path in (tmp_path / "examples_1").rglob("*.gz"):
        path.unlink()
    assert files(window)["train"] == ["train of 1", "train of 2"]


def test_newest_span_is_evaluated_on_and_not_learned_from(tmp_path: Path) -> None:
    window = put_together(tmp_path, of_spans(1, 2), evaluate_newest=True)
    assert files(window) == {"train": ["train of 1"], "test": ["test of 1", "test of 2", "train of 2"]}
    assert report_of(window)["leaked"] == []


def test_newest_span_alone_cannot_be_evaluated_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the window holds one span, so there is none to learn from"):
        put_together(tmp_path, of_spans(1), evaluate_newest=True)


LEAKY = {
    1: {"train": ["a", "b", "b2", "c", "b"], "test": ["d"]},
    2: {"train": ["e", "d"], "test": ["b", "f", "c"]},
}


def test_texts_that_two_spans_share_are_counted(tmp_path: Path) -> None:
    window = put_together(tmp_path, LEAKY)
    assert files(window) == {"train": ["a", "b", "b2", "c", "b", "e", "d"], "test": ["d", "b", "f", "c"]}
    report = report_of(window)
    assert report["leaked"] == [{"splits": ["train", "test"], "texts": 3, "rows": {"train": 4, "test": 3}}]
    assert report["dropped"] == {}


def test_texts_that_two_spans_share_are_dropped_from_train_where_that_is_wanted(tmp_path: Path) -> None:
    window = put_together(tmp_path, LEAKY, drop=True)
    assert files(window) == {"train": ["a", "b2", "e"], "test": ["d", "b", "f", "c"]}
    report = report_of(window)
    assert report["leaked"] == [{"splits": ["train", "test"], "texts": 3, "rows": {"train": 4, "test": 3}}]
    assert report["dropped"] == {"train": 4}
    assert report["splits"]["train"] == {
        "rows": 3,
        "labels": {"a": 1, "b": 1, "e": 1},
        "without_label": 0,
    }
    assert not (Path(window.uri) / ".work").exists()
    span = {path.name: path.stat().st_nlink for path in (tmp_path / "examples_1" / "Split-train").iterdir()}
    assert list(span.values()) == [1, 1, 1], "what is written anew is no link to the span's own file"
    assert (tmp_path / "examples_2" / "Split-test" / "data_tfrecord-00000-00000.gz").stat().st_nlink == 2


def test_text_is_told_from_another_by_its_pair(tmp_path: Path) -> None:
    spans = {1: {"train": ["a|x", "b|x"], "test": ["z|z"]}, 2: {"train": ["c|x"], "test": ["a|y", "b|x"]}}
    window = put_together(tmp_path, spans, drop=True, pairs=True)
    assert files(window)["train"] == ["a", "c"]


def test_window_of_which_nothing_is_left_to_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split train is empty: all 2 rows were dropped as leaked"):
        put_together(tmp_path, {1: {"train": ["a"], "test": ["b"]}, 2: {"train": ["b"], "test": ["a"]}}, drop=True)
