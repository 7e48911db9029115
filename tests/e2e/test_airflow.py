"""A real Airflow (its scheduler, on SQLite) runs the DAGs: a gate fails its task, the run goes on from there, and no
other run of the pipeline root comes between."""

import json
import os
import re
import shutil
import signal
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.records import root_lock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "airflow"
DAG_ID = "biobert_cnn_small"
STEPS = [
    "examples", "statistics", "schema", "anomalies", "data_gate", "transform", "trainer", "evaluator",
    "serving_check", "push",
]  # fmt: skip
SPLITS = ('"span-{SPAN}/train.csv"', '"span-{SPAN}/dev.csv"', '"span-{SPAN}/test.csv"')
# In place of the environment's `biobert-cnn`: the same command line in a fork of a process that has imported TFX.
PROGRAM = """#!{python} -SE
import json, socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect({socket!r})
    client.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
    answer = json.loads(client.makefile().read())
sys.stdout.write(answer["stdout"])
sys.stderr.write(answer["stderr"])
sys.exit(answer["status"])
"""

# What the program `airflow` does with each command line.
COMMANDS = """
import json, sys
from airflow.cli.cli_parser import get_parser
for command in json.loads(sys.argv[1]):
    arguments = get_parser().parse_args(command)
    arguments.func(arguments)
"""


