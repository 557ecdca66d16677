"""How each kind of scene is played: which plugs are pulled, in which order, and who asks meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from random import Random
from typing import ClassVar

from tests.faults import plan
from tests.faults.clients import Car, Clients
from tests.faults.mesh import Mesh
from tests.faults.plan import Scene
from tests.faults.plugs import LIKELY_S, Plugs
from tests.faults.records import BALANCERS, GATEWAY, PLACES, RESIDENTS, Log
from tests.faults.relay import Relay
from tests.faults.timeline import OBEY_S
from tests.faults.witness import Witness
from tests.mesh_processes import eventually

# What arrived has been handled by then.
ARRIVED_S = 0.3
# One charge on the wire is larger; pings and acknowledgements are not.
REQUEST_BYTES = 300
# A late request is refused by its not_after if it is later than that.
PATIENT_S = 8.0
BURST = 8
# So many at once share calls at every hop.
MANY = 40
JUMP_MS = 5 * 60_000
_STALL_S = 0.15
# When the round is over and has been looked at.
_LATER_S = 15.0


class Scenes(Plugs):
    """Plays scenes. One at a time at each substation, and one at a time that kills or stops a balancer."""

    def __init__(
        self, mesh: Mesh, clients: Clients, witness: Witness, log: Log, clock: Callable[[], float], rng: Random
    ) -> None:
        super().__init__(mesh, clients, witness, log, clock, rng)
        self._turns = {name: asyncio.Lock() for name in (*PLACES, "balancer")}

    async def play(self, scene: Scene) -> None:
        """From `at_s` on, or later, when it is its turn."""
        await asyncio.sleep(scene.at_s)
        turn = self._turns["balancer" if scene.kind in plan.AT_A_BALANCER else scene.substation]
        async with turn:
            await self._PLAYS[scene.kind](self, scene)

    # --- a reply or a request is lost ------------------------------------------------------------------

    async def _reply_lost(self, scene: Scene) -> None:
        """Admitted, and the balancer does not hear of it: nobody else may be asked."""
        link, cars = self._link(scene), self._cars(MANY, *self._two(scene), balancer=scene.balancer)
        async with self._fault("reply lost", self._name(scene)):
            link.replies.shut()
            self._ask(cars, 4.0)
            await self._admitted(scene.substation, cars)
            link.cut()
            await asyncio.sleep(0.1)
            link.mend()
            await self._heard_again(scene)

    def _link(self, scene: Scene) -> Relay:
        return self._mesh.links[scene.balancer, scene.substation]

    def _name(self, scene: Scene) -> str:
        return f"{scene.balancer}-{scene.substation}"

    def _two(self, scene: Scene) -> tuple[str, str]:
        """It, and one more that would do."""
        return scene.substation, self._rng.choice(self._others(scene.substation))

    async def _heard_again(self, scene: Scene) -> None:
        async def fresh() -> bool:
            return scene.substation in await self._mesh.fresh(scene.balancer)

        await eventually(fresh, 30, f"{scene.balancer} hears of {scene.substation}")

    async def _request_late(self, scene: Scene) -> None:
        """The request arrives when its balancer has long asked somebody else: it must be fenced."""
        link, cars = self._link(scene), self._cars(BURST, *self._two(scene), balancer=scene.balancer)
        async with self._fault("request late", self._name(scene)):
            link.requests.shut()
            asked = [asyncio.create_task(self._clients.charge(car, timeout_s=PATIENT_S)) for car in cars]
            await self._soon(lambda: link.held_bytes >= REQUEST_BYTES)
            link.detach()
            sessions = await asyncio.gather(*asked)
            link.deliver()
            await self._soon(lambda: not link.held_bytes)
            await asyncio.sleep(ARRIVED_S)
            link.forget()
        for session_id in filter(None, sessions):
            self._clients.leave(session_id, 2.0)

    async def _impatient(self, scene: Scene) -> None:
        """They hang up on one balancer at any moment of a call, and ask the other at once."""
        x, (y,) = scene.balancer, [name for name in BALANCERS if name != scene.balancer]
        async with self._fault("impatient clients", scene.balancer):
            hung_up = [self._hang_up(car, x, y) for car in self._cars(2 * BURST, energy_kwh=0.05)]
            await asyncio.gather(*hung_up)

    async def _hang_up(self, car: Car, first: str, then: str) -> None:
        await self._clients.charge(replace(car, balancer=first), tries=1, timeout_s=self._rng.uniform(0.001, 0.06))
        self._clients.spawn(replace(car, balancer=then), 1.0)

    async def _split(self, scene: Scene) -> None:
        """Its balancer dies in doubt, and the other one cannot know: two sessions for a key, until they meet again."""
        x, (y,) = scene.balancer, [name for name in BALANCERS if name != scene.balancer]
        cut = [self._mesh.links[y, scene.substation], *(self._mesh.links[x, o] for o in self._others(scene.substation))]
        async with self._turns["balancer"], self._fault("split", f"{y}-{scene.substation}"):
            for link in cut:
                link.cut()
            self._mesh.links[x, scene.substation].replies.shut()
            cars = self._cars(BURST // 2)
            asked = [asyncio.create_task(self._clients.charge(replace(c, balancer=x), tries=6)) for c in cars]
            await self._admitted(scene.substation, cars)
            killed = asyncio.create_task(self._kill(x, 0.5))
            await asyncio.gather(*asked)
            sessions = await asyncio.gather(*(self._clients.charge(replace(c, balancer=y), tries=5) for c in cars))
            for link in self._mesh.links.values():
                link.mend()
            await killed
        for session_id in filter(None, sessions):
            self._clients.leave(session_id, _LATER_S)

    async def _killed_in_doubt(self, scene: Scene) -> None:
        """The balancer dies in doubt, and its clients ask the other one, which knows."""
        link, cars = self._link(scene), self._cars(MANY, *self._two(scene))
        async with self._fault("reply lost", self._name(scene)):
            link.replies.shut()
            self._ask(cars, 4.0)
            await self._admitted(scene.substation, cars)
            await self._kill(scene.balancer, scene.for_s, "kill")
            link.mend()

    async def _restarted_in_doubt(self, scene: Scene) -> None:
        """The substation dies and comes back while somebody is in doubt about it."""
        link, cars = self._link(scene), self._cars(BURST, *self._two(scene), balancer=scene.balancer)
        async with self._fault("reply lost", self._name(scene)):
            link.replies.shut()
            self._ask(cars, 4.0)
            await self._admitted(scene.substation, cars)
            await self._kill(scene.substation)
            link.mend()

    async def _killed_after_reply(self, scene: Scene) -> None:
        """kill -9 as soon as some have their reply, others are being written."""
        cars = self._cars(MANY, scene.substation, energy_kwh=self._rng.choice((0.1, 500.0)))
        self._ask(cars, 3.0)
        await self._clients.told(scene.substation, 3)
        await self._kill(scene.substation, scene.for_s)

    # --- disk, limits, clocks, leases --------------------------------------------------------------------

    async def _disk_full(self, scene: Scene) -> None:
        """What cannot be written must not be acknowledged.

        It stands still for a moment, so that requests are there before it finds out.
        """
        async with self._fault("disk full", scene.substation):
            stopped = asyncio.create_task(self._stop(scene.substation, ARRIVED_S))
            await asyncio.sleep(0)
            self._mesh.let_files_grow(scene.substation, False)
            self._ask(self._cars(BURST, scene.substation), 3.0)
            await stopped
            await asyncio.sleep(scene.for_s)
            self._mesh.let_files_grow(scene.substation, True)

    async def _limit_cut(self, scene: Scene) -> None:
        """By far less than what is committed, also to nothing, then back."""
        source = self._rng.choice(("SO", "EMS"))
        async with self._fault("limit cut", scene.substation):
            await self._set_limit(scene.substation, source, self._log.rated_kw * self._rng.choice((0.0, 0.3, 0.5)))
            # Longer than cars may take to obey, else nobody would notice that they do not.
            await asyncio.sleep(OBEY_S + scene.for_s)
            await self._set_limit(scene.substation, source, None)

    async def _crowd(self, scene: Scene) -> None:
        """Many come at once to where all power is taken: others are lowered first."""
        for _ in range(3):
            self._ask(self._cars(BURST // 2, scene.substation), 1.5)
            await asyncio.sleep(_STALL_S)

    async def _clock_jumps(self, scene: Scene) -> None:
        """While it runs, which it does not notice; then it starts with that clock, and again with the right one."""
        right = self._mesh.clock_ms(scene.substation)
        self._mesh.set_clock(scene.substation, right + self._rng.choice((-JUMP_MS, JUMP_MS)))
        await asyncio.sleep(scene.for_s)
        await self._kill(scene.substation, kind="clock")
        await asyncio.sleep(scene.for_s)
        self._mesh.set_clock(scene.substation, right)
        await self._kill(scene.substation, kind="clock")

    async def _stopped_long(self, scene: Scene) -> None:
        async with self._only_residents(scene):
            await self._stop(scene.substation, scene.for_s)

    async def _dead_long(self, scene: Scene) -> None:
        async with self._only_residents(scene):
            await self._kill(scene.substation, scene.for_s)

    @asynccontextmanager
    async def _only_residents(self, scene: Scene) -> AsyncIterator[None]:
        """Nearly all power is theirs: what others leave undrawn would hide what cars draw without a lease."""

        async def alone() -> bool:
            look = await self._witness.look(scene.substation)
            return look is not None and len(look.sessions) <= RESIDENTS + 1

        await self._drain(scene.substation, True)
        with suppress(AssertionError):
            await eventually(alone, 2 * LIKELY_S)
        yield
        await self._drain(scene.substation, False)

    async def _stopped(self, scene: Scene) -> None:
        await self._stop(scene.substation, scene.for_s)

    async def _dead(self, scene: Scene) -> None:
        await self._kill(scene.substation, scene.for_s)

    # --- plain ones --------------------------------------------------------------------------------------

    async def _kill_balancer(self, scene: Scene) -> None:
        await self._kill(scene.balancer, scene.for_s)

    async def _stop_balancer(self, scene: Scene) -> None:
        await self._stop(scene.balancer, scene.for_s)

    async def _kill_gateway(self, scene: Scene) -> None:
        await self._kill(GATEWAY)

    async def _cut(self, scene: Scene) -> None:
        await self._at_link(scene, "cut", lambda link: link.cut())

    async def _hang(self, scene: Scene) -> None:
        await self._at_link(scene, "hang", lambda link: link.hang())

    async def _slow(self, scene: Scene) -> None:
        await self._at_link(scene, "slow", lambda link: link.slow(self._rng.uniform(0.02, 0.2)))

    async def _at_link(self, scene: Scene, kind: str, do: Callable[[Relay], None]) -> None:
        link = self._link(scene)
        async with self._fault(kind, self._name(scene)):
            do(link)
            await asyncio.sleep(scene.for_s)
            link.mend()

    _PLAYS: ClassVar[dict[str, Callable[["Scenes", Scene], Awaitable[None]]]] = {
        plan.REPLY_LOST: _reply_lost,
        plan.REQUEST_LATE: _request_late,
        plan.SPLIT: _split,
        plan.IMPATIENT: _impatient,
        plan.KILLED_IN_DOUBT: _killed_in_doubt,
        plan.RESTARTED_IN_DOUBT: _restarted_in_doubt,
        plan.KILLED_AFTER_REPLY: _killed_after_reply,
        plan.DISK_FULL: _disk_full,
        plan.LIMIT_CUT: _limit_cut,
        plan.CROWD: _crowd,
        plan.STOPPED_LONG: _stopped_long,
        plan.DEAD_LONG: _dead_long,
        plan.CLOCK: _clock_jumps,
        plan.KILL_SUBSTATION: _dead,
        plan.STOP_SUBSTATION: _stopped,
        plan.KILL_BALANCER: _kill_balancer,
        plan.STOP_BALANCER: _stop_balancer,
        plan.KILL_GATEWAY: _kill_gateway,
        plan.CUT: _cut,
        plan.HANG: _hang,
        plan.SLOW: _slow,
    }
