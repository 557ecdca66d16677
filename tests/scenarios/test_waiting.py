"""`Prefer: wait=N` on a full grid: served in order when a session ends, or refused; who leaves is not charged."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest

from gridmesh.v1 import charging_pb2, charging_pb2_grpc
from tests.conftest import StartMesh
from tests.mesh_processes import Mesh, eventually
from tests.scenarios.asking import CAR, new_key

# One plug each.
SUBSTATIONS = ("a", "b")
WAIT_30 = {"Prefer": "wait=30"}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("mesh"), rated_kw=(100.0, 100.0), charge_points=1, time_scale=1) as running:
        yield running.start()


@pytest.fixture
async def http(mesh: Mesh) -> AsyncIterator[httpx.AsyncClient]:
    """A client, and an empty grid."""
    async with httpx.AsyncClient(base_url=mesh.url, timeout=60, trust_env=False) as client:
        await emptied(client)
        yield client
        await emptied(client)


async def sessions(http: httpx.AsyncClient) -> dict[str, str]:
    """Keys of live sessions, and their ids."""
    found = (await http.get("/v1/charges")).json()["sessions"]
    return {session["request_id"]: session["session_id"] for session in found}


async def emptied(http: httpx.AsyncClient) -> None:
    for session_id in (await sessions(http)).values():
        await http.post(f"/v1/charges/{session_id}/stop")

    async def both_are_free() -> bool:
        listed = (await http.get("/v1/substations")).json()["substations"]
        return all(each["report"]["free_charge_points"] == 1 for each in listed)

    await eventually(both_are_free, 10, "both plugs are free")


async def charge(http: httpx.AsyncClient, key: str, *only: str, **headers: str) -> httpx.Response:
    car = {**CAR, "allowed_substation_ids": list(only)}
    return await http.post("/v1/charges", json=car, headers={"Idempotency-Key": key, **headers})


async def stop(http: httpx.AsyncClient, key: str) -> None:
    reply = await http.post(f"/v1/charges/{(await sessions(http))[key]}/stop")
    assert reply.status_code == 200


async def filled(http: httpx.AsyncClient) -> dict[str, str]:
    """The key of the session at each substation."""
    keys = {substation: new_key() for substation in SUBSTATIONS}
    for substation, key in keys.items():
        assert (await charge(http, key, substation)).status_code == 201
    return keys


@asynccontextmanager
async def in_line(
    mesh: Mesh, http: httpx.AsyncClient, *keys: str, only: tuple[str, ...] = ()
) -> AsyncIterator[list["asyncio.Task[httpx.Response]"]]:
    """These wait, in this order."""
    waiting = []
    for key in keys:
        waiting.append(asyncio.create_task(charge(http, key, *only, **WAIT_30)))

        async def was_refused(key: str = key) -> bool:
            return f"request_id={key} " in mesh.log("balancer")

        await eventually(was_refused, 10, f"{key} waits")
    try:
        yield waiting
    finally:
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_those_that_wait_are_served_in_order_as_sessions_end(mesh: Mesh, http: httpx.AsyncClient) -> None:
    at = await filled(http)
    keys = [f"order-{number}" for number in range(5)]
    async with in_line(mesh, http, *keys) as waiting:
        before = at["a"]
        for key, each in zip(keys, waiting, strict=True):
            await stop(http, before)
            reply = await asyncio.wait_for(each, 10)
            assert (reply.status_code, reply.headers["preference-applied"]) == (201, "wait=30"), reply.text
            assert reply.json()["session"]["request_id"] == key
            assert not any(later.done() for later in waiting[keys.index(key) + 1 :])
            before = key


async def test_those_that_come_again_and_again_do_not_overtake_those_that_wait(
    mesh: Mesh, http: httpx.AsyncClient
) -> None:
    at = await filled(http)
    keys = [f"patient-{number}" for number in range(5)]
    enough = asyncio.Event()

    async def impatient(number: int) -> set[int]:
        heard = set()
        while not enough.is_set():
            heard.add((await charge(http, f"impatient-{number}")).status_code)
        return heard

    async with in_line(mesh, http, *keys) as waiting:
        crowd = [asyncio.create_task(impatient(number)) for number in range(4)]
        try:
            before = at["a"]
            for key, each in zip(keys, waiting, strict=True):
                await stop(http, before)
                assert (await asyncio.wait_for(each, 10)).status_code == 201
                before = key
        finally:
            enough.set()
            heard = await asyncio.gather(*crowd)
    assert heard == [{503}] * 4


async def test_a_batch_comes_behind_those_that_wait(mesh: Mesh, http: httpx.AsyncClient) -> None:
    at = await filled(http)
    enough = asyncio.Event()

    async def post(*keys: str) -> list[int]:
        items = [{**CAR, "request_id": key} for key in keys]
        return [each["status"] for each in (await http.post("/v1/charges:batch", json=items)).json()]

    async def crowd() -> list[int]:
        heard = []
        while not enough.is_set():
            heard += await post("one-of-many", "another-of-many")
        return heard

    async with in_line(mesh, http, "patient") as (waits,):
        asking = asyncio.create_task(crowd())
        try:
            await stop(http, at["a"])
            assert (await asyncio.wait_for(waits, 10)).status_code == 201
        finally:
            enough.set()
            heard = await asking
    assert set(heard) == {503}
    async with in_line(mesh, http, "waits"):
        repeat = {**CAR, "request_id": "patient"}
        reply = await http.post("/v1/charges:batch", json=[repeat, {**CAR, "max_power_kw": -1}, CAR])
        assert [each["status"] for each in reply.json()] == [200, 400, 503]


async def test_what_ends_elsewhere_is_noticed_soon(mesh: Mesh, http: httpx.AsyncClient) -> None:
    at = await filled(http)
    session_id = (await sessions(http))[at["b"]]
    async with in_line(mesh, http, "elsewhere") as (waits,):
        charging = charging_pb2_grpc.ChargingServiceStub(mesh.channel("balancer"))
        charging.StopSession(charging_pb2.StopSessionRequest(session_id=session_id))
        assert (await asyncio.wait_for(waits, 10)).json()["placement"]["substation_id"] == "b"


async def test_who_leaves_gives_its_place_up_and_is_not_charged(mesh: Mesh, http: httpx.AsyncClient) -> None:
    at = await filled(http)
    async with in_line(mesh, http, "leaves", "stays") as (leaves, stays):
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        await stop(http, at["a"])
        assert (await asyncio.wait_for(stays, 10)).status_code == 201
        await stop(http, at["b"])
        await eventually(lambda: is_free(http, 1), 10, "the other plug stays free")
        assert set(await sessions(http)) == {"stays"}


async def is_free(http: httpx.AsyncClient, plugs: int) -> bool:
    listed = (await http.get("/v1/substations")).json()["substations"]
    return bool(sum(each["report"]["free_charge_points"] for each in listed) == plugs)


async def test_a_car_for_another_substation_is_not_held_up(mesh: Mesh, http: httpx.AsyncClient) -> None:
    at = await filled(http)
    async with (
        in_line(mesh, http, "only-a", only=("a",)) as (only_a,),
        in_line(mesh, http, "only-b", only=("b",)) as (only_b,),
    ):
        await stop(http, at["b"])
        assert (await asyncio.wait_for(only_b, 10)).status_code == 201
        assert not only_a.done()


async def test_after_the_time_the_refusal_is_told(http: httpx.AsyncClient) -> None:
    await filled(http)
    asked = asyncio.get_running_loop().time()
    reply = await charge(http, "late", Prefer="wait=1")
    assert asyncio.get_running_loop().time() - asked >= 1
    assert (reply.status_code, reply.json()["reason"]) == (503, "NO_CHARGE_POINT")
    assert reply.headers["preference-applied"] == "wait=1"
    assert int(reply.headers["retry-after"]) >= 1


async def test_the_time_to_come_again_is_when_the_first_car_should_leave(http: httpx.AsyncClient) -> None:
    for substation, seconds in (("a", 100), ("b", 200)):
        car = {**CAR, "allowed_substation_ids": [substation], "departure_in": f"{seconds}s"}
        assert (await http.post("/v1/charges", json=car)).status_code == 201

    async def told(*only: str) -> int:
        return int((await charge(http, new_key(), *only)).headers["retry-after"])

    async def known() -> bool:
        return 60 < await told() <= 101 and 160 < await told("b") <= 201

    await eventually(known, 5, "departures are known")


async def test_what_time_does_not_cure_is_told_at_once(http: httpx.AsyncClient) -> None:
    await filled(http)
    bad = await http.post("/v1/charges", json={**CAR, "max_power_kw": -1}, headers=WAIT_30)
    assert bad.status_code == 400
    nowhere = await charge(http, "nowhere", "elsewhere", **WAIT_30)
    assert (nowhere.status_code, nowhere.json()["reason"]) == (503, "NO_SUBSTATION")


async def test_a_repeat_finds_its_session_though_others_wait(mesh: Mesh, http: httpx.AsyncClient) -> None:
    at = await filled(http)
    async with in_line(mesh, http, "waits"):
        assert (await charge(http, at["a"], "a")).status_code == 200


async def test_each_of_two_gateways_serves_its_own_in_order(start_mesh: StartMesh) -> None:
    mesh = start_mesh(rated_kw=(100.0, 100.0), charge_points=1, time_scale=1, gateways=2)
    async with (
        httpx.AsyncClient(base_url=mesh.url, timeout=60, trust_env=False) as first,
        httpx.AsyncClient(base_url=f"http://{mesh.address('gateway-2')}", timeout=60, trust_env=False) as second,
    ):
        before = (await filled(first))["a"]
        keys = {first: [f"first-{number}" for number in range(3)], second: [f"second-{number}" for number in range(3)]}
        served: list[str] = []
        async with in_line(mesh, first, *keys[first]) as one, in_line(mesh, second, *keys[second]) as other:
            for each in (*one, *other):
                each.add_done_callback(lambda done: served.append(done.result().json()["session"]["request_id"]))
            for count in range(1, 7):
                await stop(first, before)

                async def one_more(count: int = count) -> bool:
                    return len(served) == count

                await eventually(one_more, 10, f"{count} are served")
                before = served[-1]
    for own in keys.values():
        assert [key for key in served if key in own] == own


async def test_a_gateway_that_stops_says_so_to_those_that_wait(mesh: Mesh, http: httpx.AsyncClient) -> None:
    await filled(http)
    async with in_line(mesh, http, "stopped") as (waits,):
        assert mesh.stop("gateway") == {"gateway": 0}
        reply = await asyncio.wait_for(waits, 10)
    mesh.restart("gateway")
    assert (reply.status_code, reply.json()["reason"]) == (503, "GATEWAY_STOPPING")
