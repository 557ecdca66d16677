"""The load view: silence is not idleness, and nothing is counted twice or forgotten."""

from math import e

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from balancer.view import FOREIGN_MEMORY_MS, HELD_MOST, HOLD_MS, LoadView, Received
from mesh.model import ReportState
from mesh.outlook import NOTHING, Need, lost_mj, outlook
from tests.balancer.makers import INTERVAL, NOW, key, load

# 22 kWh in two hours at 11 kW: not a minute to spare.
CAR = Need(22 * 3_600_000_000, 2 * 3_600_000, 11_000)


def view_of_one() -> LoadView:
    view = LoadView(["a:1"], INTERVAL)
    view.report("a:1", load(), NOW)
    return view


def test_a_substation_that_never_reported_is_not_idle() -> None:
    view = LoadView(["a:1"], INTERVAL)
    known = view["a:1"]
    assert view.state(known, NOW) is ReportState.NEVER_REPORTED
    assert (known.substation_id, known.demand_w, known.free_charge_points) == ("", 0, 0)
    assert view.address_of("a") is None


@pytest.mark.parametrize(
    ("age", "state"),
    [
        (0, ReportState.FRESH),
        (3 * INTERVAL, ReportState.FRESH),
        (3 * INTERVAL + 1, ReportState.STALE),
        (10 * INTERVAL, ReportState.STALE),
        (10 * INTERVAL + 1, ReportState.GONE),
    ],
)
def test_a_report_ages_from_fresh_to_gone(age: int, state: ReportState) -> None:
    view = view_of_one()
    assert view.state(view["a:1"], NOW + age) is state


def test_a_report_brings_a_gone_substation_back() -> None:
    view = view_of_one()
    later = NOW + 60_000
    assert view.report("a:1", load(sequence=2, generated_at_ms=later), later) is Received.ACCEPTED
    assert view.state(view["a:1"], later) is ReportState.FRESH
    assert view.address_of("a") == "a:1"
    assert len(view) == 1


def test_a_report_of_an_older_epoch_is_ignored() -> None:
    view = view_of_one()
    assert view.report("a:1", load(epoch=NOW - 1, sequence=99, demand_w=1), NOW) is Received.STALE
    assert view["a:1"].demand_w == 0


def test_a_report_of_a_lower_sequence_is_ignored_and_refreshes_nothing() -> None:
    view = view_of_one()
    assert view.report("a:1", load(sequence=0), NOW + 4 * INTERVAL) is Received.STALE
    assert view.state(view["a:1"], NOW + 4 * INTERVAL) is ReportState.STALE


def test_the_same_report_twice_is_a_duplicate_but_a_heartbeat_is_not() -> None:
    view = view_of_one()
    assert view.report("a:1", load(), NOW + 5) is Received.DUPLICATE
    assert view.report("a:1", load(generated_at_ms=NOW + 1_000), NOW + 1_000) is Received.ACCEPTED
    assert view["a:1"].received_ms == NOW + 1_000


def test_a_newer_epoch_replaces_everything_whatever_its_sequence() -> None:
    view = view_of_one()
    view.report("a:1", load(sequence=50, demand_w=70_000), NOW)
    assert view.report("a:1", load(epoch=NOW + 1, sequence=0, demand_w=11_000), NOW) is Received.ACCEPTED
    assert view["a:1"].demand_w == 11_000


def test_another_substation_at_an_address_is_taken_when_its_report_is_younger() -> None:
    view = view_of_one()
    contained_later = view.reserve("a:1", key(), 11_000, NOW)
    view.admitted("a:1", NOW, [(key(), 5)])
    assert view.report("a:1", load("b", epoch=1, generated_at_ms=NOW - 1), NOW) is Received.STALE
    assert view.report("a:1", load("b", epoch=1, generated_at_ms=NOW + 1), NOW) is Received.ACCEPTED
    assert (view.address_of("a"), view.address_of("b")) == (None, "a:1")
    assert view["a:1"].reserved_w == 0, "the session is not at this substation"
    view.release(contained_later)
    assert view["a:1"].reserved_w == 0


