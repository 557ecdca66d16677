"""Server-sent events from a gRPC stream: state on every change, comments in silence, and always a last event.

A client that reads slowly is sent the latest state only; one that stops reading is given up (`Reader`).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
import structlog

from gateway import problems
from gateway.asgi import Receive, Request, Response, Send
from gateway.problems import Naming
from gateway.reader import Reader, TooSlow
from gateway.schemas import Problem
from mesh.latest import Latest

log = structlog.get_logger()
M = TypeVar("M")

_NO_NAMES = Naming()
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy that buffers makes events late
]


@dataclass(frozen=True)
class Event:
    """One event; `last` ends the stream."""

    name: str
    data: bytes
    last: bool = False


class EventStream(Response, Generic[M]):
    """Relays `call` until it ends, the client leaves, or the gateway stops; then calls `done`.

    Each message carries the whole state, so that a client that reconnects has missed nothing that still
    holds; ids grow on from the `Last-Event-ID` it brings.
    """

    def __init__(
        self,
        call: "grpc.aio.UnaryStreamCall[Any, M]",
        first: M,
        events_of: Callable[[M], list[Event]],
        *,
        stopping: asyncio.Event,
        heartbeat_s: float,
        last_id: int,
        done: Callable[[], None],
        on_drop: Callable[[], None],
    ) -> None:
        self.status, self.reason, self.headers = 200, "", _HEADERS
        self._call = Latest(call)
        self._first = first
        self._events_of = events_of
        self._stopping = stopping
        self._heartbeat_s = heartbeat_s
        self._id = last_id
        self._done = done
        self._on_drop = on_drop

    async def send(self, request: Request, send: Send) -> None:
        try:
            await self._serve(request.receive, Reader(request.scope, send))
        finally:
            self._done()

    async def _serve(self, receive: Receive, send: Reader) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        stop = asyncio.ensure_future(self._stopping.wait())
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await self._relay(send, stop, gone)
            if not gone.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TooSlow:
            self._call.cancel()
            self._on_drop()
            await send.farewell(self._event(_error(problems.too_slow())))
        finally:
            self._call.cancel()
            stop.cancel()
            gone.cancel()

    async def _relay(self, send: Reader, stop: asyncio.Future[Any], gone: asyncio.Future[None]) -> None:
        try:
            message: Any = self._first
            while message is not grpc.aio.EOF:
                for event in self._events_of(message):
                    await self._send(send, event)
                    if event.last:
                        return
                reading = asyncio.ensure_future(self._call.read())
                await self._wait(send, reading, stop, gone)
                if not reading.done():
                    reading.cancel()
                    if not gone.done():
                        await self._send(send, _error(problems.stopping()))
                    return
                message = reading.result()
            broken = problems.ended()
        except grpc.aio.AioRpcError as error:
            broken = problems.of_call(error, _NO_NAMES)
        except TooSlow:
            raise
        except Exception:
            log.exception("event stream failed")
            broken = problems.internal()
        await self._send(send, _error(broken))

    async def _wait(
        self, send: Reader, reading: asyncio.Future[Any], stop: asyncio.Future[Any], gone: asyncio.Future[None]
    ) -> None:
        """Until there is a message, or no reason to wait for one."""
        waiting = {reading, stop, gone}
        while not (await asyncio.wait(waiting, timeout=self._heartbeat_s, return_when=asyncio.FIRST_COMPLETED))[0]:
            await send({"type": "http.response.body", "body": b": still here\n\n", "more_body": True})

    async def _send(self, send: Reader, event: Event) -> None:
        await send({"type": "http.response.body", "body": self._event(event), "more_body": True})

    def _event(self, event: Event) -> bytes:
        self._id += 1
        return b"event: %s\nid: %d\ndata: %s\n\n" % (event.name.encode(), self._id, event.data)


def _error(body: Problem) -> Event:
    return Event("error", problems.encode(body), last=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
