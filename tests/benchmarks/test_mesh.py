"""The mesh of the simulator: the same figures from the same seed, and what must hold whatever goes wrong."""

from collections.abc import Callable
from functools import partial
from random import Random

import pytest
from msgspec.structs import replace

from balancer.attempt import Answer, Fail
from benchmarks.faults import LATE, OBEDIENT, SCENARIOS, Faults, Scenario, run, some_days
from benchmarks.pooling import configs
from benchmarks.sim.cars import Manners
from benchmarks.sim.loop import Loop
from benchmarks.sim.mesh import Mesh, Plan
from benchmarks.sim.month import Month
from benchmarks.sim.net import Net, Weather
from benchmarks.sim.site import Site
from benchmarks.sim.substation import Substation
from benchmarks.sim.traces import by_site, norway
from mesh.charge import Charge
from substation.completion import Completion
from substation.sessions import Session
from substation.sharing import EqualShare
from substation.station import StationConfig
from tests.substation.rig import a_charge

VISITS = norway("2020-01")
DAY = [visit for visit in some_days(VISITS, 13, 1) if visit.leaves_ms - visit.arrives_ms < 12 * 3_600_000][:45]
MINUTE_MS = 60_000
# Everything, and far more often than in any year.
STORM = Scenario(
    Plan(
        balancers=3,
        weather=Weather(1, 50, reports_lost=0.2, reports_late=0.2, calls_lost=0.2, calls_late=0.2),
        crash_every_h=1,
        crash_ms=20_000,
        restart_every_h=1,
        fatal=0.3,
    ),
    LATE,
)


@pytest.fixture(scope="module")
def stormy() -> Faults:
    return run(DAY, STORM, VISITS)


def test_the_same_seed_gives_the_same_figures(stormy: Faults) -> None:
    assert run(DAY, STORM, VISITS) == stormy


def test_a_storm_breaks_nothing_that_must_hold(stormy: Faults) -> None:
    assert stormy.doubts > 20
    assert stormy.doubled >= 3
    assert (stormy.too_long, stormy.over_limit_ms, stormy.reserved, stormy.in_doubt) == (0, 0, 0, 0)
    assert stormy.misled == 0
    assert stormy.refused == 0
    assert stormy.energy > 90


@pytest.mark.parametrize(
    "name", ["calm, one balancer", "4 balancers, reports only every 60 s", "all of it, 4 balancers"]
)
def test_a_day_of_each_scenario_ends_with_nothing_left(name: str) -> None:
    got = run(DAY, SCENARIOS[name], VISITS)
    assert (got.too_long, got.over_limit_ms, got.reserved, got.in_doubt, got.refused) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("manners", [OBEDIENT, LATE], ids=["at once", "late"])
def test_cars_never_draw_more_than_the_limit_over_crashes(manners: Manners) -> None:
    plan = Plan(balancers=2, crash_every_h=1, crash_ms=20_000)
    month = Month(configs(by_site(VISITS), 60), Completion, plan, 1, manners=manners)
    most = dict.fromkeys(month.sites, 0)

    def look(site: Site) -> None:
        name = site.config.substation_id
        most[name] = max(most[name], site.drawn_w())

    for site in month.sites.values():
        before = site.on_change
        site.on_change = partial(_both, before, partial(look, site))
    month.play(DAY)
    limits = {name: site.config.rated_w for name, site in month.sites.items()}
    assert all(most[name] <= limits[name] for name in limits)
    assert sum(most.values()) > sum(limits.values()) * 0.8


def _both(one: Callable[[], None], other: Callable[[], None]) -> None:
    one()
    other()


# --- one substation or two, by hand ---------------------------------------------------------------


class Rig:
    """Substations a, b, ... of 20 kW and two balancers, on a network that behaves until told otherwise."""

    def __init__(self, names: str = "ab", plan: Plan | None = None) -> None:
        self.loop = Loop(0)
        self.sites = {
            name: Site(self.loop, StationConfig(name, 20_000, 10, lease_ms=10**9), EqualShare(), Random(name))
            for name in names
        }
        self.mesh = Mesh(self.loop, self.sites, plan or Plan(balancers=2), 1)
        self.mesh.start(MINUTE_MS)
        self.told: list[str | None] = []
        self.loop.run(5_000)

    def ask(self, charge: Charge) -> None:
        self.mesh.ask(charge, 10**12, 10 * MINUTE_MS, self.told.append)

    def run(self, ms: int) -> None:
        self.loop.run(self.loop.now + ms)

    def lose(self, *fates: bool) -> None:
        """The fate of the next calls, request and reply by turns; True: lost."""
        self.mesh.net.weather = Weather(calls_lost=1e-9)
        chances = list(fates)
        self.mesh.net.breaks = lambda: False  # type: ignore[method-assign]
        self.mesh.net._chance = lambda share: share > 0 and bool(chances) and chances.pop(0)  # type: ignore[method-assign]

    def sessions(self) -> list[str]:
        return [s.session_id for site in self.sites.values() if site.station for s in site.station.sessions()]


def test_a_car_is_placed_and_told_of_its_session() -> None:
    rig = Rig()
    rig.ask(a_charge("1"))
    rig.run(1_000)
    assert rig.told == rig.sessions()
    assert rig.mesh.reservations() == 0