def test_two_substations_can_change_places() -> None:
    view = LoadView(["a:1", "b:1"], INTERVAL)
    view.report("a:1", load("a"), NOW)
    view.report("b:1", load("b"), NOW)
    view.report("a:1", load("b", epoch=NOW + 1, generated_at_ms=NOW + 1), NOW + 1)
    view.report("b:1", load("a", epoch=NOW + 1, generated_at_ms=NOW + 1), NOW + 1)
    assert (view.address_of("a"), view.address_of("b")) == ("b:1", "a:1")


def test_a_reservation_counts_watts_and_a_plug_until_it_is_released() -> None:
    view = view_of_one()
    reservation = view.reserve("a:1", key(), 11_000, NOW)
    known = view["a:1"]
    assert (known.demand_w, known.free_charge_points, known.reserved_w) == (11_000, 119, 11_000)
    view.release(reservation)
    view.release(reservation)
    assert (known.demand_w, known.free_charge_points, known.reserved_w) == (0, 120, 0)


def test_a_key_is_reserved_once_at_an_address() -> None:
    view = view_of_one()
    view.reserve("a:1", key(), 11_000, NOW)
    with pytest.raises(ValueError, match="already"):
        view.reserve("a:1", key(), 11_000, NOW)


def test_the_reply_ends_the_reservation_and_brings_the_load() -> None:
    view = view_of_one()
    reservation = view.reserve("a:1", key(), 11_000, NOW)
    view.replied(reservation, load(sequence=2, admission_sequence=1, demand_w=11_000), NOW)
    assert (view["a:1"].demand_w, view["a:1"].reserved_w) == (11_000, 0)


def test_a_reply_older_than_the_last_report_ends_the_reservation_all_the_same() -> None:
    view = view_of_one()
    reservation = view.reserve("a:1", key(), 11_000, NOW)
    view.report("a:1", load(sequence=3, admission_sequence=1, demand_w=22_000), NOW)
    assert view["a:1"].demand_w == 33_000, "it cannot be known yet that the report contains it"
    assert view.replied(reservation, load(sequence=2, demand_w=11_000), NOW) is Received.STALE
    assert view["a:1"].demand_w == 22_000


def test_a_key_in_the_admissions_is_counted_until_a_report_contains_it() -> None:
    view = view_of_one()
    view.reserve("a:1", key(), 11_000, NOW)
    view.admitted("a:1", NOW, [(key(), 4), (key(7), 5)])
    view.report("a:1", load(sequence=2, admission_sequence=3), NOW)
    assert view["a:1"].demand_w == 11_000
    view.report("a:1", load(sequence=3, admission_sequence=4, demand_w=11_000), NOW)
    assert (view["a:1"].demand_w, view["a:1"].reserved_w) == (11_000, 0)


def test_a_report_of_a_later_life_contains_what_was_admitted_before() -> None:
    view = view_of_one()
    view.reserve("a:1", key(), 11_000, NOW)
    view.admitted("a:1", NOW, [(key(), 4)])
    view.report("a:1", load(epoch=NOW + 1, sequence=0, demand_w=11_000), NOW)
    assert view["a:1"].reserved_w == 0


def test_a_call_in_flight_outlives_a_restart_of_the_substation() -> None:
    view = view_of_one()
    view.reserve("a:1", key(), 11_000, NOW)
    view.report("a:1", load(epoch=NOW + 1), NOW)
    assert view["a:1"].reserved_w == 11_000


