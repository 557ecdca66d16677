"""Equal cars within a few seconds: whether they spread evenly, and no substation goes over its limit."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fleet.gateway import Gateway
from fleet.replies import Admitted, InDoubt, OverLimit
from fleet.results import RushHour, rush_hour
from fleet.screen import Meter, meter

# Long enough for every car to take what it was granted (they obey within 5 s) and for a report of it.
WATCH_S = 6.0
LOOK_S = 0.25
# An answer that stays away is asked for again so long.
DOUBT_S = 20.0


@dataclass(frozen=True)
class Rush:
    """What comes."""

    run_id: str
    cars: int
    seconds: float
    max_power_kw: float
    energy_kwh: float

    def arrives_s(self, n: int) -> float:
        """Evenly over the seconds, the first at once."""
        return n * self.seconds / self.cars

    def key(self, n: int) -> str:
        return f"rush-{self.run_id}-{n}"

    def body(self, n: int) -> dict[str, Any]:
        return {"vehicle_id": f"EV-{n:03d}", "energy_kwh": self.energy_kwh, "max_power_kw": self.max_power_kw}


async def run(gateway: Gateway, rush: Rush, watch_s: float = WATCH_S) -> RushHour:
    """Sends the cars and watches them for a while. GatewayError when the gateway does not answer."""
    before = await gateway.loads()
    placed: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    over = OverLimit(before)
    with meter("cars asking to charge", rush.cars, counted=True) as progress:
        await _send(gateway, rush, progress, placed, refusals)
    with meter("watching them charge", watch_s, counted=False) as progress:
        after = await _watch(gateway, watch_s, over, progress)
    return rush_hour(rush.cars, placed, refusals, after, over.seconds)


async def _send(gateway: Gateway, rush: Rush, progress: Meter, placed: Counter[str], refusals: Counter[str]) -> None:
    loop = asyncio.get_running_loop()
    begun, answered = loop.time(), 0

    async def one(n: int) -> None:
        nonlocal answered
        await asyncio.sleep(begun + rush.arrives_s(n) - loop.time())
        doubts: Counter[str] = Counter()
        match await gateway.charge(rush.key(n), rush.body(n), loop.time() + DOUBT_S, doubts):
            case Admitted(substation_id=substation):
                placed[substation] += 1
            case InDoubt(reason=reason):
                refusals[reason] += 1
            case refused:
                refusals[refused.reason] += 1
        answered += 1
        progress.show(answered, "/".join(str(placed[name]) for name in sorted(placed)))

    async with asyncio.TaskGroup() as group:
        for n in range(rush.cars):
            group.create_task(one(n))


async def _watch(gateway: Gateway, watch_s: float, over: OverLimit, progress: Meter) -> dict[str, Any]:
    """Looks on while the cars take their power, and returns the last look."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while True:
        loads = await gateway.loads()
        over.update(loads)
        gone = min(loop.time() - begun, watch_s)
        committed = sum(load.committed_kw for load in loads.values())
        progress.show(gone, f"{committed:.0f} kW committed")
        if gone >= watch_s:
            return loads
        await asyncio.sleep(min(LOOK_S, watch_s - gone))
