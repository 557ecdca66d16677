"""A steady crowd at the gateway: so many calls in flight at any moment, each with its own key, and what each heard."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from mesh.clock import seconds
from tests.mesh_processes import Mesh
from tests.scenarios.asking import CAR, new_key
from tests.scenarios.connection import Connection

# Who is not answered by then is in doubt, and waits beside the others: as many are in flight that are not.
IN_DOUBT_S = 0.5
# Charged within a fraction of a second at 60x: those that come find room, and few live.
BRIEF: dict[str, Any] = {**CAR, "energy_kwh": 0.05}


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer. `place` is the substation of its session; empty where there is none, for that `reason`."""

    key: str
    sent: float
    at: float
    status: int
    place: str
    reason: str
    says_when: bool


@dataclass
class Crowd:
    """Clients of one gateway, and their answers in the order in which they came."""

    mesh: Mesh
    heard: list[Heard] = field(default_factory=list)
    _idle: list[Connection] = field(default_factory=list)
    _asking: set[asyncio.Task[None]] = field(default_factory=set)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def asking(self, number: int) -> AsyncIterator[None]:
        """For as long as the block lasts; after it all have been answered."""
        async with asyncio.TaskGroup() as group:
            for _ in range(number):
                group.create_task(self._ask_on())
            try:
                yield
            finally:
                self._over.set()
        await asyncio.gather(*self._asking)
        for connection in self._idle:
            connection.close()

    async def _ask_on(self) -> None:
        while not self._over.is_set():
            task = asyncio.create_task(self._charge())
            self._asking.add(task)
            await asyncio.wait({task}, timeout=IN_DOUBT_S)
            if task.done():
                self._asking.discard(task)
                task.result()

    async def _charge(self) -> None:
        connection = self._idle.pop() if self._idle else await Connection.to(self.mesh.address("gateway"))
        key, sent = new_key(), seconds()
        status, headers, body = await connection.post("/v1/charges", BRIEF, key)
        self._idle.append(connection)
        place = body["session"]["substation_id"] if status < 400 else ""
        self.heard.append(Heard(key, sent, seconds(), status, place, body.get("reason", ""), "retry-after" in headers))

    def at_places(self, *places: str, since: float, until: float) -> Iterator[float]:
        """How long those took in seconds that were answered in that time with a session at one of these places."""
        return (one.at - one.sent for one in list(self.heard) if one.place in places and since <= one.at < until)
