"""After a push: the model server is watched, and a version that does not load or answers badly is rolled back.

    waiting for it ── loaded ──► serving ── watched long enough, and still serving ──► kept
         │ load failed, or too slow     │ error share or latency out of bounds, or gone for long: the version or
         │                              │ the server
         └──────────────► rolled back ◄─┘

A server that answered before the run and does not after the push was taken down by the version. Where it answered
neither before nor after, nothing was watched: `NotWatched`.

What is asked of the server is TensorFlow Serving's own: GetModelStatus over gRPC, and its Prometheus metrics.
"""

from __future__ import annotations

import http.client
import logging
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal

from components.errors import PipelineError, PushError
from components.push import base_path
from pipeline import versions
from pipeline.retraining.config import WatchConfig
from pipeline.retraining.launch import Stopped

_log = logging.getLogger(__name__)
_REQUESTS = ":tensorflow:serving:request_count"
_LATENCY = ":tensorflow:serving:request_latency"
_AVAILABLE, _END = 30, 50  # tensorflow_serving/apis/get_model_status.proto
# Not failures of a version: such a request never came to it, or was not waited for. See `WatchConfig`.
_NOT_FAILED = ("OK", "CANCELLED", "NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED")
_METRICS_BYTES = 8 << 20
_CALL_TIMEOUT_S = 5.0

Verdict = Literal["unreachable", "waiting", "serving", "rollback"]


@dataclass(frozen=True)
class Counts:
    """Of a model, since the server started: requests, those that failed, and the time that all of them took."""

    requests: float = 0.0
    failed: float = 0.0
    timed: float = 0.0
    latency_us: float = 0.0

    def since(self, before: Counts) -> Counts:
        """The difference; from zero where the server was started anew in between."""
        if self.requests < before.requests or self.timed < before.timed:
            return self
        return Counts(
            self.requests - before.requests,
            self.failed - before.failed,
            self.timed - before.timed,
            self.latency_us - before.latency_us,
        )

    @property
    def error_share(self) -> float:
        """The share of requests that failed; 0 where there was none."""
        return self.failed / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class Seen:
    """One look at the server: `state` of the version (0: not known there), its error code, and the counts.

    `reached` is whether the server answered; `counts` is None where the metrics are not watched or not to be had.
    """

    reached: bool
    state: int = 0
    error_code: int = 0
    counts: Counts | None = None


@dataclass(frozen=True)
class Before:
    """The server before the run that pushed: whether it answered, and the share of requests that failed, if known."""

    answered: bool = False
    error_share: float | None = None


def judge(
    config: WatchConfig, version: int, before: Counts | None, seen: Seen, usual: float | None = None
) -> tuple[Verdict, str]:
    """What one look means; a pure function. The time limits are the caller's.

    Args:
      config: the bounds.
      version: that is watched.
      before: the counts when the version was loaded; None: not known.
      seen: the look.
      usual: the share of requests that failed before the run; None: that of `before`.

    Returns:
      The verdict, and why it is to be rolled back.
    """
    if not seen.reached:
        return "unreachable", ""
    if seen.state == _END and seen.error_code:
        return "rollback", f"version {version} failed to load (status code {seen.error_code})"
    if seen.state != _AVAILABLE:
        return "waiting", ""
    if before is None or seen.counts is None:
        return "serving", ""
    now = seen.counts.since(before)
    if now.requests >= config.min_requests:
        usual = before.error_share if usual is None else usual
        if now.error_share > max(config.max_error_share, usual):
            return "rollback", (
                f"version {version}: {now.error_share:.2%} of {now.requests:.0f} requests failed, more than "
                f"watch.max_error_share = {config.max_error_share:.2%} and than before it ({usual:.2%})"
            )
    if config.max_latency_ms is not None and now.timed >= config.min_requests:
        latency = now.latency_us / now.timed / 1000
        if latency > config.max_latency_ms:
            return "rollback", (
                f"version {version}: {now.timed:.0f} requests took {latency:.1f} ms each on average, more than "
                f"watch.max_latency_ms = {config.max_latency_ms:g}"
            )
    return "serving", ""


class NotRolledBack(PipelineError):
    """A version is bad and stays live, for there is none to go back to, or the base path cannot be written."""


class NotWatched(Exception):
    """No model server has answered, neither before the run nor after it: nothing is known of the version."""


