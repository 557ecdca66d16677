"""Event streams: state on every change, a comment in silence, and always a last event."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from typing import Any

import grpc
import pytest

from gridmesh.v1 import charging_pb2
from mesh.errors import NotFound, Unavailable
from mesh.model import ErrorReason
from tests.gateway.running import (
    SESSION_ID,
    Answer,
    Context,
    FakeBalancer,
    Gateway,
    Message,
    a_session,
    aborts,
    eventually,
    fails,
    gateway_before,
    hangs,
    served,
)
from tests.gateway.test_bad_requests import a_problem

PATH = f"/v1/charges/{SESSION_ID}/events"
ENDED = charging_pb2.SESSION_STATE_ENDED


async def events(gateway: Gateway, path: str = PATH, **headers: str) -> AsyncIterator[tuple[str, str, Any]]:
    """Name, id and data of each event; all empty for a comment."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with asyncio.timeout(10), gateway.http.stream("GET", path, headers=named) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-store"
        fields: dict[str, str] = {}
        async for line in reply.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                yield fields.get("event", ""), fields.get("id", ""), json.loads(fields.get("data", "null"))
                fields = {}


async def test_a_session_is_streamed_until_it_ends(gateway: Gateway) -> None:
    end = a_session(state=ENDED, stop_reason=charging_pb2.STOP_REASON_REMOTE)
    heard: asyncio.Queue[None] = asyncio.Queue()

    async def rest(request: Message, context: Context) -> AsyncIterator[Message]:
        for update in (a_session(delivered_kwh=1.5), end):
            await heard.get()  # of two that come together only the later one is told
            yield charging_pb2.WatchSessionResponse(session=update)

    gateway.fake.streams["WatchSession"] = rest
    found = []
    async for event in events(gateway):
        found.append(event)
        heard.put_nowait(None)
    assert [(name, at) for name, at, _ in found] == [
        ("session", "1"),
        ("session", "2"),
        ("session", "3"),
        ("end", "end"),
    ]
    assert [data["delivered_kwh"] for _, _, data in found[:3]] == [0.0, 1.5, 0.0]
    assert found[2][2]["state"] == "ENDED"
    assert found[3][2] == {"session_id": SESSION_ID, "stop_reason": "REMOTE"}
    await asyncio.wait_for(gateway.fake.left.wait(), 5)


async def test_ids_go_on_from_the_last_one_seen(gateway: Gateway) -> None:
    gateway.fake.updates = [a_session(state=ENDED)]
    assert [at async for _, at, _ in events(gateway, Last_Event_ID="41")] == ["42", "end"]
    assert [at async for _, at, _ in events(gateway, Last_Event_ID="x")] == ["1", "end"]


async def test_who_comes_again_after_the_end_is_told_not_to(gateway: Gateway) -> None:
    reply = await gateway.http.get(PATH, headers={"Last-Event-ID": "end"})
    assert (reply.status_code, reply.content, reply.headers.get("content-length")) == (204, b"", None)
    assert not gateway.fake.calls


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (NotFound(ErrorReason.SESSION_NOT_FOUND, "no such session"), 404, "SESSION_NOT_FOUND"),
        (Unavailable(ErrorReason.SUBSTATION_UNREACHABLE, "gone", 1000), 503, "SUBSTATION_UNREACHABLE"),
    ],
)
async def test_what_fails_before_the_first_event_is_a_plain_problem(
    gateway: Gateway, error: Exception, status: int, reason: str
) -> None:
    gateway.fake.answers["before WatchSession"] = fails(error)
    a_problem(await gateway.http.get(PATH), status, reason)


async def test_a_stream_that_never_begins_is_504() -> None:
    fake = FakeBalancer(answers={"before WatchSession": hangs})
    async with served(fake) as port, gateway_before(port, fake, timeout_s=0.5) as gateway:
        await gateway.connected()
        a_problem(await gateway.http.get(PATH), 504, "DEADLINE_EXCEEDED")
        await asyncio.wait_for(fake.left.wait(), 5)


