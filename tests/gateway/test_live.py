"""The grid's events: what was placed and refused, told to all who watch, from one stream of the balancer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway import live, reader
from gridmesh.v1 import operations_pb2
from mesh.clock import seconds
from mesh.errors import InvalidRequest, Refused, Unavailable, Violation
from mesh.model import ErrorReason
from tests.gateway.running import (
    CAR,
    Context,
    FakeBalancer,
    Gateway,
    Message,
    a_substation,
    eventually,
    fails,
    gateway_before,
    hangs,
    served,
)
from tests.gateway.test_bad_requests import a_problem
from tests.gateway.test_events import events

GRID = "/v1/events"


@pytest.fixture
def gateway(gateway: Gateway) -> Gateway:
    """Its load view does not end."""
    gateway.fake.answers["WatchSubstations"] = hangs
    return gateway


async def told(gateway: Gateway, count: int, last_event_id: str = "") -> list[tuple[str, str, Any]]:
    """The first so many events that are no load view."""
    found = []
    headers = {"Last_Event_ID": last_event_id} if last_event_id else {}
    async for event in events(gateway, GRID, **headers):
        found += [event] if event[0] != "substations" else []
        if len(found) == count:
            break
    return found


async def test_it_begins_with_the_load_view_which_has_no_id(gateway: Gateway) -> None:
    async for name, at, data in events(gateway, GRID):
        assert (name, at) == ("substations", "")
        assert data == (await gateway.http.get("/v1/substations")).json()
        break


async def test_a_placement_says_which_car_and_why_there(gateway: Gateway) -> None:
    session = (await gateway.post(CAR, Idempotency_Key="mine")).json()["session"]
    await gateway.http.post("/v1/charges:batch", json=[{**CAR, "request_id": "of a batch"}])
    (name, _, data), (_, _, of_batch) = await told(gateway, 2)
    assert name == "placed"
    assert data["session_id"] == session["session_id"]
    assert (data["request_id"], data["vehicle_id"]) == ("mine", "EV-001")
    assert (data["placement"]["substation_id"], data["placement"]["eligible"]) == ("north", 3)
    assert of_batch["request_id"] == "of a batch"


@pytest.mark.parametrize(
    ("error", "name", "reason"),
    [
        (Refused(ErrorReason.NO_CHARGE_POINT, "full", 2000), "refused", "NO_CHARGE_POINT"),
        (Unavailable(ErrorReason.OUTCOME_UNKNOWN, "gone", 1000), "in_doubt", "OUTCOME_UNKNOWN"),
    ],
)
async def test_a_refusal_says_why_and_what_is_in_doubt_is_none(
    gateway: Gateway, error: Exception, name: str, reason: str
) -> None:
    gateway.fake.answers["Charge"] = fails(error)
    await gateway.post(CAR, Idempotency_Key="mine")
    ((found, _, data),) = await told(gateway, 1)
    assert (found, data["request_id"], data["vehicle_id"]) == (name, "mine", "EV-001")
    assert data["problem"]["reason"] == reason


async def test_neither_a_repeat_nor_a_mistake_of_a_client_is_news(gateway: Gateway) -> None:
    async def repeated(request: Message, context: Context) -> Message:
        answer = gateway.fake.admit(request)
        answer.repeated = True
        return answer

    gateway.fake.answers["Charge"] = repeated
    assert (await gateway.post(CAR)).status_code == 200
    gateway.fake.answers["Charge"] = fails(InvalidRequest(Violation("phases", "must be 1 or 3")))
    assert (await gateway.post(CAR)).status_code == 400
    del gateway.fake.answers["Charge"]
    await gateway.post(CAR, Idempotency_Key="new")
    ((_, _, data),) = await told(gateway, 1)
    assert data["request_id"] == "new"


async def test_who_comes_again_is_told_what_came_after_and_nothing_twice(gateway: Gateway) -> None:
    for key in ("one", "two", "three"):
        await gateway.post(CAR, Idempotency_Key=key)
    first, *_ = await told(gateway, 3)
    again = await told(gateway, 2, first[1])
    assert [data["request_id"] for _, _, data in again] == ["two", "three"]


async def test_who_comes_from_another_gateway_is_told_of_the_gap(gateway: Gateway) -> None:
    await gateway.post(CAR)
    assert [name for name, _, _ in await told(gateway, 2, "18c0ffee-12")] == ["gap", "placed"]


async def test_all_who_watch_share_one_stream_that_ends_with_the_last_of_them() -> None:
    begun, ended = 0, asyncio.Event()

    async def watched(request: Message, context: Context) -> None:
        nonlocal begun
        begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    fake = FakeBalancer(answers={"WatchSubstations": watched})
    async with served(fake) as port, gateway_before(port, fake) as gateway, AsyncExitStack() as watching:
        paths = [GRID, GRID, "/v1/substations/events"]
        streams = [events(gateway, path) for path in paths]
        for stream in streams:
            assert (await anext(stream))[0] == "substations"
        assert begun == 1
        watching.push_async_callback(streams[2].aclose)  # type: ignore[attr-defined]  # an async generator
        for stream in streams[:2]:
            await stream.aclose()  # type: ignore[attr-defined]
        await gateway.post(CAR)
        assert not ended.is_set()
        await watching.aclose()
        await asyncio.wait_for(ended.wait(), 5)
        assert (await anext(events(gateway, GRID)))[0] == "substations"


async def test_a_view_that_breaks_ends_all_streams_and_the_next_to_come_opens_another(gateway: Gateway) -> None:
    broken = asyncio.Event()

    async def breaks(request: Message, context: Context) -> None:
        await broken.wait()

    gateway.fake.answers["WatchSubstations"] = breaks
    streams = [events(gateway, path) for path in (GRID, "/v1/substations/events")]
    for stream in streams:
        await anext(stream)
    broken.set()
    for stream in streams:
        name, at, data = await anext(stream)
        assert (name, at, data["reason"]) == ("error", "", "STREAM_BROKEN")
    broken.clear()
    assert (await anext(events(gateway, GRID)))[0] == "substations"


async def test_without_a_balancer_it_is_a_plain_problem() -> None:
    fake = FakeBalancer()
    async with served(fake) as port:
        pass
    async with gateway_before(port, fake, timeout_s=1.0) as gateway:
        a_problem(await gateway.http.get(GRID), 503, "BALANCER_UNREACHABLE")


async def test_a_charge_that_found_no_balancer_was_refused_and_is_not_in_doubt() -> None:
    fake = FakeBalancer(answers={"WatchSubstations": hangs})
    async with served(fake) as port:
        pass
    async with gateway_before(port, fake, timeout_s=1.0) as gateway:
        a_problem(await gateway.post(CAR), 503, "BALANCER_UNREACHABLE")

        async def watched() -> bool:
            return (await gateway.http.get("/v1/substations")).status_code == 200

        async with served(fake, port):
            await eventually(watched)
            ((name, _, data),) = await told(gateway, 1)
    assert (name, data["problem"]["reason"]) == ("refused", "BALANCER_UNREACHABLE")


async def test_states_that_come_close_together_are_one(gateway: Gateway) -> None:
    async def quick(request: Message, context: Context) -> AsyncIterator[Message]:
        for number in range(1000):
            substation = operations_pb2.Substation(substation_id=f"s{number}")
            yield operations_pb2.WatchSubstationsResponse(substations=[substation])
        await asyncio.Event().wait()

    del gateway.fake.answers["WatchSubstations"]
    gateway.fake.streams["WatchSubstations"] = quick
    seen, began = [], seconds()
    async for _, _, data in events(gateway, "/v1/substations/events"):
        seen.append(data["substations"][0]["substation_id"])
        if seen[-1] == "s999":
            break
    assert len(seen) <= 2 + (seconds() - began) / live.GATHER_S


async def test_a_watcher_that_stops_reading_is_dropped_and_holds_up_nobody(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PATIENCE_S", 1.0)  # also of the one that reads, on a busy machine
    monkeypatch.setattr(reader, "FAREWELL_S", 0.1)
    gateway.fake.substations = [a_substation(address="x" * 100_000)]

    async def news(request: Message, context: Context) -> AsyncIterator[Message]:
        while True:
            yield operations_pb2.WatchSubstationsResponse(substations=gateway.fake.substations)
            await asyncio.sleep(0.01)

    del gateway.fake.answers["WatchSubstations"]
    gateway.fake.streams["WatchSubstations"] = news
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
    writer.write(f"GET {GRID} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    watching = events(gateway, GRID)
    while not gateway.registry.get_sample_value("http_event_streams_dropped_total"):
        assert (await anext(watching))[0] == "substations"
    assert (await anext(watching))[0] == "substations"
    writer.close()