class ServerWatch:
    """Watches one server; `scheduler.Watch`.

    Args:
      config: with a target.
      model_name: as the server knows it.
      serving_dir: its base path.
      look: one look at the server for a version.
      clock: seconds, by a clock that nobody can set.
    """

    def __init__(
        self, config: WatchConfig, model_name: str, serving_dir: Path, look: Callable[[int], Seen] | None = None,
        clock: Callable[[], float] = time.monotonic, wait: Callable[[Event, float], bool] = Event.wait,
    ) -> None:  # fmt: skip
        self._config, self._serving_dir, self._clock, self._wait = config, serving_dir, clock, wait
        self._look = look or Server(config, model_name).look

    def before(self) -> Before:
        """Looks at the server before a run; so few requests that they are not judged say nothing of their share."""
        seen = self._look(base_path.live_number(self._serving_dir) or 0)
        if seen.counts is None or seen.counts.requests < self._config.min_requests:
            return Before(seen.reached)
        return Before(seen.reached, seen.counts.error_share)

    def __call__(self, version: int, before: Before, stop: Event) -> str | None:
        """Watches until the time is over. Returns why the version was rolled back, or None.

        Args:
          version: that was pushed.
          before: what `before` returned before the run.
          stop: ends it early.

        Raises:
          Stopped: `stop` was set.
          NotRolledBack: the version should have been rolled back, and could not be.
          NotWatched: no server has answered.
        """
        config = self._config
        began = last_good = self._clock()
        counts: Counts | None = None  # when it was loaded
        ever, loaded = before.answered, False
        while True:
            if stop.is_set():
                raise Stopped
            if not self._is_live(version):
                _log.info("version %d is not the live one any more; it is watched no longer", version)
                return self._rolled_back(version)
            seen = self._look(version)
            now = self._clock()
            ever = ever or seen.reached
            verdict, reason = judge(config, version, counts, seen, before.error_share)
            if verdict == "rollback":
                return self._roll_back(version, reason)
            if verdict == "serving":
                counts = seen.counts if counts is None else counts
                began = began if loaded else now
                loaded = True
            if verdict == "serving" or (verdict == "waiting" and not loaded):
                last_good = now
            waited, gone = now - began, now - last_good
            if ever and gone > config.load_timeout_s:
                reason = f"version {version} was loaded and has not been served any more for {gone:.0f} s"
                if verdict == "unreachable":
                    reason = f"the model server has not answered for {gone:.0f} s since version {version}"
                return self._roll_back(version, reason)
            if not loaded and waited > config.load_timeout_s:
                if ever:
                    reason = f"version {version} was not loaded within watch.load_timeout_s = {config.load_timeout_s:g}"
                    return self._roll_back(version, reason)
                raise NotWatched(f"no model server answers at {config.target}")
            if verdict == "serving" and waited >= config.watch_s:
                return None
            self._wait(stop, config.poll_s)

    def _is_live(self, version: int) -> bool:
        return any(
            found.number == version and found.state == "live" for found in versions.list_versions(self._serving_dir)
        )

    def _rolled_back(self, version: int) -> str | None:
        """Why it was rolled back, by hand or by a watch that was killed right after; None where another replaced it."""
        if version not in base_path.rolled_back(self._serving_dir):
            return None
        journal = base_path.read_journal(self._serving_dir)
        entries = [item for item in journal if (item.get("version"), item["event"]) == (version, "rollback")]
        if not entries:
            return "it was rolled back"
        return _reason_and_live(entries[-1].get("reason") or "it was rolled back", entries[-1].get("to"))

    def _roll_back(self, version: int, reason: str) -> str:
        try:
            back = versions.rollback(self._serving_dir, reason=reason)
        except PushError as error:
            raise NotRolledBack(f"{reason}; it stays live, for it could not be rolled back: {error}") from None
        return _reason_and_live(reason, back)


def _reason_and_live(reason: str, live: int | None) -> str:
    return f"{reason}; version {live} is live again"


class Server:
    """Asks a model server."""

    def __init__(self, config: WatchConfig, model_name: str) -> None:
        self._config, self._name = config, model_name

    def look(self, version: int) -> Seen:
        """One look."""
        import grpc

        from serving import protos
        from serving.client_core import STATUS_METHOD

        request = protos.GetModelStatusRequest()
        request.model_spec.name = self._name
        with grpc.insecure_channel(str(self._config.target)) as channel:
            call = channel.unary_unary(
                STATUS_METHOD,
                request_serializer=protos.GetModelStatusRequest.SerializeToString,
                response_deserializer=protos.GetModelStatusResponse.FromString,
            )
            try:
                response: Any = call(request, timeout=_CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                # NOT_FOUND: the server is there, and has no version of the model yet
                return Seen(reached=error.code() is grpc.StatusCode.NOT_FOUND)
        for found in response.model_version_status:
            if found.version == version:
                return Seen(True, found.state, found.status.error_code, self._counts())
        return Seen(True)

    def _counts(self) -> Counts | None:
        if self._config.metrics_url is None:
            return None
        try:
            with urllib.request.urlopen(self._config.metrics_url, timeout=_CALL_TIMEOUT_S) as response:
                text = response.read(_METRICS_BYTES).decode("utf-8", "replace")
            return read_counts(text, self._name)
        except (OSError, http.client.HTTPException, ValueError, IndexError) as error:  # the last two are the parser's
            _log.warning("%s: no metrics (%s)", self._config.metrics_url, type(error).__name__)
            return None


def read_counts(page: str, model_name: str) -> Counts:
    """The counts of one model in a page of TensorFlow Serving's Prometheus metrics.

    Raises:
      ValueError: it is no such page, or its end is missing.
    """
    from prometheus_client.parser import text_string_to_metric_families

    if page and not page.endswith("\n"):
        raise ValueError("the last line is cut off")
    requests = failed = timed = latency = 0.0
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.labels.get("model_name") != model_name:
                continue
            if sample.name in (_REQUESTS, f"{_REQUESTS}_total"):
                requests += sample.value
                if sample.labels.get("status") not in _NOT_FAILED:
                    failed += sample.value
            elif sample.labels.get("API") == "":
                continue  # what REST is asked about a model, and not of it
            elif sample.name == f"{_LATENCY}_count":
                timed += sample.value
            elif sample.name == f"{_LATENCY}_sum":
                latency += sample.value
    return Counts(requests, failed, timed, latency)
