"""What a substation has promised for the hours ahead, as two curves over time; shared by reports and reservations.

Both say how much energy must have flowed by then: `evenly`, were every car charged at a constant power until it
leaves; `at_latest`, were it charged as late as its full power allows. Cars can all be completed exactly
when the second stays under limit x time wherever a car leaves. Curves add up: car by car, and
reservation by reservation.

Time is milliseconds of charging from now, power whole watts, energy millijoules.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.charge import Charge

_MINUTE_MS = 60_000
# From a quarter of an hour to two days; in between, curves are drawn straight.
GRID_MS = tuple(m * _MINUTE_MS for m in (15, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 960, 1_440, 2_880))
# A car about to leave needs no infinite power.
LEAST_LEFT_MS = 5 * _MINUTE_MS
# Without a departure, a stay of four hours or twice the time at full power is assumed.
_ASSUMED_STAY_MS = 240 * _MINUTE_MS
_ASSUMED_FACTOR = 2


def assumed_stay_ms(need_mj: int, max_w: int) -> int:
    """How long a car stays of which nobody said."""
    return max(_ASSUMED_STAY_MS, _ASSUMED_FACTOR * (need_mj // max_w))


@dataclass(frozen=True, slots=True)
class Need:
    """One car: the energy that it still wants, in the time that it has, at its most power."""

    need_mj: int
    left_ms: int
    max_w: int

    @property
    def spare_ms(self) -> int:
        """How long it could wait and still be completed at full power; below 0 it cannot be completed."""
        return self.left_ms - self.need_mj // self.max_w

    def evenly_mj(self, by_ms: int) -> int:
        """At a constant power until it leaves."""
        return min(self.need_mj, self.max_w * by_ms, self.need_mj * by_ms // max(self.left_ms, LEAST_LEFT_MS))

    def at_latest_mj(self, by_ms: int) -> int:
        """At full power, as late as that brings all of it."""
        return min(self.need_mj, max(0, self.max_w * (by_ms - self.spare_ms)))


@dataclass(frozen=True, slots=True)
class Outlook:
    """Millijoules at each time of GRID_MS."""

    evenly_mj: tuple[int, ...]
    at_latest_mj: tuple[int, ...]

    def evenly_by(self, by_ms: int) -> int:
        """The first curve at any time: straight between its points, level after the last."""
        after = bisect_right(GRID_MS, by_ms)
        if after == len(GRID_MS):
            return self.evenly_mj[-1]
        low_ms, low = (GRID_MS[after - 1], self.evenly_mj[after - 1]) if after else (0, 0)
        return low + (self.evenly_mj[after] - low) * (by_ms - low_ms) // (GRID_MS[after] - low_ms)


NOTHING = Outlook((0,) * len(GRID_MS), (0,) * len(GRID_MS))


def outlook(evenly: Sequence[Need], at_latest: Sequence[Need]) -> Outlook:
    """The curves of many cars. Promised at the latest is only what can be completed."""
    return Outlook(
        tuple([sum([need.evenly_mj(t) for need in evenly]) for t in GRID_MS]),
        tuple([sum([need.at_latest_mj(t) for need in at_latest]) for t in GRID_MS]),
    )


def need_of(charge: Charge, now: int, scale: float) -> Need | None:
    """What a request asks of the hours ahead; None when it says no amount."""
    if charge.energy_j is None:
        return None
    need_mj = charge.energy_j * 1000
    if charge.departure_ms is None:
        return Need(need_mj, assumed_stay_ms(need_mj, charge.max_w), charge.max_w)
    return Need(need_mj, max(LEAST_LEFT_MS, round((charge.departure_ms - now) * scale)), charge.max_w)
