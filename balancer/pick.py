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

from msgspec import Struct

from balancer.ejection import Ejections
from balancer.view import Known, LoadView
from mesh.charge import Charge
from mesh.errors import MeshError, Refused, Unavailable
from mesh.model import ErrorReason, NotAccepting, ReportState
from mesh.outlook import Need, mean_load, need_of

FULL_SCAN = 128
MANY_CHOICES = 48
STALE_CHOICES = 2
# With so many cars unseen and more, the lowest is no longer surely the best.
FEW_UNSEEN = 0.5
# What a car would cost is found out for so many: it takes longer than all the rest.
CLOSER_LOOKS = 16
MOST_PROBES = 8
# In an error.
NAMED = 5
# Of more than FULL_SCAN, the list of those that are fresh is made anew at most so often.
REBUILD_MS = 100
# Pushed reports leave 20 ms after a change and need some milliseconds to get here.
PUSHED_LAG_MS = 25

LEAST_UTILISATION = "least_utilisation"
LEAST_LOAD_AHEAD = "least_load_ahead"


class Pick(Struct, frozen=True):
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


# What a caller hears when this is the least obstacle, and after how many milliseconds it may have gone. For a plug that
# is where nobody knows who leaves next: else until then, within these.
_PLUG_LEAST_MS, _PLUG_MOST_MS = 1_000, 3_600_000
_ANSWERS: dict[Obstacle, tuple[type[MeshError], ErrorReason, str, int]] = {
    Obstacle.PLUG: (Refused, ErrorReason.NO_CHARGE_POINT, "every charge point is taken", 15_000),
    Obstacle.POWER: (Refused, ErrorReason.FLOOR_ABOVE_LIMIT, "the car's floor is above the limit in force", 30_000),
    Obstacle.DRAINING: (Refused, ErrorReason.NOT_ACCEPTING, "no substation accepts new sessions", 30_000),
    Obstacle.LEDGER: (Unavailable, ErrorReason.LEDGER_UNAVAILABLE, "no substation can write its ledger", 5_000),
    Obstacle.EJECTED: (Unavailable, ErrorReason.NO_SUBSTATION, "every substation is left out after failures", 1_000),
    Obstacle.SILENT: (Unavailable, ErrorReason.NO_SUBSTATION, "no substation has reported lately", 1_000),
    Obstacle.NOT_ALLOWED: (Unavailable, ErrorReason.NO_SUBSTATION, "no allowed substation has ever reported", 5_000),
}
_UNREACHED_RETRY_MS = 1_000