def test_a_report_ahead_of_the_admissions_waits_for_them() -> None:
    """The first of two replies carries a load with both sessions: the other one must not count twice."""
    view = view_of_one()
    view.caught_up("a:1", NOW, 0, NOW)
    first = view.reserve("a:1", key(1), 11_000, NOW)
    view.reserve("a:1", key(2), 11_000, NOW)
    view.replied(first, load(sequence=3, admission_sequence=2, demand_w=22_000), NOW)
    assert view["a:1"].demand_w == 22_000
    view.admitted("a:1", NOW, [(key(1), 1), (key(2), 2)])
    view.caught_up("a:1", NOW, 2, NOW)
    assert (view["a:1"].demand_w, view["a:1"].reserved_w) == (22_000, 0)


def test_a_report_is_not_held_back_for_longer_than_the_limit() -> None:
    view = view_of_one()
    view.caught_up("a:1", NOW, 0, NOW)
    view.reserve("a:1", key(1), 11_000, NOW)
    view.report("a:1", load(sequence=2, admission_sequence=1, demand_w=50_000), NOW)
    view.reserve("a:1", key(2), 11_000, NOW + HOLD_MS - 1)
    assert view["a:1"].demand_w == 22_000
    view.reserve("a:1", key(3), 11_000, NOW + HOLD_MS)
    assert view["a:1"].demand_w == 83_000


def test_a_tick_applies_what_was_held_back_for_the_limit() -> None:
    view = view_of_one()
    view.caught_up("a:1", NOW, 0, NOW)
    view.reserve("a:1", key(1), 11_000, NOW)
    view.report("a:1", load(sequence=2, admission_sequence=1, demand_w=50_000), NOW)
    view.tick(NOW + HOLD_MS - 1)
    assert view["a:1"].demand_w == 11_000
    view.tick(NOW + HOLD_MS)
    assert view["a:1"].demand_w == 61_000


def test_a_held_report_counts_as_heard() -> None:
    view = view_of_one()
    view.caught_up("a:1", NOW, 0, NOW)
    view.reserve("a:1", key(1), 11_000, NOW)
    later = NOW + 5 * INTERVAL
    view.report("a:1", load(sequence=2, admission_sequence=1), later)
    assert view.state(view["a:1"], later) is ReportState.FRESH
    assert view.report("a:1", load(sequence=2, admission_sequence=1), later) is Received.DUPLICATE


def test_nothing_is_held_back_while_the_admissions_are_down() -> None:
    view = view_of_one()
    view.caught_up("a:1", NOW, 0, NOW)
    view.reserve("a:1", key(1), 11_000, NOW)
    view.report("a:1", load(sequence=2, admission_sequence=1, demand_w=50_000), NOW)
    assert view["a:1"].demand_w == 11_000
    view.lost_track("a:1", NOW)
    assert view["a:1"].demand_w == 61_000


def test_held_reports_are_bounded() -> None:
    view = view_of_one()
    view.caught_up("a:1", NOW, 0, NOW)
    view.reserve("a:1", key(1), 11_000, NOW)
    for number in range(HELD_MOST + 1):
        view.report("a:1", load(sequence=2 + number, admission_sequence=1, demand_w=number), NOW)
    held = len(view["a:1"].held)
    assert held < HELD_MOST
    assert view["a:1"].demand_w == 11_000 + HELD_MOST - held, "the oldest ones were let through, in order"


def test_reading_changes_nothing() -> None:
    view = view_of_one()
    known = view["a:1"]
    for now in (NOW + 60_000, NOW):
        view.state(known, now)
    assert view.state(known, NOW) is ReportState.FRESH


# --- promises, and what others place


def test_the_promises_are_the_reports_and_the_reservations() -> None:
    view = view_of_one()
    view.report("a:1", load(sequence=2, ahead=CAR.outlook()), NOW)
    reservation = view.reserve("a:1", key(), 11_000, NOW, CAR)
    assert view["a:1"].promise() == (CAR.outlook() + CAR.outlook()).evenly_mj
    view.report("a:1", load(sequence=3, ahead=NOTHING), NOW)
    assert view["a:1"].promise() == CAR.outlook().evenly_mj
    view.release(reservation)
    assert (view["a:1"].promise(), view["a:1"].reserved) == (NOTHING.evenly_mj, NOTHING)


