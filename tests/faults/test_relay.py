"""The relay does to a link what it says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

from deploy.parts import LOOPBACK
from tests.faults.relay import Relay
from tests.mesh_processes import eventually

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]
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


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def relay(echo: Echo) -> AsyncIterator[Relay]:
    server = await asyncio.start_server(echo.serve, LOOPBACK, 0)
    relay = Relay(LOOPBACK, server.sockets[0].getsockname()[1])
    await relay.start()
    yield relay
    await relay.stop()
    server.close()
    await eventually(lambda: _connected(echo, 0), 5, "all connections end")


@pytest.fixture
async def connect(relay: Relay) -> AsyncIterator[Connect]:
    """Connects a new client; all are closed in the end."""
    writers: list[asyncio.StreamWriter] = []

    async def connected() -> Streams:
        streams = await asyncio.open_connection(LOOPBACK, relay.port)
        writers.append(streams[1])
        return streams

    yield connected
    for writer in writers:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def said(streams: Streams, line: bytes) -> bytes:
    """What comes back within five seconds."""
    streams[1].write(line)
    return await asyncio.wait_for(streams[0].readline(), 5)


async def test_it_passes_what_comes_either_way(relay: Relay, connect: Connect) -> None:
    streams = await connect()
    assert await said(streams, b"one\n") == b"one\n"


async def test_a_cut_resets_what_is_connected_and_what_comes_until_it_is_mended(relay: Relay, connect: Connect) -> None:
    streams = await connect()
    await said(streams, b"one\n")
    relay.cut()
    with pytest.raises(ConnectionResetError):
        await streams[0].readline()
    with pytest.raises(ConnectionResetError):
        await (await connect())[0].read()
    relay.mend()
    assert await said(await connect(), b"three\n") == b"three\n"


async def test_a_lost_reply_was_heard_by_the_server(relay: Relay, connect: Connect, echo: Echo) -> None:
    streams = await connect()
    relay.replies.shut()
    streams[1].write(b"one\n")
    await eventually(lambda: _heard(echo, b"one\n"), 5, "the request arrives")
    relay.cut()
    with pytest.raises(ConnectionResetError):
        await streams[0].readline()


async def _connected(echo: Echo, number: int) -> bool:
    return echo.connected == number


async def _heard(echo: Echo, line: bytes) -> bool:
    return line in echo.heard


async def test_what_a_hung_link_holds_goes_on_when_it_is_mended(relay: Relay, connect: Connect, echo: Echo) -> None:
    streams = await connect()
    await said(streams, b"one\n")
    relay.hang()
    streams[1].write(b"two\n")
    await asyncio.sleep(SOON_S)
    assert echo.heard == [b"one\n"]
    relay.mend()
    assert await asyncio.wait_for(streams[0].readline(), 5) == b"two\n"


async def test_a_late_request_arrives_although_its_client_is_gone_while_a_new_one_passes(
    relay: Relay, connect: Connect, echo: Echo
) -> None:
    streams = await connect()
    await said(streams, b"one\n")
    relay.requests.shut()
    streams[1].write(b"late\n")
    await asyncio.sleep(SOON_S)
    relay.detach()
    with pytest.raises(ConnectionResetError):
        await streams[0].readline()
    assert await said(await connect(), b"new\n") == b"new\n"
    assert echo.heard == [b"one\n", b"new\n"]
    relay.deliver()
    await eventually(lambda: _heard(echo, b"late\n"), 5, "the late one arrives")
    assert echo.connected == 2
    relay.forget()
    await eventually(lambda: _connected(echo, 1), 5, "its connection ends")
