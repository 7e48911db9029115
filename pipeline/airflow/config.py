"""The section [airflow]: when the DAG runs and how often a step is tried; pydantic alone, so that it is light."""

from __future__ import annotations

import datetime
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import Field, NonNegativeInt, field_validator

from components.config import FileName, Seconds, Section, StepName


class TaskConfig(Section):
    """What holds for one step's task; None: as the section says."""

    retries: NonNegativeInt | None = None
    timeout_s: Seconds | None = None


class AirflowConfig(Section):
    """How the graph becomes a DAG."""

    program: str = "biobert-cnn"  # of the pipeline's environment, as the Airflow worker finds it
    dag_id: FileName | None = None  # None: biobert_cnn_<configuration's name>
    schedule: str | None = None  # cron expression; None: by hand, by `airflow dags trigger` or its API
    time_zone: str = "UTC"
    start: datetime.date = datetime.date(2026, 1, 1)
    pool: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None  # None: one named after the pipeline root
    retries: NonNegativeInt = 1
    retry_delay_s: Seconds = 300.0
    timeout_s: Seconds | None = None  # of a step
    steps: dict[StepName, TaskConfig] = {}

    @field_validator("schedule")
    @classmethod
    def _cron_is_valid(cls, value: str | None) -> str | None:
        if value is not None:
            from pipeline.retraining.cron import check

            check(value)
        return value

    @field_validator("time_zone")
    @classmethod
    def _zone_is_known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError("is not a time zone; use a name such as Europe/Berlin or UTC") from None
        return value
