"""The gRPC face: PredictionService, ModelService, health by model, reflection.

The adapters hold no state; each turns a gRPC call into a call of `InferenceService` or `ServerCore` and a
`StatusError` into a gRPC status.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from serving.admission import HEALTH, Admission, refusal
from serving.core import ServerCore
from serving.errors import Code, StartError, StatusError, invalid, where
from serving.loader import Call
from serving.manager import VersionStatus
from serving.policy import State
from serving.service import InferenceService

_log = logging.getLogger(__name__)
_CODES = {code.value[0]: code for code in grpc.StatusCode}
PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
_NO_DEADLINE_S = 1e9
# A connection that does not speak HTTP/2 is closed after so long, and one without a call after the second.
_HANDSHAKE_MS = 20_000
_IDLE_MS = 600_000
# A connection that is silent is asked whether it is still there, and closed where no answer comes.
_KEEPALIVE_MS, _KEEPALIVE_TIMEOUT_MS = 60_000, 20_000
# How long a server that stops says no: until nobody has asked for the first, and at most the second.
_QUIET_S = 0.1
_FAREWELL_S = 1.0


def _call(context: grpc.ServicerContext, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except StatusError as error:
        context.abort(_CODES[int(error.code)], truncated(error.message))
    except Exception as error:  # gRPC would answer with its message, which may quote the request
        _log.error("a call failed: %s", where(error))
        context.abort(grpc.StatusCode.INTERNAL, "Internal error of the server")


def truncated(message: str) -> str:
    """A status message is a header, and headers have their limits; TensorFlow Serving's is 1024 bytes."""
    encoded = message.encode()
    return message if len(encoded) <= 1024 else encoded[:1024].decode(errors="ignore") + "...TRUNCATED"


def _call_context(context: grpc.ServicerContext) -> Call:
    carrier = {k: v for k, v in context.invocation_metadata() if k in ("traceparent", "tracestate")}
    call = Call(lambda: _remaining_s(context), carrier=carrier)
    if not context.add_callback(call.end):
        call.end()
    return call


def _remaining_s(context: grpc.ServicerContext) -> float | None:
    """Seconds until the call's deadline; None without one, for which gRPC gives some 10¹⁸ seconds."""
    left = context.time_remaining()
    return None if left is None or left > _NO_DEADLINE_S else left


class PredictionServicer(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, service: InferenceService):
        self._service = service

    def Predict(self, request, context):
        return _call(context, lambda: self._service.answer("Predict", request, _call_context(context)))

    def Classify(self, request, context):
        return _call(context, lambda: self._service.answer("Classify", request, _call_context(context)))

    def Regress(self, request, context):
        return _call(context, lambda: self._service.answer("Regress", request, _call_context(context)))

    def MultiInference(self, request, context):
        return _call(context, lambda: self._service.answer("MultiInference", request, _call_context(context)))

    def GetModelMetadata(self, request, context):
        return _call(context, lambda: self._service.core.metadata(request))


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, core: ServerCore, metric_total: Callable[[str], float]):
        self._core = core
        self._metric_total = metric_total

    def GetModelStatus(self, request, context) -> get_model_status_pb2.GetModelStatusResponse:
        def work() -> get_model_status_pb2.GetModelStatusResponse:
            if not request.HasField("model_spec"):
                raise invalid("Missing ModelSpec")
            return self._core.status(request.model_spec)

        return _call(context, work)

    def HandleReloadConfigRequest(self, request, context) -> model_management_pb2.ReloadConfigResponse:
        if request.config.WhichOneof("config") != "model_config_list":
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported",
            )
        gone = threading.Event()
        if not context.add_callback(gone.set):
            gone.set()
        before = {name: self._metric_total(name) for name in request.metric_names}
        _call(context, lambda: self._core.reload_config(request.config, _remaining_s(context), gone))
        response = model_management_pb2.ReloadConfigResponse()
        response.status.error_code = 0
        for name, old in before.items():
            response.metric.add(name=name, int64_value_increase=int(self._metric_total(name) - old))
        return response


class Health:
    """grpc.health.v1: the process, the two services, and each model by its name.

    `liveness` is SERVING while the process can answer at all. The empty name, which probes use by default, stands
    for readiness: every configured model answers and the server is not stopping.
    """

    _SERVICES = ("ModelService", "PredictionService", MODEL_SERVICE, PREDICTION_SERVICE)

    def __init__(self) -> None:
        self.servicer = health.HealthServicer()
        self._available: dict[str, set[int]] = {}
        self._stopping = False
        self._told: dict[str, bool] = {}
        self._telling = threading.Lock()
        for name in ("liveness", *self._SERVICES):
            self._set(name, True)
        self._set("", False)

    def on_state(self, name: str, status: VersionStatus) -> None:
        """Follows one version's state; called by the manager."""
        versions = self._available.setdefault(name, set())
        if status.state is State.READY:
            versions.add(status.version)
        else:
            versions.discard(status.version)
        self._set(name, bool(versions))

    def set_ready(self, ready: bool) -> None:
        self._set("", ready)

    def stopping(self) -> None:
        """Nothing is ready from now on, but the process is alive; new requests should go elsewhere."""
        self._stopping = True
        for name in ("", *self._SERVICES, *list(self._available)):
            self._set(name, False)

    def _set(self, name: str, serving: bool) -> None:
        """Says so, if it is news: who watches is told of changes alone."""
        status = health_pb2.HealthCheckResponse
        with self._telling:
            serving = serving and (name == "liveness" or not self._stopping)
            if self._told.get(name) is not serving:
                self._told[name] = serving
                self.servicer.set(name, status.SERVING if serving else status.NOT_SERVING)


