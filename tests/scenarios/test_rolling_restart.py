"""Every process is restarted, one after the other, under load: each call succeeds, or does when it is repeated once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle

import httpx
import pytest

from mesh.clock import seconds
from tests.mesh_processes import Mesh
from tests.scenarios.asking import new_key

PER_SECOND = 200
# Short sessions: 0.5 kWh at 11 kW and 600x end after a third of a second.
CAR = {"vehicle_id": "EV-001", "max_power_kw": 11.0, "energy_kwh": 0.5}
REPEATED = {502, 503, 504}
LONGEST_RETRY_S = 1.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(
        tmp_path_factory.mktemp("mesh"),
        rated_kw=(100_000.0,) * 3,
        charge_points=2_000,
        time_scale=600,
        balancers=2,
        gateways=2,
    ) as running:
        yield running.start()


@dataclass
class Told:
    """What clients were told: the session of each key, and what those heard who had to repeat."""

    sessions: dict[str, str] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Clients:
    """As many as a steady rate needs; each asks one gateway, and repeats once at the other with the same key."""

    def __init__(self, gateways: list[httpx.AsyncClient]) -> None:
        self._turns = cycle([gateways, gateways[::-1]])
        self._under_way: set[asyncio.Task[None]] = set()
        self.told = Told()

    async def keep_asking(self) -> None:
        """At a steady rate, however long the answers take."""
        due = seconds()
        while True:
            await asyncio.sleep(max(0.0, due - seconds()))
            due += 1 / PER_SECOND
            task = asyncio.create_task(self._charge(new_key()))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def answered(self) -> None:
        """All that have asked so far have been answered."""
        await asyncio.gather(*self._under_way)

    async def admitted(self, more: int) -> None:
        """So many more cars have been admitted."""
        wanted = len(self.told.sessions) + more
        async with asyncio.timeout(30):
            while len(self.told.sessions) < wanted:
                await asyncio.sleep(0.01)

    async def _charge(self, key: str) -> None:
        first, second = next(self._turns)
        why = await self._ask(first, key)
        if why:
            self.told.repeated.append(why)
            why = await self._ask(second, key)
        if why:
            self.told.failed.append(f"{key}: {why}")

    async def _ask(self, gateway: httpx.AsyncClient, key: str) -> str:
        """Empty when the charge was admitted, else why not, after the time that the answer asks for."""
        try:
            reply = await gateway.post("/v1/charges", json=CAR, headers={"Idempotency-Key": key})
        except httpx.TransportError as error:
            return repr(error)
        body = reply.json()
        if reply.status_code in {200, 201}:
            self.told.sessions[key] = body["session"]["session_id"]
            return ""
        assert reply.status_code in REPEATED, body
        await asyncio.sleep(min(float(reply.headers["retry-after"]), LONGEST_RETRY_S))
        return f"{reply.status_code} {body['reason']}"


@asynccontextmanager
async def traffic(mesh: Mesh) -> AsyncIterator[Clients]:
    async with asyncio.TaskGroup() as group:
        gateways = [
            httpx.AsyncClient(base_url=f"http://{mesh.address(name)}", timeout=10, trust_env=False)
            for name in mesh.gateways
        ]
        clients = Clients(gateways)
        asking = group.create_task(clients.keep_asking())
        try:
            yield clients
        finally:
            asking.cancel()
            await clients.answered()
            for gateway in gateways:
                await gateway.aclose()


async def test_a_rolling_restart_is_noticed_by_nobody_who_repeats_once(mesh: Mesh) -> None:
    in_thread: Callable[[Callable[[], object]], Awaitable[object]] = asyncio.to_thread
    async with traffic(mesh) as clients:
        for name in (*mesh.substations, *mesh.balancers, *mesh.gateways):
            # As who rolls out would: the next one when the one before serves, and nobody still waits because of it.
            await clients.admitted(PER_SECOND // 4)
            await clients.answered()
            codes = await in_thread(lambda name=name: mesh.stop(name))  # type: ignore[misc]
            assert codes == {name: 0}, "it ended in time, with nothing left undone"
            await in_thread(lambda name=name: mesh.start(name))  # type: ignore[misc]
        await clients.answered()
    told = clients.told
    assert told.failed == []
    print(f"{len(told.sessions)} admitted, {len(told.repeated)} on a repeat: {sorted(set(told.repeated))}")  # noqa: T201
    assert [mesh.metric(name, "substation_over_limit_seconds_total") for name in mesh.substations] == [0, 0, 0]
