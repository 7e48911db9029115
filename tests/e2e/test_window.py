"""Two spans, one after the other: the second run starts from the first one's model, and must not forget."""

import csv
import json
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
OVERRIDES = (
    'data.splits={ train = "span-{SPAN}/train.csv", eval = "span-{SPAN}/dev.csv", test = "span-{SPAN}/test.csv" }',
    "data.drop_leaked=true", "window.last=2", "window.warm_start=true", "evaluation.min_span_rows=50",
)  # fmt: skip


def make_spans(rows: Path) -> None:
    """Two spans of the project's rows; the test split of the second has a text of the first one's train."""
    parts = {}
    for split in ("train", "dev", "test"):
        with (rows / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            parts[split] = list(csv.DictReader(file))
    for span in (1, 2):
        (rows / f"span-{span}").mkdir()
        for split, content in parts.items():
            half = content[: len(content) // 2] if span == 1 else content[len(content) // 2 :]
            if (span, split) == (2, "test"):
                half.append(parts["train"][0])
            with (rows / f"span-{span}" / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(content[0]))
                writer.writeheader()
                writer.writerows(half)


def test_second_span_goes_on_from_the_live_model_and_the_gates_hold_on_the_first(project) -> None:
    make_spans(project.folder / "rows")
    first = project.run(*OVERRIDES, "window.until=1")
    assert first.status == 0, first.stderr
    assert not [gate["gate"] for gate in first.json["gates"] if " on " in gate["gate"]]
    assert first.json["data"]["dropped"] == {}

    second = project.run(*OVERRIDES, "window.until=2")
    assert second.status == 0, second.stderr
    assert [entry["span"] for entry in second.json["data"]["spans"]] == [1, 2]
    assert second.json["data"]["leaked"] == [{"splits": ["train", "test"], "texts": 1, "rows": {"train": 1, "test": 1}}]
    assert second.json["data"]["dropped"] == {"train": 1}
    bounds = ("accuracy >= 0.3", "macro_f1 >= blessed - 0.5")
    expected = [f"{bound}{where}" for where in ("", " on the old spans", " on span 1") for bound in bounds]
    assert [gate["gate"] for gate in second.json["gates"]] == expected
    lineage = json.loads(
        (project.serving_dir / str(second.json["version"]) / "assets.extra" / "lineage.json").read_text()
    )
    assert lineage["training"]["warm_start"] is not None

    gates = (
        "evaluation.gates=[{ metric = 'accuracy', min = 0.3 }, { metric = 'accuracy', min_gain_over_blessed = 0.9 }]"
    )
    refused = project.run(*OVERRIDES, "window.until=2", gates)
    assert refused.status == 3
    assert [gate["gate"] for gate in refused.json["gates"] if not gate["passed"]] == [
        f"accuracy >= blessed + 0.9{where}" for where in ("", " on the old spans", " on span 1")
    ]


def part(project, *options: str, until: int = 2, overrides: tuple[str, ...] = ()):
    return project.run(*OVERRIDES, f"window.until={until}", *overrides, options=("--json", *options))


def test_part_of_the_graph_runs_on_a_window(project) -> None:
    before, seed = project.versions, ("training.seed=7",)
    data = part(project, "--to", "transform", overrides=seed)
    assert (data.status, data.json["status"]) == (0, "partial"), data.stderr
    assert [entry["span"] for entry in data.json["data"]["spans"]] == [1, 2]
    assert project.versions == before
    rest = part(project, "--from", "trainer", overrides=seed)
    assert (rest.status, rest.json["status"]) == (0, "pushed"), rest.stderr
    assert set(rest.json["seconds"]) - {"import", "total"} == {"trainer", "evaluator", "serving_check", "push"}
    assert project.versions == [*before, rest.json["version"]]
    assert [gate["gate"] for gate in rest.json["gates"] if gate["gate"].endswith(" on span 1")]
    again = part(project, "--from", "evaluator", "--to", "evaluator", overrides=seed)
    (gate,) = [gate for gate in again.json["gates"] if gate["gate"] == "macro_f1 >= blessed - 0.5"]
    assert gate["reference"] == gate["value"], "compared with the version that is live now: itself"


def test_window_that_has_moved_on_is_ingested_by_the_first_step_and_by_no_later_one(project) -> None:
    shutil.copytree(project.folder / "rows" / "span-1", project.folder / "rows" / "span-3")
    late = part(project, "--from", "statistics", until=3)
    assert late.status == 1
    assert "--from statistics: no earlier run in this root did the steps before it" in late.stderr
    moved = part(project, "--from", "examples", "--to", "statistics", until=3)
    assert (moved.status, moved.json["status"]) == (0, "partial"), moved.stderr
    assert [entry["span"] for entry in moved.json["data"]["spans"]] == [2, 3]
    assert {"examples_3", "examples", "statistics"} <= set(moved.json["seconds"])


def test_span_that_drifted_from_the_one_before_is_refused_and_nothing_is_trained(project) -> None:
    rows, before = project.folder / "rows", project.versions
    (rows / "span-4").mkdir()
    for split in ("train", "dev", "test"):
        with (rows / "span-2" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            content = list(csv.DictReader(file))
        if split == "train":  # nearly all of one label
            of = {row["label"]: [r for r in content if r["label"] == row["label"]] for row in content}
            content = [row for label, found in of.items() for row in (found if label == "METHODS" else found[:3])]
        with (rows / "span-4" / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
    alone = ("window.until=4", "window.last=1", "window.warm_start=false")
    done = project.run(*OVERRIDES, *alone, "validation.label_drift=0.3")
    assert (done.status, done.json["step"], done.json["error_kind"]) == (1, "data_gate", "DataError"), done.stderr
    assert "split train, feature label: drifted from the previous span: " in done.json["error"]
    assert "raise validation.label_drift or length_drift" in done.json["error"]
    assert len(done.json["error"].splitlines()) == 2, "this alone is wrong with it"
    assert f"{'trainer':<20} started" not in done.stderr
    assert project.versions == before
