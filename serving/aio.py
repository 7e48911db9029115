"""The asyncio client: `serving.client.Client` with `await`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any

import grpc

from serving import protos
from serving.client_core import (
    DEFAULTS,
    PREDICT_METHOD,
    STATUS_METHOD,
    Options,
    Prediction,
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


class AsyncClient:
    """A client of one model for one event loop; arguments as of `serving.client.Client`."""

    def __init__(self, target: str, model_name: str, options: Options = DEFAULTS, **overrides: Any):
        self._options = Options(**{**vars(options), **overrides}) if overrides else options
        self._target, self._model_name, self._closed = target, model_name, False
        credentials = channel_credentials(self._options)
        arguments = channel_options(self._options)
        self._channel = (
            grpc.aio.insecure_channel(target, arguments)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, arguments)
        )
        self._predict = self._channel.unary_unary(
            PREDICT_METHOD, protos.PredictRequest.SerializeToString, protos.PredictResponse.FromString
        )
        self._status = self._channel.unary_unary(
            STATUS_METHOD, protos.GetModelStatusRequest.SerializeToString, protos.GetModelStatusResponse.FromString
        )

    async def predict(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> list[Prediction]:
        """Classifies texts, in their order; see `serving.client.Client.predict`."""
        end = deadline(self._options)
        requests = make_requests(self._model_name, self._options, texts, pairs)
        found: list[Prediction] = []
        waiting: list[asyncio.Task[list[Prediction]]] = []
        try:
            for request in requests:
                if len(waiting) == self._options.concurrency:
                    found += await waiting[0]
                    del waiting[0]
                waiting.append(asyncio.create_task(self._ask(request, end)))
            for task in waiting:
                found += await task
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return found

    async def _ask(self, request: tuple[int, Any], end: float | None) -> list[Prediction]:
        count, message = request
        return read_response(await self._send(self._predict, message, end), count)

    async def _send(self, method: Any, message: Any, end: float | None) -> Any:
        for attempt in itertools.count():
            if self._closed:
                raise closed_error(self._target)
            try:
                left = time_left(end, self._target)
                return await method(message, timeout=left, metadata=metadata(self._options))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not self._closed or (task is not None and task.cancelling()):
                    raise  # it is the caller's own
                raise closed_error(self._target) from None
            except grpc.RpcError as cause:
                if self._closed:
                    raise closed_error(self._target) from None
                error = translate(cause, self._target)
                pause = next_pause_s(error, attempt, self._options, end)
                if pause is None:
                    raise error from None
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def available_versions(self) -> list[int]:
        """Versions that answer, the newest first. Raises `ClientError`."""
        return read_status(await self._send(self._status, status_request(self._model_name), deadline(self._options)))

    async def close(self) -> None:
        """Closes the channel; calls under way fail."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