def test_the_promises_are_kept_as_cars_come_and_go_between_two_looks() -> None:
    view = view_of_one()
    view.report("a:1", load(sequence=2, ahead=NOTHING), NOW)
    known, ahead = view["a:1"], NOTHING
    assert known.promised_mj(9) == (0, 0)
    reservations = [view.reserve("a:1", key(number), 11_000, NOW, CAR) for number in range(3)]
    for _ in reservations:
        ahead += CAR.outlook()
    assert known.promised_mj(9) == ahead.evenly_mj[8:10], "as it was added to"
    assert known.undrawn
    assert known.promised_mj(3) == ahead.evenly_mj[2:4], "and anew"
    assert known.evenly_mj == known.promise() == ahead.evenly_mj
    assert not known.undrawn
    view.release(reservations.pop())
    view.reserve("a:1", key(4), 11_000, NOW, CAR)
    assert known.promised_mj(3) == ahead.evenly_mj[2:4]
    assert known.promise() == ahead.evenly_mj
    view.reserve("a:1", key(5), 11_000, NOW, CAR)
    assert known.reserved == ahead + CAR.outlook()
    assert known.promise() == known.reserved.evenly_mj, "as it was added to"
    view.release(reservations.pop())
    assert known.promised_mj(3) == ahead.evenly_mj[2:4]
    view.report("a:1", load(sequence=3, ahead=CAR.outlook()), NOW)
    assert known.promise() == (ahead + CAR.outlook()).evenly_mj


def test_a_car_costs_nothing_that_fits_beside_what_is_reported_and_reserved() -> None:
    view = view_of_one()
    assert view["a:1"].lost_mj(replace(CAR, left_ms=1)) == 0, "the report does not tell"
    view.report("a:1", load(sequence=2, limit_w=33_000, demand_w=11_000, ahead=CAR.outlook()), NOW)
    assert view["a:1"].lost_mj(replace(CAR, left_ms=1)) > 0
    view.reserve("a:1", key(1), 11_000, NOW, CAR)
    assert view["a:1"].lost_mj(CAR) == 0
    view.reserve("a:1", key(2), 11_000, NOW, CAR)
    assert view["a:1"].lost_mj(CAR) > 0


needs = st.builds(
    Need,
    need_mj=st.integers(1, 10**12),
    left_ms=st.integers(5 * 60_000, 4 * 86_400_000),
    max_w=st.integers(1_000, 22_000),
)


@given(st.lists(needs, max_size=5), needs)
def test_nothing_is_lost_where_all_can_draw_full_power_at_once(cars: list[Need], car: Need) -> None:
    limit_w = sum(one.max_w for one in (*cars, car))
    car = replace(car, need_mj=min(car.need_mj, car.max_w * car.left_ms))
    assert lost_mj(car, outlook(cars).slack_mj(limit_w), limit_w) < 1_000, "the curves are rounded"


def test_the_time_scale_is_known_while_all_that_reported_have_the_same() -> None:
    view = LoadView(["a:1", "b:1"], INTERVAL)
    view.report("a:1", load("a", time_scale=60.0, ahead=NOTHING), NOW)
    known = [view.time_scale]
    # The second of them does not tell what is ahead of it.
    for sequence, scale, ahead in ((1, 1.0, NOTHING), (2, 60.0, None), (3, 60.0, NOTHING)):
        view.report("b:1", load("b", sequence=sequence, time_scale=scale, ahead=ahead), NOW)
        known.append(view.time_scale)
    assert known == [60.0, None, None, 60.0]


