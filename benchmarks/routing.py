"""Table a: how evenly rules place cars on information that is a little old.

A fixed number of equal cars, so many that 80 % of the plugs are taken, come and go: each charges for
about an hour, leaves, and comes again with the next wave, one a minute. Substations are production
stations, ours is the production desk (view, reservations, picker); the other rules decide on the same
reports. What is measured is the spread of utilisation, demand over limit, over the substations.
"""

import argparse
import itertools
import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

from balancer.admissions import Duplicate
from balancer.attempt import Answer, Fail, Outcome, Refused
from balancer.desk import Desk, Doubt, Fenced, Found, Replied
from balancer.pick import PUSHED_LAG_MS
from balancer.view import Load
from benchmarks.sim.balancer import Balancer as Production
from benchmarks.sim.balancer import Tally as ProductionTally
from benchmarks.sim.loop import Loop
from benchmarks.sim.net import Net, Weather
from benchmarks.sim.reports import Reports
from benchmarks.sim.site import Site
from mesh import ids
from mesh.charge import Charge, Key
from mesh.errors import MeshError
from substation.sessions import Session
from substation.sharing import EqualShare
from substation.station import StationConfig

CAR_W, FLOOR_W, HOUR_MS, AWAY_MS = 11_000, 4_140, 3_600_000, 60_000
PLUGS = {"equal": (20,), "unequal": (10, 20, 40)}
LOAD = 0.8
WEATHER = Weather(least_ms=1, most_ms=5)
# Where changes are pushed, silence only says that nothing changed.
HEARTBEAT_MS = 60_000
WARM_UP_MS, MEASURED_MS, SAMPLE_MS = HOUR_MS, 2 * HOUR_MS, 30_000
TRIES = 3
HERD_MS = 60_000
# Without renewal: nothing is lost here.
LEASE_MS = 1_000 * HOUR_MS


@dataclass(frozen=True)
class Row:
    """One row of the table. `period_s` None: reports are pushed on change."""

    period_s: int | None
    balancers: int
    substations: int
    ratings: str
    seed: int = 1


@dataclass
class Tally:
    """What one rule did in one row. `herd`: the most cars that one substation was asked to take in one wave."""

    asked: int = 0
    refused: int = 0
    cvs: list[float] = field(default_factory=list)
    wave: dict[tuple[int, str], int] = field(default_factory=dict)

    @property
    def cv(self) -> float:
        return statistics.fmean(self.cvs)

    @property
    def refused_percent(self) -> float:
        return 100 * self.refused / max(1, self.asked)

    @property
    def herd(self) -> int:
        return max(self.wave.values())


class Rule(ABC):
    """A rule that is not ours. `reports` is the last report of each substation; `mine` are own live placements."""

    def __init__(self, rng: Random, names: Sequence[str]) -> None:
        self.rng = rng
        self.names = list(names)
        self.reports: dict[str, Load] = {}
        self.in_flight = dict.fromkeys(names, 0)
        self.mine = dict.fromkeys(names, 0)

    @abstractmethod
    def choose(self, fitting: list[str]) -> str: ...

    def pick(self, tried: set[str]) -> str | None:
        """The best that was not tried and has a free plug by its last report; None when there is none."""
        fitting = [n for n in self.names if n not in tried and self.reports[n].free_charge_points > 0]
        return self.choose(fitting) if fitting else None

    def utilisation(self, name: str) -> float:
        return self.reports[name].demand_w / self.reports[name].limit_w

    def least(self, names: list[str], key: Callable[[str], float]) -> str:
        lowest = min(key(name) for name in names)
        return self.rng.choice([name for name in names if key(name) == lowest])

    def some(self, names: list[str], count: int) -> list[str]:
        return self.rng.sample(names, min(count, len(names)))


class RandomRule(Rule):
    """Any that fits."""

    def choose(self, fitting: list[str]) -> str:
        return self.rng.choice(fitting)


class RoundRobin(Rule):
    """One after the other."""

    _next = 0

    def choose(self, fitting: list[str]) -> str:
        while True:
            name = self.names[self._next % len(self.names)]
            self._next += 1
            if name in fitting:
                return name


