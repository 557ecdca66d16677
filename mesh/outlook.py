"""What a substation has promised for the hours ahead, as two curves over time; shared by reports and reservations.

Both say how much energy must have flowed by then: `evenly`, were every car charged at a constant power until it
leaves; `at_latest`, were it charged as late as its full power allows. Cars can all be completed exactly
when the second stays under limit x time wherever a car leaves. Curves add up: car by car, and
reservation by reservation.

Time is milliseconds of charging from now, power whole watts, energy millijoules.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from operator import add, sub
from typing import NamedTuple

from mesh.charge import Charge

_MINUTE_MS = 60_000
# From now over a quarter of an hour to two days; in between, curves are drawn straight.
GRID_MS = tuple(m * _MINUTE_MS for m in (0, 15, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 960, 1_440, 2_880))
# A car about to leave needs no infinite power.
LEAST_LEFT_MS = 5 * _MINUTE_MS
# Without a departure, a stay of four hours or twice the time at full power is assumed.
_ASSUMED_STAY_MS = 240 * _MINUTE_MS
_ASSUMED_FACTOR = 2


def assumed_stay_ms(need_mj: int, max_w: int) -> int:
    """How long a car stays of which nobody said."""
    return max(_ASSUMED_STAY_MS, _ASSUMED_FACTOR * (need_mj // max_w))


class Need(NamedTuple):
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

    def outlook(self) -> "Outlook":
        """The curves of this car alone."""
        at_latest = map(self.at_latest_mj, GRID_MS) if self.spare_ms >= 0 else NOTHING.at_latest_mj
        return Outlook(tuple(map(self.evenly_mj, GRID_MS)), tuple(at_latest))


@dataclass(frozen=True, slots=True)
class Outlook:
    """Millijoules at each time of GRID_MS, the first of them 0."""

    evenly_mj: tuple[float, ...]
    at_latest_mj: tuple[float, ...]

    def __add__(self, other: "Outlook") -> "Outlook":
        return self._each(other, add)

    def __sub__(self, other: "Outlook") -> "Outlook":
        return self._each(other, sub)

    def _each(self, other: "Outlook", do: Callable[[float, float], float]) -> "Outlook":
        return Outlook(
            tuple(map(do, self.evenly_mj, other.evenly_mj)), tuple(map(do, self.at_latest_mj, other.at_latest_mj))
        )

    def completable(self, need: Need, limit_w: int) -> bool:
        """Whether these promises leave one more car what it needs under that limit, at each point of the grid."""
        if need.max_w > limit_w:
            need = Need(need.need_mj, need.left_ms, limit_w)
        if need.spare_ms < 0:
            return False
        first = bisect_right(GRID_MS, need.spare_ms)
        curve = zip(GRID_MS[first:], self.at_latest_mj[first:], strict=True)
        return all(at_latest_mj + need.at_latest_mj(t) <= limit_w * t for t, at_latest_mj in curve)


def nearest(stay_ms: int) -> int:
    """The index of the point of the grid, after now, that is nearest to the end of a stay, as a ratio."""
    at = bisect_right(GRID_MS, stay_ms)
    if at == len(GRID_MS) or (at > 1 and stay_ms * stay_ms < GRID_MS[at - 1] * GRID_MS[at]):
        return at - 1
    return at


NOTHING = Outlook((0,) * len(GRID_MS), (0,) * len(GRID_MS))


def outlook(evenly: Iterable[Need], at_latest: Iterable[Need]) -> Outlook:
    """The curves of many cars. Promised at the latest is only what can be completed."""
    even, latest = _Curve(), _Curve()
    for need in evenly:
        rate_w = min(need.max_w, need.need_mj / max(need.left_ms, LEAST_LEFT_MS))
        even.rise(0, need.need_mj / rate_w if rate_w else 0, rate_w)
    for need in at_latest:
        latest.rise(need.spare_ms, need.left_ms, need.max_w)
    return Outlook(even.points(), latest.points())


class _Curve:
    """Sums straight rises, each from one time to another: between two points, value = slope x time - offset."""

    def __init__(self) -> None:
        self._slope = [0.0] * (len(GRID_MS) + 1)
        self._offset = [0.0] * (len(GRID_MS) + 1)

    def rise(self, start_ms: float, end_ms: float, rate_w: float) -> None:
        """By `rate_w` from then to then; what would have risen before now is left out."""
        start_ms = max(0, start_ms)
        first, after = bisect_right(GRID_MS, start_ms), bisect_right(GRID_MS, end_ms)
        self._slope[first] += rate_w
        self._offset[first] += rate_w * start_ms
        self._slope[after] -= rate_w
        self._offset[after] -= rate_w * end_ms

    def points(self) -> tuple[int, ...]:
        """Whole millijoules at each time of the grid."""
        slopes, offsets = accumulate(self._slope), accumulate(self._offset)
        return tuple(round(t * slope - offset) for t, slope, offset in zip(GRID_MS, slopes, offsets, strict=False))


def need_of(charge: Charge, now: int, scale: float) -> Need | None:
    """What a request asks of the hours ahead; None when it says no amount."""
    if charge.energy_j is None:
        return None
    need_mj = charge.energy_j * 1000
    if charge.departure_ms is None:
        return Need(need_mj, assumed_stay_ms(need_mj, charge.max_w), charge.max_w)
    return Need(need_mj, max(LEAST_LEFT_MS, round((charge.departure_ms - now) * scale)), charge.max_w)