def test_what_others_place_is_what_reports_show_beside_our_own() -> None:
    view, at = view_of_one(), NOW + 1
    reservation = view.reserve("a:1", key(), 11_000, NOW)
    ours = load(sequence=2, admission_sequence=1, free_charge_points=119, generated_at_ms=at)
    view.replied(reservation, ours, at)
    assert view.foreign.per_ms(at) == 0
    # Two came and one left.
    view.report("a:1", load(sequence=5, admission_sequence=4, free_charge_points=118, generated_at_ms=at), at)
    assert view.foreign.per_ms(at) == pytest.approx(2 / FOREIGN_MEMORY_MS)
    assert view.foreign.per_ms(at + FOREIGN_MEMORY_MS) == pytest.approx(2 / FOREIGN_MEMORY_MS / e)


def test_the_entries_of_another_life_are_not_compared() -> None:
    view = view_of_one()
    view.report("a:1", load(epoch=NOW + 1, admission_sequence=50, free_charge_points=100), NOW)
    assert view.foreign.per_ms(NOW) == 0


def test_the_version_changes_when_one_is_fresh_again_and_with_nothing_else() -> None:
    view = view_of_one()
    versions = [view.version]
    view.report("a:1", load(sequence=2, demand_w=11_000), NOW + 1)
    view.reserve("a:1", key(), 11_000, NOW + 1)
    versions.append(view.version)
    view.report("a:1", load(sequence=3), NOW + 3 + 4 * INTERVAL)
    versions.append(view.version)
    assert [version - versions[0] for version in versions] == [0, 0, 1], "it was stale"


def test_what_was_placed_with_a_substation_that_moved_is_counted_where_it_is() -> None:
    view = LoadView(["a:1", "a:2"], INTERVAL)
    view.report("a:1", load(epoch=NOW), NOW)
    answered, in_doubt = (view.reserve("a:1", key(number), 11_000, NOW) for number in range(2))
    view.replied(answered, load(epoch=NOW, sequence=2), NOW)
    assert view["a:1"].reserved_w == in_doubt.demand_w

    view.report("a:2", load(epoch=NOW + 9, generated_at_ms=NOW + 9), NOW + 9)
    assert view.state(view["a:1"], NOW + 9) is ReportState.NEVER_REPORTED, "nobody is there now"
    assert [known.substation_id for known in view if known.load is not None] == ["a"], "it is there once"
    assert [known.reserved_w for known in view] == [0, 11_000]
    view.release(in_doubt)
    assert [known.reserved_w for known in view] == [0, 0]


def test_a_doubt_that_is_settled_after_a_move_brings_nobody_back_to_the_old_address() -> None:
    view = LoadView(["a:1", "a:2"], INTERVAL)
    view.report("a:1", load(epoch=NOW), NOW)
    in_doubt = view.reserve("a:1", key(), 11_000, NOW)
    # Another one is where it was, and only then it is heard of again.
    view.report("a:1", load("b", epoch=NOW + 1, generated_at_ms=NOW + 1), NOW + 1)
    view.report("a:2", load(epoch=NOW + 2, generated_at_ms=NOW + 2), NOW + 2)
    view.replied(in_doubt, load(epoch=NOW + 2, sequence=2, generated_at_ms=NOW + 3), NOW + 3)
    assert (view.address_of("a"), view.address_of("b")) == ("a:2", "a:1")
    assert [known.reserved_w for known in view] == [0, 0]


def test_one_life_of_a_substation_is_at_one_address() -> None:
    view = LoadView(["a:1", "a:2"], INTERVAL)
    view.report("a:1", load(epoch=NOW), NOW)
    assert view.report("a:2", load(epoch=NOW, sequence=2), NOW) is Received.DUPLICATE, "as with IPv4 and IPv6"
    assert view.report("a:2", load(epoch=NOW - 1, sequence=9), NOW) is Received.STALE, "an older life, still heard"
    silent = NOW + 3 * INTERVAL + 1
    assert view.report("a:2", load(epoch=NOW, sequence=2), silent) is Received.ACCEPTED
    assert view.address_of("a") == "a:2"


