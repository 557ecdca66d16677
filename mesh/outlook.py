"""What a substation has promised for the hours ahead, as two curves over time; shared by reports and reservations.

Both say how much energy must have flowed by then: `evenly`, were every car charged at a constant power until it
leaves; `at_latest`, were it charged as late as its full power allows. Cars can all be completed exactly
when the second stays under limit x time wherever a car leaves; by how much it is over there is lost. Curves add
up: car by car, and reservation by reservation.

Time is milliseconds of charging from now, power whole watts, energy millijoules.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from math import floor
from operator import add, mul, sub
from typing import TypeAlias

from msgspec import Struct

from mesh.charge import Charge

_MINUTE_MS = 60_000
# From now over a quarter of an hour to two days; in between, curves are drawn straight.
GRID_MS = tuple(
    m * _MINUTE_MS for m in (*(0, 15, 30, 45, 60, 90), *range(120, 960, 60), *(960, 1_080, 1_200, 1_440, 1_800, 2_880))
)
_POINTS = len(GRID_MS)
# As what they are multiplied and compared with: of one type that is a third faster.
_GRID_MS = tuple(map(float, GRID_MS))
# Millijoules at each time of the grid.
Curve: TypeAlias = tuple[float, ...]
# A car about to leave needs no infinite power.
LEAST_LEFT_MS = 5 * _MINUTE_MS
# Without a departure, a stay of four hours or twice the time at full power is assumed.
_ASSUMED_STAY_MS = 240 * _MINUTE_MS
_ASSUMED_FACTOR = 2


def assumed_stay_ms(need_mj: int, max_w: int) -> int:
    """How long a car stays of which nobody said."""
    return max(_ASSUMED_STAY_MS, _ASSUMED_FACTOR * (need_mj // max_w))


class Need(Struct, frozen=True, gc=False):
    """One car: the energy that it still wants, in the time that it has, at its most power."""

    need_mj: int
    left_ms: int
    max_w: int

    @property
    def spare_ms(self) -> int:
        """How long it could wait and still be completed at full power; below 0 it cannot be completed."""
        return self.left_ms - self.need_mj // self.max_w

    # Both curves are made for cars that are placed: only where one rises is it reckoned.

    def evenly_mj(self) -> Curve:
        """Charged at a constant power until it leaves."""
        need_mj, rate_w = self.need_mj, self.rate_w()
        risen = bisect_right(_GRID_MS, need_mj / rate_w)
        # Whole, so that it can be taken away again; floor() takes a third of the time of int().
        return (*[floor(rate_w * t) for t in _GRID_MS[:risen]], *(need_mj,) * (_POINTS - risen))

    def evenly_around_mj(self, at: int) -> tuple[int, int]:
        """Two points of that curve: the one before, and that one."""
        need_mj, rate_w = self.need_mj, self.rate_w()
        full_ms, first_ms, second_ms = need_mj / rate_w, _GRID_MS[at - 1], _GRID_MS[at]
        return (
            floor(rate_w * first_ms) if first_ms <= full_ms else need_mj,
            floor(rate_w * second_ms) if second_ms <= full_ms else need_mj,
        )

    def rate_w(self) -> float:
        """The constant power that completes it in time, where its own is enough."""
        need_mj, left_ms, max_w = self.need_mj, self.left_ms, self.max_w
        if left_ms >= LEAST_LEFT_MS and need_mj <= max_w * left_ms:  # the usual case, without two calls
            return need_mj / left_ms
        return min(max_w, need_mj / max(left_ms, LEAST_LEFT_MS))

    def at_latest_mj(self) -> Curve:
        """Charged as late as its full power allows. What it is late with already is nobody's promise."""
        need_mj, max_w, spare_ms = self.need_mj, self.max_w, self.spare_ms
        late_mj = max(0, -max_w * spare_ms)
        flat, risen = bisect_right(GRID_MS, spare_ms), bisect_right(GRID_MS, spare_ms + need_mj // max_w)
        return (
            *(0,) * flat,
            *[max_w * (t - spare_ms) - late_mj for t in GRID_MS[flat:risen]],
            *(need_mj - late_mj,) * (_POINTS - risen),
        )

    def outlook(self) -> "Outlook":
        """The curves of this car alone."""
        return Outlook(self.evenly_mj(), self.at_latest_mj())


@dataclass(slots=True)  # frozen would be three times as slow to make, and each report makes one
class Outlook:
    """Both curves, never changed; the first point of each is 0."""

    evenly_mj: Curve
    at_latest_mj: Curve

    def __add__(self, other: "Outlook") -> "Outlook":
        return Outlook(added(self.evenly_mj, other.evenly_mj), added(self.at_latest_mj, other.at_latest_mj))

    def __sub__(self, other: "Outlook") -> "Outlook":
        return Outlook(less(self.evenly_mj, other.evenly_mj), less(self.at_latest_mj, other.at_latest_mj))

    def slack_mj(self, limit_w: int) -> list[float]:
        """What the promises leave of the limit at each time of the grid; below 0 is lost."""
        return [limit_w * t - mj for t, mj in zip(GRID_MS, self.at_latest_mj, strict=True)]


def added(one: Curve, other: Curve) -> Curve:
    """Of the cars of both."""
    return tuple(map(add, one, other))


def less(one: Curve, other: Curve) -> Curve:
    """Without the cars of the other."""
    return tuple(map(sub, one, other))


def lost_mj(need: Need, slack_mj: list[float], limit_w: int) -> float:
    """What one more car would cost under that limit, of its own energy or of what is promised already.

    How much more the highest overload is with it: at each point of the grid and when it leaves.
    """
    need_mj, left_ms, max_w = need.need_mj, need.left_ms, min(need.max_w, limit_w)
    spare_ms = left_ms - need_mj // max_w
    first = max(0, bisect_right(GRID_MS, spare_ms) - 1)
    # After the last point nothing is known but the limit.
    beyond_mj = limit_w * max(0, left_ms - GRID_MS[-1])
    if spare_ms >= 0 and need_mj <= min(slack_mj[first:]):
        return 0
    at, part = place(left_ms)
    when_it_leaves: float = slack_mj[at - 1] + (slack_mj[at] - slack_mj[at - 1]) * part + beyond_mj
    before: float = -min(0, when_it_leaves, *slack_mj)
    points = zip(GRID_MS[first:], slack_mj[first:], strict=True)
    after: float = max([min(need_mj, max_w * (t - spare_ms)) - slack for t, slack in points])
    return max(0.0, max(after, need_mj - when_it_leaves) - before)


def place(by_ms: int) -> tuple[int, float]:
    """Where a time is on the grid: the index of the point after it, and the part of the way from the one before."""
    at = bisect_right(GRID_MS, by_ms)
    if at == len(GRID_MS):
        return at - 1, 1.0
    start_ms = GRID_MS[at - 1]
    return at, (by_ms - start_ms) / (GRID_MS[at] - start_ms)


def mean_load(need: Need) -> tuple[int, float, float, float]:
    """How the mean load over a car's stay is read from a curve that is charged evenly, with room for the car.

    Returns (at, before, after, room_w): curve[at - 1] * before + curve[at] * after + room_w, in watts. `room_w` is
    below 0 if the car is in a hurry. As a part of the limit it counts for more on small substations. They get the cars
    that draw most of their power all the time, of whom one more or less changes little later; the large ones get those
    that need little of a high power and can make way for others. Tuned on a month of sessions; half and twice of it
    are as good.
    """
    need_mj, left_ms, max_w = need.need_mj, need.left_ms, need.max_w
    at, part = place(left_ms)
    return at, (1 - part) / left_ms, part / left_ms, 0.1 * max_w - 0.2 * (need_mj / left_ms)


FLAT: Curve = (0,) * _POINTS
NOTHING = Outlook(FLAT, FLAT)


def outlook(needs: Iterable[Need]) -> Outlook:
    """The curves of many cars. Of one that cannot be completed what its full power brings counts as promised."""
    curves = Curves()
    curves.count(needs, 1)
    return curves.outlook()


class Curves:
    """The same for cars that come and go."""

    def __init__(self) -> None:
        self._even, self._latest = _Curve(), _Curve()

    def count(self, needs: Iterable[Need], times: int) -> None:
        """Counts cars in (1) or out (-1)."""
        even, latest = self._even.rise, self._latest.rise
        for need in needs:
            need_mj, left_ms, max_w, rate_w = need.need_mj, need.left_ms, need.max_w, need.rate_w()
            even(0, need_mj / rate_w if rate_w else 0, times * rate_w)
            latest(float(left_ms - need_mj // max_w), float(left_ms), float(times * max_w))

    def outlook(self) -> Outlook:
        return Outlook(self._even.points(), self._latest.points())


# Where on the grid a rise from now on begins.
_NOW = bisect_right(GRID_MS, 0)


class _Curve:
    """Sums straight rises, each from one time to another: between two points, value = slope x time - offset."""

    def __init__(self) -> None:
        self._slope = [0.0] * (len(GRID_MS) + 1)
        self._offset = [0.0] * (len(GRID_MS) + 1)

    def rise(self, start_ms: float, end_ms: float, rate_w: float) -> None:
        """By `rate_w` from then to then; what would have risen before now is left out."""
        slope, offset = self._slope, self._offset
        if start_ms > 0:
            first = bisect_right(_GRID_MS, start_ms)
            slope[first] += rate_w
            offset[first] += rate_w * start_ms
        else:
            slope[_NOW] += rate_w
        if end_ms > 0:
            after = bisect_right(_GRID_MS, end_ms)
            slope[after] -= rate_w
            offset[after] -= rate_w * end_ms
        else:
            slope[_NOW] -= rate_w

    def points(self) -> tuple[int, ...]:
        """Whole millijoules at each time of the grid; of what was counted out again rounding may leave a trace."""
        risen = map(sub, map(mul, _GRID_MS, accumulate(self._slope)), accumulate(self._offset))
        return tuple([round(mj) if mj > 0 else 0 for mj in risen])


def need_of(charge: Charge, now: int, scale: float) -> Need | None:
    """What a request asks of the hours ahead; None when it says no amount."""
    energy_j, departure_ms, max_w = charge.energy_j, charge.departure_ms, charge.max_w
    if energy_j is None:
        return None
    if departure_ms is None:
        return Need(energy_j * 1000, assumed_stay_ms(energy_j * 1000, max_w), max_w)
    left_ms = departure_ms - now if scale == 1.0 else round((departure_ms - now) * scale)
    return Need(energy_j * 1000, max(LEAST_LEFT_MS, left_ms), max_w)
