"""What the synchronous and the asyncio client share: options, texts → requests, responses → predictions, errors."""

from __future__ import annotations

import array
import itertools
import random
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from serving import protos
from serving.errors import (
    AuthenticationError,
    ClientError,
    Code,
    DeadlineError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    ServerError,
    UnavailableError,
)

PREDICT_METHOD = "/tensorflow.serving.PredictionService/Predict"
STATUS_METHOD = "/tensorflow.serving.ModelService/GetModelStatus"
_ERRORS: dict[Code, type[ClientError]] = {
    Code.INVALID_ARGUMENT: InvalidRequestError,
    Code.FAILED_PRECONDITION: InvalidRequestError,
    Code.OUT_OF_RANGE: InvalidRequestError,
    Code.UNIMPLEMENTED: InvalidRequestError,
    Code.NOT_FOUND: ModelNotFoundError,
    Code.UNAUTHENTICATED: AuthenticationError,
    Code.PERMISSION_DENIED: AuthenticationError,
    Code.RESOURCE_EXHAUSTED: OverloadedError,
    Code.UNAVAILABLE: UnavailableError,
    # Not by this client: a server that stops drops what it had received and not yet begun (gRPC's core,
    # `Server::ShutdownAndNotify`), and after its grace time what it had.
    Code.CANCELLED: UnavailableError,
    Code.DEADLINE_EXCEEDED: DeadlineError,
}
# No answer, for want of a connection or of room. A classifier keeps no state, so that asking again is safe even if the
# connection broke while it computed.
_RETRIED = (UnavailableError, OverloadedError)


@dataclass(frozen=True)
class Prediction:
    """The answer for one text.

    Attributes:
        label: the class that the model decided on; None for a multi-label model.
        labels: for a multi-label model, all classes that apply, else None.
        probabilities: class → probability.
        model_version: the version that answered.
    """

    label: str | None
    labels: tuple[str, ...] | None
    probabilities: dict[str, float]
    model_version: int


@dataclass(frozen=True)
class TLS:
    """TLS settings. Each is PEM text.

    Attributes:
        root_certificates: authorities to trust; None for the system's.
        private_key, certificate_chain: this client's, where the server asks for one.
        server_name: the name on the server's certificate, where it differs from the target.
    """

    root_certificates: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)
    certificate_chain: bytes | None = None
    server_name: str | None = None

    @classmethod
    def from_files(
        cls, roots: str | Path | None = None, key: str | Path | None = None, chain: str | Path | None = None
    ) -> TLS:
        """Reads the PEM files."""
        read = [None if p is None else Path(p).read_bytes() for p in (roots, key, chain)]
        return cls(read[0], read[1], read[2])


@dataclass(frozen=True)
class Retry:
    """When a call that found no server, or a full one, is sent again.

    Attributes:
        attempts: tries in all.
        initial_s, max_s: the pause before try n is drawn from 0 … min(max_s, initial_s · 2ⁿ) ("full jitter").
    """

    attempts: int = 4
    initial_s: float = 0.1
    max_s: float = 2.0

    def pause_s(self, attempt: int) -> float:
        return random.uniform(0.0, min(self.max_s, self.initial_s * 2**attempt))


@dataclass(frozen=True)
class Options:
    """How a client behaves.

    Attributes:
        timeout_s: deadline of a whole `predict`, retries included; None for no limit.
        batch_size: most texts in one request.
        batch_bytes: most bytes of text in one request; a longer text travels alone.
        concurrency: most requests under way at once.
        version, version_label: which version to ask; neither: the newest.
        signature_name: signature of the model; it must return `probabilities` and `classes`.
        token: bearer token.
        tls: TLS settings; None for a plain connection.
        retry: when to ask again.
        keepalive_s: seconds of silence after which the connection is probed.
    """

    timeout_s: float | None = 30.0
    batch_size: int = 32
    batch_bytes: int = 1 << 20
    concurrency: int = 4
    version: int | None = None
    version_label: str | None = None
    signature_name: str = "serving_default"
    token: str | None = field(default=None, repr=False)
    tls: TLS | None = None
    retry: Retry = Retry()
    keepalive_s: float = 300.0  # stock TensorFlow Serving takes more frequent probes for abuse

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.concurrency < 1 or self.retry.attempts < 1:
            raise ValueError("batch_size, concurrency and retry.attempts must be 1 or more")
        if self.version is not None and self.version_label is not None:
            raise ValueError("give version or version_label, not both")


