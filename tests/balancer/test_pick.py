"""The pick rule, and what a caller hears when nobody fits."""

from collections import Counter
from random import Random
from typing import Any

import pytest

from balancer.desk import Desk
from balancer.pick import FULL_SCAN, LEAST_LOAD_AHEAD, LEAST_UTILISATION, MANY_CHOICES, REBUILD_MS, Pick
from balancer.view import Load
from mesh.errors import MeshError, Refused, Unavailable
from mesh.model import ErrorReason, NotAccepting
from mesh.outlook import Need, outlook
from tests.balancer.makers import INTERVAL, NOW, address, charge, desk_of, load


def picked(desk: Desk, now: int = NOW, tried: tuple[str, ...] = (), **car: Any) -> Pick:  # noqa: ANN401
    pick = desk.picker.pick(charge(**car), now, tried)
    assert isinstance(pick, Pick), pick
    return pick


def refused(desk: Desk, now: int = NOW, tried: tuple[str, ...] = (), **car: Any) -> MeshError:  # noqa: ANN401
    error = desk.picker.pick(charge(**car), now, tried)
    assert isinstance(error, MeshError), error
    return error


def test_the_lowest_utilisation_after_placement_wins_not_the_lowest_power() -> None:
    desk = desk_of(
        load("small", limit_w=50_000, demand_w=10_000),
        load("large", limit_w=200_000, demand_w=60_000),
        load("full", limit_w=100_000, demand_w=90_000),
    )
    pick = picked(desk)
    assert pick == Pick(
        address="large:1",
        substation_id="large",
        policy=LEAST_UTILISATION,
        score=71 / 200,
        before=60 / 200,
        after=71 / 200,
        eligible=3,
        need=None,
    )


def test_the_size_of_the_asked_power_counts() -> None:
    """An empty small site would be at 0.88 afterwards, a half-full large one at 0.61."""
    desk = desk_of(load("small", limit_w=25_000), load("large", limit_w=200_000, demand_w=100_000))
    assert picked(desk, max_w=22_000).substation_id == "large"


def test_ties_are_broken_at_random_and_evenly() -> None:
    desk = desk_of(load("a"), load("b"), load("c"))
    counts = Counter(picked(desk).substation_id for _ in range(3_000))
    assert all(900 < count < 1_100 for count in counts.values()), counts


def test_thirty_equal_cars_go_ten_to_each_of_three() -> None:
    desk = desk_of(load("a"), load("b"), load("c"))
    counts: Counter[str] = Counter()
    for number in range(30):
        pick = picked(desk, number=number)
        desk.view.reserve(pick.address, charge(number).key, 11_000, NOW)
        counts[pick.substation_id] += 1
    assert counts == {"a": 10, "b": 10, "c": 10}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"free_charge_points": 0}, ErrorReason.NO_CHARGE_POINT),
        ({"limit_w": 0}, ErrorReason.FLOOR_ABOVE_LIMIT),
        ({"limit_w": 4_139}, ErrorReason.FLOOR_ABOVE_LIMIT),
        ({"accepting": False, "not_accepting": NotAccepting.DRAINING}, ErrorReason.NOT_ACCEPTING),
        ({"accepting": False, "not_accepting": NotAccepting.LEDGER}, ErrorReason.LEDGER_UNAVAILABLE),
    ],
)
def test_what_stands_in_the_way_is_what_the_caller_hears(changed: dict[str, object], reason: ErrorReason) -> None:
    error = refused(desk_of(load("a", **changed)))
    assert error.reason is reason
    assert error.retry_after_ms is not None


def test_a_floor_equal_to_the_limit_fits() -> None:
    assert picked(desk_of(load("a", limit_w=4_140))).substation_id == "a"


def test_a_reserved_plug_is_taken() -> None:
    desk = desk_of(load("a", free_charge_points=1))
    desk.view.reserve("a:1", charge(1).key, 11_000, NOW)
    assert refused(desk).reason is ErrorReason.NO_CHARGE_POINT


def test_the_obstacle_that_goes_away_soonest_explains_the_refusal() -> None:
    desk = desk_of(
        load("a", accepting=False), load("b", free_charge_points=0), load("c", limit_w=0), load("d", demand_w=1)
    )
    error = refused(desk, tried=("d:1",))
    assert isinstance(error, Refused)
    assert error.reason is ErrorReason.NO_CHARGE_POINT


