"""`biobert-cnn compile --target airflow`: the DAG's description, and what it refuses."""

import json
from pathlib import Path

import pytest

from components.errors import ConfigError
from pipeline.airflow.target import compile_to
from pipeline.config import load_config
from pipeline.one_step import run_step
from pipeline.steps import STEPS


def compiled(minimal: Path, *overrides: str) -> dict:
    output = minimal.parent / "dags" / "mine.json"
    config = load_config(minimal, overrides)
    tasks, pool = compile_to(config, minimal, list(overrides), output)
    found = json.loads(output.read_text())
    assert (tasks, pool) == ([step["id"] for step in found["steps"]], found["pool"])
    return found


def test_description_holds_the_graphs_steps_and_what_the_section_says(minimal: Path) -> None:
    found = compiled(
        minimal, "paths.root=/srv/root", "airflow.schedule='0 3 * * *'", "airflow.time_zone='Europe/Berlin'",
        "airflow.steps.trainer={retries=0, timeout_s=3600}", "airflow.retries=2",
    )  # fmt: skip
    steps = {step["id"]: step for step in found["steps"]}
    assert tuple(steps) == STEPS
    assert steps["transform"]["after"] == ["data_gate", "examples", "schema"]
    assert steps["examples"]["after"] == []
    assert (steps["trainer"]["retries"], steps["trainer"]["timeout_s"]) == (0, 3600.0)
    assert (steps["push"]["retries"], steps["push"]["timeout_s"]) == (2, None)
    assert found["dag_id"] == "biobert_cnn_mine"
    assert found["pool"] == "biobert_cnn_srv_root"
    assert (found["schedule"], found["time_zone"], found["start"]) == ("0 3 * * *", "Europe/Berlin", [2026, 1, 1])
    assert found["config"] == str(minimal)
    assert found["set"] == ["paths.root=/srv/root", "paths.serving=/srv/root/serving/biobert_cnn"]


def test_window_has_a_task_for_each_place(minimal: Path) -> None:
    rows = minimal.parent / "rows"
    for span in ("1", "2"):
        (rows / f"span-{span}").mkdir()
        for name in ("train.csv", "dev.csv"):
            (rows / f"span-{span}" / name).write_text((rows / name).read_text())
    splits = 'splits = { train = "span-{SPAN}/train.csv", eval = "span-{SPAN}/dev.csv" }'
    text = minimal.read_text().replace('splits = { train = "train.csv", eval = "dev.csv" }', splits)
    minimal.write_text(f"{text}\n[window]\nlast = 3\n")
    found = compiled(minimal)
    assert [step["id"] for step in found["steps"]][:4] == ["examples_0", "examples_1", "examples_2", "examples"]
    minimal.write_text(f'{text}\n[window]\nlast = "all"\n')
    with pytest.raises(ConfigError, match=r"step examples: window\.last = 'all'"):
        compiled(minimal)


def test_override_that_the_tasks_would_not_see_is_refused(minimal: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set training\.epochs=3: the tasks read"):
        compiled(minimal, "training.epochs=3")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("airflow.schedule='every day'", "airflow.schedule"),
        ("airflow.time_zone='Mars'", "is not a time zone"),
        ("airflow.steps.trainr={}", "trainr"),
        ("airflow.pool='a b'", "airflow.pool"),
    ],
)
def test_mistakes_in_the_section_are_named(minimal: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, [override])
    assert expected in str(caught.value)


def test_run_of_a_step_must_be_a_time(minimal: Path) -> None:
    with pytest.raises(ConfigError, match="--run manual__1: write the time"):
        run_step(lambda more: load_config(minimal, more), "examples", "manual__1", "")
