from substation.cars import Plugged, SimulatedCars
from substation.events import CarEvent, Confirmed, Full, Reading
from substation.sessions import Offer

T = 1_000_000
MJ_PER_KWH = 3_600_000_000


def cars(scale: int = 1, *, need_mj: int | None = MJ_PER_KWH, leaves: int | None = None) -> SimulatedCars:
    found = SimulatedCars(scale)
    found.plug_in(Plugged("a.1", 10_000, need_mj, leaves, T))
    return found


def run(found: SimulatedCars, until: int) -> list[tuple[int, CarEvent]]:
    told: list[tuple[int, CarEvent]] = []
    while (at := found.next_event()) is not None and at <= until:
        told += [(at, event) for event in found.advance(at)]
    return told + [(until, event) for event in found.advance(until)]


def test_a_car_draws_nothing_until_it_is_offered_power() -> None:
    found = cars()
    assert run(found, T + 60_000) == []
    assert found.readings() == [Reading("a.1", 0, 0)]


def test_a_car_obeys_within_five_seconds_of_charging_and_says_so() -> None:
    for scale in (1, 60):
        found = cars(scale)
        found.offer("a.1", Offer(1, 8_000, T + 60_000), T)
        told = run(found, T + 5_000 // scale + 1)
        assert Confirmed("a.1", 1) in [event for _, event in told]
        assert 8_000 * 0.97 <= found.readings()[0].power_w <= 8_000


def test_a_renewed_lease_is_confirmed_at_once_and_changes_no_draw() -> None:
    found = cars()
    found.offer("a.1", Offer(1, 8_000, T + 10_000), T)
    run(found, T + 6_000)
    found.offer("a.1", Offer(2, 8_000, T + 16_000), T + 6_000)
    assert run(found, T + 6_000) == [(T + 6_000, Confirmed("a.1", 2))]
    assert run(found, T + 15_999) == []


def test_a_car_stops_at_once_when_its_lease_is_over() -> None:
    found = cars()
    found.offer("a.1", Offer(1, 8_000, T + 10_000), T)
    told = run(found, T + 20_000)
    at, event = told[-1]
    assert (at, getattr(event, "power_w", None)) == (T + 10_000, 0)


def test_an_offer_that_was_overtaken_is_ignored_and_one_for_nobody_too() -> None:
    found = cars()
    found.offer("a.1", Offer(2, 0, T + 10_000), T)
    found.offer("a.1", Offer(1, 8_000, T + 10_000), T)
    found.offer("a.9", Offer(1, 8_000, T + 10_000), T)
    assert [event for _, event in run(found, T + 9_000)] == [Confirmed("a.1", 2)]


def test_a_car_draws_exactly_what_it_needs() -> None:
    found = cars(scale=60)
    found.offer("a.1", Offer(1, 10_000, T + 10**7), T)
    told = run(found, T + 10**6)
    assert told[-1][1] == Reading("a.1", 0, MJ_PER_KWH)
    assert Full("a.1") not in [event for _, event in told]


def test_a_car_without_an_amount_tapers_and_says_when_it_is_full() -> None:
    found = cars(scale=60, need_mj=None)
    found.offer("a.1", Offer(1, 10_000, T + 10**8), T)
    told = [event for _, event in run(found, T + 10**7)]
    draws = [event.power_w for event in told if isinstance(event, Reading)]
    assert told[-1] == Full("a.1")
    assert draws == [draws[0], 5_000, 2_500, 0]
    assert 8 * MJ_PER_KWH <= found.readings()[0].register_mj <= 40 * MJ_PER_KWH


def test_a_car_that_leaves_draws_no_more() -> None:
    found = cars(leaves=T + 8_000)
    found.offer("a.1", Offer(1, 10_000, T + 10**6), T)
    told = run(found, T + 9_000)
    assert (told[-1][0], found.readings()[0].power_w) == (T + 8_000, 0)


def test_an_opened_contactor_forgets_the_car() -> None:
    found = cars()
    found.open("a.1")
    found.open("a.1")
    assert found.readings() == []


def test_after_a_restart_the_gap_is_accounted_for_up_to_the_lease() -> None:
    found = SimulatedCars(scale=60)
    held = Plugged(
        "a.1", 10_000, 100 * MJ_PER_KWH, None, T, register_mj=5, power_w=9_000, held_w=9_200, lease_until_ms=T + 4_000
    )
    found.plug_in(held)
    run(found, T + 60_000)
    assert found.readings() == [Reading("a.1", 0, 5 + 9_000 * 4_000 * 60)]