@pytest.mark.parametrize(
    ("free_at", "retry_ms"),
    [
        ((NOW + 40_000, NOW + 20_000, None), 20_000),
        ((None, None, None), 15_000),
        ((NOW - 5_000, None, None), 1_000),
        ((NOW + 86_400_000, None, None), 3_600_000),
    ],
)
def test_where_every_plug_is_taken_the_retry_delay_is_until_the_first_should_be_free(
    free_at: tuple[int | None, ...], retry_ms: int
) -> None:
    full = [load(name, free_charge_points=0, next_free_ms=at) for name, at in zip("abc", free_at, strict=True)]
    drained = load("d", accepting=False, next_free_ms=NOW + 2_000)
    assert refused(desk_of(*full, drained)).retry_after_ms == retry_ms


def test_only_allowed_substations_are_asked() -> None:
    desk = desk_of(load("a"), load("b", demand_w=99_000))
    assert picked(desk, allowed=frozenset({"b"})).substation_id == "b"
    assert refused(desk, allowed=frozenset({"z"})).reason is ErrorReason.NO_SUBSTATION


def test_one_that_never_reported_gets_no_car() -> None:
    desk = Desk(["a:1", "b:1"], INTERVAL, Random(1))
    desk.reported("b:1", load("b", demand_w=500_000), NOW)
    assert {picked(desk).substation_id for _ in range(20)} == {"b"}


def test_when_all_are_silent_the_caller_is_told_to_come_again() -> None:
    error = refused(Desk(["a:1"], INTERVAL, Random(1)))
    assert isinstance(error, Unavailable)
    assert (error.reason, error.retry_after_ms) == (ErrorReason.NO_SUBSTATION, 1_000)


def test_a_gone_substation_is_not_asked() -> None:
    assert refused(desk_of(load("a")), now=NOW + 11 * INTERVAL).reason is ErrorReason.NO_SUBSTATION


def test_a_stale_one_is_asked_only_when_no_fresh_one_fits() -> None:
    desk = desk_of(load("stale"), load("fresh", demand_w=90_000))
    later = NOW + 5 * INTERVAL
    desk.reported("fresh:1", load("fresh", sequence=2, demand_w=90_000), later)
    assert picked(desk, later).substation_id == "fresh"
    pick = picked(desk, later, tried=("fresh:1",))
    assert pick.substation_id == "stale"


def test_among_stale_ones_the_choice_is_partly_random() -> None:
    """Balancers with the same old view must not all choose the same."""
    desk = desk_of(*(load(f"s{i}", demand_w=i * 1_000) for i in range(4)))
    counts = Counter(picked(desk, NOW + 5 * INTERVAL).substation_id for _ in range(600))
    assert set(counts) == {"s0", "s1", "s2"}, "the most loaded of four is never the better of two"
    assert counts["s0"] > counts["s1"] > counts["s2"]


def test_an_ejected_one_is_left_out_and_the_delay_is_until_its_probe() -> None:
    desk = desk_of(load("a"), load("b"))
    for _ in range(7):
        desk.ejections.failed("a:1", NOW)
    assert {picked(desk).substation_id for _ in range(20)} == {"b"}
    error = refused(desk, now=NOW + 400, tried=("b:1",))
    assert (error.reason, error.retry_after_ms) == (ErrorReason.NO_SUBSTATION, 600)


def many(count: int = FULL_SCAN + 1, **changed: object) -> list[Load]:
    return [load(f"s{i}", **changed) for i in range(count)]


def test_up_to_128_are_all_looked_at() -> None:
    loads = [load(f"s{i}", demand_w=1_000 if i == 40 else 2_000) for i in range(FULL_SCAN)]
    assert picked(desk_of(*loads)).substation_id == "s40"


def test_beyond_128_random_ones_are_looked_at() -> None:
    desk = desk_of(*many())
    picks = [picked(desk) for _ in range(1_000)]
    assert {pick.eligible for pick in picks} == {MANY_CHOICES}
    counts = Counter(pick.substation_id for pick in picks)
    assert len(counts) == FULL_SCAN + 1
    assert max(counts.values()) < 30, "all are as likely"


def test_of_the_random_ones_the_least_utilised_is_chosen() -> None:
    desk = desk_of(*(load(f"s{i}", demand_w=i) for i in range(1_000)))
    picks = [int(picked(desk).substation_id[1:]) for _ in range(300)]
    assert 14 < sum(picks) / len(picks) < 28, "the least of 48 among 1,000"


