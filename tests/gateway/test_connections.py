"""What goes over a connection: whole replies in one piece, one request after another, and the end of it."""

import asyncio
import contextlib
import json
import re
import socket

import pytest

from gateway import server
from gateway.asgi import ASGIApp, Receive, Scope, Send
from gridmesh.v1 import charging_pb2
from mesh.clock import SystemClock
from tests.gateway.running import CAR, SESSION_ID, Context, Gateway, Message, a_session

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
BODY = b'{"status":"ok"}'


async def all_said(gateway: Gateway, sent: bytes) -> bytes:
    """What comes until the gateway closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(10):
        writer.write(sent)
        said = await reader.read()
    writer.close()
    return said


async def test_pipelined_requests_are_answered_in_their_order(gateway: Gateway) -> None:
    missing = HEALTH.replace(b"healthz", b"nowhere")
    last = HEALTH.replace(b"host: x", b"connection: close")
    said = await all_said(gateway, HEALTH + missing + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"404", b"200"]
    assert said.endswith(BODY)


async def test_head_has_the_length_of_the_body_and_no_body(gateway: Gateway) -> None:
    for path in ("/healthz", f"/v1/charges/{SESSION_ID}", "/nowhere"):
        head, get = await gateway.http.head(path), await gateway.http.get(path)
        assert head.status_code == get.status_code
        assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))
        assert not head.content


@pytest.mark.parametrize(
    ("version", "header"),
    [
        (b"1.0", b"host: x"),
        (b"1.0", b"Connection: keep-alive"),
        (b"1.0", b"proxy-connection: keep-alive"),
        (b"1.1", b"connection: close"),
    ],
)
async def test_a_connection_that_is_not_kept_is_closed_after_the_reply(
    gateway: Gateway, version: bytes, header: bytes
) -> None:
    said = await all_said(gateway, HEALTH.replace(b"1.1", version).replace(b"host: x", header))
    assert b"connection: close" in said
    assert said.endswith(b"\r\n\r\n" + BODY)


async def test_a_body_that_comes_after_its_head_is_waited_for(gateway: Gateway) -> None:
    body = b'{"vehicle_id": "a", "max_power_kw": 11}'
    head = (
        b"POST /v1/charges HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n"
        b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(10):
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 201 Created\r\n")
    writer.close()


async def test_a_body_that_comes_in_parts_behind_another_request_is_read_to_its_end(gateway: Gateway) -> None:
    body = b'{"vehicle_id": "a", "max_power_kw": 11}'
    said_of_it = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    post = b"POST /v1/charges HTTP/1.1\r\nhost: x\r\n" + said_of_it
    first, second = post + b"\r\n" + body, post + b"connection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(10):
        for part in (first + second + body[:7], body[7:20], body[20:]):
            writer.write(part)
            await asyncio.sleep(0.05)  # or they may come as one
        said = await reader.read()
    writer.close()
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"201", b"201"]
    assert [each.vehicle_id for each in gateway.fake.calls] == ["a", "a"]


async def test_a_trailer_is_no_header(gateway: Gateway) -> None:
    body = b'{"vehicle_id": "a", "max_power_kw": 11}'
    post = (
        b"POST /v1/charges HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nidempotency-key: late\r\n\r\n" % (len(body), body)
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(10):
        writer.write(post)
        assert (await reader.read()).startswith(b"HTTP/1.1 201")
    writer.close()
    assert [each.request_id == "late" for each in gateway.fake.calls] == [False]


async def test_a_header_that_would_be_two_is_not_sent(gateway: Gateway) -> None:
    async def smuggles(request: Message, context: Context) -> Message:
        return charging_pb2.ChargeResponse(session=a_session(session_id="north.x\r\nset-cookie: a"))

    gateway.fake.answers["Charge"] = smuggles
    reply = await gateway.post(CAR)
    assert reply.status_code == 500
    assert "set-cookie" not in reply.headers


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """No reply at all."""


async def _fails(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError


async def _half(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})


@pytest.mark.parametrize(("app", "status"), [(_nothing, b"500"), (_fails, b"500"), (_half, b"200")])
async def test_where_a_reply_breaks_off_the_connection_ends_and_no_stop_waits_for_it(
    app: ASGIApp, status: bytes
) -> None:
    listener, stopping = server.bind("127.0.0.1", 0), asyncio.Event()
    serving = asyncio.create_task(server.serve(app, listener, stopping, 60.0, SystemClock()))
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(HEALTH)
        assert (await reader.read()).startswith(b"HTTP/1.1 " + status)
        writer.close()
        stopping.set()
        await serving


class _Noon:
    """A clock that its machine's has left behind."""

    def now_ms(self) -> int:
        return 1_764_590_400_000


