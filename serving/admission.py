"""Which gRPC calls are let in, and how long one may take to send its message.

grpcio gives a call a thread and only then reads its message. Whoever sends headers and no message, or a message slowly,
would hold the threads of all others. Therefore:

- a call beyond the bound of its pool is refused at once, without a thread and without its message, unless one that has
  sent no message for a second can give way to it;
- health and reflection have pools of their own, so that a probe is answered whatever the other calls are doing;
- a call whose message has not come within `Pool.patience_s` is cancelled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc

HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection."
# Beyond the inference slots: calls for status, metadata and reload, and those that wait to be told that it is full.
_SPARE_CALLS = 64
_PROBES = 16
_REFLECTIONS = 8
# A message of a gigabyte over a slow line takes its time; a probe's comes with its headers.
_MESSAGE_S = 60.0
_PROBE_S = 5.0
_GIVES_WAY_AFTER_S = 1.0


class _AtOnce(futures.ThreadPoolExecutor):
    """Runs what never waits where it is: in the thread that takes gRPC's events."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        future: futures.Future[Any] = futures.Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


_AT_ONCE = _AtOnce(1)


def refusal(code: grpc.StatusCode, message: str) -> grpc.RpcMethodHandler:
    """What an interceptor gives in place of a method: the status at once, whether the message has come or not."""

    def refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> None:
        context.abort(code, message)

    refuse.experimental_thread_pool = _AT_ONCE  # type: ignore[attr-defined]
    return grpc.stream_unary_rpc_method_handler(refuse)


class Pool(futures.ThreadPoolExecutor):
    """A thread for each of at most `most` open calls; `submit` is called by one thread alone, gRPC's."""

    def __init__(self, most: int, patience_s: float, name: str):
        super().__init__(most, thread_name_prefix=name)
        self.patience_s = patience_s
        self._most, self._open = most, 0
        self._lock = threading.Lock()
        self._waiting: dict[object, tuple[grpc.ServicerContext, float]] = {}  # the longest first; since when

    def has_room(self) -> bool:
        """Whether a further call may come; where there is none, a call that sends no message is made to give way."""
        if self._open < self._most:
            return True
        waiting = list(self._waiting.items())
        if not waiting:
            return False
        key, (context, since) = waiting[0]
        if time.monotonic() - since < _GIVES_WAY_AFTER_S or self._waiting.pop(key, None) is None:
            return False
        context.cancel()
        return True

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        self._count(1)
        try:
            future = super().submit(fn, *args, **kwargs)
        except BaseException:
            self._count(-1)
            raise
        future.add_done_callback(lambda _: self._count(-1))
        return future

    def hold(self, context: grpc.ServicerContext) -> None:
        """Counts a call that goes on without a thread until it has ended."""
        self._count(1)
        if not context.add_callback(lambda: self._count(-1)):
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._open += change

    def receive(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """The next message. Raises `StopIteration` where there is none, and gRPC's error where the call has ended."""
        key = object()
        self._waiting[key] = (context, time.monotonic())
        try:
            return next(requests)
        finally:
            self._waiting.pop(key, None)

    def end_overdue(self) -> None:
        """Cancels the calls whose message has not come in time."""
        before = time.monotonic() - self.patience_s
        for context, since in list(self._waiting.values()):
            if since < before:
                context.cancel()


class Admission(grpc.ServerInterceptor):
    """Gives each call its pool; the innermost interceptor.

    Args:
        inferences: inference requests at once; the service itself refuses more.
    """

    def __init__(self, inferences: int):
        self.calls = Pool(2 * inferences + _SPARE_CALLS, _MESSAGE_S, "grpc")
        self._probes = Pool(_PROBES, _PROBE_S, "grpc-health")
        self._reflections = Pool(_REFLECTIONS, _MESSAGE_S, "grpc-reflection")
        self._pools = (self.calls, self._probes, self._reflections)
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        self._refusal = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        method = details.method
        pool = self._pool(method)
        if not pool.has_room():
            return self._refusal
        found = self._handlers.get(method)
        if found is None:
            handler = continuation(details)
            if handler is None:
                return None
            found = self._handlers[method] = _in_pool(handler, method, pool)
        return found

    def _pool(self, method: str) -> Pool:
        if method.startswith(HEALTH):
            return self._probes
        return self._reflections if method.startswith(REFLECTION) else self.calls

    def end_overdue(self) -> None:
        """Cancels the calls whose message has not come in time; to be called every now and then."""
        for pool in self._pools:
            pool.end_overdue()

    def close(self) -> None:
        """Lets the threads go, once the server has stopped."""
        for pool in self._pools:
            pool.shutdown(wait=False)


def _in_pool(handler: grpc.RpcMethodHandler, method: str, pool: Pool) -> grpc.RpcMethodHandler:
    """The same method, run in `pool`, its messages awaited no longer than that allows.

    A method of one request becomes one of a stream, of which the first is taken: the same on the wire, but it begins
    with the headers, so that the wait for the message is this module's own.
    """

    def one(requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        try:
            message = pool.receive(requests, context)
        except StopIteration:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f'"{method}" requires exactly one request message.')
        try:
            return handler.request_deserializer(message)
        except Exception:  # protobuf's, which may quote the message
            context.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")

    def many(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        while True:
            try:
                yield pool.receive(requests, context)
            except StopIteration:
                return

    def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        return handler.unary_unary(one(requests, context), context)

    def follow(requests: Iterator[bytes], context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
        request = one(requests, context)
        pool.hold(context)
        handler.unary_stream(request, context, send)

    def converse(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        return handler.stream_stream(many(requests, context), context)

    behaviour: Any
    if handler.unary_unary:
        behaviour, make, deserializer = answer, grpc.stream_unary_rpc_method_handler, None
    elif handler.unary_stream:  # the health service's Watch, which holds no thread once it has begun
        behaviour, make, deserializer = follow, grpc.stream_stream_rpc_method_handler, None
        behaviour.experimental_non_blocking = True
    else:  # reflection
        behaviour, make, deserializer = converse, grpc.stream_stream_rpc_method_handler, handler.request_deserializer
    behaviour.experimental_thread_pool = pool
    return make(behaviour, deserializer, handler.response_serializer)