@pytest.mark.parametrize("fates", [(True,), (False, True)], ids=["request", "reply"])
def test_what_is_lost_ends_in_one_session(fates: tuple[bool, ...]) -> None:
    rig = Rig()
    rig.lose(*fates)
    rig.ask(a_charge("1"))
    rig.run(30_000)
    assert len(rig.sessions()) == 1
    assert rig.told == rig.sessions()
    assert rig.mesh.tally.doubts == 1
    assert (rig.mesh.reservations(), rig.mesh.doubts(), rig.mesh.twins.keys) == (0, 0, 0)


def test_a_substation_that_dies_with_its_reply_leaves_one_session_when_it_is_back() -> None:
    rig = Rig()
    dead: list[str] = []

    def die(substation: Substation, note: Callable[[Session], None], session: Session) -> None:
        note(session)
        if not dead:
            dead.append(substation.name)
            rig.loop.at(rig.loop.now, partial(substation.crash_for, 20_000, 10_000))

    for substation in rig.mesh.substations.values():
        substation.on_admission = partial(die, substation, substation.on_admission)
    # Neither the reply nor the entry gets out before the connection breaks.
    rig.mesh.net.later = lambda action: rig.loop.at(rig.loop.now, action)  # type: ignore[method-assign]
    rig.ask(a_charge("1"))
    rig.run(60_000)
    assert len(dead) == 1
    assert rig.mesh.twins.keys == 1
    assert len(rig.sessions()) == 1
    assert rig.told == rig.sessions()
    assert (rig.mesh.tally.duplicates_ended, rig.mesh.twins.left(), rig.mesh.twins.too_long) == (1, 0, set())


def test_a_client_whose_balancer_has_not_heard_of_the_end_is_told_of_the_survivor() -> None:
    rig = Rig()
    late = rig.mesh.hosts[0]
    # Its admissions keep their order behind one that is long on its way; the other balancer ends the duplicate.
    for link in late.links.values():
        link._last_ms = rig.loop.now + MINUTE_MS
    for number, site in enumerate(rig.sites.values()):
        site.admit(a_charge("1", attempt=number), 10**12)
    rig.run(3_000)
    [survivor] = rig.sessions()
    assert rig.mesh.tally.duplicates_ended == 1
    assert late.balancer is not None
    assert late.balancer.desk.index.find(a_charge("1").key) is None
    heard: list[Answer | Fail] = []
    rig.mesh._needs_mj[a_charge("1").key] = 10**12
    late.balancer.charge(replace(a_charge("1"), attempt_id=""), heard.append, rig.loop.now + 9_900)
    rig.run(1_000)
    assert [isinstance(step, Answer) and step.reply for step in heard] == [survivor]


def test_admissions_that_resume_without_news_are_caught_up() -> None:
    rig = Rig(plan=Plan(balancers=1))
    host = rig.mesh.hosts[0]
    assert host.balancer is not None
    known = host.balancer.desk.view["a"]
    seen = [known.caught_up]
    host.links["a"]._break()
    seen.append(known.caught_up)
    rig.run(1_000)
    seen.append(known.caught_up)
    assert seen == [(rig.sites["a"].epoch, 0), None, (rig.sites["a"].epoch, 0)]


def test_a_new_balancer_learns_where_sessions_are_from_reports_and_snapshots() -> None:
    rig = Rig(plan=Plan(balancers=1))
    rig.ask(a_charge("1"))
    rig.run(1_000)
    host = rig.mesh.hosts[0]
    host.kill()
    host.start()
    rig.run(2_000)
    rig.ask(a_charge("1"))
    rig.run(1_000)
    assert rig.told == rig.sessions() * 2


def test_a_balancer_that_dies_leaves_its_clients_to_the_next() -> None:
    rig = Rig()
    rig.ask(a_charge("1"))
    for host in rig.mesh.hosts:
        host.kill()
        host.start()
    rig.run(10_000)
    assert len(rig.told) == 1
    assert rig.told == rig.sessions()


def test_a_call_with_a_key_that_is_under_way_waits_for_the_first() -> None:
    rig = Rig(plan=Plan(balancers=1))
    balancer = rig.mesh.hosts[0].balancer
    assert balancer is not None
    heard: list[Answer | Fail] = []
    rig.mesh._needs_mj[a_charge("1").key] = 10**12
    for _ in range(2):
        balancer.charge(replace(a_charge("1"), attempt_id=""), heard.append, rig.loop.now + 9_900)
    rig.run(1_000)
    assert [isinstance(step, Answer) and step.repeated for step in heard] == [False, True]
    assert len(rig.sessions()) == 1


def test_late_reports_are_overtaken_and_lost_ones_never_come() -> None:
    loop = Loop(0)
    net = Net(loop, Random(1), Weather(1, 5, reports_lost=0.2, reports_late=0.2))
    heard: list[int] = []

    def send(number: int) -> None:
        net.report(partial(heard.append, number))

    for number in range(1_000):
        loop.at(number * 100, partial(send, number))
    loop.run(200_000)
    assert 750 < len(heard) < 850
    assert heard != sorted(heard)
