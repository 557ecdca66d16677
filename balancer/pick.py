"""Where the next car goes: the lowest (load + asked) / limit after placement, ties at random.

Never raw kW: with unequal ratings that is no better than random. Up to 64 substations are all looked
at, which keeps equal substations equal; beyond that, and where only stale ones are left, a few
distinct random ones are, so that many balancers with the same old view do not all choose the same.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from random import Random

from balancer.ejection import Ejections
from balancer.view import Known, LoadView
from mesh.charge import Charge
from mesh.errors import MeshError, Refused, Unavailable
from mesh.model import ErrorReason, NotAccepting, ReportState

FULL_SCAN = 64
MANY_CHOICES = 4
STALE_CHOICES = 2

LEAST_UTILISATION = "least_utilisation"
RANDOM_CHOICES = "random_choices"


@dataclass(frozen=True, slots=True)
class Pick:
    """A choice and its reasons. `before` and `after` are demand over limit in the balancer's view."""

    address: str
    substation_id: str
    policy: str
    score: float
    before: float
    after: float
    # How many could have taken it; of those looked at.
    eligible: int


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
    """Chooses from a view. Reads only: the caller reserves."""

    def __init__(self, view: LoadView, ejections: Ejections, rng: Random) -> None:
        self._view = view
        self._ejections = ejections
        self._rng = rng

    def pick(self, charge: Charge, now: int, tried: Collection[str] = ()) -> Pick | MeshError:
        """The best substation that was not tried yet, or the error that says why there is none."""
        if len(self._view) > FULL_SCAN:
            sampled = self._rng.sample(self._view.substations, MANY_CHOICES)
            fresh = [k for k in sampled if k.address not in tried and self._fits(k, charge, now, ReportState.FRESH)]
            if fresh:
                return self._best(fresh, charge, RANDOM_CHOICES, len(fresh))
        return self._scan(charge, now, tried)

    def _scan(self, charge: Charge, now: int, tried: Collection[str]) -> Pick | MeshError:
        left = [known for known in self._view.substations if known.address not in tried]
        fresh = [known for known in left if self._fits(known, charge, now, ReportState.FRESH)]
        if fresh and len(self._view) <= FULL_SCAN:
            return self._best(fresh, charge, LEAST_UTILISATION, len(fresh))
        if fresh:
            return self._of_some(fresh, charge, MANY_CHOICES)
        stale = [known for known in left if self._fits(known, charge, now, ReportState.STALE)]
        if stale:
            return self._of_some(stale, charge, STALE_CHOICES)
        return self._why_none(left, charge, now)

    def _of_some(self, fitting: list[Known], charge: Charge, choices: int) -> Pick:
        some = self._rng.sample(fitting, min(choices, len(fitting)))
        return self._best(some, charge, RANDOM_CHOICES, len(fitting))

    def _best(self, fitting: list[Known], charge: Charge, policy: str, eligible: int) -> Pick:
        scores = [_utilisation(known, charge.max_w) for known in fitting]
        lowest = min(scores)
        ties = [known for known, score in zip(fitting, scores, strict=True) if score == lowest]
        chosen = ties[0] if len(ties) == 1 else self._rng.choice(ties)
        return Pick(
            address=chosen.address,
            substation_id=chosen.substation_id,
            policy=policy,
            score=lowest,
            before=_utilisation(chosen, 0),
            after=lowest,
            eligible=eligible,
        )

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
        least = min(obstacles, default=Obstacle.SILENT)
        kind, reason, message, retry_after_ms = _ANSWERS[least]
        if least is Obstacle.EJECTED:
            retry_after_ms = max(100, min(self._ejections.wait_ms(known.address, now) or 1_000 for known in left))
        return kind(reason, message, retry_after_ms)


def _utilisation(known: Known, asked_w: int) -> float:
    """Demand over limit with so many more watts. Only for substations that fit: their limit is above 0."""
    assert known.load is not None
    return (known.demand_w + asked_w) / known.load.limit_w