class LeastKw(Rule):
    """The lowest demand in kW in the last report."""

    def choose(self, fitting: list[str]) -> str:
        return self.least(fitting, lambda name: self.reports[name].demand_w)


class TwoChoices(Rule):
    """The less utilised of two random ones, by the last report."""

    def choose(self, fitting: list[str]) -> str:
        return self.least(self.some(fitting, 2), self.utilisation)


class LeastRequest(Rule):
    """Envoy's: of two random ones the one with fewer of our calls in flight. Calls end at once, so it is blind."""

    def choose(self, fitting: list[str]) -> str:
        return self.least(self.some(fitting, 2), lambda name: self.in_flight[name])


class OwnOnly(Rule):
    """The fewest own live sessions per watt of limit: blind to what other balancers place."""

    def choose(self, fitting: list[str]) -> str:
        return self.least(fitting, lambda name: (self.mine[name] + 1) / self.reports[name].limit_w)


class WeightedRoundRobin(Rule):
    """Smooth weighted round robin by limit over reported utilisation, as gRPC's weights are rate over utilisation."""

    def __init__(self, rng: Random, names: Sequence[str]) -> None:
        super().__init__(rng, names)
        self._due = {name: rng.random() for name in names}

    def choose(self, fitting: list[str]) -> str:
        name = min(fitting, key=lambda n: self._due[n])
        weight = self.reports[name].limit_w / max(0.01, self.utilisation(name))
        now = self._due[name]
        # Who was full for a while must not catch up all at once.
        for other in self.names:
            self._due[other] = max(self._due[other], now)
        self._due[name] = now + 1e6 / weight
        return name


RULES: dict[str, type[Rule]] = {
    "random": RandomRule,
    "round robin": RoundRobin,
    "least kW": LeastKw,
    "two choices": TwoChoices,
    "Envoy least_request": LeastRequest,
    "own placements": OwnOnly,
    "weighted round robin": WeightedRoundRobin,
}
OURS, OMNISCIENT = "ours", "omniscient scan"
ALL = (*RULES, OURS, OMNISCIENT)


def play(rule: str, row: Row) -> Tally:
    """One cell of the table. The same seed gives the same figures to the last digit."""
    world = World(rule, row)
    world.loop.run(WARM_UP_MS + MEASURED_MS)
    return world.tally


