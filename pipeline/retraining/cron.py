"""Times of day: due times of a cron expression, their jitter, quiet hours. Pure functions of their arguments."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError


def check(expression: str) -> None:
    """Raises ValueError where `expression` is no cron expression of five fields."""
    try:
        CronSim(expression, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    except CronSimError as error:
        raise ValueError(f"is not a cron expression ({error}); write five fields, e.g. '0 3 * * *'") from None
    if len(expression.split()) != 5:
        raise ValueError("is not a cron expression of five fields: minute hour day month weekday")


def jitter(key: str, due: dt.datetime, limit_s: int) -> dt.timedelta:
    """By how much a due time is put off: the same each time it is asked, different for another pipeline or time."""
    if not limit_s:
        return dt.timedelta(0)
    digest = hashlib.sha256(f"{key} {due.astimezone(dt.UTC).isoformat()}".encode()).digest()
    return dt.timedelta(seconds=int.from_bytes(digest[:8], "big") % (limit_s + 1))


def last_due(
    expression: str, zone: str, now: dt.datetime, since: dt.datetime, key: str = "", jitter_s: int = 0
) -> dt.datetime | None:
    """The latest due time in (since, now] whose jitter has passed too, in UTC; None where there is none."""
    local = now.astimezone(ZoneInfo(zone))
    for due in CronSim(expression, local + dt.timedelta(microseconds=1), reverse=True):
        due = due.astimezone(dt.UTC)
        if due <= since:
            return None
        if due <= now and due + jitter(key, due, jitter_s) <= now:
            return due
    return None


def next_due(
    expression: str, zone: str, now: dt.datetime, since: dt.datetime, key: str = "", jitter_s: int = 0
) -> dt.datetime | None:
    """When the next due time's jitter will have passed, in UTC; None where the expression never comes due again."""
    begin = max(now - dt.timedelta(seconds=jitter_s), since)
    for due in CronSim(expression, begin.astimezone(ZoneInfo(zone))):
        due = due.astimezone(dt.UTC)
        at = due + jitter(key, due, jitter_s)
        if at > now:
            return at
    return None


def quiet_until(hours: Sequence[str], zone: str, now: dt.datetime) -> dt.datetime | None:
    """The end of the quiet hours that `now` falls into, in UTC; None outside them. Ranges may meet or overlap."""
    end = now
    for _ in range(len(hours) + 1):
        later = [_end(item, zone, end) for item in hours]
        found = max((item for item in later if item is not None), default=None)
        if found is None:
            break
        end = found
    return end if end > now else None


def day(zone: str, moment: dt.datetime) -> dt.date:
    """The calendar day of a moment."""
    return moment.astimezone(ZoneInfo(zone)).date()


def start_of_next_day(zone: str, moment: dt.datetime) -> dt.datetime:
    """The coming midnight, in UTC."""
    midnight = dt.datetime.combine(day(zone, moment) + dt.timedelta(days=1), dt.time(), ZoneInfo(zone))
    return midnight.astimezone(dt.UTC)


def _end(item: str, zone: str, now: dt.datetime) -> dt.datetime | None:
    start, end = (dt.time.fromisoformat(part) for part in item.split("-"))
    local = now.astimezone(ZoneInfo(zone))
    clock = local.time().replace(tzinfo=None)
    inside = start <= clock < end if start < end else clock >= start or clock < end
    if not inside:
        return None
    date = local.date() + dt.timedelta(days=1) if start > end and clock >= start else local.date()
    until = dt.datetime.combine(date, end, ZoneInfo(zone)).astimezone(dt.UTC)
    # The hour that a clock change takes away or doubles can put the end before now.
    return until if until > now else None
