"""A small HTTP/1.1 server for the REST API: h11 reads the protocol, asyncio holds the connections.

One thread runs the event loop; a connection that is opened and left, or reads slowly, costs a file descriptor and
nothing else. Requests are worked on in a pool of threads. Whatever exceeds a limit is refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import h11

from serving.errors import Code, StartError, StatusError
from serving.metrics import Metrics
from serving.rest import Request, Response, RestApi, too_large

_log = logging.getLogger(__name__)
_READ = 1 << 16
_QUEUED_PER_THREAD = 3  # inference requests that may wait for a thread, for each thread


@dataclass(frozen=True)
class Limits:
    """What a connection may cost.

    Attributes:
        threads: requests worked on at once.
        connections: open connections; further ones are refused.
        body_bytes: largest request body.
        header_bytes: largest request line with its headers.
        idle_s: seconds without a request after which a connection is closed.
        transfer_s: seconds without progress of a request or response after which it is closed.
    """

    threads: int = 8
    connections: int = 1024
    body_bytes: int = 2**31 - 1
    header_bytes: int = 1 << 16
    idle_s: float = 75.0
    transfer_s: float = 30.0


@dataclass
class _Peer:
    http: h11.Connection
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    bodiless: bool = False  # the answer to HEAD has headers only


class HttpServer:
    """Listens from `start` to `stop`.

    Args:
        api: answers requests.
        host, port: where; port 0: any free one.
        limits: see there.
        metrics: counts connections.
    """

    def __init__(self, api: RestApi, host: str, port: int, limits: Limits, metrics: Metrics):
        self._api, self._host, self._requested_port, self._limits, self._metrics = api, host, port, limits, metrics
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="rest")
        # Status and metrics have a thread of their own: a server that is full must still be able to say so.
        self._light_pool = ThreadPoolExecutor(1, thread_name_prefix="rest-light")
        self._thread = threading.Thread(target=self._loop.run_forever, name="rest-loop", daemon=True)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task] = set()
        self._busy: set[asyncio.Task] = set()  # of these, the ones that are answering a request
        self._inferring = 0
        self._stopping = False

    def start(self) -> None:
        """Raises `StartError` if the address cannot be had."""
        self._thread.start()
        try:
            self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        except OSError as error:
            self._halt()
            raise StartError(f"Cannot listen for REST on {self._host}:{self._requested_port}: {error}") from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(
            self._connected, self._host, self._requested_port, limit=_READ, backlog=1024, reuse_address=True
        )

    def stop(self, drain_s: float) -> None:
        """Closes idle connections at once and lets requests be answered for up to `drain_s` seconds."""
        if self._server is not None:
            asyncio.run_coroutine_threadsafe(self._drain(drain_s), self._loop).result()
        self._halt()

    async def _drain(self, drain_s: float) -> None:
        assert self._server is not None
        self._stopping = True
        self._server.close()
        for task in self._open - self._busy:
            task.cancel()
        if self._busy:
            await asyncio.wait(self._busy, timeout=drain_s)
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _halt(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown()
        self._light_pool.shutdown()

    # === One connection ===

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self._metrics.connections.add()
        raw = writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer.transport.set_write_buffer_limits(high=0)  # so that drain() means: all is with the client
        try:
            http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.header_bytes)
            await self._converse(_Peer(http, reader, writer), task)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # the client went, dawdled, or the server stops: nobody is left to tell
        finally:
            self._open.discard(task)
            self._busy.discard(task)
            self._metrics.connections.add(by=-1)
            writer.transport.abort() if not writer.is_closing() else None
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _converse(self, peer: _Peer, task: asyncio.Task) -> None:
        if len(self._open) > self._limits.connections:
            full = StatusError(Code.UNAVAILABLE, "The server has as many connections as it may; try again later")
            await self._send(peer, self._api.refuse(full), close=True)
            return
        while not self._stopping:
            try:
                request = await self._receive(peer, task)
            except StatusError as error:
                await self._send(peer, self._api.refuse(error), close=True)
                return
            except h11.RemoteProtocolError as error:
                if peer.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    body = self._api.refuse(StatusError(Code.INVALID_ARGUMENT, "Malformed HTTP request")).body
                    await self._send(peer, Response(error.error_status_hint, body), close=True)
                return
            if request is None:
                return
            response = await self._answer(request)
            await self._send(peer, response, close=self._stopping)
            self._busy.discard(task)
            if peer.http.our_state is not h11.DONE or peer.http.their_state is not h11.DONE:
                await self._say_goodbye(peer)
                return
            peer.http.start_next_cycle()

    async def _receive(self, peer: _Peer, task: asyncio.Task) -> Request | None:
        connection, reader, writer = peer.http, peer.reader, peer.writer
        head: Request | None = None
        peer.bodiless = False
        body: list[bytes] = []
        size = 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])))
                begun = head is not None or connection.trailing_data[0]
                limit = self._limits.transfer_s if begun else self._limits.idle_s
                connection.receive_data(await asyncio.wait_for(reader.read(_READ), limit))
            elif isinstance(event, h11.Request):
                head = Request(
                    event.method.decode("ascii", "replace"),
                    event.target.decode("ascii", "replace").partition("?")[0],
                    {k.decode("latin-1"): v.decode("latin-1") for k, v in event.headers},
                    b"",
                    lambda: not (reader.at_eof() or writer.is_closing()),  # closed by the client, or reset
                )
                peer.bodiless = head.method == "HEAD"
                self._busy.add(task)
                self._check_length(event)
                self._api.check_token(head)
            elif isinstance(event, h11.Data):
                size += len(event.data)
                if size > self._limits.body_bytes:
                    raise too_large(self._limits.body_bytes)
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return replace(head, body=b"".join(body))
            else:  # closed, or paused by an upgrade that is not supported
                return None

    def _check_length(self, head: h11.Request) -> None:
        for name, value in head.headers:
            if name == b"content-length" and int(value) > self._limits.body_bytes:
                raise too_large(self._limits.body_bytes)

    async def _answer(self, request: Request) -> Response:
        loop = asyncio.get_running_loop()
        if not self._api.is_inference(request):
            return await loop.run_in_executor(self._light_pool, self._api.handle, request)
        if self._inferring >= self._limits.threads * (1 + _QUEUED_PER_THREAD):
            return self._api.turn_away(request)
        self._inferring += 1
        try:
            return await loop.run_in_executor(self._pool, self._api.handle, request)
        finally:
            self._inferring -= 1

    async def _send(self, peer: _Peer, response: Response, close: bool) -> None:
        headers = [*response.headers, ("Content-Length", str(len(response.body)))]
        if close:
            headers.append(("Connection", "close"))
        parts = [
            peer.http.send(h11.Response(status_code=response.status, headers=headers)),
            b"" if peer.bodiless else peer.http.send(h11.Data(data=response.body)),
            peer.http.send(h11.EndOfMessage()),
        ]
        # Not writelines: from Python 3.12 on, an empty part stays in its buffer, which then never empties.
        peer.writer.write(b"".join(part for part in parts if part))
        await _drained(peer.writer, self._limits.transfer_s)
        if close:
            await self._say_goodbye(peer)

    async def _say_goodbye(self, peer: _Peer) -> None:
        """Closes so that the client still reads what was sent: closing on unread input would reset the connection."""
        if peer.writer.can_write_eof():
            with contextlib.suppress(OSError):
                peer.writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while await peer.reader.read(_READ):
                    pass
        peer.writer.close()


async def _drained(writer: asyncio.StreamWriter, seconds: float) -> None:
    """Waits until the client has taken what was written; gives up when nothing moves for so long."""
    while True:
        left = writer.transport.get_write_buffer_size()
        try:
            await asyncio.wait_for(writer.drain(), seconds)
            return
        except TimeoutError:
            if writer.transport.get_write_buffer_size() >= left:
                raise
