"""Hooks: a command and a webhook are told that a run pushed, was refused, failed, was rolled back, or of a drift.

Notifications are queued together with what they tell of (`state.py`) and delivered from there, so that none is lost to
a crash; a receiver may see one twice (its `id` is the same) but never none. The body is JSON and holds no text of the
data. The webhook's body is signed as GitHub signs its own:

    X-Signature-256: sha256=<hex of HMAC-SHA256 of "<X-Timestamp>.<body>" with the secret>

`verify` is what a receiver does.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import http.client
import json
import logging
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.retraining.config import NotifyConfig
from pipeline.retraining.state import State

_log = logging.getLogger(__name__)
_LATER = dt.timedelta(minutes=5)


class DeliveryError(Exception):
    """A hook did not take a notification; another attempt may succeed."""


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """The value of X-Signature-256."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def verify(secret: bytes, timestamp: str, body: bytes, signature: str) -> bool:
    """Whether a signature is that of the body; takes the same time whatever it is."""
    return hmac.compare_digest(sign(secret, timestamp, body), signature)


class Notifier:
    """Delivers what is queued.

    Args:
      config: the section `notify`.
      clock: the time, with a time zone.
      pause_s: of the first attempt to the second; doubled each time.
    """

    def __init__(self, config: NotifyConfig, clock: Callable[[], dt.datetime], pause_s: float = 1.0) -> None:
        self._config, self._clock, self._pause_s = config, clock, pause_s

    def __call__(self, state: State) -> None:
        """Delivers what is due, in order; what is not taken stays queued and is tried again some minutes later."""
        for number, event, body, failures, not_before in state.outbox():
            now = self._clock()
            if not_before is not None and now < not_before <= now + _LATER:
                continue
            if event not in self._config.events or not (self._config.command or self._config.webhook):
                state.delivered(number)
                continue
            try:
                # The time as well, for the numbers start again where the state was lost.
                self._deliver(event, {"id": f"{body.get('pipeline')}-{body.get('at')}-{number}", **body})
            except DeliveryError as error:
                if failures + 1 >= self._config.attempts:
                    _log.error("notification %d (%s) is given up: %s", number, event, error)
                    state.delivered(number)
                else:
                    _log.warning("notification %d (%s) was not taken: %s", number, event, error)
                    state.undelivered(number, now + _LATER)
            else:
                state.delivered(number)

    def _deliver(self, event: str, body: dict[str, Any]) -> None:
        import tenacity

        content = json.dumps({**body, "event": event}, sort_keys=True).encode()
        attempt = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(3),
            wait=tenacity.wait_exponential(multiplier=self._pause_s),
            retry=tenacity.retry_if_exception_type(DeliveryError),
            reraise=True,
        )
        if self._config.command:
            attempt(_call, self._config.command, content, self._config.timeout_s)
        if self._config.webhook and self._config.secret_file:
            secret = _read_secret(self._config.secret_file)
            timestamp = str(int(self._clock().timestamp()))
            attempt(_post, self._config.webhook, content, secret, timestamp, event, self._config.timeout_s)


def _call(command: tuple[str, ...], content: bytes, timeout_s: float) -> None:
    try:
        done = subprocess.run(
            command, input=content, timeout=timeout_s, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeliveryError(f"notify.command {command[0]}: {type(error).__name__}") from None
    if done.returncode != 0:
        raise DeliveryError(f"notify.command {command[0]}: exit status {done.returncode}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that is redirected would arrive as a GET without its body; so a redirect is a failure, with its status."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def _post(address: str, content: bytes, secret: bytes, timestamp: str, event: str, timeout_s: float) -> None:
    headers = {
        "Content-Type": "application/json",
        "X-Event": event,
        "X-Timestamp": timestamp,
        "X-Signature-256": sign(secret, timestamp, content),
    }
    try:
        request = urllib.request.Request(address, content, headers, method="POST")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout_s):
            return
    except urllib.error.HTTPError as error:
        raise DeliveryError(f"notify.webhook: HTTP status {error.code}") from None
    # The address may hold a token: it is not named. ValueError: a redirect to what is no address.
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DeliveryError(f"notify.webhook: {type(error).__name__}") from None


def _read_secret(path: Path) -> bytes:
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise DeliveryError(f"notify.secret_file: {path} cannot be read ({error.strerror})") from None
    if not secret:
        raise DeliveryError(f"notify.secret_file: {path} is empty")
    return secret
