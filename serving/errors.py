"""What can go wrong between a client and a model, in one tree under `components.errors.ServingError`.

ServingError
├── StartError          the server cannot start: a flag, a configuration file or a model      (server)
├── StatusError         one request or load failed; carries a canonical status code           (server)
└── ClientError         a request got no answer                                               (client)
    ├── InvalidRequestError   the server understood and refused: do not send it again
    ├── ModelNotFoundError    no such model, version or label is being served
    ├── AuthenticationError   missing or wrong credentials
    ├── OverloadedError       refused at once because the server is full: send it later
    ├── UnavailableError      no server answered, or it stopped before it did
    ├── DeadlineError         no answer within the deadline
    └── ServerError           the server or the model failed

No message holds a text of a request.
"""

from __future__ import annotations

import enum
import re

from components.errors import ServingError


class Code(enum.IntEnum):
    """The canonical status codes that gRPC and TensorFlow share (google/rpc/code.proto)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class StartError(ServingError):
    """The server cannot start; the message says which flag, file or model is the cause."""


class StatusError(ServingError):
    """A failure that reaches the client as a gRPC status or as a REST error body.

    Attributes:
        code: the canonical code.
        message: what the client reads.
    """

    def __init__(self, code: Code, message: str):
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


def invalid(message: str) -> StatusError:
    """`INVALID_ARGUMENT`: the commonest refusal."""
    return StatusError(Code.INVALID_ARGUMENT, message)


_NAME = re.compile(r"[\w.:/-]{0,100}", re.ASCII)


def quotable(name: str) -> str:
    """A name that a client sent, for an error message; withheld where it may be a text put in the wrong place."""
    return name if _NAME.fullmatch(name) else "(not a name)"


class ClientError(ServingError):
    """Base of the errors that `serving.client` raises.

    Attributes:
        code: the canonical code that the server or gRPC gave.
    """

    def __init__(self, message: str, code: Code = Code.UNKNOWN):
        super().__init__(message)
        self.code = code


class InvalidRequestError(ClientError):
    """The server refused the request for what it is; the same request will be refused again."""


class ModelNotFoundError(ClientError):
    """The model, version or version label is not being served."""


class AuthenticationError(ClientError):
    """The server wants a bearer token or client certificate that it was not given."""


class OverloadedError(ClientError):
    """The server's queue is full; it refused at once and computed nothing."""


class UnavailableError(ClientError):
    """No server answered at the target, or it stopped before it answered."""


class DeadlineError(ClientError):
    """The deadline passed before the answer came."""


class ServerError(ClientError):
    """The server failed while it worked on the request."""


def where(error: BaseException) -> str:
    """Type and place of an error, for a log; not its message, which may quote a request."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f" at {frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame else ""
    return f"{type(error).__name__}{place}"