def placed_elsewhere(desk: Desk, cars: int) -> None:
    """Another balancer has placed so many lately; none of them is at a substation that is looked at here."""
    seen = load("busy", sequence=2, accepting=False, admission_sequence=cars, free_charge_points=120_000 - cars)
    desk.reported("busy:1", seen, NOW)


def test_where_others_place_much_unseen_the_lowest_are_chosen_as_they_would_fill_up() -> None:
    """One car a millisecond, 25 ms of them unseen: 275 kW would go where it is lowest."""
    idle, half, full = load("a"), load("b", demand_w=50_000), load("c", demand_w=90_000)
    desk = desk_of(idle, half, full, load("busy", accepting=False, free_charge_points=120_000))
    assert {picked(desk).substation_id for _ in range(50)} == {"a"}
    placed_elsewhere(desk, 120_000)
    counts = Counter(picked(desk, NOW + REBUILD_MS).substation_id for _ in range(1_000))
    assert set(counts) == {"a", "b", "c"}
    poured = {"a": 138.3, "b": 88.3, "c": 48.3}
    for name, kw in poured.items():
        assert counts[name] == pytest.approx(1_000 * kw / 275, abs=60)


def test_the_first_request_may_name_its_substations_where_others_place_much() -> None:
    desk = desk_of(load("a"), load("b"), load("busy", accepting=False, free_charge_points=120_000))
    placed_elsewhere(desk, 120_000)
    assert picked(desk, allowed=frozenset({"a", "b"})).substation_id in {"a", "b"}


def test_few_unseen_cars_change_nothing() -> None:
    desk = desk_of(load("a"), load("b", demand_w=1_000), load("busy", accepting=False, free_charge_points=120_000))
    placed_elsewhere(desk, 2_000)
    assert {picked(desk, NOW + REBUILD_MS).substation_id for _ in range(50)} == {"a"}


def test_beyond_128_the_only_one_that_fits_is_found() -> None:
    loads = many(free_charge_points=0)
    loads[50] = load("s50")
    pick = picked(desk_of(*loads))
    assert (pick.address, pick.eligible) == (address("s50"), 1)


# 22 kWh at 11 kW: two hours, if it has all of its power.
ENERGY_J = 22 * 3_600_000
HOUR_MS = 3_600_000


def busy(name: str, *needs: Need, **changed: Any) -> Load:  # noqa: ANN401
    """A substation that has promised that much."""
    return load(name, ahead=outlook(needs), demand_w=sum(n.max_w for n in needs), **changed)


def patient(count: int = 1) -> tuple[Need, ...]:
    """Cars with 11 kWh and twelve hours."""
    return (Need(11 * 3_600_000_000, 12 * HOUR_MS, 11_000),) * count


def hurried(count: int = 1) -> tuple[Need, ...]:
    """Cars with 22 kWh and two hours: not a minute to spare."""
    return (Need(22 * 3_600_000_000, 2 * HOUR_MS, 11_000),) * count


def test_a_car_with_an_amount_goes_where_least_is_promised_for_its_stay_not_where_least_power_is_asked() -> None:
    desk = desk_of(busy("power", *patient(4)), busy("energy", *hurried(2)))
    pick = picked(desk, energy_j=ENERGY_J, departure_ms=NOW + 4 * HOUR_MS)
    assert (pick.substation_id, pick.policy) == ("power", LEAST_LOAD_AHEAD)
    assert pick.score == pytest.approx((4 * 11 / 12 + 0.1 * 11 - 0.2 * 22 / 4) / 100, rel=1e-3)
    assert picked(desk).substation_id == "energy", "of one that says nothing only its power counts"


def test_it_goes_where_it_can_be_completed_even_if_more_is_promised_there() -> None:
    """For the next two hours all of the small one's power is promised; over the day it is the emptier one."""
    small = busy("small", *hurried(2), limit_w=22_000)
    large = busy("large", *patient(60), limit_w=100_000)
    assert picked(desk_of(small, large), energy_j=ENERGY_J, departure_ms=NOW + 24 * HOUR_MS).substation_id == "small"
    desk = desk_of(small, busy("large", *patient(100), limit_w=100_000))
    assert picked(desk, energy_j=ENERGY_J, departure_ms=NOW + 2 * HOUR_MS).substation_id == "large"


def test_where_nobody_can_complete_it_the_least_promised_takes_it() -> None:
    desk = desk_of(busy("a", *hurried(10)), busy("b", *hurried(9)))
    assert picked(desk, energy_j=5 * ENERGY_J, departure_ms=NOW + HOUR_MS).substation_id == "b"


