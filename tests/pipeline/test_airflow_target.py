"""`biobert-cnn compile --target airflow`: the DAG's description, and what it refuses."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest

from components.errors import ConfigError
from pipeline.airflow.target import compile_to
from pipeline.config import load_config
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
    assert not Path("/srv/root").exists(), "compiling made the root, which may be another machine's"


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
    with pytest.raises(ConfigError, match=r"would never look .* --set airflow\.schedule='\*/10 \* \* \* \*'"):
        compiled(minimal, *once)
    found = compiled(minimal, *once, "airflow.schedule=*/10 * * * *")
    assert (found["command"], found["schedule"]) == (["schedule", "once"], "*/10 * * * *")
    (task,) = found["steps"]
    # Not airflow.retries: a run's attempts are the schedule's.
    assert task == {"id": "schedule_once", "after": [], "retries": 0, "timeout_s": 7200.0}


def test_second_dag_on_the_same_root_is_refused(minimal: Path) -> None:
    compiled(minimal, "paths.root=/srv/root")
    compiled(minimal, "paths.root=/srv/root")  # the same file, written anew
    (minimal.parent / "dags" / "other.json").write_text("[]")
    config = load_config(minimal, ["paths.root=/srv/root"])
    second = minimal.parent / "dags" / "second.json"
    with pytest.raises(ConfigError, match=r"mine\.json has the same root, /srv/root, and runs of the two would mix"):
        compile_to(config, minimal, [], second)
    (minimal.parent / "link").symlink_to("/srv/root")
    with pytest.raises(ConfigError, match=r"mine\.json has the same root"):
        compile_to(load_config(minimal, [f"paths.root={minimal.parent}/link"]), minimal, [], second)
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


class AirflowException(Exception):
    """Airflow's, which is in an environment of its own."""


@pytest.fixture
def dag_file(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """deploy/airflow/biobert_cnn.py, in front of an Airflow that does nothing."""
    airflow = MagicMock()
    airflow.exceptions.AirflowException = airflow.exceptions.AirflowFailException = AirflowException
    for name in ("", ".exceptions", ".models", ".models.param", ".operators", ".operators.python"):
        monkeypatch.setitem(sys.modules, f"airflow{name}", getattr(airflow, name[1:]) if name else airflow)
    monkeypatch.setitem(sys.modules, "pendulum", MagicMock())
    path = Path(__file__).parents[2] / "deploy" / "airflow" / "biobert_cnn.py"
    spec = importlib.util.spec_from_file_location("biobert_cnn", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dag_file_reads_what_was_compiled_and_passes_over_what_else_lies_there(minimal: Path, dag_file) -> None:
    mine = compiled(minimal)
    dags = minimal.parent / "dags"
    for number, text in enumerate(("[]", '{"dag_id": "somebody else\'s"}', "no JSON", "7", '{"root": null}')):
        (dags / f"other-{number}.json").write_text(text)
    assert dag_file._read(dags) == [mine]
    (dags / "older.json").write_text(json.dumps({key: mine[key] for key in mine if key != "command"}))
    with pytest.raises(AirflowException, match=r"older\.json: an older `biobert-cnn compile` wrote it; compile"):
        dag_file._read(dags)


def test_dag_file_knows_one_root_by_its_two_names(minimal: Path, dag_file) -> None:
    mine = compiled(minimal, f"paths.root={minimal.parent}")
    dags = minimal.parent / "dags"
    (minimal.parent / "link").symlink_to(minimal.parent)
    second = {**mine, "root": str(minimal.parent / "link"), "dag_id": "second"}
    (dags / "second.json").write_text(json.dumps(second))
    with pytest.raises(AirflowException, match=r"mine\.json and .*second\.json have the same root"):
        dag_file._read(dags)
