"""The section [airflow]: when the DAG runs and how often a step is tried; pydantic alone, so that it is light."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from components.config import FileName, LocalConfig, Seconds
from pipeline.retraining.config import Cron, TimeZone


class AirflowConfig(LocalConfig):
    """How the graph becomes a DAG; tries and time-outs as in [local], of Airflow's tasks."""

    # A task a step; or one that asks `schedule once` whether a run is due, and runs it (section [schedule]).
    tasks: Literal["steps", "schedule_once"] = "steps"
    program: str = "biobert-cnn"  # of the pipeline's environment, as the Airflow worker finds it
    dag_id: FileName | None = None  # None: biobert_cnn_<configuration's name>
    schedule: Cron | None = None  # None: by hand, by `airflow dags trigger` or its API; schedule_once needs it: to look
    time_zone: TimeZone = "UTC"
    start: datetime.date = datetime.date(2026, 1, 1)
    pool: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None  # None: one named after the pipeline root
    retries: NonNegativeInt = 1  # of a step; schedule_once is tried once, its runs by schedule.attempts
    retry_delay_s: Seconds = 300.0
