"""What gRPC and REST share: admission, deadline, metrics and request log around each inference call."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import Message
from tensorflow_serving.apis import model_pb2

from serving import inference
from serving.core import ServerCore
from serving.errors import Code, StatusError, invalid, where
from serving.loader import Call, Servable
from serving.metrics import Metrics
from serving.tracing import Tracer, Untraced

_log = logging.getLogger(__name__)

# (model name, API, request, response): what a request logger is told of each answered request.
Logged = Callable[[str, str, Message, Message], None]
_RUN: dict[str, Callable[..., Any]] = {
    "Predict": inference.predict, "Classify": inference.classify, "Regress": inference.regress,
    "MultiInference": inference.multi_inference,
}  # fmt: skip


class InferenceService:
    """Answers the four inference calls. Holds no state of its own but the count of what is going on. Thread-safe.

    Args:
        core: the models.
        metrics: what is counted; of REST, `serving.rest` counts requests and their time.
        options: flags that change answers.
        slots: most requests worked on or queued at once, by entry point.
        log_request: told of every answered request.
        tracer: makes spans; None: none.
    """

    def __init__(
        self,
        core: ServerCore,
        metrics: Metrics,
        options: inference.Options = inference.DEFAULTS,
        slots: dict[str, int] | None = None,
        log_request: Logged = lambda model, api, request, response: None,
        tracer: Tracer | None = None,
    ):
        self.core = core
        self.metrics = metrics
        self._options = options
        self._slots = {k: threading.BoundedSemaphore(n) for k, n in (slots or {}).items()}
        self._log_request = log_request
        self._tracer = tracer or Untraced()

    def answer(self, api: str, request: Any, call: Call | None = None, entry: str = "GRPC") -> Any:
        """The response to a request of `api` (Predict, Classify, Regress, MultiInference); blocks until it is there.

        Raises:
            StatusError: why there is none.
        """
        started = time.perf_counter()
        call = call or Call()
        code, name = Code.OK, ""
        try:
            spec = _spec(api, request)
            name = self._label(spec.name)
            with (
                self._tracer.span(api, entry, name, call.carrier) as span,
                self._admitted(entry),
                self.core.acquire(spec) as servable,
            ):
                if span is not None:
                    span.set_attribute("biobert_cnn.model_version", servable.version)
                call.check()
                if api != "Predict":
                    self._count_examples(servable, request)
                response = _RUN[api](servable, request, call, self._options)
            self.metrics.runtime_latency.observe(call.model_s * 1e6, name, api, "TF1")
            self._log_request(name, api, request, response)
            return response
        except StatusError as error:
            code = error.code
            raise
        except Exception as error:
            code = Code.INTERNAL
            _log.error("%s %s on model %s failed: %s", entry, api, name, where(error))
            raise StatusError(code, "Internal error of the server") from error
        finally:
            if entry == "GRPC":  # REST counts all of its requests, also those that never become one of these
                self.record(name, api, entry, code, time.perf_counter() - started)

    def record(self, model: str, api: str, entry: str, code: Code, seconds: float) -> None:
        """Counts a request by model and status, and its time if it was answered, as TensorFlow Serving does."""
        name = self._label(model)
        if code is Code.OK:
            self.metrics.request_latency.observe(seconds * 1e6, name, api, entry)
        self.metrics.request_count.add(name, code.name)

    def _label(self, model: str) -> str:
        """The name as a label; empty for one that a client made up, for labels are kept for ever."""
        return model if self.core.has_model(model) else ""

    def _count_examples(self, servable: Servable, request: Any) -> None:
        kind = request.input.WhichOneof("kind")
        count = len(getattr(request.input, kind).examples) if kind else 0
        self.metrics.request_example_counts.observe(count, servable.name)
        self.metrics.request_example_count_total.add(servable.name, by=count)

    @contextmanager
    def _admitted(self, entry: str) -> Iterator[None]:
        """Refuses at once what would only wait."""
        slots = self._slots.get(entry)
        if slots is not None and not slots.acquire(blocking=False):
            raise StatusError(
                Code.RESOURCE_EXHAUSTED, f"The server works on as many {entry} requests as it may; try again later"
            )
        self.metrics.in_flight.add(entry)
        try:
            yield
        finally:
            self.metrics.in_flight.add(entry, by=-1)
            if slots is not None:
                slots.release()


def _spec(api: str, request: Any) -> model_pb2.ModelSpec:
    if api == "MultiInference":
        return request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return request.model_spec
