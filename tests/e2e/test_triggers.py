"""What starts a run by measurement: new data that has drifted, and labels that the live version gets wrong."""

import csv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SPLITS = (
    'data.splits={ train = "span-{SPAN}/train.csv", eval = "span-{SPAN}/dev.csv", test = "span-{SPAN}/test.csv" }',
    "schedule.settle_s=0",
)
MEASURED = (*SPLITS, "schedule.measure_every_s=0.001")
DRIFT, SCORE = "schedule.drift=0.2", ("schedule.min_score=0.3", "schedule.score_metric=accuracy")


def add_span(rows: Path, span: int, relabel) -> None:
    """The shipped rows as a span; each row's number and label give its label there."""
    (rows / f"span-{span}").mkdir()
    for name in ("train", "dev", "test"):
        with (rows / f"{name}.csv").open(encoding="utf-8", newline="") as source:
            found = list(csv.DictReader(source))
        with (rows / f"span-{span}" / f"{name}.csv").open("w", encoding="utf-8", newline="") as target:
            writer = csv.DictWriter(target, list(found[0]))
            writer.writeheader()
            # No two spans have the same texts.
            writer.writerows(
                {**row, "text": f"{row['text']} {span}", "label": relabel(number, row["label"])}
                for number, row in enumerate(found)
            )


def once(project, *overrides: str):
    project.start([*project.command("schedule", "once", overrides=overrides), "--json"])
    done = project.wait()
    assert done.stdout, done.stderr
    return done


@pytest.fixture(scope="module")
def live(project) -> int:
    """A version that was trained on span 1, by the schedule: both processes of their own, as in production."""
    add_span(project.folder / "rows", 1, lambda number, label: label)
    overrides = (*SPLITS, "schedule.on_new_span=true")
    done = project.process(*project.command("schedule", "once", overrides=overrides), "--json")
    assert (done.status, done.json["run"]["status"]) == (0, "pushed"), done.stdout + done.stderr
    assert project.record["trigger"].startswith("span:")
    return done.json["run"]["version"]


def test_nothing_is_written_to_the_users_home_folder(project, live: int) -> None:
    assert list(project.home.rglob("*")) == []


def test_span_that_is_like_those_before_starts_no_run(project, live: int) -> None:
    add_span(project.folder / "rows", 2, lambda number, label: label)
    done = once(project, *MEASURED, DRIFT, *SCORE)
    assert (done.status, done.json["run"]) == (0, None), done.stdout
    texts = [finding["text"] for finding in done.json["findings"] if finding["text"]]
    assert len(texts) == 2
    assert texts[0].startswith(("drift of label, version ", "drift of tokens, version "))
    assert texts[0].endswith(" <= 0.2")
    assert texts[1].startswith(f"score of accuracy, version {live}: 0.")
    assert texts[1].endswith(" >= 0.3")
    assert project.versions == [live]


def test_labels_that_the_live_version_gets_wrong_start_a_run(project, live: int) -> None:
    names = ["BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS"]
    add_span(project.folder / "rows", 3, lambda number, label: names[(names.index(label) + 1) % 5])
    refused = "validation.min_label_count=100000"  # the run need not be a long one
    done = once(project, *MEASURED, *SCORE, refused)
    run = done.json["run"]
    assert (done.status, run["status"], run["span"]) == (3, "refused", 3), done.stderr
    assert run["reason"].startswith(f"score of accuracy, version {live}: 0.")
    assert run["reason"].endswith(" < 0.3")
    assert run["triggers"][0].startswith("score:")
    again = once(project, *MEASURED, *SCORE, refused)
    assert (again.json["run"], "answered already" in again.json["reason"]) == (None, True)


def test_span_that_has_drifted_starts_a_run(project, live: int) -> None:
    add_span(project.folder / "rows", 4, lambda number, label: label if number % 2 else "METHODS")
    done = once(project, *MEASURED, DRIFT)
    run = done.json["run"]
    assert (done.status, run["status"], run["span"]) == (0, "pushed", 4), done.stderr
    assert run["reason"].startswith(f"drift of label, version {live}: 0.")
    assert run["reason"].endswith(" > 0.2")
    assert project.versions == [live, run["version"]]
    after = once(project, *MEASURED, DRIFT)
    assert (after.json["run"], project.versions[-1]) == (None, run["version"])
    assert after.json["reason"].endswith(" <= 0.2"), "the version that was trained on it knows it"
