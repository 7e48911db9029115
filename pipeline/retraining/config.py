"""The sections of the configuration that say when to retrain and what follows; pydantic alone, so that it is light."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from components.config import Seconds, Section, Share

Event = Literal["pushed", "refused", "failed", "rolled_back", "drift"]
EVENTS: tuple[Event, ...] = ("pushed", "refused", "failed", "rolled_back", "drift")
# A span by its number; a date stands for the span that is numbered YYYYMMDD.
SpanOrDate = Annotated[int, Field(ge=0)] | datetime.date


def _cron_is_valid(value: str) -> str:
    from pipeline.retraining.cron import check

    check(value)
    return value


def _zone_is_known(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError("is not a time zone; use a name such as Europe/Berlin or UTC") from None
    return value


def _address_is_http(value: str) -> str:
    try:
        parts = urlsplit(value)
        sound = bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # half an IPv6 address, or a port that is none
        sound = False
    if not sound or not re.fullmatch(r"https?://[!-~]+", value):
        raise ValueError(
            "is not an http:// or https:// address that can be asked: host, port and path, without spaces, a user "
            "name or letters beyond ASCII"
        )
    return value


# Five fields, read as Debian's cron does: minute hour day month weekday (0 = Sunday).
Cron = Annotated[str, AfterValidator(_cron_is_valid)]
TimeZone = Annotated[str, AfterValidator(_zone_is_known)]
HttpAddress = Annotated[str, AfterValidator(_address_is_http)]
_QUIET = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class WindowConfig(Section):
    """Which spans a run learns from. They are counted among those that are there, without regard to gaps."""

    last: PositiveInt | Literal["all"] = 1  # that many of the newest
    since: SpanOrDate | None = None  # none before
    until: SpanOrDate | None = None  # none after
    exclude: tuple[Annotated[int, Field(ge=0)], ...] = ()  # never these
    evaluate_newest: bool = False  # the newest span is evaluated on, whole, and the ones before are learned from
    learn_last: PositiveInt | None = None  # learn from that many of them; the ones before are only evaluated on
    warm_start: bool = False  # start from the live model's weights
    # Against forgetting. evaluate_newest: the spans before it keep their own evaluated split. warm_start: every gate
    # holds on the old spans together, too, and on each of them that has evaluation.min_span_rows.
    guard: bool = True

    @field_validator("since", "until", mode="before")
    @classmethod
    def _number_before_date(cls, value: object) -> object:
        # pydantic would take a number for seconds since 1970
        return int(value) if isinstance(value, str) and value.isdigit() else value

    @model_validator(mode="after")
    def _window_is_not_empty(self) -> WindowConfig:
        if self.since is not None and self.until is not None and span_number(self.since) > span_number(self.until):
            raise ValueError("since: comes after until, so the window would be empty")
        if self.evaluate_newest and self.last == 1:
            raise ValueError("evaluate_newest: needs last = 2 or more; one span is evaluated on, the rest learned from")
        if self.warm_start and self.last == 1:
            raise ValueError(
                "warm_start: needs last = 2 or more, so that the gates hold on old spans too and nothing is forgotten"
            )
        if self.learn_last is not None and self.last != "all" and self.learn_last > self.last:
            raise ValueError("learn_last: is more than last")
        return self


class ScheduleConfig(Section):
    """When to retrain: at the times of `cron`, or on a new span, or on a measurement out of bounds, or any of them."""

    cron: Cron | None = None
    on_new_span: bool = False  # a span that is new, or a new version of one, or one whose files changed
    drift: PositiveFloat | None = None  # of the newest span against the training window, by TFDV; above it: run
    serving_drift: PositiveFloat | None = None  # of the sampled serving logs against the training window
    min_score: Share | None = None  # of the live model on the newest span's labels; below it: run
    score_metric: Literal["accuracy", "macro_f1", "micro_f1", "weighted_f1"] = "macro_f1"
    score_rows: PositiveInt = 2000  # rows of the newest span that the live model is scored on
    measure_every_s: Seconds = 3600.0  # how often at most drift and score are measured; what failed is tried again then
    measure_timeout_s: Seconds = 3600.0  # measuring that takes longer is ended, and has failed

    time_zone: TimeZone = "UTC"  # of cron, quiet hours and the day of max_runs_a_day
    jitter_s: Annotated[int, Field(ge=0, le=86400)] = 0  # a due time is put off by up to this, the same each time
    quiet_hours: tuple[str, ...] = ()  # "22:00-06:00": nothing starts then; what is due runs after
    min_pause_s: NonNegativeFloat = 0.0  # from the end of a run to the start of the next
    max_runs_a_day: PositiveInt | None = None  # by the calendar day

    first_span: Annotated[int, Field(ge=0)] | None = None  # None: after the live version's, or the newest there is
    backlog: Literal["each", "newest"] = "each"  # several new spans: one run each, in order, or one for the newest
    settle_s: Annotated[float, Field(ge=0, le=1e9)] = 30.0  # a span's files must have been left alone that long
    attempts: PositiveInt = 3  # of a run that was killed, or failed by no fault of its data
    retry_after_s: NonNegativeFloat = 300.0
    run_timeout_s: Seconds | None = None  # a run that takes longer is ended, and tried again
    poll_s: Seconds = 60.0  # how often to look

    @field_validator("quiet_hours")
    @classmethod
    def _hours_are_valid(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            if not _QUIET.fullmatch(item):
                raise ValueError(f"{item!r}: write HH:MM-HH:MM, for example 22:00-06:00")
            if item[:5] == item[6:]:
                raise ValueError(f"{item!r}: starts and ends at the same time")
        return value

    @property
    def any_trigger(self) -> bool:
        """Whether anything can ever start a run."""
        return self.on_new_span or self.cron is not None or bool(self.bounds)

    @property
    def bounds(self) -> dict[str, float]:
        """By rule, what a measurement is held to; of those rules that are in force."""
        bounds = {"drift": self.drift, "serving_drift": self.serving_drift, "score": self.min_score}
        return {rule: bound for rule, bound in bounds.items() if bound is not None}


class RetentionConfig(Section):
    """What stays on disk. Metadata and what a served or kept version was made of always do."""

    keep_runs: PositiveInt | None = 10  # artifacts of that many of the latest runs; None: all
    keep_days: PositiveFloat | None = None  # and of all runs of the last days
    keep_backups: PositiveInt = 7  # copies of the metadata database
    min_free_mb: Annotated[int, Field(ge=0)] = 512  # a run starts only where that much is free


class NotifyConfig(Section):
    """Who is told. The body is JSON, on the command's standard input and as the webhook's content."""

    events: tuple[Event, ...] = EVENTS
    command: tuple[str, ...] = ()  # program and arguments
    webhook: HttpAddress | None = None  # http:// or https://
    secret_file: Path | None = None  # signs the webhook's body: X-Signature-256: sha256=<HMAC>
    timeout_s: Seconds = 10.0
    attempts: PositiveInt = 5

    @model_validator(mode="after")
    def _webhook_is_signed(self) -> NotifyConfig:
        if self.webhook is not None and self.secret_file is None:
            raise ValueError("webhook: name the file that holds the signing secret in secret_file")
        return self


class WatchConfig(Section):
    """The model server after a push: how long it is watched and what has a version rolled back.

    A request failed by its status: any but OK, and but those of a request that never came to the version or that nobody
    waited for (NOT_FOUND, UNAUTHENTICATED, PERMISSION_DENIED, CANCELLED). INVALID_ARGUMENT and FAILED_PRECONDITION
    count: TensorFlow reports a graph that breaks on a text by them, as well as a bad request; what clients do wrong
    all the time is in the share before the run. RESOURCE_EXHAUSTED and DEADLINE_EXCEEDED count, for a version that is
    slower than the one before brings them about.
    """

    target: str | None = None  # host:port of its gRPC API; None: nothing is watched
    metrics_url: HttpAddress | None = None  # e.g. http://host:8501/monitoring/prometheus/metrics; None: status alone
    watch_s: Seconds = 600.0
    poll_s: Seconds = 5.0
    # Until the server has loaded the version; and afterwards, how long it may be away or not serve the version.
    load_timeout_s: Seconds = 300.0
    # Of the requests since the version was loaded; or what it was before the run, where that was more.
    max_error_share: Share = 0.01
    max_latency_ms: PositiveFloat | None = None  # mean of the requests since then
    min_requests: PositiveInt = 20  # before that many, neither bound is judged


def span_number(value: SpanOrDate) -> int:
    """The number of a span that may be given by its date."""
    return int(value.strftime("%Y%m%d")) if isinstance(value, datetime.date) else value