DEFAULTS = Options()


def channel_options(options: Options) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", int(options.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.enable_retries", 0),  # retries are decided here
    ]
    if options.tls is not None and options.tls.server_name is not None:
        found.append(("grpc.ssl_target_name_override", options.tls.server_name))
    return found


def channel_credentials(options: Options) -> grpc.ChannelCredentials | None:
    if options.tls is None:
        return None
    return grpc.ssl_channel_credentials(
        options.tls.root_certificates, options.tls.private_key, options.tls.certificate_chain
    )


def metadata(options: Options) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {options.token}")] if options.token is not None else []


def make_requests(
    model_name: str, options: Options, texts: Iterable[str], pairs: Iterable[str] | None
) -> Iterator[tuple[int, Any]]:
    """Splits the texts into requests; yields (number of texts, PredictRequest).

    Raises:
        InvalidRequestError: a text that UTF-8 cannot encode, or one str in place of several.
    """
    for name, given in (("texts", texts), ("pairs", pairs)):
        if isinstance(given, str | bytes):  # which would be taken for a list of characters
            raise InvalidRequestError(f"{name} is one {type(given).__name__}; give a list", Code.INVALID_ARGUMENT)
    rows: Iterable[tuple[str, ...]] = ((t,) for t in texts) if pairs is None else _zip_strict(texts, pairs)
    batch: list[tuple[bytes, ...]] = []
    size = 0
    for number, row in enumerate(rows):
        try:
            encoded = tuple(value.encode() for value in row)
        except (AttributeError, UnicodeEncodeError):
            # From None: the cause would quote the text.
            raise InvalidRequestError(
                f"text {number} is not a str that UTF-8 can encode", Code.INVALID_ARGUMENT
            ) from None
        length = sum(map(len, encoded))
        if batch and (len(batch) == options.batch_size or size + length > options.batch_bytes):
            yield len(batch), _make_request(model_name, options, batch)
            batch, size = [], 0
        batch.append(encoded)
        size += length
    if batch:
        yield len(batch), _make_request(model_name, options, batch)


def _zip_strict(texts: Iterable[str], pairs: Iterable[str]) -> Iterator[tuple[str, ...]]:
    missing = object()
    for text, pair in itertools.zip_longest(texts, pairs, fillvalue=missing):
        if text is missing or pair is missing:
            raise InvalidRequestError("texts and pairs differ in number", Code.INVALID_ARGUMENT)
        yield text, pair  # type: ignore[misc]


def fill_spec(spec: Any, model_name: str, options: Options) -> None:
    spec.name = model_name
    if options.version is not None:
        spec.version.value = options.version
    elif options.version_label is not None:
        spec.version_label = options.version_label


def _make_request(model_name: str, options: Options, batch: list[tuple[bytes, ...]]) -> Any:
    request = protos.PredictRequest()
    fill_spec(request.model_spec, model_name, options)
    request.model_spec.signature_name = options.signature_name
    for name, values in zip(("text", "text_pair"), zip(*batch, strict=True), strict=False):
        tensor = request.inputs[name]
        tensor.dtype = protos.DT_STRING
        tensor.tensor_shape.dim.add().size = len(values)
        tensor.string_val.extend(values)
    return request


def read_response(response: Any, count: int) -> list[Prediction]:
    """Turns a PredictResponse into predictions.

    Raises:
        ServerError: the response does not have the outputs of a text classifier.
    """
    outputs = response.outputs
    if "probabilities" not in outputs or "classes" not in outputs:
        raise ServerError(
            f"the model's signature returned {sorted(outputs)}; it must return probabilities and classes",
            Code.INTERNAL,
        )
    flat = _numbers(outputs["probabilities"])
    width = len(flat) // count
    names = _strings(outputs["classes"])
    if len(flat) != count * width or not width or len(names) not in (width, count * width):
        raise ServerError(
            f"the model returned {len(flat)} probabilities and {len(names)} classes for {count} texts", Code.INTERNAL
        )
    mask = _numbers(outputs["labels"]) if "labels" in outputs else None
    labels_given = _strings(outputs["label"]) if "label" in outputs else None
    if (mask is not None and len(mask) != count * width) or (labels_given is not None and len(labels_given) != count):
        raise ServerError(f"the model's labels do not fit {count} texts of {width} classes", Code.INTERNAL)
    version = response.model_spec.version.value
    found = []
    for i in range(count):
        row = flat[i * width : (i + 1) * width]
        classes = names if len(names) == width else names[i * width : (i + 1) * width]
        label: str | None = None
        labels: tuple[str, ...] | None = None
        if mask is not None:
            labels = tuple(c for c, on in zip(classes, mask[i * width : (i + 1) * width], strict=True) if on)
        elif labels_given is not None:
            label = labels_given[i]
        else:
            label = classes[max(range(width), key=row.__getitem__)]
        found.append(Prediction(label, labels, dict(zip(classes, row, strict=True)), version))
    return found