class Farewell(grpc.ServerInterceptor):
    """Refuses new calls, health aside, before gRPC stops.

    gRPC's core drops what it has received and not yet handed on when a server stops (`Server::ShutdownAndNotify`); the
    client reads `CANCELLED`, which few retry. Busy clients are therefore told `UNAVAILABLE` first.
    """

    def __init__(self) -> None:
        self._begun, self._asked = False, 0.0
        self._refuse = refusal(grpc.StatusCode.UNAVAILABLE, "The server is stopping")

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        if not self._begun or details.method.startswith(HEALTH):
            return continuation(details)
        self._asked = time.monotonic()
        return self._refuse

    def say(self) -> None:
        """Refuses from now on; returns when no client asks any more, or after a second."""
        self._asked = begin = time.monotonic()
        self._begun = True
        while (now := time.monotonic()) - self._asked < _QUIET_S and now - begin < _FAREWELL_S:
            time.sleep(_QUIET_S / 10)


class _BearerTokens(grpc.ServerInterceptor):
    """Refuses calls without an accepted token; health stays open, for probes cannot send one."""

    def __init__(self, tokens: Sequence[str]):
        self._tokens = [t.encode() for t in tokens]
        self._refuse = refusal(grpc.StatusCode.UNAUTHENTICATED, "A valid bearer token is required")

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        if details.method.startswith(HEALTH):
            return continuation(details)
        sent = dict(details.invocation_metadata or ()).get("authorization", "")
        if token_accepted(sent, self._tokens):
            return continuation(details)
        return self._refuse


def token_accepted(header: str | bytes, tokens: Sequence[bytes]) -> bool:
    """Whether an `Authorization` header carries one of the tokens; compared in constant time."""
    value = header.encode() if isinstance(header, str) else header
    scheme, _, token = value.partition(b" ")
    matches = [hmac.compare_digest(token.strip(), t) for t in tokens]
    return scheme.lower() == b"bearer" and any(matches)


def channel_arguments(text: str) -> list[tuple[str, int | str]]:
    """`--grpc_channel_arguments`: `key=value,…`; a value that reads as a number is one. Raises `StartError`."""
    found: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise StartError(f"--grpc_channel_arguments: {part!r} is not key=value")
        try:
            found.append((key, int(value)))
        except ValueError:
            found.append((key, value))
    return found


def make_server(
    service: InferenceService,
    health_check: Health,
    farewell: Farewell,
    admission: Admission,
    max_message_bytes: int,
    max_connections: int,
    arguments: Sequence[tuple[str, int | str]] = (),
    tokens: Sequence[str] = (),
) -> grpc.Server:
    """A gRPC server with all services, not yet listening.

    Args:
        farewell: what `stop` is to be preceded by.
        admission: bounds the open calls, and gives each a thread.
        max_message_bytes: largest request.
        max_connections: open connections; gRPC closes further ones as they come.
        arguments: gRPC's channel arguments.
        tokens: accepted bearer tokens; empty: none is asked for.
    """
    server = grpc.server(
        admission.calls,
        interceptors=[farewell, *([_BearerTokens(tokens)] if tokens else []), admission],
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # clients may probe a silent connection
            ("grpc.max_allowed_incoming_connections", max_connections),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
            ("grpc.max_connection_idle_ms", _IDLE_MS),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            # No limit on a connection's streams: gRPC lets what is beyond it wait, and it is to be refused at once.
            ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server on it
            *arguments,
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionServicer(service), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(
        ModelServicer(service.core, service.metrics.total), server
    )
    health_pb2_grpc.add_HealthServicer_to_server(health_check.servicer, server)
    reflection.enable_server_reflection(
        (PREDICTION_SERVICE, MODEL_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    return server


def credentials(ssl: Any) -> grpc.ServerCredentials:
    """TLS from an `SSLConfig`: key, certificate, and with `client_verify` the authority of client certificates."""
    if not ssl.server_key or not ssl.server_cert:
        raise StartError("--ssl_config_file: server_key and server_cert must both hold PEM text")
    if ssl.client_verify and not ssl.custom_ca:
        raise StartError("--ssl_config_file: client_verify needs custom_ca, the authority of client certificates")
    return grpc.ssl_server_credentials(
        [(ssl.server_key.encode(), ssl.server_cert.encode())],
        root_certificates=ssl.custom_ca.encode() or None,
        require_client_auth=ssl.client_verify,
    )


__all__ = [
    "Code",
    "Farewell",
    "Health",
    "channel_arguments",
    "credentials",
    "make_server",
    "token_accepted",
    "truncated",
]
