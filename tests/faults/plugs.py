"""What can be done to a running mesh, each written down as a fault: the words that scenes are made of."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import grpc

from gridmesh.v1 import load_pb2, operations_pb2, operations_pb2_grpc
from tests.faults.clients import Car, Clients
from tests.faults.mesh import Mesh
from tests.faults.records import BALANCERS, PLACES, Back, Fault, Limit, Log
from tests.faults.witness import Witness
from tests.mesh_processes import eventually

# What a scene aims at has happened by then, or will not.
LIKELY_S = 3.0
# Longer than anything here is dead.
CONFIRMED_S = 60.0


class Plugs:
    """Kills, stops, operators, and clients that ask meanwhile."""

    def __init__(
        self, mesh: Mesh, clients: Clients, witness: Witness, log: Log, clock: Callable[[], float], rng: Random
    ) -> None:
        self._mesh = mesh
        self._clients = clients
        self._witness = witness
        self._log = log
        self._clock = clock
        self._rng = rng

    @asynccontextmanager
    async def _fault(self, kind: str, part: str) -> AsyncIterator[None]:
        """Something is wrong with a link or a disk while the block lasts."""
        since = self._clock()
        try:
            yield
        finally:
            self._log.faults.append(Fault(kind, part, since, self._clock()))

    async def _kill(self, name: str, for_s: float = 0.0, kind: str = "kill") -> None:
        """kill -9, and after a while it starts again."""
        since = self._clock()
        self._mesh.kill(name)
        await asyncio.sleep(for_s)
        spawned = self._clock()
        self._mesh.spawn(name)
        await self._back(name, spawned)
        self._log.faults.append(Fault(kind, name, since, self._clock(), spawned))

    async def _back(self, name: str, spawned: float) -> None:
        if name not in PLACES:
            await self._mesh.ready(name)
            return

        async def shown() -> bool:
            return await self._witness.look(name) is not None

        waited_s = self._mesh.kept_waiting_s()
        await eventually(shown, 30, f"{name} shows its sessions")
        waited_s = self._mesh.kept_waiting_s() - waited_s + self._mesh.kept_waiting_s(name)
        self._log.back.append(Back(name, self._clock() - spawned, waited_s))

    async def _stop(self, name: str, for_s: float) -> None:
        since = self._clock()
        self._mesh.signal(name, signal.SIGSTOP)
        await asyncio.sleep(for_s)
        self._mesh.signal(name, signal.SIGCONT)
        self._log.faults.append(Fault("stop", name, since, self._clock()))

    def _cars(self, number: int, *allowed: str, balancer: str = "", energy_kwh: float = 500.0) -> list[Car]:
        return [Car(self._clients.new_key(), 11.0, energy_kwh, allowed, balancer) for _ in range(number)]

    def _ask(self, cars: list[Car], stays_s: float) -> None:
        for car in cars:
            self._clients.spawn(car, stays_s)

    async def _admitted(self, place: str, cars: list[Car]) -> None:
        """Waits until one of these cars has a session there, for as long as that is likely."""
        keys = {car.key for car in cars}

        async def some() -> bool:
            look = await self._witness.look(place)
            return look is not None and any(seen.key in keys for seen in look.sessions)

        with suppress(AssertionError):
            await eventually(some, LIKELY_S)

    async def _soon(self, condition: Callable[[], bool]) -> None:
        """Waits until that holds, for as long as it is likely."""

        async def holds() -> bool:
            return condition()

        with suppress(AssertionError):
            await eventually(holds, LIKELY_S)

    def _others(self, place: str) -> tuple[str, ...]:
        return tuple(other for other in PLACES if other != place)

    # --- operators ---------------------------------------------------------------------------------------

    async def _set_limit(self, place: str, source: str, limit_kw: float | None) -> None:
        sent = self._clock()
        await self._through_any(lambda stub: self._order(stub, place, source, limit_kw))
        self._log.limits.append(Limit(sent, self._clock(), place, source, limit_kw))

    async def _order(self, stub: Any, place: str, source: str, limit_kw: float | None) -> None:  # noqa: ANN401
        named = load_pb2.LimitSource.Value(f"LIMIT_SOURCE_{source}")
        if limit_kw is None:
            clear = operations_pb2.ClearLimitRequest(substation_id=place, source=named)
            await stub.ClearLimit(clear, timeout=1)
            return
        limit = operations_pb2.Limit(source=named, limit_kw=limit_kw)
        await stub.SetLimit(operations_pb2.SetLimitRequest(substation_id=place, limit=limit), timeout=1)

    async def _drain(self, place: str, drained: bool) -> None:
        if drained:
            drain = operations_pb2.DrainRequest(substation_id=place)
            await self._through_any(lambda stub: stub.Drain(drain, timeout=1))
        else:
            undrain = operations_pb2.UndrainRequest(substation_id=place)
            await self._through_any(lambda stub: stub.Undrain(undrain, timeout=1))

    async def _through_any(self, do: Callable[[Any], Awaitable[object]]) -> None:
        """Through whichever balancer can, until it is confirmed."""

        async def done() -> bool:
            with suppress(grpc.aio.AioRpcError):
                await do(operations_pb2_grpc.OperationsServiceStub(self._mesh.channel(self._rng.choice(BALANCERS))))
                return True
            return False

        await eventually(done, CONFIRMED_S, "an operator's order is confirmed")
