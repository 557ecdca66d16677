"""More than the gateway serves: requests, streams, headers; and readers that stop."""

import asyncio
import itertools
from typing import Any

import httpx
import pytest

from gateway import reader, server
from mesh.errors import Refused
from mesh.model import ErrorReason
from tests.gateway.running import (
    CAR,
    SESSION_ID,
    Context,
    FakeBalancer,
    Message,
    a_session,
    eventually,
    gateway_before,
    served,
)
from tests.gateway.test_bad_requests import a_problem

# Hundreds of KB a moment: a window is full at once.
NEWS_WITHOUT_END: Any = itertools.repeat(a_session(vehicle_id="v" * 100_000))
EVENTS = f"/v1/charges/{SESSION_ID}/events"


async def test_beyond_the_bound_is_503_with_a_reason_and_a_delay_while_operators_get_through() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def waits(request: Message, context: Context) -> None:
        begun.set()
        await go.wait()

    fake = FakeBalancer(answers={"Charge": waits})
    async with served(fake) as port, gateway_before(port, fake, most=1) as gateway:
        first = asyncio.create_task(gateway.post(CAR))
        await begun.wait()
        refused = [
            await gateway.post(CAR, Idempotency_Key="mine"),
            await gateway.http.post("/v1/charges:batch", json=[CAR]),
            await gateway.http.get(f"/v1/charges/{SESSION_ID}"),
            await gateway.http.get("/v1/charges"),
        ]
        for reply in refused:
            a_problem(reply, 503, "OVERLOADED")
            assert int(reply.headers["retry-after"]) >= 1
        assert refused[0].headers["idempotency-key"] == "mine"
        assert len(fake.calls) == 1, "a refused request was sent"
        for path in ("/v1/substations/north/drain", f"/v1/charges/{SESSION_ID}/stop"):
            assert (await gateway.http.post(path)).status_code == 200
        limit = await gateway.http.put("/v1/substations/north/limits/so", json={"limit_kw": 50})
        assert limit.status_code == 200
        assert (await gateway.http.get("/readyz")).status_code == 200
        go.set()
        assert (await first).status_code == 201
        assert (await gateway.post(CAR)).status_code == 201


async def test_no_more_than_the_bound_wait_for_a_plug() -> None:
    free = asyncio.Event()
    fake = FakeBalancer()

    async def full(request: Message, context: Context) -> None:
        if not free.is_set():
            raise Refused(ErrorReason.NO_CHARGE_POINT, "every plug is taken", 1_000)

    fake.answers["Charge"] = full
    async with served(fake) as port, gateway_before(port, fake, most_waiting=1) as gateway:
        waits = asyncio.create_task(gateway.post(CAR, Prefer="wait=30"))

        async def tries_again() -> bool:
            return len(fake.calls) > 1

        await eventually(tries_again)
        refused = await gateway.post(CAR, Prefer="wait=30")
        a_problem(refused, 503, "NO_CHARGE_POINT")
        assert "preference-applied" not in refused.headers
        assert not waits.done()
        free.set()
        assert (await waits).status_code == 201


async def test_no_more_streams_than_the_bound_are_open() -> None:
    forever = asyncio.Event()

    async def hangs(request: Message, context: Context) -> None:
        await forever.wait()

    fake = FakeBalancer(answers={"WatchSession": hangs})
    async with served(fake) as port, gateway_before(port, fake, most=1) as gateway:
        async with gateway.http.stream("GET", EVENTS):
            a_problem(await gateway.http.get(EVENTS), 503, "OVERLOADED")
        async with asyncio.timeout(10):
            await fake.left.wait()
            while (await _status(gateway.http)) != 200:
                await asyncio.sleep(0.02)


async def _status(http: httpx.AsyncClient) -> int:
    async with http.stream("GET", EVENTS) as reply:
        return reply.status_code


async def test_a_reader_that_stops_and_goes_on_is_told_why_its_stream_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PATIENCE_S", 0.2)
    monkeypatch.setattr(reader, "FAREWELL_S", 10.0)
    fake = FakeBalancer(updates=NEWS_WITHOUT_END)
    async with asyncio.timeout(20), served(fake) as port, gateway_before(port, fake) as gateway:
        stream, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
        writer.write(f"GET {EVENTS} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        await fake.left.wait()
        read = b""
        while b"READER_TOO_SLOW" not in read:
            more = await stream.read(65_536)
            assert more, "the connection was ended without a word"
            read = read[-100:] + more
        writer.close()


async def test_a_reader_that_stops_for_good_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PATIENCE_S", 0.2)
    monkeypatch.setattr(reader, "FAREWELL_S", 0.1)
    fake = FakeBalancer(updates=NEWS_WITHOUT_END)
    async with asyncio.timeout(20), served(fake) as port, gateway_before(port, fake, most=1) as gateway:
        stream, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
        writer.write(f"GET {EVENTS} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        await fake.left.wait()
        assert gateway.registry.get_sample_value("http_event_streams_dropped_total") == 1
        fake.updates = [a_session()]
        while (await _status(gateway.http)) != 200:
            await asyncio.sleep(0.02)
        with pytest.raises(ConnectionResetError):
            await stream.read()
        writer.close()


async def test_large_bodies_are_bounded_in_number_and_small_ones_get_through() -> None:
    fake = FakeBalancer()
    async with asyncio.timeout(20), served(fake) as port, gateway_before(port, fake) as gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        head = "POST /v1/charges:batch HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
        writer.write(head.encode() + b" " * 200_000)
        while (reply := await gateway.http.post("/v1/charges:batch", content=b" " * 200_000)).status_code != 503:
            await asyncio.sleep(0.02)
        a_problem(reply, 503, "OVERLOADED")
        assert (await gateway.post(CAR)).status_code == 201
        writer.close()


async def test_connections_beyond_the_bound_are_refused_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server._Protocol, "_most", 1)
    fake = FakeBalancer()
    async with asyncio.timeout(20), served(fake) as port, gateway_before(port, fake) as gateway:
        assert (await gateway.http.get("/healthz")).status_code == 200
        stream, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        reply = await stream.read()
        assert reply.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in reply
        assert b"OVERLOADED" in reply
        assert (await gateway.http.get("/healthz")).status_code == 200
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nhost: "])
async def test_a_connection_that_never_says_what_it_wants_is_closed(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_HEAD_WITHIN_S", 0.2)
    fake = FakeBalancer()
    async with asyncio.timeout(20), served(fake) as port, gateway_before(port, fake) as gateway:
        stream, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(sent)
        assert await stream.read() == b""
        writer.close()


async def test_headers_beyond_64_kib_are_431() -> None:
    fake = FakeBalancer()
    async with asyncio.timeout(20), served(fake) as port, gateway_before(port, fake) as gateway:
        stream, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"x: " + b"y" * 70_000)
        reply = await stream.read()
        assert reply.startswith(b"HTTP/1.1 431 ")
        assert b"HEADERS_TOO_LARGE" in reply
        writer.close()