class Picker:
    """Chooses from a view. Reads only: the caller reserves.

    `lag_ms`: how much later than a change the view shows it, at most.
    """

    def __init__(self, view: LoadView, ejections: Ejections, rng: Random, lag_ms: int = PUSHED_LAG_MS) -> None:
        self._view = view
        self._ejections = ejections
        self._rng = rng
        self._lag_ms = lag_ms
        # All of them, and in an order of its own, so that what lies side by side for others does not here.
        self._everyone = view.substations
        self._order = rng.sample(view.substations, len(view))
        # Those that are fresh and not ejected: as of that time and these versions (they only grow, so their sum tells),
        # and until when they surely are.
        self._fresh: list[Known] = []
        self._built_ms = 0
        self._as_of = -1
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
        probes = self._probes(charge, now, tried) if self._ejections.out else None
        is_exact = self._view.version + self._ejections.version == self._as_of and now <= self._until_ms
        if not is_exact:
            is_exact = self._look_again(now)
        everyone = self._fresh
        if len(everyone) > FULL_SCAN:
            some = self._some(everyone, MANY_CHOICES)
            if tried or not is_exact:
                some = self._current(some, now, tried)
            if (best := self._best(some + probes if probes else some, charge, now)) is not None:
                return best
        if tried or not is_exact:
            everyone = self._current(everyone, now, tried)
        if (best := self._best(everyone + probes if probes else everyone, charge, now)) is not None:
            return best
        if not is_exact:
            # Nobody is refused because of a list that is a moment old.
            self._built_ms = now - REBUILD_MS
            return self.pick(charge, now, tried)
        return self._best_stale([known for known in self._view if known.address not in tried], charge, now)

    # --- who is looked at -----------------------------------------------------------------------

    def _look_again(self, now: int) -> bool:
        """Finds out who is fresh; of many not at once, because that takes long. Returns whether it did."""
        if len(self._order) > FULL_SCAN and now - self._built_ms < REBUILD_MS:
            return False
        if self._everyone is not self._view.substations:
            self._everyone = self._view.substations
            self._order = self._rng.sample(self._everyone, len(self._everyone))
        since, out = self._view.fresh_since(now), self._ejections.out
        reported = [k for k in self._order if k.received_ms is not None and k.received_ms >= since]
        self._fresh = [known for known in reported if known.address not in out] if out else reported
        self._built_ms, self._as_of = now, self._view.version + self._ejections.version
        self._until_ms = self._view.fresh_until(self._fresh, now)
        return True

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
        # Hours of one time scale are not hours of another.
        if charge.energy_j is None or (scale := self._view.time_scale or _one_scale(some, charge)) is None:
            return self._by_power(some, charge, now)
        need = need_of(charge, now, scale)
        assert need is not None
        at, before, after, room_w = mean_load(need)
        at_first, floor_w, lowest, unfit = at - 1, charge.floor_w, inf, 0
        chosen: Known | None = None
        tied: list[tuple[float, Known]] = []
        # A loop that keeps the lowest, here and in `_by_power`, costs half of what a list of scores does.
        for known in some:
            if floor_w > known.admits_w:
                unfit += 1
                continue
            curve = known.evenly_mj
            # The call is for those where cars were placed since.
            first_mj, second_mj = known.promised_mj(at) if known.undrawn or not curve else (curve[at_first], curve[at])
            score = (first_mj * before + second_mj * after + room_w) / known.limit_w
            if score > lowest:
                continue
            if score < lowest:
                lowest, chosen = score, known
            else:
                tied.append((score, known))
        if chosen is None:
            return None
        if (self._unseen or now >= self._unseen_until_ms) and (unseen := self._unseen_by(some, now)):
            fitting = _fitting(some, charge)
            chosen, lowest = self._spread(fitting, _loads_ahead(fitting, need), need.need_mj / need.left_ms * unseen)
        elif tied:
            chosen = self._any_of(chosen, lowest, tied)
        # What is lost cannot be said of a car of unknown departure.
        if charge.departure_ms is not None and chosen.lost_mj(need) > 0:
            fitting = _fitting(some, charge)
            chosen, lowest = self._least_lost(fitting, _loads_ahead(fitting, need), need)
        now_w, limit_w, eligible = chosen.demand_w, chosen.limit_w, len(some) - unfit
        before, after = now_w / limit_w, (now_w + charge.max_w) / limit_w
        return Pick(chosen.address, chosen.substation_id, LEAST_LOAD_AHEAD, lowest, before, after, eligible, need)

    def _by_power(self, some: list[Known], charge: Charge, now: int) -> Pick | None:
        floor_w, max_w, lowest, unfit = charge.floor_w, charge.max_w, inf, 0
        chosen: Known | None = None
        tied: list[tuple[float, Known]] = []
        for known in some:
            if floor_w > known.admits_w:
                unfit += 1
                continue
            score = (known.demand_w + max_w) / known.limit_w
            if score > lowest:
                continue
            if score < lowest:
                lowest, chosen = score, known
            else:
                tied.append((score, known))
        if chosen is None:
            return None
        if (self._unseen or now >= self._unseen_until_ms) and (unseen := self._unseen_by(some, now)):
            fitting = _fitting(some, charge)
            scores = [(known.demand_w + max_w) / known.limit_w for known in fitting]
            chosen, lowest = self._spread(fitting, scores, max_w * unseen)
        elif tied:
            chosen = self._any_of(chosen, lowest, tied)
        now_w, limit_w, eligible = chosen.demand_w, chosen.limit_w, len(some) - unfit
        before, after = now_w / limit_w, (now_w + max_w) / limit_w
        return Pick(chosen.address, chosen.substation_id, LEAST_UTILISATION, lowest, before, after, eligible)

    def _any_of(self, chosen: Known, lowest: float, tied: list[tuple[float, Known]]) -> Known:
        """That or one of those that are as low; what was as low as one before it is in the list too."""
        as_low = [known for score, known in tied if score == lowest]
        return self._rng.choice([chosen, *as_low]) if as_low else chosen

    def _least_lost(self, fitting: list[Known], scores: list[float], need: Need) -> tuple[Known, float]:
        """The lowest of those where least energy is lost, and its score."""
        nearest = sorted(range(len(fitting)), key=scores.__getitem__)[:CLOSER_LOOKS]
        # In thousandths of what it asks for: less is rounding.
        random = self._rng.random
        at = min(nearest, key=lambda at: (fitting[at].lost_mj(need) * 1_000 // need.need_mj, scores[at], random()))
        return fitting[at], scores[at]

    def _unseen_by(self, some: list[Known], now: int) -> float:
        """How many cars others have probably placed at these that no report shows; 0 when that is not even one half."""
        if now >= self._unseen_until_ms:
            self._unseen = self._view.foreign.per_ms(now) * self._lag_ms
            self._unseen_until_ms = now + REBUILD_MS
        unseen = self._unseen and self._unseen * len(some) / len(self._order)
        return unseen if unseen > FEW_UNSEEN else 0

    def _spread(self, fitting: list[Known], scores: list[float], unseen_w: float) -> tuple[Known, float]:
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
            level, left_w, filling_w = scores[at], left_w - rise_w, filling_w + fitting[at].limit_w
            filled.append(at)
        level += left_w / filling_w
        at = self._rng.choices(filled, [(level - scores[at]) * fitting[at].limit_w for at in filled])[0]
        return fitting[at], scores[at]

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
        if not obstacles:
            return self._nobody_left(charge)
        least = min(obstacles)
        kind, reason, message, retry_after_ms = _ANSWERS[least]
        if least is Obstacle.EJECTED:
            retry_after_ms = max(100, min(self._ejections.wait_ms(known.address, now) or 1_000 for known in left))
        if least is Obstacle.PLUG:
            loads = [k.load for k in left if k.load and self._obstacle(k, charge, now) is Obstacle.PLUG]
            free_ms = min((load.next_free_ms for load in loads if load.next_free_ms is not None), default=None)
            if free_ms is not None:
                retry_after_ms = max(_PLUG_LEAST_MS, min(free_ms - now, _PLUG_MOST_MS))
        return kind(reason, message, retry_after_ms)

    def _nobody_left(self, charge: Charge) -> MeshError:
        """Where all have been tried without an answer, or none of those that it may go to is known."""
        if charge.allowed and not any(map(self._view.address_of, charge.allowed)):
            kind, reason, message, retry_after_ms = _ANSWERS[Obstacle.NOT_ALLOWED]
            return kind(reason, f"{message}: {_some_names(charge.allowed)}", retry_after_ms)
        which = "allowed substation" if charge.allowed else "substation"
        return Unavailable(ErrorReason.NO_SUBSTATION, f"no {which} can be reached", _UNREACHED_RETRY_MS)


def _some_names(names: Collection[str]) -> str:
    """A few: a status must fit into the trailers of a call."""
    return ", ".join(sorted(names)[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _fitting(some: list[Known], charge: Charge) -> list[Known]:
    return [known for known in some if charge.floor_w <= known.admits_w]


def _one_scale(some: list[Known], charge: Charge) -> float | None:
    """The time scale of all that it fits; None where they differ or one does not tell what is ahead of it."""
    scales = {known.time_scale for known in _fitting(some, charge)}
    return scales.pop() if len(scales) == 1 else None


def _loads_ahead(fitting: list[Known], need: Need) -> list[float]:
    """The scores that `_best` compares."""
    at, before, after, room_w = mean_load(need)
    curves = [known.promise() for known in fitting]
    loads = [curve[at - 1] * before + curve[at] * after + room_w for curve in curves]
    return [load / known.limit_w for load, known in zip(loads, fitting, strict=True)]
