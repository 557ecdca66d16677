from functools import partial
from random import Random

import pytest

from benchmarks.sim.cars import Manners
from benchmarks.sim.loop import Loop
from benchmarks.sim.site import Site
from benchmarks.sim.traces import by_site, most_at_once, norway, ratings_w, uncontrolled_peak_w
from mesh.charge import Charge
from mesh.errors import Refused
from substation.completion import Completion
from substation.sharing import EqualShare, SharingPolicy
from substation.station import StationConfig
from substation.urgency import LeastLaxity
from tests.substation.rig import a_charge

MINUTE_MS = 60_000


def test_the_loop_does_things_in_the_order_of_time_and_then_of_planning() -> None:
    loop = Loop(0)
    done: list[str] = []
    for name, at in (("late", 5), ("first", 2), ("second", 2), ("past", -1)):
        loop.at(at, partial(done.append, name))
    loop.run(4)
    assert done == ["past", "first", "second"]
    assert loop.now == 4


def a_site(loop: Loop, policy: SharingPolicy, manners: Manners | None = None) -> Site:
    return Site(loop, StationConfig("a", 20_000, 50), policy, Random(1), manners)


def a_car(number: int, rng: Random, now: int) -> Charge:
    stay_ms = rng.randrange(20, 300) * MINUTE_MS
    energy_j = rng.randrange(1, 20) * 3_600_000
    departure_ms = None if rng.random() < 0.3 else now + stay_ms
    return a_charge(str(number), max_w=rng.choice([3_600, 7_400, 11_000]), energy_j=energy_j, floor_w=1_380,
                    departure_ms=departure_ms)  # fmt: skip


@pytest.mark.parametrize("policy", [EqualShare(), LeastLaxity(), Completion()], ids=lambda policy: policy.name)
def test_cars_that_obey_late_never_draw_more_than_the_limit_even_over_a_crash(policy: SharingPolicy) -> None:
    loop, rng = Loop(0), Random(7)
    site = a_site(loop, policy, Manners(obedience_ms=5_000, efficiency=0.97, taper=((0.1, 0.5),)))
    most = [0]

    def look() -> None:
        most[0] = max(most[0], site.drawn_w())

    def arrive(number: int) -> None:
        if site.station is None:
            return
        charge = a_car(number, rng, loop.now)
        assert charge.energy_j is not None
        try:
            site.charge(charge, charge.energy_j * 1000)
        except Refused:
            return

    site.on_change = look
    for number in range(12):
        loop.at(rng.randrange(0, 20 * MINUTE_MS), partial(arrive, number))
    loop.at(15 * MINUTE_MS, site.crash)
    loop.at(16 * MINUTE_MS, site.restart)
    loop.run(40 * MINUTE_MS)
    assert 10_000 < most[0] <= 20_000
    assert site.station is not None
    assert site.station.load().over_limit_ms == 0


def test_two_runs_of_one_seed_are_the_same() -> None:
    def registers() -> list[int]:
        loop, rng = Loop(0), Random(3)
        site = a_site(loop, Completion(), Manners(obedience_ms=5_000))
        for number in range(10):
            site.charge(a_car(number, rng, 0), 10**12)
        loop.run(60 * MINUTE_MS)
        assert site.station is not None
        return [session.delivered_mj for session in site.station.sessions(include_ended=True)]

    assert registers() == registers()


def test_the_traces_are_read_whole_and_sites_are_rated_by_their_own_peak() -> None:
    visits = norway("2020-01")
    sites = by_site(visits)
    assert (len(visits), len(sites)) == (2_992, 10)
    assert (round(uncontrolled_peak_w(sites["TRO_R"]), -2), most_at_once(sites["TRO_R"])) == (102_500, 34)
    assert 74_990 <= sum(ratings_w(sites, 75_000).values()) <= 75_000