def test_own_reservations_count_in_what_is_promised() -> None:
    desk = desk_of(busy("a"), busy("b"))
    counts: Counter[str] = Counter()
    for number in range(30):
        pick = picked(desk, number=number, energy_j=ENERGY_J)
        desk.view.reserve(pick.address, charge(number).key, 11_000, NOW, pick.need)
        counts[pick.substation_id] += 1
    assert counts == {"a": 15, "b": 15}


def test_where_one_report_does_not_tell_of_promises_utilisation_decides() -> None:
    desk = desk_of(busy("a", *patient()), load("b", demand_w=5_000))
    pick = picked(desk, energy_j=ENERGY_J)
    assert (pick.substation_id, pick.policy) == ("b", LEAST_UTILISATION)


def test_the_same_seed_gives_the_same_picks() -> None:
    runs = [[picked(desk).address for _ in range(50)] for desk in (desk_of(*many(), seed=9), desk_of(*many(), seed=9))]
    assert runs[0] == runs[1]


# --- many, and what is wrong with some of them


def test_of_many_the_silent_and_the_ejected_are_not_picked() -> None:
    desk = desk_of(*many(400))
    later = NOW + 2 * INTERVAL
    spoke = {f"s{i}" for i in range(0, 400, 2)}
    for name in sorted(spoke):
        desk.reported(address(name), load(name, sequence=2), later)
    for name in ("s0", "s2", "s4"):
        for _ in range(7):
            desk.ejections.failed(address(name), later)
    picks = {picked(desk, later + 2 * INTERVAL).substation_id for _ in range(1_000)}
    assert picks <= spoke
    # Their probes are due by then, and they are as good as the others.
    assert len(picks) > 150
    early = {picked(desk, later + 1).substation_id for _ in range(1_000)}
    assert not early & {"s0", "s2", "s4"}


def test_one_of_many_that_is_new_is_picked_before_long() -> None:
    desk = Desk([address(f"s{i}") for i in range(200)], INTERVAL, Random(1))
    for i in range(199):
        desk.reported(address(f"s{i}"), load(f"s{i}", demand_w=50_000), NOW)
    assert picked(desk).substation_id != "s199"
    desk.reported(address("s199"), load("s199"), NOW + 1)
    picks = {picked(desk, NOW + REBUILD_MS).substation_id for _ in range(100)}
    assert "s199" in picks


def test_of_many_one_that_is_new_is_picked_at_once_where_no_other_fits() -> None:
    desk = Desk([address(f"s{i}") for i in range(200)], INTERVAL, Random(1))
    assert refused(desk).reason is ErrorReason.NO_SUBSTATION
    desk.reported("s7:1", load("s7"), NOW + 1)
    assert picked(desk, NOW + 1).substation_id == "s7"
    for i in range(200):
        desk.reported(address(f"s{i}"), load(f"s{i}", sequence=2, free_charge_points=0), NOW + REBUILD_MS)
    assert refused(desk, NOW + REBUILD_MS).reason is ErrorReason.NO_CHARGE_POINT


def test_of_many_one_that_was_tried_is_not_picked_again() -> None:
    desk = desk_of(*many(150))
    tried = tuple(address(f"s{i}") for i in range(149))
    assert picked(desk, tried=tried).substation_id == "s149"


def test_a_name_that_nobody_has_is_told_so() -> None:
    error = refused(desk_of(*many(150)), allowed=frozenset({"nobody"}))
    assert error.reason is ErrorReason.NO_SUBSTATION
    assert error.message == "no allowed substation has ever reported: nobody"
    error = refused(desk_of(load("a")), allowed=frozenset({f"s{i}" for i in range(9)}))
    assert error.message.endswith(": s0, s1, s2, s3, s4, ...")


def test_one_that_was_tried_in_vain_is_not_said_never_to_have_reported() -> None:
    desk = desk_of(load("a"), load("b"))
    only_a = refused(desk, tried=(address("a"),), allowed=frozenset({"a", "nobody"}))
    assert only_a.message == "no allowed substation can be reached"
    assert refused(desk, tried=(address("a"), address("b"))).message == "no substation can be reached"


def test_the_hours_of_two_time_scales_are_not_compared() -> None:
    desk = desk_of(busy("a", *patient()), busy("b", time_scale=60.0))
    assert picked(desk, energy_j=ENERGY_J).policy == LEAST_UTILISATION
