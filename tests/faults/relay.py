"""One link between two processes, through which the harness can do what networks do.

    client <---> relay <---> server

Each way is a gate: open, shut (what comes is held, as on a half-open connection, and goes on when it opens), or
slow. `cut` resets what is connected and refuses what comes. `detach` is the rarest: the client sees its connection
break while the server still gets, later, what the client had sent.
"""

import asyncio
import socket
import struct
from collections import deque
from dataclasses import dataclass, field

from deploy.parts import LOOPBACK

CHUNK = 65_536
# Closing with a linger of zero seconds sends RST, as a host that crashed does.
_RESET = struct.pack("ii", 1, 0)


class Gate:
    """One way of a link. Shared by its connections."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        # Seconds that each chunk takes.
        self.delay_s = 0.0

    def open(self) -> None:
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    async def passed(self) -> None:
        await self._open.wait()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
            await self._open.wait()


@dataclass(eq=False)
class _Way:
    """What one connection has read in one direction and not written yet."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    gate: Gate
    held: deque[bytes] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    async def pump(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read())
            group.create_task(self._write())

    async def _read(self) -> None:
        try:
            while chunk := await self.reader.read(CHUNK):
                self.held.append(chunk)
                self.news.set()
        except OSError:
            pass
        self.ended = True
        self.news.set()

    async def _write(self) -> None:
        try:
            while self.held or not self.ended:
                if not self.held:
                    self.news.clear()
                    await self.news.wait()
                    continue
                await self.gate.passed()
                chunk = self.held.popleft()
                # To a side that is gone nothing is written, and the other one is not told.
                if not self.writer.is_closing():
                    self.writer.write(chunk)
                    await self.writer.drain()
        except OSError:
            pass


class _Connection:
    """A client's connection and the server's that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, up: _Way, down: _Way) -> None:
        self.client, self.server, self.up, self.down = client, server, up, down
        # Its client is gone; what it had sent may still be delivered.
        self.detached = False

    async def run(self) -> None:
        """Until either side ends; the client's end counts for nothing once it is detached."""
        ways = [asyncio.create_task(self.up.pump()), asyncio.create_task(self.down.pump())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if self.detached:
                # The server must find its connection open when it handles what comes late.
                await asyncio.wait(ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self.server.close()
            self.client.close()

    def reset(self) -> None:
        for writer in (self.client, self.server):
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and not writer.is_closing():
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


class Relay:
    """A link to host:port. `address` is where clients connect; it stays the same whatever is done to the link."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._late: dict[_Connection, Gate] = {}
        self._cut = False
        self.requests, self.replies = Gate(), Gate()
        self.port = 0

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._reset_all()
        await asyncio.sleep(0)

    # --- what can be done to it ----------------------------------------------------------------------

    def mend(self) -> None:
        """As good as new. What was held goes on."""
        self._cut = False
        for gate in (self.requests, self.replies):
            gate.delay_s = 0.0
            gate.open()

    def cut(self) -> None:
        """Resets all connections and those that come, and loses what was held."""
        self._cut = True
        self._reset_all()

    def hang(self) -> None:
        """Half-open: everything is accepted and nothing goes through."""
        self.requests.shut()
        self.replies.shut()

    def slow(self, seconds: float) -> None:
        """Each chunk takes so long, either way."""
        self.requests.delay_s = self.replies.delay_s = seconds

    def detach(self) -> None:
        """After `requests.shut()`: clients see a reset; what they sent is kept for `deliver`. New ones pass."""
        gate, self.requests = self.requests, Gate()
        for connection in list(self._connections):
            connection.detached = True
            self._late[connection] = gate
            _reset(connection.client)

    @property
    def held_bytes(self) -> int:
        """Of requests, those of detached clients included."""
        return sum(len(chunk) for connection in self._connections for chunk in connection.up.held)

    def deliver(self) -> None:
        """What detached clients had sent arrives now."""
        for gate in self._late.values():
            gate.open()

    def forget(self) -> None:
        """Ends the connections of detached clients on the server's side too."""
        for connection in list(self._late):
            connection.reset()
        self._late.clear()

    # --- connections ---------------------------------------------------------------------------------

    def _reset_all(self) -> None:
        for connection in list(self._connections):
            connection.reset()

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        far = None if self._cut else await self._open_far()
        if far is None:
            _reset(client)
            return
        answers, server = far
        up, down = _Way(reader, server, self.requests), _Way(answers, client, self.replies)
        connection = _Connection(client, server, up, down)
        self._connections.add(connection)
        # It may have been cut while the far side was being reached.
        if self._cut:
            connection.reset()
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._late.pop(connection, None)

    async def _open_far(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            return await asyncio.open_connection(*self._target)
        except OSError:
            return None
