"""A recorded day, car by car, at the mesh's own time scale."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Any

from fleet.gateway import Gateway, GatewayError
from fleet.replies import Admitted, InDoubt, Load, OverLimit, Refused
from fleet.results import Peak, Replay, Stay, peaks_of, replay
from fleet.screen import Meter, meter
from fleet.trace import Arrival, Car, clock_at, schedule

LOOK_S = 1.0
DAY_S = 86_400
# A departure must lie in the future when the request arrives.
LEAST_STAY_S = 0.05
# After midnight, those who stay longer and are not full get so many more hours of the played clock.
TAIL_HOURS = 24.0


@dataclass(frozen=True)
class Day:
    """What is played."""

    run_id: str
    day: date
    cars: Sequence[Car]
    tail_hours: float = TAIL_HOURS


async def run(gateway: Gateway, day: Day) -> Replay:
    """Plays the day and waits for those who stay longer. GatewayError when it cannot begin."""
    loads = await gateway.loads()
    scale = time_scale(loads)
    player = _Player(gateway, day, scale, loads)
    with meter(f"{day.day}", DAY_S, counted=False) as progress:
        await player.play(progress)
    return replay(day.day.isoformat(), scale, player.stays, player.refusals, player.peaks, player.over.seconds)


def time_scale(loads: Mapping[str, Load]) -> float:
    """The one that all substations have. GatewayError when there is none."""
    scales = {load.time_scale for load in loads.values()}
    if not scales:
        raise GatewayError("no substation has reported: nobody knows the time scale")
    if len(scales) > 1:
        listed = ", ".join(f"{load.substation_id}: {load.time_scale:g}" for load in loads.values())
        raise GatewayError(f"the substations have different time scales ({listed})")
    return scales.pop()


class _Player:
    """One run: every car as a task, and somebody who looks on."""

    def __init__(self, gateway: Gateway, day: Day, scale: float, loads: Mapping[str, Load]) -> None:
        self._gateway = gateway
        self._day = day
        self._scale = scale
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._arrivals = list(schedule(day.cars, day.day, scale))
        self._active = 0
        self.stays = [Stay(car) for car in day.cars]
        self.refusals: Counter[str] = Counter()
        self.over = OverLimit(loads)
        self.peaks: dict[str, Peak] = {}

    @property
    def _now_s(self) -> float:
        return self._loop.time() - self._begun

    async def play(self, progress: Meter) -> None:
        watching = asyncio.create_task(self._watch(progress))
        try:
            async with asyncio.TaskGroup() as group:
                for arrival, stay in zip(self._arrivals, self.stays, strict=True):
                    group.create_task(self._drive(arrival, stay))
            await self._wait_until_settled()
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        await self._look(progress)

    async def _drive(self, arrival: Arrival, stay: Stay) -> None:
        """Plugs in, and asks again as told until it has a session or must leave."""
        await asyncio.sleep(arrival.arrives_s - self._now_s)
        leaves = self._begun + arrival.leaves_s
        key = f"replay-{self._day.run_id}-{arrival.car.session_id}"
        while (left := leaves - self._loop.time()) > LEAST_STAY_S:
            match await self._gateway.charge(key, _body(arrival.car, left), leaves, self.refusals):
                case Admitted(session_id, substation_id):
                    stay.session_id, stay.substation_id = session_id, substation_id
                    return
                case Refused(reason, retry_after_s):
                    self.refusals[reason] += 1
                    await asyncio.sleep(min(retry_after_s, max(0.0, leaves - self._loop.time())))
                case InDoubt():  # counted there; its time is up
                    return
                case rejected:
                    self.refusals[rejected.reason] += 1
                    return

    async def _wait_until_settled(self) -> None:
        """Reads back every session until nothing more will come of it, or the bound."""
        bound_s = (DAY_S + self._day.tail_hours * 3600) / self._scale
        while True:
            open_stays = [stay for stay in self.stays if not stay.settled]
            await asyncio.gather(*(self._read_back(stay) for stay in open_stays))
            if all(stay.settled for stay in open_stays) or self._now_s > bound_s:
                return
            await asyncio.sleep(LOOK_S)

    async def _read_back(self, stay: Stay) -> None:
        assert stay.session_id
        with suppress(GatewayError):  # its substation may be away: the next look finds it
            register = await self._gateway.register(stay.session_id)
            if register and register.duplicate_of:
                stay.session_id = register.duplicate_of
                stay.substation_id = register.duplicate_of.partition(".")[0]
            elif register:
                stay.register = register
            else:
                stay.lost = True

    async def _watch(self, progress: Meter) -> None:
        while True:
            await self._look(progress)
            await asyncio.sleep(LOOK_S)

    async def _look(self, progress: Meter) -> None:
        with suppress(GatewayError):
            loads = await self._gateway.loads()
            self.over.update(loads)
            self.peaks = peaks_of(self.peaks, loads)
            self._active = sum(load.active_sessions for load in loads.values())
        admitted = sum(stay.session_id is not None for stay in self.stays)
        clock = clock_at(self._day.day, self._scale, self._now_s)
        note = f"{clock:%a %H:%M}  {admitted} of {len(self.stays)} cars admitted, {self._active} charging"
        progress.show(min(self._now_s * self._scale, DAY_S), note)


def _body(car: Car, stay_s: float) -> dict[str, Any]:
    return {
        "vehicle_id": car.vehicle_id,
        "energy_kwh": car.energy_kwh,
        "max_power_kw": car.max_power_kw,
        "departure_in": f"{stay_s:.3f}s",
    }