def test_addresses_come_and_go() -> None:
    view = view_of_one()
    view.add("b:1")
    assert view.unheard() == ["b:1"]
    view.report("b:1", load("b", time_scale=60.0, ahead=NOTHING), NOW)
    assert (view.address_of("b"), view.time_scale, view.unheard()) == ("b:1", None, [])
    assert not view.idle("b:1", NOW), "it reports"
    silent = NOW + 10 * INTERVAL + 1
    reservation = view.reserve("b:1", key(), 11_000, NOW)
    assert not view.idle("b:1", silent), "whether it has a session is not known"
    view.release(reservation)
    assert view.idle("b:1", silent)
    view.remove("b:1")
    assert (view.address_of("b"), [known.address for known in view]) == (None, ["a:1"])


def test_who_falls_silent_where_no_name_leads_any_more_is_gone_at_once() -> None:
    view = LoadView(["a:1", "b:1"], INTERVAL)
    view.absent = {"a:1"}
    for name in ("a", "b"):
        view.report(f"{name}:1", load(name), NOW)
    states = [[view.state(known, NOW + after) for known in view] for after in (3 * INTERVAL, 3 * INTERVAL + 1)]
    assert states == [[ReportState.FRESH] * 2, [ReportState.GONE, ReportState.STALE]]


def test_a_substation_that_moved_is_found_where_it_is_also_when_it_comes_back() -> None:
    view = LoadView(["a:1", "a:2"], INTERVAL)
    for step, address in enumerate(("a:1", "a:2", "a:1", "a:1")):
        at = NOW + step
        view.report(address, load(epoch=at, generated_at_ms=at), at)
        assert view.address_of("a") == address
    reservation = view.reserve("a:1", key(), 11_000, NOW + 3)
    view.admitted("a:1", NOW + 3, [(key(), 7)])
    view.report("a:1", load(epoch=NOW + 3, sequence=2, generated_at_ms=NOW + 4), NOW + 4)
    assert view["a:1"].reserved_w == reservation.demand_w, "the report does not contain it yet"


@given(st.lists(st.tuples(st.sampled_from("rrpax-"), st.sampled_from("abc"), st.integers(0, 3)), max_size=40))
def test_wherever_substations_turn_up_each_is_there_once_and_every_reservation_is_somewhere(
    steps: list[tuple[str, str, int]],
) -> None:
    """Reports, placements and their ends, addresses that come and go: in any order, from three substations at four."""
    view, open_ones = LoadView(["0:1"], INTERVAL), []
    for at, (step, name, place) in enumerate(steps):
        now, address = NOW + at, f"{place}:1"
        here = address in {known.address for known in view}
        if step == "r" and here:
            view.report(address, load(name, epoch=now, generated_at_ms=now), now)
        elif step == "p" and here:
            open_ones.append(view.reserve(address, key(at), 11_000, now))
        elif step == "a" and not here:
            view.add(address)
        elif step == "x" and here and view.idle(address, now + 10 * INTERVAL + 1):
            view.remove(address)
        elif step == "-" and open_ones and place % 2:
            view.release(open_ones.pop())
        elif step == "-" and open_ones:
            view.replied(open_ones.pop(), load(name, epoch=now, sequence=9, generated_at_ms=now), now)
        reported = [known for known in view if known.load is not None]
        assert {k.substation_id: k.address for k in reported} == {
            k.substation_id: k.address for k in reversed(reported)
        }
        assert all(view.address_of(known.substation_id) == known.address for known in reported)
        assert all(k.reserved_w == sum(r.demand_w for r in k.reservations.values()) for k in view)
        assert all(r.address == known.address for known in view for r in known.reservations.values())
        assert {r.key for r in open_ones} <= {key for known in view for key in known.reservations}
