"""Airflow: one DAG for each pipeline compiled into this folder.

    biobert-cnn compile CONFIG --target airflow --output DAGS/NAME.json     # prints the pool to make, once
    cp deploy/airflow/biobert_cnn.py DAGS/

Airflow has an environment of its own (requirements.txt beside this file) and imports nothing of the pipeline: each task
runs a command in the pipeline's environment. By the configuration's `airflow.tasks` a DAG has

- "steps": one task a step, `biobert-cnn step`. A run takes three parameters: `config`, another configuration file of
  the same steps; `span`, with which the window of spans ends; `set`, overrides "section.key=value";
- "schedule_once": one task, `biobert-cnn schedule once`, which runs what the section [schedule] says is due. Airflow
  does not try it again: the schedule makes a run's further attempts itself, at the looks that follow.

One run at a time holds a pipeline root, from its first task to its last: a DAG has one active run, a root one DAG, and
the pool one slot. A run that is triggered, or cleared, meanwhile waits in state "queued".

A task fails for good where another try cannot help: refused data, a wrong configuration, a broken gate. Correct what it
names, then clear the task: the run goes on from there (of the schedule: after `biobert-cnn schedule retry`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from datetime import timedelta
from pathlib import Path

import pendulum
from airflow import DAG
from airflow.exceptions import AirflowException, AirflowFailException
from airflow.models.param import Param
from airflow.operators.python import PythonOperator

_BAD_USAGE, _REFUSED = 2, 3  # exit statuses
_KEYS = {
    "dag_id", "command", "program", "config", "set", "root", "schedule", "time_zone", "start", "pool", "retry_delay_s",
    "final", "steps",
}  # fmt: skip


def run_task(compiled: dict, step: str, **context) -> dict:
    """Runs one task's command to its end; the process and all that it started go with the task."""
    command = _command(compiled, step, context)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            output, _ = process.communicate()  # messages on standard error go to the task's log
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
    lines, status = output.strip().splitlines(), process.returncode
    result = json.loads(lines[-1]) if lines else {}
    if status == 0:
        return result
    about = result.get("run") or {}  # of `schedule once`
    reason = result.get("error") or about.get("cause") or f"{compiled['program']} ended with status {status}"
    lasting = status in (_BAD_USAGE, _REFUSED) or result.get("error_kind") in compiled["final"]
    # The schedule has recorded the run: another look may find nothing due, and the failure would go green.
    if lasting or about.get("status") in ("failed", "retry"):
        raise AirflowFailException(reason)
    raise AirflowException(reason)


def _command(compiled: dict, step: str, context: dict) -> list[str]:
    parameters = context["params"]
    moved = [item for item in parameters["set"] if re.match(r"\s*paths\b", item)]
    if moved:
        raise AirflowFailException(f"set: {moved[0]}: this DAG holds {compiled['root']}; compile another for that root")
    command = [compiled["program"], *compiled["command"], parameters["config"]]
    if compiled["command"] == ["step"]:
        # When the run was due, or was asked for; the same when a task is cleared and tried again.
        began = max(context["logical_date"], context["data_interval_end"])
        fraction = f"-{began.microsecond // 100:04d}" if began.microsecond else ""
        command += [step, "--run", began.strftime("%Y%m%dT%H%M%S") + fraction]
        command += ["--span", parameters["span"]] if parameters["span"] else []
    for item in [*compiled["set"], *parameters["set"]]:
        command += ["--set", item]
    return [*command, "--json"]


def make_dag(compiled: dict) -> DAG:
    """The DAG of what `biobert-cnn compile --target airflow` wrote."""
    span = Param("", type="string", pattern=r"^\d*$", description="The last span; empty: the newest.")
    dag = DAG(
        dag_id=compiled["dag_id"],
        description=f"biobert-cnn on {compiled['root']}",
        schedule=compiled["schedule"],
        start_date=pendulum.datetime(*compiled["start"], tz=compiled["time_zone"]),
        catchup=False,
        max_active_runs=1,
        tags=["biobert-cnn"],
        params={
            "config": Param(compiled["config"], type="string", description="The configuration, a TOML file."),
            **({"span": span} if compiled["command"] == ["step"] else {}),
            "set": Param([], type="array", items={"type": "string"}, description="section.key=value, each."),
        },
    )
    tasks = {}
    for step in compiled["steps"]:
        timeout = step["timeout_s"]
        tasks[step["id"]] = PythonOperator(
            task_id=step["id"],
            python_callable=run_task,
            op_args=[compiled, step["id"]],
            dag=dag,
            pool=compiled["pool"],
            retries=step["retries"],
            retry_delay=timedelta(seconds=compiled["retry_delay_s"]),
            execution_timeout=None if timeout is None else timedelta(seconds=timeout),
        )
        tasks[step["id"]].set_upstream([tasks[other] for other in step["after"]])
    return dag


def _read(folder: Path) -> list[dict]:
    """What was compiled into the folder, and nothing else that lies there.

    Raises:
      AirflowException: two are on one root, where their runs would mix, or an older `compile` wrote one.
    """
    found: dict[tuple[str, str], Path] = {}
    descriptions = []
    for file in sorted(folder.glob("*.json")):
        try:
            compiled = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if not isinstance(compiled, dict) or not {"dag_id", "root", "steps"} <= compiled.keys():
            continue
        if not compiled.keys() >= _KEYS:
            raise AirflowException(f"{file}: an older `{compiled.get('program')} compile` wrote it; compile it again")
        for key, value in (("root", str(Path(compiled["root"]).resolve())), ("dag_id", compiled["dag_id"])):
            other = found.setdefault((key, value), file)
            if other != file:
                raise AirflowException(f"{other} and {file} have the same {key}, {value}; remove one")
        descriptions.append(compiled)
    return descriptions


for _compiled in _read(Path(__file__).parent):
    _dag = make_dag(_compiled)
    globals()[_dag.dag_id] = _dag
