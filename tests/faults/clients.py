"""Cars that charge through the mesh: each has one key and repeats with it until it is answered."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

import grpc
import httpx

from gridmesh.v1 import charging_pb2, charging_pb2_grpc
from mesh.status import from_rpc_error
from tests.faults.mesh import TIMEOUT_S, Mesh
from tests.faults.records import BALANCERS, GATEWAY, NO_ROOM, Call, Log, Read

# Told to come back later, a test comes back sooner.
LONGEST_RETRY_S = 0.5
TOLD_S = 30.0
# Answers that no client should ever get here.
_NEVER = frozenset({"INVALID_REQUEST", "KEY_REUSED", "INTERNAL", "SESSION_NOT_FOUND", "SUBSTATION_NOT_FOUND"})


@dataclass(frozen=True, slots=True)
class Car:
    """What one car asks for. `balancer`: it knows no other, and asks that one over and over."""

    key: str
    max_kw: float = 11.0
    energy_kwh: float = 500.0
    allowed: tuple[str, ...] = ()
    balancer: str = ""

    def request(self) -> charging_pb2.ChargeRequest:
        return charging_pb2.ChargeRequest(
            request_id=self.key,
            vehicle_id=f"EV-{self.key}",
            energy_kwh=self.energy_kwh,
            max_power_kw=self.max_kw,
            allowed_substation_ids=self.allowed,
        )

    def body(self) -> dict[str, Any]:
        """The same over HTTP."""
        return {
            "vehicle_id": f"EV-{self.key}",
            "energy_kwh": self.energy_kwh,
            "max_power_kw": self.max_kw,
            "allowed_substation_ids": list(self.allowed),
        }


class Clients:
    """All of them, and the log that they write. `clock` gives seconds since the run began."""

    def __init__(self, mesh: Mesh, log: Log, clock: Callable[[], float], rng: Random) -> None:
        self._mesh = mesh
        self._log = log
        self._clock = clock
        self._rng = rng
        self._numbers = count()
        self._http = httpx.AsyncClient(
            base_url=f"http://{mesh.parts[GATEWAY].address}", timeout=TIMEOUT_S + 1, trust_env=False
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[str] = set()
        # Nobody new; who asks goes on asking.
        self._closing = asyncio.Event()
        self._gave_up = False
        # Somebody was told of a session.
        self._news = asyncio.Event()

    def new_key(self) -> str:
        return f"s{self._log.seed}-{next(self._numbers)}"

    # --- one charge ----------------------------------------------------------------------------------

    async def charge(self, car: Car, tries: int = 10_000, timeout_s: float = TIMEOUT_S) -> str:
        """Asks until it is answered or there is no room. The session's id, or empty."""
        self._open.add(car.key)
        doors = [car.balancer] if car.balancer else self._doors()
        try:
            for number in range(tries):
                call = await self._try(car, doors[number % len(doors)], timeout_s)
                if call.session_id or call.reason in NO_ROOM:
                    return call.session_id
                if self._gave_up:
                    return ""
                await asyncio.sleep(self._rng.uniform(0.05, LONGEST_RETRY_S))
        finally:
            self._open.discard(car.key)
        return ""

    async def told(self, place: str, number: int) -> None:
        """Returns in the moment in which so many have been told of a session there. AssertionError after 30 s."""
        before = len(self._log.calls)
        try:
            async with asyncio.timeout(TOLD_S):
                while sum(call.session_id.startswith(f"{place}.") for call in self._log.calls[before:]) < number:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"not within {TOLD_S:g} s: {number} are told of sessions at {place}") from None

    def _doors(self) -> list[str]:
        """The ways in, one after the other."""
        ring = [*BALANCERS, GATEWAY]
        first = self._rng.randrange(len(ring))
        return ring[first:] + ring[:first]

    async def _try(self, car: Car, door: str, timeout_s: float) -> Call:
        sent = self._clock()
        self._log.requests += 1
        over = self._over_http if door == GATEWAY else self._over_grpc
        session, reason = await over(car, door, timeout_s)
        heard = self._clock()
        call = Call(sent, heard, car.key, door, session[0], reason)
        self._log.calls.append(call)
        if call.session_id:
            self._log.reads.append(Read(sent, heard, *session))
            self._news.set()
        elif reason in _NEVER:
            self._log.wrong.append(f"{car.key} at {door} after {heard:.2f} s: {reason}")
        return call

    async def _over_grpc(self, car: Car, door: str, timeout_s: float) -> tuple[tuple[str, float], str]:
        stub: Any = charging_pb2_grpc.ChargingServiceStub(self._mesh.channel(door))
        try:
            reply = await stub.Charge(car.request(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            ours = from_rpc_error(error)
            return ("", 0.0), ours.reason.name if ours else ""
        return (reply.session.session_id, reply.session.delivered_kwh), ""

    async def _over_http(self, car: Car, _: str, __: float) -> tuple[tuple[str, float], str]:
        try:
            reply = await self._http.post("/v1/charges", json=car.body(), headers={"Idempotency-Key": car.key})
        except httpx.TransportError:
            return ("", 0.0), ""
        body = reply.json()
        if reply.is_success:
            return (body["session"]["session_id"], body["session"]["delivered_kwh"]), ""
        return ("", 0.0), body["reason"]

    # --- what else a client does ---------------------------------------------------------------------

    async def look(self, session_id: str) -> None:
        """Asks for the register."""
        sent, stub = self._clock(), self._stub()
        self._log.requests += 1
        asked = charging_pb2.GetSessionRequest(session_id=session_id)
        try:
            reply = await stub.GetSession(asked, timeout=1)
        except grpc.aio.AioRpcError as error:
            ours = from_rpc_error(error)
            if ours is not None and ours.reason.name == "SESSION_NOT_FOUND":
                self._log.wrong.append(f"{session_id} was acknowledged and is not known after {self._clock():.2f} s")
            return
        self._log.reads.append(Read(sent, self._clock(), session_id, reply.session.delivered_kwh))

    async def end(self, session_id: str) -> None:
        """Stops it, over and over until that is confirmed."""
        asked = charging_pb2.StopSessionRequest(session_id=session_id)
        while not self._gave_up:
            sent = self._clock()
            self._log.requests += 1
            with suppress(grpc.aio.AioRpcError):
                reply = await self._stub().StopSession(asked, timeout=1)
                self._log.reads.append(Read(sent, self._clock(), session_id, reply.session.delivered_kwh))
                return
            await asyncio.sleep(self._rng.uniform(0.1, LONGEST_RETRY_S))

    def _stub(self) -> Any:  # noqa: ANN401 - both kinds of stub
        return charging_pb2_grpc.ChargingServiceStub(self._mesh.channel(self._rng.choice(BALANCERS)))

    # --- traffic -------------------------------------------------------------------------------------

    def spawn(self, car: Car, stays_s: float | None = None) -> None:
        """A car that comes, and is stopped by its driver after so long; None: it charges as long as it likes."""
        self._begin(self._visit(car, stays_s))

    def leave(self, session_id: str, after_s: float) -> None:
        """A session is stopped by its driver after so long."""
        self._begin(self._leave(session_id, after_s))

    async def _leave(self, session_id: str, after_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), after_s)
        await self.end(session_id)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._log.wrong.append(f"a client of the harness broke: {error!r}")

    async def _visit(self, car: Car, stays_s: float | None) -> None:
        session_id = await self.charge(car)
        if not session_id or stays_s is None:
            return
        await asyncio.sleep(stays_s / 2)
        await self.look(session_id)
        await asyncio.sleep(stays_s / 2)
        await self.end(session_id)

    async def traffic(self, per_s: float) -> None:
        """Cars come one after the other until `finish`."""
        while not self._closing.is_set():
            self.spawn(self._any_car(), self._rng.uniform(0.3, 3.0) if self._rng.random() < 0.7 else None)
            await asyncio.sleep(self._rng.expovariate(per_s))

    def _any_car(self) -> Car:
        """Small enough that it is soon done; one in two knows only one balancer."""
        return Car(
            self.new_key(),
            self._rng.choice((3.7, 7.4, 11.0, 22.0)),
            self._rng.uniform(0.02, 0.12),
            balancer=self._rng.choice((*BALANCERS, "", "")),
        )

    async def finish(self, bound_s: float) -> None:
        """No new cars; all that are there are answered within that time, or noted as unanswered."""
        self._closing.set()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=bound_s)
        self._log.unanswered += sorted(self._open)
        self._gave_up = True
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=2 * TIMEOUT_S)
        await self._http.aclose()
