"""Airflow: one DAG for each pipeline compiled into this folder, one task for each step.

    biobert-cnn compile CONFIG --target airflow --output DAGS/NAME.json     # prints the pool to make, once
    cp deploy/airflow/biobert_cnn.py DAGS/

Airflow has an environment of its own (requirements.txt beside this file) and imports nothing of the pipeline: each task
runs `biobert-cnn step` in the pipeline's environment. A run takes three parameters: `config`, another configuration
file of the same steps; `span`, with which the window of spans ends; `set`, overrides "section.key=value".

A task fails for good where another try cannot help: refused data, a wrong configuration, a broken gate. Correct what it
names, then clear the task: the run goes on from there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from datetime import timedelta
from pathlib import Path

import pendulum
from airflow import DAG
from airflow.exceptions import AirflowException, AirflowFailException
from airflow.models.param import Param
from airflow.operators.python import PythonOperator


def run_step(compiled: dict, step: str, **context) -> dict:
    """Runs one step to its end; the process and all that it started go with the task."""
    program, parameters = compiled["program"], context["params"]
    # When the run was due, or was asked for; the same when a task is cleared and tried again.
    began = max(context["logical_date"], context["data_interval_end"]).strftime("%Y%m%dT%H%M%S")
    command = [program, "step", parameters["config"], step, "--json", "--run", began]
    command += ["--span", parameters["span"]] if parameters["span"] else []
    for item in [*compiled["set"], *parameters["set"]]:
        command += ["--set", item]
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
    lines = output.strip().splitlines()
    result = json.loads(lines[-1]) if lines else {"error": f"{program} ended with status {process.returncode}"}
    if process.returncode == 0:
        return result
    if result.get("error_kind") in compiled["final"]:  # nobody's passing trouble
        raise AirflowFailException(result["error"])
    raise AirflowException(result["error"])


def make_dag(compiled: dict) -> DAG:
    """The DAG of what `biobert-cnn compile --target airflow` wrote."""
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
            "span": Param("", type="string", pattern=r"^\d*$", description="The last span; empty: the newest."),
            "set": Param([], type="array", items={"type": "string"}, description="section.key=value, each."),
        },
    )
    tasks = {}
    for step in compiled["steps"]:
        timeout = step["timeout_s"]
        tasks[step["id"]] = PythonOperator(
            task_id=step["id"],
            python_callable=run_step,
            op_args=[compiled, step["id"]],
            dag=dag,
            pool=compiled["pool"],
            retries=step["retries"],
            retry_delay=timedelta(seconds=compiled["retry_delay_s"]),
            execution_timeout=None if timeout is None else timedelta(seconds=timeout),
        )
        tasks[step["id"]].set_upstream([tasks[other] for other in step["after"]])
    return dag


for _file in sorted(Path(__file__).parent.glob("*.json")):
    _dag = make_dag(json.loads(_file.read_text(encoding="utf-8")))
    globals()[_dag.dag_id] = _dag