class World:
    """Substations, balancers that hear of them late, and cars that come and go."""

    def __init__(self, rule: str, row: Row) -> None:
        self.row = row
        self.rng = Random(f"{row.seed} cars")
        self.loop = Loop(0)
        self._phases = Random(f"{row.seed} {rule} net")
        self.net = Net(self.loop, self._phases, WEATHER)
        self.tally = Tally()
        plugs = PLUGS[row.ratings]
        counts = [plugs[i % len(plugs)] for i in range(row.substations)]
        configs = [StationConfig(f"s{i}", count * CAR_W, count, lease_ms=LEASE_MS) for i, count in enumerate(counts)]
        self.sites = {c.substation_id: Site(self.loop, c, EqualShare(), Random(c.substation_id)) for c in configs}
        # Nobody here says how much energy is wanted, so nothing is promised.
        self.reports = {
            name: Reports(self.loop, site, partial(self._send, name), pushed=row.period_s is None, ahead=False)
            for name, site in self.sites.items()
        }
        self.balancers = [_balancer(rule, self, n) for n in range(row.balancers)]
        self._placed_by: dict[str, tuple[Balancer, str]] = {}
        self._count = 0
        self._start(sum(counts))

    def _start(self, plugs: int) -> None:
        for name, site in self.sites.items():
            site.on_end = partial(self._ended, name)
            reports = self.reports[name]
            for balancer in self.balancers:
                balancer.report(name, reports.load())
            site.on_change = reports.changed
            # Each substation at its own phase.
            reports.every(self.interval_ms, self._phases.randrange(self.interval_ms))
        stay_ms = HOUR_MS + AWAY_MS
        for _ in range(round(LOAD * plugs * stay_ms / HOUR_MS)):
            self._come_again(first=True)
        self.loop.at(WARM_UP_MS, self._sample)

    @property
    def interval_ms(self) -> int:
        """The longest silence of a substation."""
        return HEARTBEAT_MS if self.row.period_s is None else self.row.period_s * 1000

    def load(self, name: str) -> Load:
        """The report that a substation would send now."""
        return self.reports[name].load()

    def _send(self, name: str, load: Load) -> None:
        for balancer in self.balancers:
            self.net.later(partial(balancer.report, name, load))

    # --- cars --------------------------------------------------------------------------------------

    def _come_again(self, first: bool = False) -> None:
        """After a while; at first spread over an hour, so that stays end at all times."""
        away_ms = self.rng.randrange(HOUR_MS) if first else round(self.rng.expovariate(1 / AWAY_MS))
        self.loop.at(self.loop.now + away_ms, self._arrive)

    def _arrive(self) -> None:
        self._count += 1
        now = self.loop.now
        stay_ms = min(4 * HOUR_MS, max(HOUR_MS // 20, round(self.rng.expovariate(1 / HOUR_MS))))
        charge = Charge(
            key=Key("bench", str(self._count)),
            vehicle_id="car",
            energy_j=None,
            max_w=CAR_W,
            floor_w=FLOOR_W,
            phases=3,
            departure_ms=now + stay_ms,
            allowed=frozenset(),
            evse_id="",
            attempt_id=ids.uuid7(now, self.rng),
            body=b"",
        )
        self.tally.asked += self.loop.now >= WARM_UP_MS
        self.balancers[self._count % len(self.balancers)].place(charge)

    def ask(self, name: str, charge: Charge, by: "Balancer") -> Session | MeshError:
        """What the substation says."""
        if self.loop.now >= WARM_UP_MS:
            wave = (self.loop.now // HERD_MS, name)
            self.tally.wave[wave] = self.tally.wave.get(wave, 0) + 1
        try:
            session = self.sites[name].charge(charge, need_mj=1 << 62)
        except MeshError as error:
            return error
        self._placed_by[session.session_id] = (by, name)
        return session

    def refused(self) -> None:
        self.tally.refused += self.loop.now >= WARM_UP_MS
        self._come_again()

    def _ended(self, name: str, session: Session) -> None:
        by, _ = self._placed_by.pop(session.session_id)
        by.ended(name)
        self._come_again()

    def _sample(self) -> None:
        shares = [load.demand_w / load.limit_w for load in map(self.load, self.sites)]
        mean = statistics.fmean(shares)
        self.tally.cvs.append(math.sqrt(statistics.fmean((s - mean) ** 2 for s in shares)) / mean)
        self.loop.at(self.loop.now + SAMPLE_MS, self._sample)


class Balancer(ABC):
    """One balancer; each kind places in its own way."""

    def __init__(self, world: World) -> None:
        self.world = world

    @abstractmethod
    def report(self, name: str, load: Load) -> None: ...

    @abstractmethod
    def place(self, charge: Charge) -> None: ...

    def ended(self, name: str) -> None:  # noqa: B027 - most do not care
        """A session that it placed is over."""


class ByRule(Balancer):
    """Asks the rule's choices in turn."""

    def __init__(self, world: World, rule: Rule) -> None:
        super().__init__(world)
        self._rule = rule
        self._over: dict[str, int] = {}

    def report(self, name: str, load: Load) -> None:
        self._rule.reports[name] = load
        self._rule.mine[name] -= self._over.pop(name, 0)

    def ended(self, name: str) -> None:
        # It hears of that with the next report, as all rules do.
        self._over[name] = self._over.get(name, 0) + 1

    def place(self, charge: Charge) -> None:
        self._try(charge, set())

    def _try(self, charge: Charge, tried: set[str]) -> None:
        name = self._rule.pick(tried) if len(tried) < TRIES else None
        if name is None:
            self.world.refused()
            return
        self._rule.in_flight[name] += 1
        self._rule.mine[name] += 1
        self.world.net.later(partial(self._ask, charge, tried | {name}, name))

    def _ask(self, charge: Charge, tried: set[str], name: str) -> None:
        answer = self.world.ask(name, charge, self)
        self.world.net.later(partial(self._answered, charge, tried, name, answer))

    def _answered(self, charge: Charge, tried: set[str], name: str, answer: Session | MeshError) -> None:
        self._rule.in_flight[name] -= 1
        if isinstance(answer, MeshError):
            self._rule.mine[name] -= 1
            self._try(charge, tried)


class Omniscient(Balancer):
    """Sees every substation as it is at this moment, and places without delay: nobody can do better by a rule."""

    def report(self, name: str, load: Load) -> None:
        """It needs none."""

    def place(self, charge: Charge) -> None:
        loads = [self.world.load(name) for name in self.world.sites]
        fitting = [load for load in loads if load.free_charge_points > 0]
        if not fitting:
            self.world.refused()
            return
        scores = [(load.demand_w + charge.max_w) / load.limit_w for load in fitting]
        lowest = min(scores)
        best = [load for load, score in zip(fitting, scores, strict=True) if score == lowest]
        self.world.ask(self.world.rng.choice(best).substation_id, charge, self)


class Ours(Balancer):
    """The production desk and attempts. Nothing is lost here, and no admissions are followed."""

    def __init__(self, world: World, rng: Random) -> None:
        super().__init__(world)
        pushed = world.row.period_s is None
        self._desk = Desk(world.sites, world.interval_ms, rng, PUSHED_LAG_MS if pushed else world.interval_ms)
        wires = {name: Near(self, name) for name in world.sites}
        self._production = Production(world.loop, self._desk, wires, rng, ProductionTally())

    def report(self, name: str, load: Load) -> None:
        self._desk.reported(name, load, self.world.loop.now)

    def place(self, charge: Charge) -> None:
        self._production.charge(charge, self._told)

    def _told(self, step: Answer | Fail) -> None:
        if isinstance(step, Fail):
            self.world.refused()


class Near:
    """The way from a balancer to one substation, on which nothing is lost."""

    ready = True

    def __init__(self, balancer: Balancer, name: str) -> None:
        self._balancer = balancer
        self._world = balancer.world
        self._name = name

    def charge(self, charge: Charge, timeout_ms: int | None, done: Callable[[Outcome], None]) -> None:
        self._world.net.later(lambda: self._world.net.later(partial(done, self._ask(charge))))

    def _ask(self, charge: Charge) -> Outcome:
        answer = self._world.ask(self._name, charge, self._balancer)
        if isinstance(answer, MeshError):
            return Refused(answer)
        load = self._world.load(self._name)
        return Replied(load, answer.session_id, answer.attempt_id, answer.ended_ms, repeated=False)

    def resolve(self, doubt: Doubt, done: Callable[[Found | Fenced | None], None]) -> None:
        raise AssertionError(doubt)

    def end_duplicate(self, duplicate: Duplicate, done: Callable[[bool], None]) -> None:
        raise AssertionError(duplicate)


def _balancer(rule: str, world: World, number: int) -> Balancer:
    rng = Random(f"{world.row.seed} {rule} {number}")
    if rule == OURS:
        return Ours(world, rng)
    if rule == OMNISCIENT:
        return Omniscient(world)
    return ByRule(world, RULES[rule](rng, list(world.sites)))


def main() -> None:
    """Prints the table, row by row."""
    parser = argparse.ArgumentParser(description="table a: spread of utilisation, refusals, herd peak")
    parser.add_argument("--substations", type=int, default=10)
    substations = parser.parse_args().substations
    print("| reports | balancers | ratings | " + " | ".join(ALL) + " |")
    print("|" + " --- |" * (3 + len(ALL)))
    for period_s, balancers, ratings in itertools.product((None, 1, 10, 60), (1, 4), PLUGS):
        row = Row(period_s, balancers, substations, ratings)
        tallies = [play(rule, row) for rule in ALL]
        cells = [f"{t.cv:.3f} / {t.refused_percent:.1f} % / {t.herd}" for t in tallies]
        reports = "pushed" if period_s is None else f"every {period_s} s"
        print(f"| {reports} | {balancers} | {ratings} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
