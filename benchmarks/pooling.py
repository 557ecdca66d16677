"""Table b: a month of real sessions at ten sites that share their load. `python -m benchmarks.pooling`.

Each site is rated in proportion to its own uncontrolled peak in that month and has twice the charge points that it ever
had in use. Ten cities are a pooling experiment: a car cannot drive from Oslo to Tromso for a plug.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from benchmarks.sim import placements
from benchmarks.sim.mesh import Plan
from benchmarks.sim.month import LEASE_MS, Month, Outcome, Placement, outcome
from benchmarks.sim.site import Site
from benchmarks.sim.traces import Visit, by_site, most_at_once, norway, ratings_w
from mesh.charge import Charge
from substation.completion import Completion
from substation.sharing import EqualShare, SharingPolicy
from substation.station import StationConfig
from substation.urgency import LeastLaxity

TOTALS_KW = (55, 60, 75, 113, 188)
PLUGS_FACTOR = 2
FEEDERS_KW = 24
SEED = 1

# All but the last see the sites as they are at that moment; ours is a production balancer that is told by reports.
PLACEMENTS: dict[str, Callable[[int], Placement | Plan]] = {
    "home site": lambda _: placements.Home(),
    "random": placements.AtRandom,
    "least kW": lambda seed: placements.Lowest("least kW", placements.least_kw, seed),
    "least utilisation": lambda seed: placements.Lowest("least utilisation", placements.least_utilisation, seed),
    "least required power": lambda seed: placements.Lowest("least required power", placements.least_required, seed),
    "ours, told at once": lambda seed: placements.Lowest("ours", placements.least_lost_then_even, seed),
    "ours": lambda _: Plan(),
}


@dataclass(frozen=True, slots=True)
class Sharing:
    """A sharing policy, and whether cars that do not fit at full power are refused."""

    policy: Callable[[], SharingPolicy]
    gate: Callable[[Site, Charge], bool] | None = None


def full_power_fits(site: Site, charge: Charge) -> bool:
    """Whether the car can have all that it can take, beside all others."""
    assert site.station is not None
    load = site.station.load()
    return load.demand_w + charge.max_w <= load.limit_w


SHARINGS: dict[str, Sharing] = {
    "admit or refuse": Sharing(EqualShare, full_power_fits),
    "equal share": Sharing(EqualShare),
    "least laxity": Sharing(LeastLaxity),
    "ours": Sharing(Completion),
}


def configs(sites: dict[str, list[Visit]], total_kw: int) -> list[StationConfig]:
    """The ten substations under a total of `total_kw`."""
    ratings = ratings_w(sites, total_kw * 1000)
    return [
        StationConfig(
            name.lower().replace("_", "-"), ratings[name], PLUGS_FACTOR * most_at_once(visits), lease_ms=LEASE_MS
        )
        for name, visits in sites.items()
    ]


def run(
    visits: Sequence[Visit],
    total_kw: int,
    placement: str,
    sharing: str,
    seed: int = SEED,
    as_rated: Sequence[Visit] = (),
) -> Outcome:
    """One cell of the table. `as_rated`: the visits that the ratings are made from, if not these."""
    how = SHARINGS[sharing]
    month = Month(
        configs(by_site(as_rated or visits), total_kw), how.policy, PLACEMENTS[placement](seed), seed, gate=how.gate
    )
    month.play(visits)
    return outcome(month)


def run_feeders(visits: Sequence[Visit], placement: str, sharing: str, seed: int = SEED) -> Outcome:
    """One car park, TRO_R, with three equal feeders under FEEDERS_KW in all: here pooling is no thought experiment."""
    own = [replace(v, site="feeder-1") for v in visits if v.site == "TRO_R"]
    plugs = PLUGS_FACTOR * most_at_once(own) // 3
    feeders = [StationConfig(f"feeder-{n}", FEEDERS_KW * 1000 // 3, plugs, lease_ms=LEASE_MS) for n in (1, 2, 3)]
    how = SHARINGS[sharing]
    month = Month(feeders, how.policy, PLACEMENTS[placement](seed), seed, gate=how.gate)
    month.play(own)
    return outcome(month)


def departures_wrong(visits: Sequence[Visit], rng: Random) -> list[Visit]:
    """What is said of the departure is off by up to 30 % of the stay."""
    return [
        replace(v, says_leaves_ms=v.arrives_ms + round((v.leaves_ms - v.arrives_ms) * rng.uniform(0.7, 1.3)))
        for v in visits
    ]


def energies_wrong(visits: Sequence[Visit], rng: Random) -> list[Visit]:
    """What is asked for is off by up to 30 % of what the car takes."""
    return [replace(v, says_energy_j=round(v.energy_j * rng.uniform(0.7, 1.3))) for v in visits]


def without_departure(visits: Sequence[Visit], rng: Random) -> list[Visit]:
    """Of 30 % nobody says when they leave."""
    return [replace(v, says_leaves_ms=None) if rng.random() < 0.3 else v for v in visits]


DOUBTS: dict[str, Callable[[Sequence[Visit], Random], list[Visit]]] = {
    "departures wrong by 30 %": departures_wrong,
    "energies wrong by 30 %": energies_wrong,
    "30 % without departure": without_departure,
}


def show(label: str, got: Outcome) -> None:
    """One line: energy %, fully served %, Jain index, refusals."""
    print(f"{label:<60} {got.energy:7.3f} {got.full:7.3f} {got.jain:7.4f} {got.refused:5d}", flush=True)


def main() -> None:
    """Prints the cells that are asked for; without arguments the whole table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--month", default="2020-01", help="2019-12 to tune, 2020-01 to report")
    parser.add_argument("--total", type=int, action="append", choices=TOTALS_KW, help="kW; may be given again")
    parser.add_argument("--placement", action="append", choices=list(PLACEMENTS))
    parser.add_argument("--sharing", action="append", choices=list(SHARINGS))
    parser.add_argument("--doubt", choices=list(DOUBTS))
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    visits = norway(asked.month)
    for total in asked.total or TOTALS_KW:
        for placement in asked.placement or PLACEMENTS:
            for sharing in asked.sharing or SHARINGS:
                for seed in range(SEED, SEED + asked.seeds):
                    told = DOUBTS[asked.doubt](visits, Random(seed)) if asked.doubt else visits
                    label = f"{total} kW, {placement}, {sharing}" + (f", seed {seed}" if asked.seeds > 1 else "")
                    show(label, run(told, total, placement, sharing, seed, as_rated=visits))


if __name__ == "__main__":
    main()
