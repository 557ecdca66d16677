"""Where the next car goes.

A car that says how much energy it wants goes to where the mean load over its own stay (of two days at most), with some
room for its power, is the lowest part of the limit; if energy would be lost there, its own or that of others, then to
where least is lost. Without a departure it cannot be said what is lost. Of a car that does not say how much it wants,
nothing is known but its power: the lowest (demand + asked) / limit after placement. Ties are broken at random. Never
raw kW: with unequal ratings that is no better than random.

Up to 128 substations are all looked at, which keeps equal substations equal; beyond that, distinct random ones, and
of stale ones two. Where reports are old and other balancers place many cars, the lowest is not always chosen: those
with the same old view would all choose the same.
"""

from collections.abc import Collection
from enum import IntEnum
from math import inf
from random import Random
from typing import Any, NamedTuple

from balancer.ejection import Ejections
from balancer.view import Known, LoadView
from mesh.charge import Charge
from mesh.errors import MeshError, Refused, Unavailable
from mesh.model import ErrorReason, NotAccepting, ReportState
from mesh.outlook import Need, need_of, place, room_w

FULL_SCAN = 128
MANY_CHOICES = 48
STALE_CHOICES = 2
# With so many cars unseen and more, the lowest is no longer surely the best.
FEW_UNSEEN = 0.5
# What a car would cost is found out for so many: it takes longer than all the rest.
CLOSER_LOOKS = 16
MOST_PROBES = 8
# Of more than FULL_SCAN, the list of those that have reported is made anew at most so often.
REBUILD_MS = 100
# Pushed reports leave 20 ms after a change and need some milliseconds to get here.
PUSHED_LAG_MS = 25

LEAST_UTILISATION = "least_utilisation"
LEAST_LOAD_AHEAD = "least_load_ahead"


class Pick(NamedTuple):
    """A choice and its reasons. `before` and `after` are demand over limit in the balancer's view.

    `score` is what was lowest: utilisation after placement, or the mean load over the car's stay, with room for
    its power, as a part of the limit. `need` is what the car asks of the hours ahead, if it says how much energy
    it wants.
    """

    address: str
    substation_id: str
    policy: str
    score: float
    before: float
    after: float
    # How many could have taken it; of those looked at.
    eligible: int
    need: Need | None = None


class Obstacle(IntEnum):
    """Why a substation cannot take a car, the least lasting first. The refusal names the first that is met."""

    PLUG = 1
    POWER = 2
    DRAINING = 3
    LEDGER = 4
    EJECTED = 5
    SILENT = 6
    NOT_ALLOWED = 7


# What a caller hears when this is the least obstacle, and after how many milliseconds it may have gone.
_ANSWERS: dict[Obstacle, tuple[type[MeshError], ErrorReason, str, int]] = {
    Obstacle.PLUG: (Refused, ErrorReason.NO_CHARGE_POINT, "every charge point is taken", 15_000),
    Obstacle.POWER: (Refused, ErrorReason.FLOOR_ABOVE_LIMIT, "the car's floor is above the limit in force", 30_000),
    Obstacle.DRAINING: (Refused, ErrorReason.NOT_ACCEPTING, "no substation accepts new sessions", 30_000),
    Obstacle.LEDGER: (Unavailable, ErrorReason.LEDGER_UNAVAILABLE, "no substation can write its ledger", 5_000),
    Obstacle.EJECTED: (Unavailable, ErrorReason.NO_SUBSTATION, "every substation is left out after failures", 1_000),
    Obstacle.SILENT: (Unavailable, ErrorReason.NO_SUBSTATION, "no substation has reported lately", 1_000),
    Obstacle.NOT_ALLOWED: (Unavailable, ErrorReason.NO_SUBSTATION, "no allowed substation has reported", 5_000),
}


