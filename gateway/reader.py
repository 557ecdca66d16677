"""The client of an event stream, which may read slowly or stop: it is given so long, and not fed from memory."""

import asyncio
import socket
import struct

import structlog

from gateway.asgi import CONNECTION, Message, Scope, Send

log = structlog.get_logger()

# A reader for whom nothing could be written for so long is given up, and has so long to hear why.
PATIENCE_S = 5.0
FAREWELL_S = 1.0


class TooSlow(Exception):
    """The client has not read for too long."""


class Reader:
    """Sends as ASGI's `send` does, but waits no longer than that for the client to read."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._transport: asyncio.WriteTransport = scope["extensions"][CONNECTION]["transport"]
        # What the socket does not take at once is waited for: one message and no more is held here.
        self._transport.set_write_buffer_limits(high=0)

    async def __call__(self, message: Message) -> None:
        """TooSlow when the client did not read for as long as that."""
        await self._within(PATIENCE_S, message)

    async def _within(self, patience_s: float, message: Message) -> None:
        try:
            async with asyncio.timeout(patience_s):
                await self._send(message)
        except TimeoutError:
            raise TooSlow from None

    async def farewell(self, last: bytes) -> None:
        """A last event for a client that goes on reading just now; for any other the connection ends without it."""
        log.warning(
            "event stream ended: its reader is too slow", path=self._scope["path"], client=self._scope["client"]
        )
        message = {"type": "http.response.body", "body": last, "more_body": False}
        try:
            await self._within(FAREWELL_S, message)
        except TooSlow:
            self._cut_off()
            await self._send(message)  # goes nowhere: returns when uvicorn has seen the end of the connection

    def _cut_off(self) -> None:
        """A plain close would wait, here and then in the kernel, until what is in the buffers has been read."""
        linger = struct.pack("ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()