class Airflow:
    """An Airflow home with one DAG; states are read from its database."""

    def __init__(self, program: str, home: Path) -> None:
        self._program, self.home = program, home
        self.dags = home / "dags"
        self.dags.mkdir(parents=True)
        own = {
            "HOME": str(home), "AIRFLOW_HOME": str(home), "PYTHONWARNINGS": "ignore",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False", "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            # One task at a time, forked: SQLite bears that, and a sequential executor would import Airflow for each.
            "AIRFLOW__CORE__PARALLELISM": "1", "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK": "1",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db?timeout=60",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING", "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
        }  # fmt: skip
        path = f"{Path(program).parent}{os.pathsep}{os.environ['PATH']}"  # the executor calls `airflow`
        self.environment = {**{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}, "PATH": path, **own}
        self.scheduler: subprocess.Popen | None = None

    def call(self, *commands: tuple[str, ...]) -> None:
        """`airflow` with each command's arguments, in one process: to import Airflow takes seconds."""
        done = self.python("-c", COMMANDS, json.dumps(commands))
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs Python in Airflow's environment."""
        return subprocess.run(
            [str(Path(self._program).with_name("python")), *arguments], env={**self.environment, **environment},
            cwd=self.home, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def query(self, sql: str) -> list[tuple]:
        with closing(sqlite3.connect(f"file:{self.home}/airflow.db?mode=ro", uri=True, timeout=30)) as database:
            return database.execute(sql).fetchall()

    @staticmethod
    def trigger(dag_id: str, run_id: str, **parameters: object) -> tuple[str, ...]:
        """The command that triggers a run; its date is a key, for which Airflow would round it to a second."""
        options = ("--run-id", run_id, "--no-replace-microseconds", "--conf", json.dumps(parameters))
        return "dags", "trigger", dag_id, *options

    def states(self, run_id: str) -> dict[str, str]:
        return dict(self.query(f"SELECT task_id, state FROM task_instance WHERE run_id = '{run_id}'"))

    def wait(self, run_id: str, *states: str) -> str:
        """Waits until a run is in one of these states."""
        end = time.monotonic() + 900
        while True:
            found = self.query(f"SELECT state FROM dag_run WHERE run_id = '{run_id}'")
            if found and found[0][0] in states:
                return found[0][0]
            assert self.scheduler.poll() is None, (self.home / "scheduler.log").read_text()[-3000:]
            assert time.monotonic() < end, (found, self.states(run_id))
            time.sleep(0.5)

    def tried(self, run_id: str) -> list[tuple[str, str]]:
        """When each task that ran began and ended, in order."""
        return self.query(
            "SELECT start_date, end_date FROM task_instance "
            f"WHERE run_id = '{run_id}' AND state IN ('success', 'failed') ORDER BY start_date"
        )

    def log(self, run_id: str, step: str) -> str:
        files = sorted(self.home.glob(f"logs/dag_id=*/run_id={run_id}/task_id={step}/*.log"))
        return files[-1].read_text()


@pytest.fixture(scope="module")
def program(project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An executable that runs the command line in the warm process."""
    folder = tmp_path_factory.mktemp("bin")

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            project.start(json.loads(self.rfile.readline()))
            done = project.wait()
            answer = {"status": done.status, "stdout": done.stdout, "stderr": done.stderr}
            self.wfile.write(json.dumps(answer).encode())

    path = folder / "biobert-cnn"
    path.write_text(PROGRAM.format(python=sys.executable, socket=str(folder / "socket")))
    path.chmod(0o755)
    with socketserver.UnixStreamServer(str(folder / "socket"), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield path
        server.shutdown()


def compile_to(project, output: Path, *overrides: str) -> str:
    """Compiles the project's configuration; the pool that the command says is needed."""
    project.start([*project.command("compile", overrides=overrides), "--target", "airflow", "--output", str(output)])
    done = project.wait()
    assert done.status == 0, done.stderr
    hint = done.stdout.splitlines()[-1]
    assert hint.startswith("once: airflow pools set biobert_cnn_")
    return hint.split()[4]


@pytest.fixture(scope="module")
def airflow(project, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    made = subprocess.run([DEPLOY / "environment.sh"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"Airflow's environment cannot be made here: {made.stderr.strip().splitlines()[-1:]}")
    found = Airflow(made.stdout.strip(), tmp_path_factory.mktemp("airflow"))
    shutil.copy(DEPLOY / "biobert_cnn.py", found.dags)
    project.config.write_text(f"{project.config.read_text()}[schedule]\ncron = '0 3 1 1 *'\n")
    pools = [compile_to(project, found.dags / "small.json", f"airflow.program={program}", "airflow.retries=0")]
    once = (
        "airflow.dag_id=retrain",
        "airflow.tasks=schedule_once",
        "airflow.schedule=0 3 1 1 *",
        f"paths.root={project.folder / 'scheduled'}",
    )
    pools.append(compile_to(project, found.dags / "once.json", f"airflow.program={program}", *once))
    found.call(("db", "migrate"), *(("pools", "set", pool, "1", "one step at a time") for pool in pools))
    found.scheduler = scheduler = subprocess.Popen(
        [made.stdout.strip(), "scheduler"], env=found.environment, cwd=found.home, start_new_session=True,
        stdout=(found.home / "scheduler.log").open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    end = time.monotonic() + 120
    while len(found.query("SELECT 1 FROM serialized_dag")) < 2:
        assert found.query("SELECT stacktrace FROM import_error") == []
        assert time.monotonic() < end, (found.home / "scheduler.log").read_text()[-2000:]
        time.sleep(0.2)
    yield found
    os.killpg(scheduler.pid, signal.SIGTERM)
    try:
        scheduler.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(scheduler.pid, signal.SIGKILL)
        scheduler.wait(10)


@pytest.fixture(scope="module")
def runs(project, airflow: Airflow) -> dict[str, dict]:
    """Two runs that are triggered at once and fail, the first of which is cleared while the second is active.

    Returns: their records as they were when they had failed.
    """
    good = project.config.read_text()
    rows = project.folder / "rows"
    for span in (1, 2):
        (rows / f"span-{span}").mkdir()
        for name in ("train", "dev", "test"):
            shutil.copy(rows / f"{name}.csv", rows / f"span-{span}")
    spans = project.folder / "spans.toml"
    spans.write_text(
        good.replace('"train.csv"', SPLITS[0]).replace('"dev.csv"', SPLITS[1]).replace('"test.csv"', SPLITS[2])
    )
    project.config.write_text(good.replace("min = 0.3 }", "min = 0.999 }"))
    other = {"config": str(spans), "span": "1", "set": ["validation.min_label_count=10000"]}
    airflow.call(
        airflow.trigger(DAG_ID, "first", set=["serving.check_examples=4"]), airflow.trigger(DAG_ID, "second", **other)
    )
    assert airflow.wait("first", "success", "failed") == "failed"
    found = {
        "first": records(project)["small"],
        "states": airflow.states("first"),
        "log": airflow.log("first", "evaluator"),
    }
    found["versions"] = project.versions
    project.config.write_text(good)
    with root_lock(project.root, wait=True):  # the second's next step waits, until the first has been cleared
        assert airflow.wait("second", "running", "success", "failed") == "running"
        ((date,),) = airflow.query("SELECT execution_date FROM dag_run WHERE run_id = 'first'")
        airflow.call(("tasks", "clear", DAG_ID, "-t", "^evaluator$", "--downstream", "--yes", "-s", date, "-e", date))
        found["cleared"] = airflow.query(f"SELECT run_id, state FROM dag_run WHERE dag_id = '{DAG_ID}' ORDER BY 1")
        found["cleared_at"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")  # as Airflow writes times
    assert airflow.wait("second", "success", "failed") == "failed"
    assert airflow.wait("first", "success", "failed") == "success", airflow.log("first", "evaluator")
    return found


def records(project) -> dict[str, dict]:
    """The records of the runs by the name of their configuration."""
    found = [json.loads(path.read_text()) for path in (project.root / "runs").glob("*.json")]
    assert len({record["name"] for record in found}) == len(found)
    return {record["name"]: record for record in found}


def test_failing_gate_fails_its_task_and_the_run_goes_on_from_there_to_a_push(project, airflow: Airflow, runs) -> None:
    expected = dict.fromkeys(STEPS[:7], "success")
    assert runs["states"] == {
        **expected, "evaluator": "failed", "serving_check": "upstream_failed", "push": "upstream_failed",
    }  # fmt: skip
    assert "the model was not blessed: accuracy >= 0.999" in runs["log"]
    assert runs["versions"] == []
    failed = runs["first"]
    assert (failed["status"], failed["step"], failed["error_kind"]) == ("not_blessed", "evaluator", "NotBlessed")
    assert airflow.states("first") == dict.fromkeys(STEPS, "success")
    (version,) = project.versions
    pushed = records(project)["small"]
    assert (pushed["status"], pushed["version"], pushed["error"]) == ("pushed", version, None)
    assert pushed["seconds"]["trainer"] == failed["seconds"]["trainer"], "the trainer ran again"
    lineage = json.loads((project.serving_dir / str(version) / "assets.extra" / "lineage.json").read_text())
    assert lineage["run"]["configuration"]["serving"]["check_examples"] == 4, "the run's parameter came through"


def test_run_takes_another_configuration_a_span_and_overrides(project, airflow: Airflow, runs) -> None:
    assert airflow.states("second")["data_gate"] == "failed"
    assert "too few rows of" in airflow.log("second", "data_gate"), "set"
    record = records(project)["spans"]
    assert (record["status"], record["step"], record["error_kind"]) == ("failed", "data_gate", "DataError")
    assert record["window_end"] == record["data"]["span"] == 1, "span, of the configuration that has spans"


def test_one_run_at_a_time_holds_a_pipeline_root_from_its_first_task_to_its_last(airflow: Airflow, runs) -> None:
    first, second = airflow.tried("first"), airflow.tried("second")
    assert (len(first), len(second)) == (10, 5)
    before, again = first[:7], first[7:]  # the evaluator's first try has no row of its own any more
    assert max(end for _, end in before) <= second[0][0]
    assert runs["cleared"] == [("first", "queued"), ("second", "running")]
    assert runs["cleared_at"] < second[-1][1] <= again[0][0], "cleared while the second was active, and it waited"
    (pool,) = airflow.query(f"SELECT DISTINCT pool FROM task_instance WHERE dag_id = '{DAG_ID}'")
    assert airflow.query(f"SELECT slots FROM slot_pool WHERE pool = '{pool[0]}'") == [(1,)]


def test_one_task_asks_the_schedule_whether_a_run_is_due(airflow: Airflow) -> None:
    airflow.call(airflow.trigger("retrain", "look"))
    assert airflow.wait("look", "success", "failed") == "success", airflow.log("look", "schedule_once")
    ((answer,),) = airflow.query("SELECT value FROM xcom WHERE run_id = 'look' AND key = 'return_value'")
    found = json.loads(answer)
    assert (found["would_run"], found["run"]) == (False, None)
    assert found["reason"].startswith("nothing is due: cron comes due at ")


def test_two_dags_on_one_root_are_not_imported(airflow: Airflow, tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "biobert_cnn.py", tmp_path)
    for name in ("one", "two"):
        shutil.copy(airflow.dags / "small.json", tmp_path / f"{name}.json")
    done = airflow.python(str(tmp_path / "biobert_cnn.py"))
    assert done.returncode == 1
    assert re.search(r"one\.json and .*two\.json have the same root, .*; remove one", done.stderr)


CALLS = """
import json, sys
from pathlib import Path
import biobert_cnn
for call in json.loads(sys.argv[1]):
    program = Path(call.pop("program"))
    compiled = {"program": str(program), "command": ["schedule", "once"], "set": [], "root": "/r"}
    compiled["final"] = ["DataError"]
    program.write_text(f"#!/bin/sh\\necho '{json.dumps(call['prints'])}'\\nexit {call['status']}\\n")
    program.chmod(0o755)
    try:
        print(biobert_cnn.run_task(compiled, "schedule_once", params={"config": "c.toml", "set": call["set"]}))
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_tasks_fail_for_good_only_where_another_try_cannot_help(airflow: Airflow, tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "biobert_cnn.py", tmp_path)
    refused = {"run": {"cause": "macro_f1 0.4 breaks its bound 0.6"}}
    cases = [
        (0, {"reason": "nothing is due"}, [], "{'reason': 'nothing is due'}"),
        (3, refused, [], "AirflowFailException macro_f1 0.4 breaks its bound 0.6"),
        (2, {}, [], f"AirflowFailException {tmp_path}/program ended with status 2"),
        (1, {"run": {"status": "failed", "cause": "x"}}, [], "AirflowFailException x"),
        (1, {"run": {"status": "retry", "cause": "disk full"}}, [], "AirflowFailException disk full"),
        (1, {"error": "bad rows", "error_kind": "DataError"}, [], "AirflowFailException bad rows"),
        (1, {"error": "disk full", "error_kind": "OSError"}, [], "AirflowException disk full"),
        (0, {}, ["paths.root=/other"], "AirflowFailException set: paths.root=/other: this DAG holds /r; compile"),
    ]
    calls = [
        {"status": status, "prints": prints, "set": overrides, "program": str(tmp_path / "program")}
        for status, prints, overrides, _ in cases
    ]
    done = airflow.python("-c", CALLS, json.dumps(calls), PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    for line, (*_, expected) in zip(done.stdout.splitlines(), cases, strict=True):
        assert line.startswith(expected)
