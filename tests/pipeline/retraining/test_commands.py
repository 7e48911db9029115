"""The commands as they are called; a run is replaced by a program that prints a record."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.retraining import launch

ROOT = Path(__file__).parents[3]


@pytest.fixture
def call(project, monkeypatch):
    """Calls `biobert-cnn schedule …`; each run is `record`, as a process would print it."""
    answers: list[dict] = []

    def run_json(command, log, stop, timeout_s=None, lock=None):
        assert command[1:4] == ["-m", "pipeline.cli", "run"]
        return answers.pop(0)

    monkeypatch.setattr(launch, "run_json", run_json)

    def call(*arguments: str, record: dict | None = None):
        if record is not None:
            answers.append(record)
        head = 2 if arguments[0] == "schedule" else 1
        settings = ["--set", f"paths.root={project.root}"]
        return CliRunner().invoke(
            app, [*arguments[:head], str(project.folder / "c.toml"), *arguments[head:], *settings]
        )

    call.project = project
    return call


def test_once_runs_and_its_exit_status_is_that_of_the_run(call) -> None:
    done = call("schedule", "once", record={"status": "pushed", "run_id": "r1", "version": 7})
    assert (done.exit_code, done.stdout) == (0, "run 1: pushed; version 7; because span 0 version 1 is new\n")
    done = call("schedule", "once")
    assert (done.exit_code, done.stdout) == (0, "waits: nothing is due: nothing new after span 0\n")
    call.project.add_span(1)
    gates = [{"gate": "g", "passed": False, "message": "macro_f1 0.4 breaks its bound 0.6"}]
    done = call("schedule", "once", "--json", record={"status": "not_blessed", "run_id": "r2", "gates": gates})
    assert done.exit_code == 3
    assert json.loads(done.stdout)["run"]["cause"] == "macro_f1 0.4 breaks its bound 0.6"
    call.project.add_span(2)
    done = call("schedule", "once", record={"status": "failed", "error": "No space left", "error_kind": "OSError"})
    assert done.exit_code == 1
    assert "run 3: retry" in done.stdout


def test_explain_says_why(call) -> None:
    done = call("schedule", "explain")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[:2] == [
        "would run now: span 0 version 1 is new", "  * span           span 0 version 1 is new",
    ]  # fmt: skip
    found = json.loads(call("schedule", "explain", "--json").stdout)
    assert (found["would_run"], found["span"]) == (True, 0)
    assert not call.project.root.exists()


def test_explain_says_why_the_last_run_was_started(call) -> None:
    assert json.loads(call("schedule", "explain", "--json").stdout)["last_run"] is None
    call("schedule", "once", record={"status": "pushed", "run_id": "r1", "version": 7})
    call("schedule", "once")
    lines = call("schedule", "explain").stdout.splitlines()
    assert lines[0] == "would not run now: nothing is due: nothing new after span 0"
    last = json.loads(call("schedule", "explain", "--json").stdout)["last_run"]
    assert last["reason"] == "span 0 version 1 is new"
    assert lines[-1] == f"  the last run was started at {last['at'][:19]}: span 0 version 1 is new"


def test_status_lists_runs_decisions_and_spans_that_no_run_has_seen(call) -> None:
    assert "no run yet in" in call("schedule", "status").stdout
    call.project.add_span(5)
    call("schedule", "once", record={"status": "pushed", "run_id": "r1", "version": 7})
    found = json.loads(call("schedule", "status", "--json").stdout)
    assert [(run["span"], run["status"], run["version"]) for run in found["runs"]] == [(5, "pushed", 7)]
    assert [entry["trigger"].split(":")[1] for entry in found["skipped"]] == ["0.1"]
    text = call("schedule", "status").stdout
    assert "span 5 version 1 is new" in text
    assert "was there before the schedule's first look" in text


def test_retry_gives_a_failed_run_its_attempts_again(call) -> None:
    failed = {"status": "failed", "error": "No space left", "error_kind": "OSError"}
    nothing = call("schedule", "retry")
    assert (nothing.exit_code, "no scheduled run has failed" in nothing.stderr) == (1, True)
    assert call("schedule", "once", "--set", "schedule.attempts=1", record=failed).exit_code == 1
    assert call("schedule", "once").stdout.startswith("waits: ")
    assert "is tried again at the next look" in call("schedule", "retry").stdout
    done = call("schedule", "once", record={"status": "pushed", "run_id": "r1", "version": 7})
    assert done.stdout.startswith("run 1: pushed; version 7")


def test_retry_takes_a_refused_span_for_new_again(call) -> None:
    refused = {"status": "failed", "error": "span-0: 9 of 10 rows are bad", "error_kind": "DataError"}
    assert call("schedule", "once", record=refused).exit_code == 3
    assert call("schedule", "once").stdout.startswith("waits: ")
    other = call("schedule", "retry", "--span", "1")
    assert (other.exit_code, "span 1 was not refused for its data; those that were: 0" in other.stderr) == (1, True)
    assert call("schedule", "retry", "--span", "0").stdout == "span 0 is new again at the next look\n"
    done = call("schedule", "once", record={"status": "pushed", "run_id": "r1", "version": 7})
    assert done.stdout.startswith("run 2: pushed; version 7")


def test_schedule_that_nothing_can_start_is_bad_usage(call) -> None:
    done = call("schedule", "once", "--set", "schedule.on_new_span=false")
    assert done.exit_code == 2
    assert "[schedule] has nothing that starts a run; set on_new_span = true, cron" in done.stderr


def test_schedule_imports_no_heavy_package_and_stops_when_told(project) -> None:
    """The real command as a process: small, idle, and gone at SIGTERM."""
    code = (
        "import sys, threading\n"
        "from pipeline.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'tensorflow', 'tfx', 'apache_beam', 'keras', 'pandas', 'numpy', 'grpc'} & set(sys.modules)\n"
        "print('heavy', sorted(heavy), 'status', status)\n"
    )
    command = [sys.executable, "-c", code, "schedule", "run", str(project.folder / "c.toml")]
    for override in (f"paths.root={project.root}", "schedule.on_new_span=false", "schedule.cron='0 3 1 1 *'"):
        command += ["--set", override]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=project.folder) as process:
        assert process.stdout.readline().startswith("waits: nothing is due: cron comes due at ")
        memory = Path(f"/proc/{process.pid}/status").read_text()
        peak_kb = int(next(line.split()[1] for line in memory.splitlines() if line.startswith("VmHWM")))
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "heavy [] status 0\n"
        process.wait(timeout=30)
    assert peak_kb < 150 * 1024


def test_idle_schedule_sleeps_until_something_may_change(make_project) -> None:
    """Counted, not timed: how often the loop looks while half a second passes."""
    project = make_project("schedule.poll_s=3600")
    scheduler = project.scheduler()
    scheduler.look()
    looks = []
    project.clock = lambda: looks.append(1) or project.now
    scheduler = project.scheduler()
    thread = threading.Thread(target=scheduler.loop)
    thread.start()
    time.sleep(0.5)
    scheduler.stop.set()
    thread.join(30)
    assert 1 <= len(looks) <= 2, "the time is asked for once to look and once to sleep"
