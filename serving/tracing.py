"""OpenTelemetry traces of inference requests; an optional extra.

Off unless `--otlp_endpoint` names a collector. A span carries the model, its version, the API and the status code,
never a text. The trace that a client began goes on: gRPC metadata and HTTP headers may hold a `traceparent`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from serving.errors import Code, StartError, StatusError


class Tracer(Protocol):
    """What `InferenceService` asks of tracing."""

    def span(self, api: str, entry: str, model: str, carrier: Mapping[str, str]) -> Any: ...


class Untraced:
    """No traces: what is used unless they are asked for."""

    @contextmanager
    def span(self, api: str, entry: str, model: str, carrier: Mapping[str, str]) -> Iterator[Any]:
        yield None


class OpenTelemetryTracer:
    """Spans by the OpenTelemetry SDK.

    Args:
        provider: a `TracerProvider` with its processors and exporters.
    """

    def __init__(self, provider: Any):
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("biobert_cnn.serving")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, api: str, entry: str, model: str, carrier: Mapping[str, str]) -> Iterator[Any]:
        """A span around one request; what is yielded takes further attributes by `set_attribute`."""
        attributes = {
            "rpc.system": "grpc" if entry == "GRPC" else "http",
            "rpc.service": "tensorflow.serving.PredictionService",
            "rpc.method": api,
            "biobert_cnn.model_name": model,
        }
        with self._tracer.start_as_current_span(
            f"tensorflow.serving.PredictionService/{api}",
            context=self._propagator.extract(dict(carrier)),
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,  # an exception's text is not for the collector
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except StatusError as error:
                span.set_attribute("rpc.grpc.status_code", int(error.code))
                span.set_status(self._trace.StatusCode.ERROR, error.code.name)
                raise
            except Exception:  # what the client is told is INTERNAL
                span.set_attribute("rpc.grpc.status_code", int(Code.INTERNAL))
                span.set_status(self._trace.StatusCode.ERROR, Code.INTERNAL.name)
                raise
            span.set_attribute("rpc.grpc.status_code", 0)

    def close(self) -> None:
        """Sends what waits."""
        self._provider.shutdown()


def otlp_tracer(endpoint: str) -> OpenTelemetryTracer:
    """Sends spans to a collector by OTLP over gRPC.

    Raises:
        StartError: the packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StartError(
            f"--otlp_endpoint needs OpenTelemetry ({error.name} is missing): install the extra biobert-cnn[tracing]"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "biobert-cnn-serving"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return OpenTelemetryTracer(provider)
