"""OpenTelemetry spans of requests."""

from __future__ import annotations

import pytest
from tensorflow_serving.apis import predict_pb2

from serving.errors import StartError, StatusError
from serving.loader import Call
from serving.metrics import Metrics
from serving.service import InferenceService
from serving.tracing import OpenTelemetryTracer, otlp_tracer


def test_a_span_goes_on_with_the_client_s_trace_and_holds_no_text(serve, toys):
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    core = serve(toys.text, model_name="m").server._core
    service = InferenceService(core, Metrics(), tracer=OpenTelemetryTracer(provider))
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    carrier = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["text"].dtype = 7
    request.inputs["text"].tensor_shape.dim.add().size = 1
    request.inputs["text"].string_val.append(b"a secret")
    service.predict(request, Call(carrier=carrier))
    request.model_spec.signature_name = "nope"
    with pytest.raises(StatusError):
        service.predict(request, Call(carrier=carrier))
    good, bad = exporter.get_finished_spans()
    assert {f"{s.context.trace_id:032x}" for s in (good, bad)} == {trace_id}
    assert good.name == "tensorflow.serving.PredictionService/Predict"
    assert good.attributes["biobert_cnn.model_version"] == 1
    assert (good.attributes["rpc.grpc.status_code"], bad.attributes["rpc.grpc.status_code"]) == (0, 9)
    assert bad.status.description == "FAILED_PRECONDITION"
    assert "secret" not in good.to_json() + bad.to_json()
    provider.shutdown()


def test_traces_without_the_packages_are_a_clear_error(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(StartError, match="--otlp_endpoint needs OpenTelemetry"):
        otlp_tracer("http://localhost:4317")
