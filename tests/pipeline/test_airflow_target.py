"""`biobert-cnn compile --target airflow`: the DAG's description, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import ConfigError
from components.push.publish import publish
from pipeline.airflow.target import compile_to
from pipeline.config import load_config
from pipeline.one_step import Overtaken, run_step
from pipeline.records import read_records, write_record
from pipeline.run import blank_record
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


def test_one_task_that_asks_the_schedule(minimal: Path) -> None:
    once = ("airflow.tasks=schedule_once", "airflow.retries=2", "airflow.timeout_s=7200")
    with pytest.raises(ConfigError, match=r"airflow\.tasks = 'schedule_once': \[schedule\] has nothing that starts"):
        compiled(minimal, *once)
    minimal.write_text(f"{minimal.read_text()}[schedule]\non_new_span = true\n")
    found = compiled(minimal, *once)
    assert found["command"] == ["schedule", "once"]
    assert found["steps"] == [{"id": "schedule_once", "after": [], "retries": 2, "timeout_s": 7200.0}]


def test_second_dag_on_the_same_root_is_refused(minimal: Path) -> None:
    compiled(minimal, "paths.root=/srv/root")
    compiled(minimal, "paths.root=/srv/root")  # the same file, written anew
    (minimal.parent / "dags" / "other.json").write_text("[]")
    config = load_config(minimal, ["paths.root=/srv/root"])
    second = minimal.parent / "dags" / "second.json"
    with pytest.raises(ConfigError, match=r"mine\.json has the same root, /srv/root, and runs of the two would mix"):
        compile_to(config, minimal, [], second)
    with pytest.raises(ConfigError, match=r"the same dag_id, biobert_cnn_mine, .* --set airflow\.dag_id=NAME"):
        compile_to(load_config(minimal, ["paths.root=/srv/another"]), minimal, [], second)
    compile_to(load_config(minimal, ["paths.root=/srv/another", "airflow.dag_id=another"]), minimal, [], second)


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


@pytest.fixture
def pushed(minimal: Path) -> Callable[..., None]:
    """Publishes versions to the root beside the configuration."""
    serving = load_config(minimal, [f"paths.root={minimal.parent}/root"]).serving_dir

    def publish_one(number: int, fingerprint: str = "other") -> None:
        model = minimal.parent / "model"
        model.mkdir(exist_ok=True)
        (model / "saved_model.pb").write_text(str(number))
        publish(model, serving, 9, lambda _: {"run": {"fingerprint": fingerprint}}, str(number), lambda: float(number))

    return publish_one


def run_push(minimal: Path, record: dict) -> None:
    root = minimal.parent / "root"
    write_record(root, {**blank_record(), "run_id": "20270131T235959", "attempt": 0, **record})
    run_step(lambda more: load_config(minimal, [f"paths.root={root}", *more]), "push", "20270131T235959", "")


def test_push_of_a_model_that_was_compared_with_another_live_version_is_refused(minimal: Path, pushed) -> None:
    pushed(100)
    pushed(200)
    with pytest.raises(Overtaken, match=r"the live version was 100 when .* and is 200 now; run the evaluator again"):
        run_push(minimal, {"live": 100})
    (record,) = read_records(minimal.parent / "root")
    assert (record["status"], record["step"], record["error_kind"]) == ("failed", "push", "Overtaken")