async def test_a_stream_that_ends_at_once_is_503(gateway: Gateway) -> None:
    gateway.fake.updates = []
    a_problem(await gateway.http.get(PATH), 503, "STREAM_BROKEN")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (fails(Unavailable(ErrorReason.SUBSTATION_UNREACHABLE, "gone", 1000)), "SUBSTATION_UNREACHABLE"),
        (fails(ZeroDivisionError()), "INTERNAL"),
        (aborts(grpc.StatusCode.UNAVAILABLE), "BALANCER_UNREACHABLE"),
        (aborts(grpc.StatusCode.DATA_LOSS), "INTERNAL"),
        (None, "STREAM_BROKEN"),
    ],
)
async def test_a_stream_that_breaks_ends_with_an_error_event(
    gateway: Gateway, answer: Answer | None, reason: str
) -> None:
    if answer:
        gateway.fake.answers["WatchSession"] = answer
    found = [event async for event in events(gateway)]
    assert [name for name, _, _ in found] == ["session", "error"]
    assert found[1][1] == "", "an id would be taken for one to go on from"
    assert found[1][2]["reason"] == reason
    assert found[1][2]["type"] == f"urn:gridmesh:problem:{reason}"


async def test_a_balancer_that_dies_ends_the_stream_with_an_error_event() -> None:
    fake = FakeBalancer(answers={"WatchSession": hangs})
    async with AsyncExitStack() as balancer:
        port = await balancer.enter_async_context(served(fake))
        async with gateway_before(port, fake) as gateway:
            found = []
            async for event in events(gateway):
                found.append(event)
                await balancer.aclose()
            assert [name for name, _, _ in found] == ["session", "error"]


async def test_silence_is_filled_with_comments() -> None:
    fake = FakeBalancer(answers={"WatchSession": hangs})
    async with served(fake) as port, gateway_before(port, fake, heartbeat_s=0.05) as gateway:
        found = []
        async for event in events(gateway):
            found.append(event)
            if len(found) == 4:
                break
        assert [name for name, _, _ in found] == ["session", "", "", ""]


async def test_a_client_that_leaves_ends_the_stream_to_the_balancer(gateway: Gateway) -> None:
    gateway.fake.answers["WatchSession"] = hangs
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(f"GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    await reader.readuntil(b"event: session")
    assert not gateway.fake.left.is_set()
    writer.close()
    await asyncio.wait_for(gateway.fake.left.wait(), 5)


async def test_a_client_that_leaves_with_a_request_behind_its_stream_ends_it_without_an_error(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.fake.answers["WatchSession"] = hangs
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(f"GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    await reader.readuntil(b"event: session")
    writer.close()
    await asyncio.wait_for(gateway.fake.left.wait(), 5)

    async def over() -> bool:
        return not any(task.get_name() == "request" for task in asyncio.all_tasks())

    await eventually(over)
    assert "error" not in capsys.readouterr().out


async def test_a_client_of_http_1_0_is_sent_no_chunks(gateway: Gateway) -> None:
    gateway.fake.updates = [a_session(), a_session(state=ENDED)]
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(f"GET {PATH} HTTP/1.0\r\n\r\n".encode())
    async with asyncio.timeout(5):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b"transfer-encoding" not in head
    assert body.startswith(b"event: session\n")
    assert body.endswith(b"\n\n")
    assert b"\r" not in body
    assert body.count(b"event: ") == 3


async def test_a_gateway_that_stops_says_so_on_its_streams_and_is_gone_soon(gateway: Gateway) -> None:
    gateway.fake.answers["WatchSession"] = hangs
    found = []
    async for event in events(gateway):
        found.append(event)
        gateway.stopping.set()
    assert [name for name, _, _ in found] == ["session", "error"]
    assert found[1][2]["reason"] == "GATEWAY_STOPPING"
    await asyncio.wait_for(gateway.serving, 1)


async def test_a_stopped_reader_does_not_hold_up_the_stop() -> None:
    began = asyncio.Event()

    async def begins(request: Message, context: Context) -> None:
        began.set()

    fake = FakeBalancer(
        updates=[a_session(vehicle_id="v" * 100_000) for _ in range(200)],
        answers={"before WatchSession": begins, "WatchSession": hangs},
    )
    async with served(fake) as port, gateway_before(port, fake) as gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
        with closing(writer):
            writer.write(f"GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            await writer.drain()
            await began.wait()
            gateway.stopping.set()
            await asyncio.wait_for(gateway.serving, 5)


async def test_substations_are_streamed(gateway: Gateway) -> None:
    found = [event async for event in events(gateway, "/v1/substations/events")]
    assert [name for name, _, _ in found] == ["substations", "error"]
    listed = (await gateway.http.get("/v1/substations")).json()
    assert found[0][2] == listed
