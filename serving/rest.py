"""The REST face: paths and methods of TensorFlow Serving's api_rest.md, as a plain function of a request.

Source: model_servers/http_rest_api_handler.cc, http_rest_api_util.cc and http_server.cc.
"""

from __future__ import annotations

import json
import logging
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from serving import json_tensor
from serving.errors import Code, StatusError, invalid, quotable, where
from serving.inference import DEFAULT_SIGNATURE
from serving.loader import Call
from serving.service import InferenceService

_log = logging.getLogger(__name__)
_API = re.compile(r"/v1/.*", re.IGNORECASE)
_INFERENCE = re.compile(
    r"/v1/models/([^/:]+)(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?:(classify|regress|predict)",
    re.IGNORECASE | re.ASCII,
)
_STATUS = re.compile(
    r"/v1/models(?:/([^/:]+))?(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?(?:/(metadata))?",
    re.IGNORECASE | re.ASCII,
)
_HTTP = {
    Code.OK: 200, Code.CANCELLED: 499, Code.UNKNOWN: 500, Code.INVALID_ARGUMENT: 400, Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404, Code.ALREADY_EXISTS: 409, Code.PERMISSION_DENIED: 403, Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400, Code.ABORTED: 409, Code.OUT_OF_RANGE: 400, Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500, Code.UNAVAILABLE: 503, Code.DATA_LOSS: 500, Code.UNAUTHENTICATED: 401,
}  # fmt: skip
_MAX_UNCOMPRESSED = 100 << 20  # as in TensorFlow Serving: a small body must not unfold to all the memory there is
_CORS = [
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "POST, GET"),
    ("Access-Control-Allow-Headers", "Content-Type"),
]


