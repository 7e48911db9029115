"""A real Airflow (its scheduler, on SQLite) runs the DAG: a gate fails its task, and the run goes on from there."""

import json
import os
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
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "airflow"
DAG_ID = "biobert_cnn_small"
STEPS = [
    "examples", "statistics", "schema", "anomalies", "data_gate", "transform", "trainer", "evaluator",
    "serving_check", "push",
]  # fmt: skip
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


class Airflow:
    """An Airflow home with one DAG; states are read from its database."""

    def __init__(self, program: str, home: Path) -> None:
        self._program, self.home = program, home
        self.dags = home / "dags"
        self.dags.mkdir(parents=True)
        own = {
            "HOME": str(home), "AIRFLOW_HOME": str(home), "PYTHONWARNINGS": "ignore",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False", "AIRFLOW__CORE__EXECUTOR": "SequentialExecutor",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING", "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
        }  # fmt: skip
        path = f"{Path(program).parent}{os.pathsep}{os.environ['PATH']}"  # the executor calls `airflow`
        self.environment = {**{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}, "PATH": path, **own}
        self.scheduler: subprocess.Popen | None = None

    def call(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._program, *arguments],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    def query(self, sql: str) -> list[tuple]:
        with closing(sqlite3.connect(f"file:{self.home}/airflow.db?mode=ro", uri=True, timeout=30)) as database:
            return database.execute(sql).fetchall()

    def states(self) -> dict[str, str]:
        return dict(self.query(f"SELECT task_id, state FROM task_instance WHERE dag_id = '{DAG_ID}'"))

    def wait(self, *states: str) -> str:
        """Waits until the DAG's one run is in one of these states."""
        end = time.monotonic() + 900
        while True:
            found = self.query(f"SELECT state FROM dag_run WHERE dag_id = '{DAG_ID}'")
            if found and found[0][0] in states:
                return found[0][0]
            assert self.scheduler.poll() is None, (self.home / "scheduler.log").read_text()[-3000:]
            assert time.monotonic() < end, (found, self.states())
            time.sleep(0.5)

    def log(self, step: str) -> str:
        files = sorted(self.home.glob(f"logs/dag_id={DAG_ID}/*/task_id={step}/*.log"))
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


@pytest.fixture(scope="module")
def airflow(project, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    made = subprocess.run([DEPLOY / "environment.sh"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"Airflow's environment cannot be made here: {made.stderr.strip().splitlines()[-1:]}")
    found = Airflow(made.stdout.strip(), tmp_path_factory.mktemp("airflow"))
    shutil.copy(DEPLOY / "biobert_cnn.py", found.dags)
    overrides = (f"airflow.program={program}", "airflow.retries=0")
    argv = project.command("compile", overrides=overrides)
    project.start([*argv, "--target", "airflow", "--output", str(found.dags / "small.json")])
    done = project.wait()
    assert done.status == 0, done.stderr
    found.call("db", "migrate")
    # The command that `compile` prints.
    hint = done.stdout.splitlines()[-1]
    assert hint.startswith("once: airflow pools set biobert_cnn_")
    found.call("pools", "set", hint.split()[4], "1", "one step at a time")
    found.scheduler = scheduler = subprocess.Popen(
        [made.stdout.strip(), "scheduler"], env=found.environment, cwd=found.home, start_new_session=True,
        stdout=(found.home / "scheduler.log").open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not found.query(f"SELECT 1 FROM serialized_dag WHERE dag_id = '{DAG_ID}'"):
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


def test_failing_gate_fails_its_task_and_the_run_goes_on_from_there_to_a_push(project, airflow: Airflow) -> None:
    good = project.config.read_text()
    project.config.write_text(good.replace("min = 0.3 }", "min = 0.999 }"))
    airflow.call("dags", "trigger", DAG_ID, "--conf", json.dumps({"set": ["serving.check_examples=4"]}))
    assert airflow.wait("success", "failed") == "failed"
    states = airflow.states()
    expected = dict.fromkeys(STEPS[:7], "success")
    assert states == {
        **expected, "evaluator": "failed", "serving_check": "upstream_failed", "push": "upstream_failed",
    }, airflow.log("evaluator")  # fmt: skip
    assert "the model was not blessed: accuracy >= 0.999" in airflow.log("evaluator")
    assert project.versions == []
    (record,) = (project.root / "runs").glob("*.json")
    failed = json.loads(record.read_text())
    assert (failed["status"], failed["step"], failed["error_kind"]) == ("not_blessed", "evaluator", "NotBlessed")

    project.config.write_text(good)
    trained = json.loads(record.read_text())["seconds"]["trainer"]
    airflow.call("tasks", "clear", DAG_ID, "--task-regex", "^evaluator$", "--downstream", "--yes")
    assert airflow.wait("success", "failed") == "success", airflow.log("evaluator")
    assert airflow.states() == dict.fromkeys(STEPS, "success")
    (version,) = project.versions
    pushed = json.loads(record.read_text())
    assert (pushed["status"], pushed["version"], pushed["error"]) == ("pushed", version, None)
    assert pushed["seconds"]["trainer"] == trained, "the trainer ran again"
    lineage = json.loads((project.serving_dir / str(version) / "assets.extra" / "lineage.json").read_text())
    assert lineage["run"]["configuration"]["serving"]["check_examples"] == 4, "the run's parameter came through"


def test_one_run_at_a_time_holds_a_pipeline_root(airflow: Airflow) -> None:
    (pool,) = airflow.query("SELECT DISTINCT pool FROM task_instance")
    assert airflow.query(f"SELECT slots FROM slot_pool WHERE pool = '{pool[0]}'") == [(1,)]
    assert airflow.query(f"SELECT max_active_runs FROM dag WHERE dag_id = '{DAG_ID}'") == [(1,)]
