"""Table e: what faults cost. `python -m benchmarks.faults`.

Some days of the month of table b, ten sites under 60 kW in all, placed by production balancers over a network that
delays, loses and reorders, while substations and balancers die. Energy that a crash costs is lost to leases: a car
may draw nothing once its lease has lapsed and until its substation is back. In every row nothing may be over the
limit, no key may live twice for longer than 2 s once its substations are connected, and nothing may be left reserved
or in doubt at the end. Data are exact to the minute, so cars arrive together and several balancers place at once
more often than they would.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from benchmarks import pooling
from benchmarks.sim.cars import Manners
from benchmarks.sim.mesh import Mesh, Plan
from benchmarks.sim.month import Month, Outcome, outcome
from benchmarks.sim.net import Weather
from benchmarks.sim.traces import Visit, by_site, norway

MONTH, TOTAL_KW, SHARING = "2020-01", 60, "ours"
DAY_MS = 24 * 3_600_000
# Five of the busier days: what a fault costs is seen where there is little to spare.
FIRST_DAY, DAYS = 12, 5
SEEDS = range(1, 4)
LATE = Manners(obedience_ms=5_000)
OBEDIENT = Manners()


@dataclass(frozen=True, slots=True)
class Scenario:
    """What goes wrong."""

    plan: Plan
    manners: Manners = field(default=OBEDIENT)


PAIR = 2
SCENARIOS: dict[str, Scenario] = {
    "calm, one balancer": Scenario(Plan()),
    "calm, two balancers": Scenario(Plan(PAIR)),
    "50 ms delay one way": Scenario(Plan(PAIR, weather=Weather(50, 50))),
    "20 % of reports lost, 20 % up to 5 s late": Scenario(
        Plan(PAIR, weather=Weather(reports_lost=0.2, reports_late=0.2))
    ),
    "4 balancers, reports only every 60 s": Scenario(Plan(4, period_s=60)),
    "5 % of requests and replies lost, 5 % up to 5 s late": Scenario(
        Plan(PAIR, weather=Weather(calls_lost=0.05, calls_late=0.05))
    ),
    "each substation dies once a day for 60 s": Scenario(Plan(PAIR, crash_every_h=24)),
    "a substation dies of every 10th admission": Scenario(Plan(PAIR, fatal=0.1)),
    "each balancer restarts every 6 h": Scenario(Plan(PAIR, restart_every_h=6)),
    "cars obey up to 5 s late": Scenario(Plan(PAIR), LATE),
    "all of it, 4 balancers": Scenario(
        Plan(
            4,
            weather=Weather(50, 50, reports_lost=0.2, reports_late=0.2, calls_lost=0.05, calls_late=0.05),
            crash_every_h=24,
            restart_every_h=6,
            fatal=0.1,
        ),
        LATE,
    ),
}


@dataclass(frozen=True, slots=True)
class Faults:
    """One row.

    `doubled`: keys that lived twice for a moment; `too_long`: those that did when they must not any more. `misled`:
    clients told of a session that was ended because its key has another one.
    """

    energy: float
    full: float
    refused: int
    doubts: int
    doubled: int
    too_long: int
    misled: int
    over_limit_ms: int
    reserved: int
    in_doubt: int


def some_days(visits: Sequence[Visit], first: int, days: int) -> list[Visit]:
    """The visits that begin within so many days from the day number `first` after the first visit."""
    start = visits[0].arrives_ms + first * DAY_MS
    return [visit for visit in visits if start <= visit.arrives_ms < start + days * DAY_MS]


def run(visits: Sequence[Visit], scenario: Scenario, as_rated: Sequence[Visit], seed: int = pooling.SEED) -> Faults:
    """One row."""
    configs = pooling.configs(by_site(as_rated), TOTAL_KW)
    how = pooling.SHARINGS[SHARING]
    month = Month(configs, how.policy, scenario.plan, seed, manners=scenario.manners)
    month.play(visits)
    assert month.mesh is not None
    return _faults(outcome(month), month.mesh)


def _faults(got: Outcome, mesh: Mesh) -> Faults:
    return Faults(
        energy=got.energy,
        full=got.full,
        refused=got.refused,
        doubts=mesh.tally.doubts,
        doubled=mesh.twins.keys,
        too_long=len(mesh.twins.too_long) + mesh.twins.left(),
        misled=mesh.twins.misled(),
        over_limit_ms=got.over_limit_ms,
        reserved=mesh.reservations(),
        in_doubt=mesh.doubts(),
    )


def main() -> None:
    """Prints the table, seed by seed."""
    parser = argparse.ArgumentParser(description="table e: what faults cost")
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS))
    parser.add_argument("--first", type=int, default=FIRST_DAY, help="day of the month, from 0")
    parser.add_argument("--days", type=int, default=DAYS)
    asked = parser.parse_args()
    visits = norway(MONTH)
    part = some_days(visits, asked.first, asked.days)
    for name, seed in itertools.product(asked.scenario or SCENARIOS, SEEDS):
        figures = asdict(run(part, SCENARIOS[name], visits, seed))
        print(f"{name}, seed {seed}: " + ", ".join(f"{key} {value:g}" for key, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
