"""OpenTelemetry spans of requests."""

from __future__ import annotations

import json
import urllib.request
from concurrent import futures

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.errors import StartError, StatusError
from serving.loader import Call
from serving.metrics import Metrics
from serving.service import InferenceService
from serving.tracing import OpenTelemetryTracer, otlp_tracer


def test_a_span_goes_on_with_the_client_s_trace_and_holds_no_text(serve, toys):
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
    service.answer("Predict", request, Call(carrier=carrier))
    request.model_spec.signature_name = "nope"
    with pytest.raises(StatusError):
        service.answer("Predict", request, Call(carrier=carrier))
    good, bad = exporter.get_finished_spans()
    assert {f"{s.context.trace_id:032x}" for s in (good, bad)} == {trace_id}
    assert good.name == "tensorflow.serving.PredictionService/Predict"
    assert good.attributes["biobert_cnn.model_version"] == 1
    assert (good.attributes["rpc.grpc.status_code"], bad.attributes["rpc.grpc.status_code"]) == (0, 9)
    assert bad.status.description == "FAILED_PRECONDITION"
    assert "secret" not in good.to_json() + bad.to_json()
    provider.shutdown()


class Collector:
    """A collector of the OTLP protocol, as far as a test needs one: it keeps what it is sent."""

    def __init__(self) -> None:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

        collector = self
        self.requests: list[otlp.ExportTraceServiceRequest] = []

        class Service(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request, context):
                collector.requests.append(request)
                return otlp.ExportTraceServiceResponse()

        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()


def test_the_server_sends_its_spans_to_a_collector(serve, toys):
    pytest.importorskip("opentelemetry.exporter.otlp", reason="the extra `tracing` is not installed")
    collector = Collector()
    running = serve(toys.text, model_name="m", rest_api_port=-1, otlp_endpoint=f"http://127.0.0.1:{collector.port}")
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    parent = f"00-{trace_id}-b7ad6b7169203331-01"
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"a secret"]))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(running.channel)
    stub.Predict(request, 30, metadata=[("traceparent", parent)])
    body = json.dumps({"instances": ["a secret"]}).encode()
    over_http = urllib.request.Request(running.rest + "/v1/models/m:predict", body, {"traceparent": parent})
    with urllib.request.urlopen(over_http, timeout=30) as response:
        assert response.status == 200
    running.stop()  # sends what waits
    collector.server.stop(None)
    resources = [r for request in collector.requests for r in request.resource_spans]
    names = {a.value.string_value for r in resources for a in r.resource.attributes if a.key == "service.name"}
    spans = [s for r in resources for scope in r.scope_spans for s in scope.spans]
    assert names == {"biobert-cnn-serving"}
    assert [s.name for s in spans] == ["tensorflow.serving.PredictionService/Predict"] * 2
    assert {s.trace_id.hex() for s in spans} == {trace_id}
    systems = [{a.key: a.value.string_value for a in s.attributes}["rpc.system"] for s in spans]
    assert sorted(systems) == ["grpc", "http"]
    assert b"secret" not in b"".join(request.SerializeToString() for request in collector.requests)


def test_traces_without_the_packages_are_a_clear_error(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(StartError, match="--otlp_endpoint needs OpenTelemetry"):
        otlp_tracer("http://localhost:4317")
