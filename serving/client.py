"""Asks a BioBERT-CNN model: texts in, predictions out, over TensorFlow Serving's gRPC API.

    from serving.client import Client

    with Client("localhost:8500", "biobert_cnn") as client:
        for prediction in client.predict(["Aspirin reduced mortality.", "We enrolled 40 patients."]):
            print(prediction.label, prediction.probabilities)

Needs grpcio and protobuf only, not TensorFlow. Works with this project's server and with stock TensorFlow Serving.
`serving.aio.AsyncClient` is the same for asyncio.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from serving import protos
from serving.client_core import (
    DEFAULTS,
    PREDICT_METHOD,
    STATUS_METHOD,
    TLS,
    Options,
    Prediction,
    Retry,
    channel_credentials,
    channel_options,
    closed_error,
    deadline,
    make_requests,
    metadata,
    next_pause_s,
    read_response,
    read_status,
    status_request,
    time_left,
    translate,
)

__all__ = ["TLS", "Client", "Options", "Prediction", "Retry"]


class Client:
    """A client of one model; thread-safe, one channel for all calls.

    Args:
        target: `host:port`, or `unix:path`.
        model_name: as the server knows it.
        options: how it behaves; keyword arguments override single ones: `Client(t, m, timeout_s=5)`.
    """

    def __init__(self, target: str, model_name: str, options: Options = DEFAULTS, **overrides: Any):
        self._options = Options(**{**vars(options), **overrides}) if overrides else options
        self._target, self._model_name, self._closed = target, model_name, False
        credentials = channel_credentials(self._options)
        arguments = channel_options(self._options)
        self._channel = (
            grpc.insecure_channel(target, arguments)
            if credentials is None
            else grpc.secure_channel(target, credentials, arguments)
        )
        self._predict = self._channel.unary_unary(
            PREDICT_METHOD, protos.PredictRequest.SerializeToString, protos.PredictResponse.FromString
        )
        self._status = self._channel.unary_unary(
            STATUS_METHOD, protos.GetModelStatusRequest.SerializeToString, protos.GetModelStatusResponse.FromString
        )

    def predict(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> list[Prediction]:
        """Classifies texts, in their order.

        Large inputs are sent as several requests, a few at once.

        Args:
            texts: the texts, [n].
            pairs: the second segments, [n], for a model that takes them.

        Returns:
            One prediction a text.

        Raises:
            ClientError: no text was classified, or not all; see `serving.errors`.
        """
        end = deadline(self._options)
        requests = make_requests(self._model_name, self._options, texts, pairs)
        head = list(itertools.islice(requests, 2))
        if len(head) < 2:
            return [p for request in head for p in self._ask(request, end)]
        found: list[Prediction] = []
        with ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="client") as pool:
            waiting: list[Any] = []
            try:
                for request in itertools.chain(head, requests):
                    if len(waiting) == self._options.concurrency:
                        found += waiting.pop(0).result()
                    waiting.append(pool.submit(self._ask, request, end))
                for future in waiting:
                    found += future.result()
            except BaseException:
                for future in waiting:
                    future.cancel()
                raise
        return found

    def _ask(self, request: tuple[int, Any], end: float | None) -> list[Prediction]:
        count, message = request
        return read_response(self._send(self._predict, message, end), count)

    def _send(self, method: Any, message: Any, end: float | None) -> Any:
        for attempt in itertools.count():
            if self._closed:
                raise closed_error(self._target)
            try:
                left = time_left(end, self._target)
                return method(message, timeout=left, metadata=metadata(self._options))
            except grpc.RpcError as cause:
                if self._closed:
                    raise closed_error(self._target) from None
                error = translate(cause, self._target)
                pause = next_pause_s(error, attempt, self._options, end)
                if pause is None:
                    raise error from None  # the cause's debug text adds nothing that a user can act on
                time.sleep(pause)
            except ValueError:  # gRPC's own, of a channel that was closed after the look
                if not self._closed:
                    raise
                raise closed_error(self._target) from None
        raise AssertionError("unreachable")

    def available_versions(self) -> list[int]:
        """Versions that answer, the newest first. Raises `ClientError`."""
        return read_status(self._send(self._status, status_request(self._model_name), deadline(self._options)))

    def close(self) -> None:
        """Closes the channel; calls under way fail."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
