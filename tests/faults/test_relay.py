"""The relay does to a link what it says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from deploy.parts import LOOPBACK
from tests.faults.relay import Relay
from tests.mesh_processes import eventually

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Run = Callable[[Coroutine[Any, Any, None]], None]
SOON_S = 0.05


class Echo:
    """A server that answers each line with itself, and remembers what came."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.connected = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        try:
            while line := await reader.readline():
                self.heard.append(line)
                writer.write(line)
        except OSError:
            pass
        finally:
            self.connected -= 1
            writer.close()


@dataclass
class Link:
    """A relay before an echo, and clients that are closed in the end."""

    relay: Relay
    echo: Echo
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> Streams:
        streams = await asyncio.open_connection(LOOPBACK, self.relay.port)
        self.writers.append(streams[1])
        return streams

    async def close(self) -> None:
        await self.relay.stop()
        for writer in self.writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def a_link() -> AsyncIterator[Link]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, LOOPBACK, 0)
    link = Link(Relay(LOOPBACK, server.sockets[0].getsockname()[1]), echo)
    await link.relay.start()
    yield link
    await link.close()
    server.close()
    await eventually(lambda: _connected(echo, 0), 5, "all connections end")


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    async with a_link() as link:
        yield link


async def said(streams: Streams, line: bytes) -> bytes:
    """What comes back within five seconds."""
    streams[1].write(line)
    return await asyncio.wait_for(streams[0].readline(), 5)


async def test_it_passes_what_comes_either_way(link: Link) -> None:
    streams = await link.connect()
    assert await said(streams, b"one\n") == b"one\n"


async def test_a_cut_resets_what_is_connected_and_what_comes_until_it_is_mended(link: Link) -> None:
    streams = await link.connect()
    await said(streams, b"one\n")
    link.relay.cut()
    with pytest.raises(ConnectionResetError):
        await streams[0].readline()
    with pytest.raises(ConnectionResetError):
        await (await link.connect())[0].read()
    link.relay.mend()
    assert await said(await link.connect(), b"three\n") == b"three\n"


async def test_a_lost_reply_was_heard_by_the_server(link: Link) -> None:
    streams = await link.connect()
    link.relay.replies.shut()
    streams[1].write(b"one\n")
    await eventually(lambda: _heard(link.echo, b"one\n"), 5, "the request arrives")
    link.relay.cut()
    with pytest.raises(ConnectionResetError):
        await streams[0].readline()


async def _connected(echo: Echo, number: int) -> bool:
    return echo.connected == number


async def _heard(echo: Echo, line: bytes) -> bool:
    return line in echo.heard


async def test_what_a_hung_link_holds_goes_on_when_it_is_mended(link: Link) -> None:
    streams = await link.connect()
    await said(streams, b"one\n")
    link.relay.hang()
    streams[1].write(b"two\n")
    await asyncio.sleep(SOON_S)
    assert link.echo.heard == [b"one\n"]
    link.relay.mend()
    assert await asyncio.wait_for(streams[0].readline(), 5) == b"two\n"


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_late_request_arrives_although_its_client_is_gone_while_a_new_one_passes(run: Run) -> None:
    """Loops differ in how they treat a connection that is gone; the harness runs on uvloop."""
    run(_late())


async def _late() -> None:
    async with a_link() as link:
        streams = await link.connect()
        await said(streams, b"one\n")
        link.relay.requests.shut()
        streams[1].write(b"late\n")
        await eventually(lambda: _holds(link.relay, 5), 5, "it is held")
        link.relay.detach()
        with pytest.raises(ConnectionResetError):
            await streams[0].readline()
        assert await said(await link.connect(), b"new\n") == b"new\n"
        assert link.echo.heard == [b"one\n", b"new\n"]
        link.relay.deliver()
        await eventually(lambda: _heard(link.echo, b"late\n"), 5, "the late one arrives")
        assert link.echo.connected == 2
        link.relay.forget()
        await eventually(lambda: _connected(link.echo, 1), 5, "its connection ends")


async def _holds(relay: Relay, size: int) -> bool:
    return relay.held_bytes == size
