"""After a push: the model server is watched, and a version that does not load or answers badly is rolled back.

    waiting for it ── loaded ──► serving ── watched long enough ──► kept
         │ load failed, or too slow     │ error share or latency out of bounds, or the server is gone
         └──────────────► rolled back ◄─┘

What is asked of the server is TensorFlow Serving's own: GetModelStatus over gRPC, and its Prometheus metrics.
"""

from __future__ import annotations

import logging
import time
import urllib.error
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


@dataclass(frozen=True)
class Seen:
    """One look at the server: `state` of the version (0: not known there), its error code, and the counts.

    `reached` is whether the server answered; `counts` is None where the metrics are not watched or not to be had.
    """

    reached: bool
    state: int = 0
    error_code: int = 0
    counts: Counts | None = None


def judge(config: WatchConfig, version: int, before: Counts | None, seen: Seen) -> tuple[Verdict, str]:
    """What one look means; a pure function. The time limits are the caller's.

    Args:
      config: the bounds.
      version: that is watched.
      before: the counts when the version was loaded; None: not known.
      seen: the look.

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
        share = now.failed / now.requests
        usual = before.failed / before.requests if before.requests else 0.0
        if share > max(config.max_error_share, usual):
            return "rollback", (
                f"version {version}: {share:.2%} of {now.requests:.0f} requests failed, more than "
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

    def __call__(self, version: int, stop: Event) -> str | None:
        """Watches until the time is over. Returns why the version was rolled back, or None.

        Raises:
          Stopped: `stop` was set.
          NotRolledBack: the version should have been rolled back, and could not be.
        """
        config = self._config
        began = last_reached = self._clock()
        before: Counts | None = None
        ever = loaded = False
        while True:
            if stop.is_set():
                raise Stopped
            if not self._is_live(version):
                _log.info("version %d is not the live one any more; it is watched no longer", version)
                return self._rolled_back(version)
            seen = self._look(version)
            now = self._clock()
            if seen.reached:
                ever, last_reached = True, now
            verdict, reason = judge(config, version, before, seen)
            if verdict == "rollback":
                return self._roll_back(version, reason)
            if verdict == "serving":
                before = seen.counts if before is None else before
                began = began if loaded else now
                loaded = True
            waited = now - began
            if ever and now - last_reached > config.load_timeout_s:
                return self._roll_back(
                    version, f"the model server has not answered for {now - last_reached:.0f} s since version {version}"
                )
            if not loaded and waited > config.load_timeout_s:
                if ever:
                    reason = f"version {version} was not loaded within watch.load_timeout_s = {config.load_timeout_s:g}"
                    return self._roll_back(version, reason)
                _log.warning("%s: no model server answers; version %d was not watched", config.target, version)
                return None
            if loaded and waited >= config.watch_s:
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
        except (urllib.error.URLError, OSError) as error:
            _log.warning("%s: no metrics (%s)", self._config.metrics_url, type(error).__name__)
            return None
        return read_counts(text, self._name)


def read_counts(page: str, model_name: str) -> Counts:
    """The counts of one model in a page of TensorFlow Serving's Prometheus metrics. Cancelled requests did not fail."""
    from prometheus_client.parser import text_string_to_metric_families

    requests = failed = timed = latency = 0.0
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.labels.get("model_name") != model_name:
                continue
            if sample.name in (_REQUESTS, f"{_REQUESTS}_total"):
                requests += sample.value
                if sample.labels.get("status") not in ("OK", "CANCELLED"):
                    failed += sample.value
            elif sample.name == f"{_LATENCY}_count":
                timed += sample.value
            elif sample.name == f"{_LATENCY}_sum":
                latency += sample.value
    return Counts(requests, failed, timed, latency)