def _numbers(tensor: Any) -> Sequence[float]:
    size = 1
    for dim in tensor.tensor_shape.dim:
        size *= dim.size
    fields = {
        protos.DT_FLOAT: ("float_val", "f"), protos.DT_INT32: ("int_val", "i"),
        protos.DT_INT64: ("int64_val", "q"), protos.DT_BOOL: ("bool_val", "b"),
    }  # fmt: skip
    if tensor.dtype not in fields:
        raise ServerError(f"the model returned numbers of DataType {tensor.dtype}", Code.INTERNAL)
    name, code = fields[tensor.dtype]
    if tensor.tensor_content:
        values = array.array(code)
        if len(tensor.tensor_content) != size * values.itemsize:
            raise ServerError("the model returned a tensor that does not have its shape's size", Code.INTERNAL)
        return list(struct.unpack(f"<{size}{code}", tensor.tensor_content))
    values_list = list(getattr(tensor, name))
    if values_list and len(values_list) < size:  # a shorter list repeats its last value
        values_list += [values_list[-1]] * (size - len(values_list))
    return values_list


def _strings(tensor: Any) -> list[str]:
    """Strings of either encoding; in `tensor_content`: varint lengths, then the bytes."""
    if not tensor.tensor_content:
        return [value.decode() for value in tensor.string_val]
    content, at = tensor.tensor_content, 0
    lengths: list[int] = []
    count = 1
    for dim in tensor.tensor_shape.dim:
        count *= dim.size
    while len(lengths) < count and at < len(content):
        length = shift = 0
        while at < len(content):
            byte = content[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    found = []
    for length in lengths:
        found.append(content[at : at + length].decode())
        at += length
    return found


def translate(error: grpc.RpcError, target: str) -> ClientError:
    """The client error that stands for a gRPC error."""
    code = Code(error.code().value[0])
    kind = _ERRORS.get(code, ServerError)
    if kind is OverloadedError and "message larger than max" in (error.details() or ""):
        kind = InvalidRequestError  # gRPC's own refusal, with the same code
    return kind(f"{target}: {code.name}: {error.details()}", code)


def closed_error(target: str) -> UnavailableError:
    """What a call of a closed client raises, and one that is under way when it is closed."""
    return UnavailableError(f"{target}: this client is closed", Code.UNAVAILABLE)


def next_pause_s(error: ClientError, attempt: int, options: Options, end: float | None) -> float | None:
    """How long to wait before asking again, or None to give up: only where it can help and time is left."""
    if not isinstance(error, _RETRIED) or attempt + 1 >= options.retry.attempts:
        return None
    pause = options.retry.pause_s(attempt)
    return pause if end is None or time.monotonic() + pause < end else None


def deadline(options: Options) -> float | None:
    """When a call that begins now must have its answer, on `time.monotonic`'s clock."""
    return None if options.timeout_s is None else time.monotonic() + options.timeout_s


def time_left(end: float | None, target: str) -> float | None:
    """Seconds until `end`. Raises `DeadlineError` if there are none."""
    left = None if end is None else end - time.monotonic()
    if left is not None and left <= 0:
        raise DeadlineError(f"{target}: no answer within the deadline", Code.DEADLINE_EXCEEDED)
    return left


def status_request(model_name: str) -> Any:
    request = protos.GetModelStatusRequest()
    request.model_spec.name = model_name
    return request


def read_status(response: Any) -> list[int]:
    """The versions that are available."""
    return [s.version for s in response.model_version_status if s.state == 30]  # AVAILABLE
