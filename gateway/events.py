"""Server-sent events: what a source gives as it comes, comments in silence, and always a last event.

A client that stops reading is given up (`Reader`). Each event has an id to resume from; where the stream broke, a last
event `error` without one says why, and the client comes again with the id that it had. After `end` there is nothing to
come for: who does is told 204, which ends an EventSource for good.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import grpc
import structlog

from gateway import problems
from gateway.asgi import Receive, Request, Response, Send
from gateway.problems import Naming, ProblemError
from gateway.reader import Reader, TooSlow
from gateway.schemas import Problem
from mesh.latest import Latest

log = structlog.get_logger()
M = TypeVar("M")

# The id of an event after which nothing comes.
END = "end"

_NO_NAMES = Naming()
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy that buffers makes events late
]


class Source(Protocol):
    """What a stream tells."""

    async def read(self) -> bytes:
        """The next events, as `event` gives them; empty when the stream is over. ProblemError when it broke."""

    def close(self) -> None:
        """Nobody listens any more. Called once."""


@dataclass(frozen=True)
class Event:
    """One event; `last` ends the stream."""

    name: str
    data: bytes
    last: bool = False


def event(name: str, data: bytes, id_: str | None = None) -> bytes:
    """One event as it is sent. Without an id the client keeps the one it has."""
    number = b"" if id_ is None else b"id: %b\n" % id_.encode()
    return b"event: %b\n%bdata: %b\n\n" % (name.encode(), number, data)


class Relayed(Generic[M]):
    """A source from a gRPC stream whose messages each carry the whole state.

    So a client that reads slowly is sent the latest state only, and one that comes again has missed nothing that still
    holds; ids grow on from the last it saw.
    """

    def __init__(
        self,
        call: "grpc.aio.UnaryStreamCall[Any, M]",
        first: M,
        events_of: Callable[[M], list[Event]],
        last_id: int,
    ) -> None:
        self._call = Latest(call)
        self._first: M | None = first
        self._events_of = events_of
        self._id = last_id
        self._over = False

    async def read(self) -> bytes:
        if self._over:
            return b""
        try:
            message, self._first = self._first or await self._call.read(), None
        except grpc.aio.AioRpcError as error:
            raise ProblemError(problems.of_call(error, _NO_NAMES)) from None
        if message is grpc.aio.EOF:
            raise ProblemError(problems.ended())
        return b"".join([self._encode(each) for each in self._events_of(message)])

    def _encode(self, each: Event) -> bytes:
        self._over = each.last
        self._id += 1
        return event(each.name, each.data, END if each.last else str(self._id))

    def close(self) -> None:
        self._call.cancel()


class EventStream(Response):
    """Sends what `source` gives until it ends, the client leaves, or the gateway stops; then `done`."""

    def __init__(
        self,
        source: Source,
        *,
        stopping: asyncio.Event,
        heartbeat_s: float,
        done: Callable[[], None],
        on_drop: Callable[[], None],
    ) -> None:
        self.status, self.reason, self.headers = 200, "", _HEADERS
        self._source: Source | None = source
        self._stopping = stopping
        self._heartbeat_s = heartbeat_s
        self._done = done
        self._on_drop = on_drop

    async def send(self, request: Request, send: Send) -> None:
        try:
            await self._serve(request.receive, Reader(request.scope, send))
        finally:
            self._close()
            self._done()

    def _close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    async def _serve(self, receive: Receive, send: Reader) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        stop = asyncio.ensure_future(self._stopping.wait())
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await self._relay(send, stop, gone)
            if not gone.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TooSlow:
            self._close()
            self._on_drop()
            await send.farewell(_error(problems.too_slow()))
        finally:
            stop.cancel()
            gone.cancel()

    async def _relay(self, send: Reader, stop: asyncio.Future[Any], gone: asyncio.Future[None]) -> None:
        assert self._source is not None
        try:
            while not gone.done():
                reading = asyncio.ensure_future(self._source.read())
                await self._wait(send, reading, stop, gone)
                if not reading.done():
                    reading.cancel()
                    break
                if not (block := reading.result()):
                    return
                await _send(send, block)
            broken = problems.stopping()
        except ProblemError as error:
            broken = error.problem
        except TooSlow:
            raise
        except Exception:
            log.exception("event stream failed")
            broken = problems.internal()
        if not gone.done():
            await _send(send, _error(broken))

    async def _wait(
        self, send: Reader, reading: asyncio.Future[Any], stop: asyncio.Future[Any], gone: asyncio.Future[None]
    ) -> None:
        """Until there is something to send, or no reason to wait for it."""
        waiting = {reading, stop, gone}
        while not (await asyncio.wait(waiting, timeout=self._heartbeat_s, return_when=asyncio.FIRST_COMPLETED))[0]:
            await _send(send, b": still here\n\n")


async def _send(send: Reader, block: bytes) -> None:
    await send({"type": "http.response.body", "body": block, "more_body": True})


def _error(body: Problem) -> bytes:
    return event("error", problems.encode(body))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