async def test_a_reply_says_the_time_that_attempts_are_named_by() -> None:
    listener, stopping = server.bind("127.0.0.1", 0), asyncio.Event()
    serving = asyncio.create_task(server.serve(_half, listener, stopping, 60.0, _Noon()))
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(HEALTH)
        assert b"\r\ndate: Mon, 01 Dec 2025 12:00:00 GMT\r\n" in await reader.read()
        writer.close()
        stopping.set()
        await serving


async def test_a_connection_is_closed_when_it_is_idle_and_not_while_it_is_served(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_KEEP_ALIVE_S", 0.5)  # this test, too, must ask again within it

    async def longer_than_idle(request: Message, context: Context) -> Message:
        await asyncio.sleep(0.7)
        return charging_pb2.GetSessionResponse(session=a_session())

    gateway.fake.answers["GetSession"] = longer_than_idle
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(10):
        writer.write(HEALTH)
        await reader.readuntil(BODY)
        writer.write(HEALTH.replace(b"/healthz", f"/v1/charges/{SESSION_ID}".encode()))
        served = await reader.read()
    writer.close()
    assert served.startswith(b"HTTP/1.1 200")
    assert b"connection: close" not in served


@pytest.mark.parametrize("more", [b"\r\n", b"{"])
async def test_what_begins_no_request_keeps_no_connection(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    monkeypatch.setattr(server, "_KEEP_ALIVE_S", 0.3)
    length = b"content-length: 9\r\n\r\n" if more == b"{" else b"\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(10):
        writer.write(b"POST /nowhere HTTP/1.1\r\nhost: x\r\n" + length)  # answered before its body has come
        await reader.readuntil(b'PATH_NOT_FOUND"}')
        writer.write(more)
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("pieces", [1, 2, 1000])
async def test_who_offers_another_protocol_is_answered_in_this_one(gateway: Gateway, pieces: int) -> None:
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n"
    body = json.dumps(CAR).encode()
    plain = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    chunked = b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (
        len(body),
        body,
    )
    charge = b"POST /v1/charges HTTP/1.1\r\nhost: x\r\n" + offer
    read = HEALTH.replace(b"host: x\r\n", b"host: x\r\n" + offer)
    sent = charge + plain + read + charge + chunked + HEALTH.replace(b"host: x", b"connection: close")
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(10):
        for start in range(0, len(sent), step := -(-len(sent) // pieces)):
            writer.write(sent[start : start + step])
            await asyncio.sleep(0.001)
        said = await reader.read()
    writer.close()
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"201", b"200", b"201", b"200"]
    assert len(gateway.fake.calls) == 2


@pytest.mark.parametrize(("requests", "header"), [(1, b"host: x"), (3, b"host: x"), (1, b"connection: close")])
async def test_a_client_that_does_not_read_its_reply_is_given_up(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, requests: int, header: bytes
) -> None:
    monkeypatch.setattr(server, "_KEEP_ALIVE_S", 0.2)
    given_up, lost = asyncio.Event(), server._Protocol.connection_lost

    def connection_lost(self: server._Protocol, exc: Exception | None) -> None:
        lost(self, exc)
        given_up.set()

    monkeypatch.setattr(server._Protocol, "connection_lost", connection_lost)
    many = [a_session(evse_id="x" * 3_900)] * 1_000  # more than the kernel holds

    async def lists(request: Message, context: Context) -> Message:
        return charging_pb2.ListSessionsResponse(sessions=many)

    gateway.fake.answers["ListSessions"] = lists
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", gateway.port))
        client.sendall(HEALTH.replace(b"/healthz", b"/v1/charges").replace(b"host: x", header) * requests)
        async with asyncio.timeout(10):
            await given_up.wait()  # the client itself hears of it when it reads on
        client.settimeout(1)
        said = 0
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(65536):
                said += len(part)
    assert said < 3_900_000
