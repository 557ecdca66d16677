"""Who tries next of those that wait for a plug, on a clock of the test's own."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.line import PAUSE_MS, Line, Place
from mesh.charge import Charge, Key

FULL = Exception("full")
CAR = Charge(
    key=Key("anonymous", "k"),
    vehicle_id="v",
    energy_j=None,
    max_w=11_000,
    floor_w=4_140,
    phases=3,
    departure_ms=None,
    allowed=frozenset(),
    evse_id="",
    attempt_id="",
    body=b"",
)


def car(*allowed: str, floor_w: int = 4_140) -> Charge:
    return replace(CAR, allowed=frozenset(allowed), floor_w=floor_w)


def joined(line: Line, *charges: Charge) -> list[Place]:
    return [line.join(charge, 0, FULL) for charge in charges]


def a_round(line: Line, now_ms: int, served: Callable[[Place], bool] = lambda place: False) -> list[Place]:
    """Who tries in the round that is due then."""
    tried = []
    while place := line.next(now_ms):
        tried.append(place)
        if served(place):
            line.leave(place)
        else:
            line.refused(place, FULL)
    return tried


def test_the_first_tries_for_all_that_want_the_same() -> None:
    line = Line()
    first, _second, _third = joined(line, car(), car(), car())
    assert a_round(line, PAUSE_MS) == [first]


def test_nobody_tries_before_the_pause_is_over_and_then_the_first_again() -> None:
    line = Line()
    [first] = joined(line, car())
    assert line.due_ms() == PAUSE_MS
    assert not a_round(line, PAUSE_MS - 1)
    assert a_round(line, PAUSE_MS) == [first]
    assert line.due_ms() == 2 * PAUSE_MS


def test_the_next_one_tries_at_once_where_the_first_was_served() -> None:
    line = Line()
    first, second, third = joined(line, car(), car(), car())
    assert a_round(line, PAUSE_MS, lambda place: place is first) == [first, second]
    assert a_round(line, 2 * PAUSE_MS, lambda place: True) == [second, third]
    assert line.due_ms() is None


def test_one_tries_at_a_time() -> None:
    line = Line()
    joined(line, car("a"), car("b"))
    assert line.next(PAUSE_MS) is not None
    assert line.next(PAUSE_MS) is None
    assert line.due_ms() is None


def test_a_car_that_may_go_elsewhere_overtakes_and_one_that_may_not_does_not() -> None:
    line = Line()
    at_a, also_at_a, at_b, anywhere = joined(line, car("a"), car("a"), car("b"), car())
    assert a_round(line, PAUSE_MS) == [at_a, at_b, anywhere]
    assert also_at_a not in a_round(line, 2 * PAUSE_MS)


def test_a_car_that_needs_less_power_overtakes() -> None:
    line = Line()
    strong, weak, _as_weak = joined(line, car(floor_w=22_000), car(floor_w=1_380), car(floor_w=1_380))
    assert a_round(line, PAUSE_MS) == [strong, weak]


def test_what_was_freed_during_a_round_is_tried_for_right_after_it() -> None:
    line = Line()
    [first] = joined(line, car())
    assert line.next(PAUSE_MS) is first
    line.hurry(PAUSE_MS)
    line.refused(first, FULL)
    assert line.next(PAUSE_MS) is first


def test_who_leaves_while_trying_makes_room_for_the_next() -> None:
    line = Line()
    first, second = joined(line, car(), car())
    assert line.next(PAUSE_MS) is first
    line.leave(first)
    assert line.next(PAUSE_MS) is second


def test_who_comes_while_others_wait_tries_after_them_at_once_or_hears_what_stands_in_its_way() -> None:
    line = Line()
    [first] = joined(line, car("a"))
    alike, elsewhere = line.join(car("a"), 1, None), line.join(car("b"), 1, None)
    assert line.due_ms() == 1
    assert a_round(line, 1) == [first, elsewhere]
    assert (alike.why, alike.tried) == (FULL, False)


@given(
    cars=st.lists(st.sampled_from([car(), car("a"), car("b"), car("a", "b"), car("a", floor_w=1)]), max_size=12),
    free=st.lists(st.sampled_from(["a", "b", ""]), max_size=20),
)
def test_nobody_is_overtaken_by_one_that_had_what_it_wanted(cars: list[Charge], free: list[str]) -> None:
    """One plug is free in each round: it goes to the first of those that may have it, whoever they are."""
    line = Line()
    waiting = joined(line, *cars)
    for number, plug in enumerate(free, start=1):
        wanted = [place for place in waiting if not place.charge.allowed or plug in place.charge.allowed]
        left = [plug] if plug else []

        def take(place: Place, left: list[str] = left) -> bool:
            return bool(left) and (not place.charge.allowed or left[0] in place.charge.allowed) and bool(left.pop())

        before = len(line)
        a_round(line, number * PAUSE_MS, take)
        if plug and wanted:
            waiting.remove(wanted[0])
            assert len(line) == before - 1
            line.leave(wanted[0])  # nothing, if it was the one
            assert len(line) == before - 1
        else:
            assert len(line) == before