@dataclass(frozen=True)
class Request:
    """One HTTP request; `path` without the query, header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    alive: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes
    headers: Sequence[tuple[str, str]] = ()


class RestApi:
    """Thread-safe; holds no state.

    Args:
        service: answers inference.
        timeout_s: deadline of an inference request, or None.
        cors: add CORS headers.
        prometheus_path: where the metrics page is, or None for nowhere.
        accepts: whether an `Authorization` header is good enough.
        body_bytes: largest body, uncompressed.
    """

    def __init__(
        self,
        service: InferenceService,
        timeout_s: float | None = None,
        cors: bool = False,
        prometheus_path: str | None = None,
        accepts: Callable[[str], bool] = lambda header: True,
        body_bytes: int = _MAX_UNCOMPRESSED,
    ):
        self._service = service
        self._timeout_s = timeout_s
        self._cors = cors
        self._prometheus_path = prometheus_path
        self._accepts = accepts
        self._body_bytes = body_bytes

    @staticmethod
    def is_inference(request: Request) -> bool:
        """Whether the request makes a model compute."""
        return request.method == "POST" and _INFERENCE.fullmatch(request.path) is not None

    def handle(self, request: Request) -> Response:
        """Answers and counts; never raises."""
        started, code = time.perf_counter(), Code.OK
        try:
            return self._answer(request)
        except StatusError as error:
            code = error.code
            return self.refuse(error)
        except Exception as error:  # whatever it was, this one request failed and no other must
            code = Code.INTERNAL
            _log.error("a REST request failed: %s", where(error))
            return self.refuse(StatusError(code, "Internal error of the server"))
        finally:
            self._count(request, code, time.perf_counter() - started)

    def turn_away(self, request: Request) -> Response:
        """The answer to a request for which there is no room; counted, too."""
        self._count(request, Code.RESOURCE_EXHAUSTED, 0.0)
        return self.refuse(StatusError(Code.RESOURCE_EXHAUSTED, "The server works on as many REST requests as it may"))

    def refuse(self, error: StatusError) -> Response:
        return self._respond(error.code, json_tensor.error_response(error.message))

    def _answer(self, request: Request) -> Response:
        if request.path == self._prometheus_path:
            return Response(200, self._service.metrics.page().encode(), [("Content-Type", "text/plain")])
        if not _API.fullmatch(request.path):
            raise StatusError(Code.NOT_FOUND, "Not found")
        if request.method == "OPTIONS":
            if not request.headers.get("origin", "").startswith(("http://", "https://")):
                raise StatusError(Code.FAILED_PRECONDITION, "Origin header is missing in CORS preflight")
            return self._respond(Code.OK, "")
        return self._respond(Code.OK, self._dispatch(request))

    def check_token(self, request: Request) -> None:
        """Refuses who may not ask; before the body has come, so that it need not be taken in.

        Raises:
            StatusError: `UNAUTHENTICATED`.
        """
        guarded = request.method != "OPTIONS" and _API.fullmatch(request.path) is not None
        if guarded and not self._accepts(request.headers.get("authorization", "")):
            self._count(request, Code.UNAUTHENTICATED, 0.0)
            raise StatusError(Code.UNAUTHENTICATED, "A valid bearer token is required")

    def _count(self, request: Request, code: Code, seconds: float) -> None:
        """As TensorFlow Serving: what is asked of the API, whatever becomes of it; only inference has an API label."""
        if request.path == self._prometheus_path or not _API.fullmatch(request.path):
            return
        model = api = ""
        if request.method == "POST" and (found := _INFERENCE.fullmatch(request.path)):
            model, api = found.group(1), found.group(4)
        elif request.method == "GET" and (found := _STATUS.fullmatch(request.path)):
            model = found.group(1) or ""
        self._service.record(unquote(model), api, "REST", code, seconds)

    def _respond(self, code: Code, text: str) -> Response:
        headers = [("Content-Type", "application/json"), *(_CORS if self._cors else [])]
        return Response(_HTTP[code], text.encode("utf-8", "surrogateescape"), headers)

    def _dispatch(self, request: Request) -> str:
        if request.method == "POST" and (found := _INFERENCE.fullmatch(request.path)):
            spec = _model_spec(found.group(1), found.group(2), found.group(3))
            method = found.group(4)
            handlers = {"predict": self._predict, "classify": self._classify, "regress": self._regress}
            if method in handlers:  # in lower case only, although the path is matched in any
                end = None if self._timeout_s is None else time.monotonic() + self._timeout_s
                call = Call(
                    lambda: None if end is None else end - time.monotonic(), request.alive, carrier=request.headers
                )
                return handlers[method](spec, _body(request, self._body_bytes), call)
        elif request.method == "GET" and (found := _STATUS.fullmatch(request.path)):
            if not found.group(1):
                raise invalid("Missing model name in request.")
            spec = _model_spec(found.group(1), found.group(2), found.group(3))
            return self._metadata(spec) if found.group(4) == "metadata" else self._status(spec)
        raise invalid(f"Malformed request: {request.method} {request.path}")

    def _predict(self, spec: model_pb2.ModelSpec, body: bytes, call: Call) -> str:
        request = predict_pb2.PredictRequest(model_spec=spec)

        def infos(signature: str) -> Mapping[str, meta_graph_pb2.TensorInfo]:
            name = signature or DEFAULT_SIGNATURE
            with self._service.core.acquire(spec) as servable:
                if name not in servable.signatures:
                    raise invalid(f'Serving signature name: "{quotable(name)}" not found in signature def')
                return dict(servable.signatures[name].inputs)

        rows = json_tensor.predict_request(body, request, infos)
        return json_tensor.predict_response(self._service.answer("Predict", request, call, "REST").outputs, rows)

    def _classify(self, spec: model_pb2.ModelSpec, body: bytes, call: Call) -> str:
        request = classification_pb2.ClassificationRequest(model_spec=spec)
        json_tensor.examples_request(body, request)
        return json_tensor.classify_response(self._service.answer("Classify", request, call, "REST").result)

    def _regress(self, spec: model_pb2.ModelSpec, body: bytes, call: Call) -> str:
        request = regression_pb2.RegressionRequest(model_spec=spec)
        json_tensor.examples_request(body, request)
        return json_tensor.regress_response(self._service.answer("Regress", request, call, "REST").result)

    def _status(self, spec: model_pb2.ModelSpec) -> str:
        response = self._service.core.status(spec)
        return json_format.MessageToJson(response, always_print_fields_with_no_presence=True, indent=1)

    def _metadata(self, spec: model_pb2.ModelSpec) -> str:
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        response = self._service.core.metadata(request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)

        def to_dict(message: Any) -> Any:
            return json_format.MessageToDict(
                message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
            )

        return json.dumps(
            {"model_spec": to_dict(response.model_spec), "metadata": {"signature_def": to_dict(signatures)}}, indent=1
        )


def too_large(limit: int) -> StatusError:
    """The refusal of a body of more bytes than the limit."""
    return StatusError(Code.OUT_OF_RANGE, f"The request body exceeds {limit} bytes")


def _body(request: Request, limit: int) -> bytes:
    """The body, uncompressed. Raises `StatusError`: it is not the gzip that it says it is, or too large."""
    if "gzip" not in request.headers.get("content-encoding", ""):
        return request.body
    gzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        body = gzip.decompress(request.body, min(limit, _MAX_UNCOMPRESSED) + 1)
    except zlib.error:
        raise invalid("Failed to uncompress the gzipped body") from None
    if len(body) > limit:
        raise too_large(limit)
    if len(body) > _MAX_UNCOMPRESSED or not gzip.eof:
        raise invalid(f"Failed to uncompress the gzipped body: it is cut off, or over {_MAX_UNCOMPRESSED} bytes")
    return body


def _model_spec(name: str, version: str | None, label: str | None) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec()
    try:
        spec.name = unquote(name, errors="strict")
        if version is not None:
            number = int(version) if len(version) < 30 else 1 << 63
            if number >= 1 << 63:
                raise invalid(f"Failed to convert version: {version[:30]} to numeric.")
            spec.version.value = number
        elif label is not None:
            spec.version_label = unquote(label, errors="strict")
    except UnicodeDecodeError:
        raise invalid("Failed to decode model name") from None
    return spec
