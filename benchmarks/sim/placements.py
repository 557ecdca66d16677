"""Rules that say where a car goes, on what the sites report at that moment. A site that it cannot fit is left out."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from benchmarks.sim.site import Site
from mesh.charge import Charge
from mesh.outlook import NOTHING, Outlook, lost_mj, mean_load, need_of
from substation import grants
from substation.completion import promised
from substation.load import Load

Score = Callable[[Load, Outlook, Charge, int], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Home:
    """The site where the car came to in the data, and nowhere else."""

    name: str = "home site"

    def order(self, charge: Charge, home: str, sites: dict[str, Site], now: int) -> list[str]:
        return [home]


class AtRandom:
    """Any site that it fits."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)

    def order(self, charge: Charge, home: str, sites: dict[str, Site], now: int) -> list[str]:
        names = [name for name, site in sites.items() if _fits(_load(site), charge)]
        self._rng.shuffle(names)
        return names


class Lowest:
    """The lowest score first; ties at random."""

    def __init__(self, name: str, score: Score, seed: int) -> None:
        self.name = name
        self._score = score
        self._rng = Random(seed)

    def order(self, charge: Charge, home: str, sites: dict[str, Site], now: int) -> list[str]:
        scored = []
        for name, site in sites.items():
            load = _load(site)
            if _fits(load, charge):
                # Promises take longest to add up, and only one rule reads them.
                ahead = _outlook(site, load, now) if self._score is least_lost_then_even else NOTHING
                scored.append((self._score(load, ahead, charge, now), self._rng.random(), name))
        return [name for _, _, name in sorted(scored)]


def least_kw(load: Load, ahead: Outlook, charge: Charge, now: int) -> tuple[float, ...]:
    """Demand in watts."""
    return (load.demand_w,)


def least_utilisation(load: Load, ahead: Outlook, charge: Charge, now: int) -> tuple[float, ...]:
    """Demand over limit after placement."""
    return ((load.demand_w + charge.max_w) / load.limit_w,)


def least_required(load: Load, ahead: Outlook, charge: Charge, now: int) -> tuple[float, ...]:
    """Average power that brings everybody's energy in time, over limit, after placement."""
    need = need_of(charge, now, 1.0)
    required_w = charge.max_w if need is None else min(charge.max_w, need.need_mj // need.left_ms)
    return ((load.required_w + required_w) / load.limit_w,)


def least_lost_then_even(load: Load, ahead: Outlook, charge: Charge, now: int) -> tuple[float, ...]:
    """Where least energy is lost by it; of these, where there is most room while it stays."""
    need = need_of(charge, now, 1.0)
    if need is None:
        return least_utilisation(load, ahead, charge, now)
    # Nobody said when it leaves: that is no promise to keep.
    lost = (
        0
        if charge.departure_ms is None
        else lost_mj(need, ahead.slack_mj(load.limit_w), load.limit_w) * 1_000 // need.need_mj
    )
    at, before, after, room_w = mean_load(need)
    share = (ahead.evenly_mj[at - 1] * before + ahead.evenly_mj[at] * after + room_w) / load.limit_w
    return (lost, share, least_utilisation(load, ahead, charge, now)[0])


def _load(site: Site) -> Load:
    assert site.station is not None
    return site.station.load()


def _fits(load: Load, charge: Charge) -> bool:
    return charge.floor_w <= load.limit_w and load.free_charge_points > 0


def _outlook(site: Site, load: Load, now: int) -> Outlook:
    assert site.station is not None
    return promised([grants.claim(s, now, 1) for s in site.station.sessions() if s.active], load.limit_w)