class Picker:
    """Chooses from a view. Reads only: the caller reserves.

    `lag_ms`: how much later than a change the view shows it, at most.
    """

    def __init__(self, view: LoadView, ejections: Ejections, rng: Random, lag_ms: int = PUSHED_LAG_MS) -> None:
        self._view = view
        self._ejections = ejections
        self._rng = rng
        self._lag_ms = lag_ms
        # In an order of its own, so that what lies side by side for others does not here.
        self._order = rng.sample(view.substations, len(view))
        # Those that have reported and are not ejected, as of these versions (they only grow, so their sum tells) and
        # that time; of a few, those that are fresh, as long as they surely are.
        self._heard: list[Known] = []
        self._as_of = -1
        self._built_ms = 0
        self._fresh: list[Known] = []
        self._until_ms = -1
        # Cars that others have placed and no report shows yet, and until when that is taken for true.
        self._unseen = 0.0
        self._unseen_until_ms = 0

    def pick(self, charge: Charge, now: int, tried: Collection[str] = ()) -> Pick | MeshError:
        """The best substation that was not tried yet, or the error that says why there is none."""
        if charge.allowed:
            left = [known for known in self._allowed(charge) if known.address not in tried]
            fresh = [known for known in left if self._fits(known, charge, now, ReportState.FRESH)]
            return self._best(fresh, charge, now) or self._best_stale(left, charge, now)
        probes = self._probes(charge, now, tried) if self._ejections.out else []
        if now > self._until_ms or self._view.version + self._ejections.version != self._as_of:
            self._look_again(now)
        if len(self._heard) > FULL_SCAN:
            some = self._current(self._some(self._heard, MANY_CHOICES), now, tried)
            if (best := self._best(some + probes, charge, now)) is not None:
                return best
            everyone = self._current(self._heard, now, tried)
        else:
            everyone = [known for known in self._fresh if known.address not in tried] if tried else self._fresh
        best = self._best(everyone + probes if probes else everyone, charge, now)
        if best is None and self._view.version + self._ejections.version != self._as_of:
            # Nobody is refused because of a list that is a moment old.
            self._built_ms = now - REBUILD_MS
            return self.pick(charge, now, tried)
        return best or self._best_stale([known for known in self._view if known.address not in tried], charge, now)

    # --- who is looked at -----------------------------------------------------------------------

    def _look_again(self, now: int) -> None:
        """Finds out who there is when that may have changed; of many not at once, because that takes long."""
        as_of = self._view.version + self._ejections.version
        if as_of != self._as_of and (len(self._order) <= FULL_SCAN or now - self._built_ms >= REBUILD_MS):
            out = self._ejections.out
            self._heard = [known for known in self._order if known.load is not None and known.address not in out]
            self._as_of, self._built_ms, self._until_ms = as_of, now, now - 1
        if now > self._until_ms and len(self._heard) <= FULL_SCAN:
            self._fresh = [k for k in self._heard if self._view.state(k, now) is ReportState.FRESH]
            self._until_ms = self._view.fresh_until(self._fresh, now)

    def _current(self, some: list[Known], now: int, tried: Collection[str]) -> list[Known]:
        """Those that are fresh, not ejected since, and were not tried."""
        since, left_out = self._view.fresh_since(now), self._ejections.out
        some = [known for known in some if known.received_ms is not None and known.received_ms >= since]
        if left_out or tried:
            return [known for known in some if known.address not in left_out and known.address not in tried]
        return some

    def _allowed(self, charge: Charge) -> list[Known]:
        addresses = map(self._view.address_of, charge.allowed)
        return [self._view[address] for address in addresses if address is not None]

    def _probes(self, charge: Charge, now: int, tried: Collection[str]) -> list[Known]:
        """Ejected ones that may be asked once more; of many, some."""
        due = [self._view[address] for address in self._ejections.probes(now)]
        some = self._some(due, MOST_PROBES)
        return [k for k in some if k.address not in tried and self._fits(k, charge, now, ReportState.FRESH)]

    def _some(self, everyone: list[Known], count: int) -> list[Known]:
        """Distinct ones at a random distance from one another: each is as likely, and one slice costs nothing."""
        if count >= len(everyone):
            return everyone
        stride = 1 + int(self._rng.random() * (len(everyone) // count))
        start = int(self._rng.random() * len(everyone))
        some = everyone[start : start + count * stride : stride]
        if (missing := count - len(some)) > 0:
            start += len(some) * stride - len(everyone)
            some += everyone[start : start + missing * stride : stride]
        return some

    # --- the best of them -----------------------------------------------------------------------

    def _best(self, some: list[Known], charge: Charge, now: int) -> Pick | None:
        """None when it fits nowhere there."""
        floor_w, max_w = charge.floor_w, charge.max_w
        if charge.energy_j is not None:
            fitting = [known for known in some if floor_w <= known.admits_w]
            evenly = [known.evenly_mj for known in fitting]
            # One time scale, or hours of one are not hours of the other.
            if fitting and None not in evenly and len({known.time_scale for known in fitting}) == 1:
                return self._by_outlook(fitting, evenly, charge, now)
        scores = [(k.demand_w + max_w) / k.limit_w if floor_w <= k.admits_w else inf for k in some]
        if not scores or (lowest := min(scores)) == inf:
            return None
        at = self._one(some, scores, lowest, max_w, now)
        return _pick(some[at], LEAST_UTILISATION, scores[at], charge, len(scores) - scores.count(inf), None)

    def _by_outlook(self, fitting: list[Known], evenly: list[Any], charge: Charge, now: int) -> Pick:
        need = need_of(charge, now, fitting[0].time_scale)
        assert need is not None
        at, part = place(need.left_ms)
        before, after, own_w = (1 - part) / need.left_ms, part / need.left_ms, room_w(need)
        scores = [
            (curve[at - 1] * before + curve[at] * after + own_w) / known.limit_w
            for curve, known in zip(evenly, fitting, strict=True)
        ]
        chosen = self._one(fitting, scores, min(scores), need.need_mj / need.left_ms, now)
        # What is lost cannot be said of a car of unknown departure.
        if charge.departure_ms is not None and fitting[chosen].lost_mj(need) > 0:
            chosen = self._least_lost(fitting, scores, need)
        return _pick(fitting[chosen], LEAST_LOAD_AHEAD, scores[chosen], charge, len(fitting), need)

    def _least_lost(self, fitting: list[Known], scores: list[float], need: Need) -> int:
        """The lowest of those where least energy is lost."""
        nearest = sorted(range(len(fitting)), key=scores.__getitem__)[:CLOSER_LOOKS]
        # In thousandths of what it asks for: less is rounding.
        random = self._rng.random
        return min(nearest, key=lambda at: (fitting[at].lost_mj(need) * 1_000 // need.need_mj, scores[at], random()))

    def _one(self, some: list[Known], scores: list[float], lowest: float, each_w: float, now: int) -> int:
        """The index of that with the lowest score; of several any, and where others place unseen not always that."""
        if now >= self._unseen_until_ms:
            self._unseen = self._view.foreign.per_ms(now) * self._lag_ms
            self._unseen_until_ms = now + REBUILD_MS
        if self._unseen and (unseen := self._unseen * len(some) / len(self._order)) > FEW_UNSEEN:
            return self._spread(some, scores, each_w * unseen)
        if scores.count(lowest) == 1:
            return scores.index(lowest)
        return self._rng.choice([at for at, score in enumerate(scores) if score == lowest])

    def _spread(self, some: list[Known], scores: list[float], unseen_w: float) -> int:
        """Any of those that would be filled up if so much were poured in, each as likely as much would go there.

        Others have placed about as much that no report shows yet, most likely where it was lowest. All of them
        choosing the lowest would be a herd; choosing like this they fill up evenly (load interpretation, M. Dahlin,
        "Interpreting stale load information", 1999).
        """
        order = sorted(range(len(scores)), key=scores.__getitem__)
        level, filling_w, left_w, filled = scores[order[0]], 0, unseen_w, []
        for at in order:
            rise_w = (scores[at] - level) * filling_w
            if rise_w >= left_w:
                break
            level, left_w, filling_w = scores[at], left_w - rise_w, filling_w + some[at].limit_w
            filled.append(at)
        level += left_w / filling_w
        return self._rng.choices(filled, [(level - scores[at]) * some[at].limit_w for at in filled])[0]

    # --- when none of them is left --------------------------------------------------------------

    def _best_stale(self, left: list[Known], charge: Charge, now: int) -> Pick | MeshError:
        stale = [known for known in left if self._fits(known, charge, now, ReportState.STALE)]
        best = self._best(self._some(stale, STALE_CHOICES), charge, now)
        return best or self._why_none(left, charge, now)

    def _fits(self, known: Known, charge: Charge, now: int, state: ReportState) -> bool:
        return self._view.state(known, now) is state and self._obstacle(known, charge, now) is None

    def _obstacle(self, known: Known, charge: Charge, now: int) -> Obstacle | None:
        load = known.load
        if load is None or self._view.state(known, now) is ReportState.GONE:
            return Obstacle.SILENT
        if charge.allowed and load.substation_id not in charge.allowed:
            return Obstacle.NOT_ALLOWED
        if not self._ejections.permits(known.address, now):
            return Obstacle.EJECTED
        if not load.accepting:
            return Obstacle.LEDGER if load.not_accepting is NotAccepting.LEDGER else Obstacle.DRAINING
        # A limit of 0 is a limit, and no car has a floor of 0.
        if charge.floor_w > load.limit_w:
            return Obstacle.POWER
        return None if known.free_charge_points > 0 else Obstacle.PLUG

    def _why_none(self, left: list[Known], charge: Charge, now: int) -> MeshError:
        obstacles = [obstacle for known in left if (obstacle := self._obstacle(known, charge, now))]
        least = min(obstacles, default=Obstacle.NOT_ALLOWED if charge.allowed else Obstacle.SILENT)
        kind, reason, message, retry_after_ms = _ANSWERS[least]
        if least is Obstacle.EJECTED:
            retry_after_ms = max(100, min(self._ejections.wait_ms(known.address, now) or 1_000 for known in left))
        return kind(reason, message, retry_after_ms)


def _pick(chosen: Known, policy: str, score: float, charge: Charge, eligible: int, need: Need | None) -> Pick:
    demand_w, limit_w = chosen.demand_w, chosen.limit_w
    after = (demand_w + charge.max_w) / limit_w
    return Pick(chosen.address, chosen.substation_id, policy, score, demand_w / limit_w, after, eligible, need)
