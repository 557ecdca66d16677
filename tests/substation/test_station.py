import pytest
from msgspec.structs import replace

from mesh.errors import AttemptFenced, MeshError, NotFound, PreconditionFailed, Refused, Unavailable
from mesh.model import ErrorReason, LimitReason, LimitSource, NotAccepting, SessionState, StopReason
from mesh.outlook import NOTHING, Need, Outlook
from substation import events as ev
from substation import wire
from substation.events import Confirmed, Full, Reading
from substation.keys import REMEMBER_MS
from substation.limits import Limit
from substation.load import Report
from substation.sessions import Session
from substation.station import Memory
from tests.substation.rig import NOW, Rig, a_charge, a_config, an_attempt

EMS, SO = LimitSource.EMS, LimitSource.SO
HOUR = 3_600


def refusal(rig: Rig, **charge: object) -> MeshError:
    with pytest.raises(MeshError) as caught:
        rig.charge(a_charge("new", **charge))  # type: ignore[arg-type]
    return caught.value


# --- admission


def test_an_admitted_car_is_granted_its_power_and_charges() -> None:
    rig = Rig()
    session = rig.charge(a_charge())
    assert (session.state, session.granted_w, session.limit_reason) == (
        SessionState.CHARGING,
        11_000,
        LimitReason.UNSPECIFIED,
    )
    assert session.session_id.startswith("a.")
    assert session.departure_assumed
    rig.run(6)
    assert 0 < session.measured_w <= 11_000


def test_the_same_key_gets_the_same_session_and_raises_its_attempt() -> None:
    rig = Rig()
    first = rig.charge(a_charge(attempt=5))
    again = rig.do(rig.station.charge(a_charge(attempt=7), rig.now))
    assert again == [ev.Repeated(first, raised=True)]
    assert first.attempt_id == an_attempt(7)
    late = rig.station.repeat(first.charge.key, b"body", an_attempt(6), rig.now)
    assert late == [ev.Repeated(first, raised=False)]
    assert first.attempt_id == an_attempt(7)


def test_a_raised_attempt_replaces_what_has_ended_and_does_not_change_it() -> None:
    rig = Rig()
    ended = rig.charge(a_charge(attempt=5))
    rig.do(rig.station.stop(ended.session_id, StopReason.REMOTE, rig.now))
    [again] = rig.station.repeat(ended.charge.key, b"body", an_attempt(7), rig.now)
    assert isinstance(again, ev.Repeated)
    assert (ended.attempt_id, again.session.attempt_id) == (an_attempt(5), an_attempt(7))
    assert again.session.admission_sequence > ended.admission_sequence
    assert rig.station.session(ended.session_id) is again.session
    assert rig.station.repeat(ended.charge.key, b"body", an_attempt(6), rig.now) == [ev.Repeated(again.session, False)]


def test_a_key_used_for_another_car_changes_nothing() -> None:
    rig = Rig()
    rig.charge(a_charge())
    before = rig.station.load()
    with pytest.raises(PreconditionFailed) as caught:
        rig.charge(a_charge(body=b"another"))
    assert caught.value.reason is ErrorReason.KEY_REUSED
    assert rig.station.load() == before


def test_a_car_without_a_plug_is_refused_until_one_is_free() -> None:
    rig = Rig(a_config(charge_points=1))
    session = rig.charge(a_charge(departure_ms=NOW + 90_000))
    error = refusal(rig)
    assert (type(error), error.reason, error.retry_after_ms) == (Refused, ErrorReason.NO_CHARGE_POINT, 90_000)
    rig.do(rig.station.stop(session.session_id, StopReason.REMOTE, rig.now))
    assert rig.charge(a_charge("new")).live


def test_without_any_known_end_the_retry_delay_is_half_a_minute() -> None:
    rig = Rig(a_config(charge_points=1))
    rig.charge(a_charge(energy_j=None))
    assert refusal(rig).retry_after_ms == 30_000


def test_a_floor_above_the_limit_is_refused_until_the_limit_ends() -> None:
    rig = Rig()
    rig.set_limit(Limit(SO, 3_000, NOW, NOW + 60_000))
    error = refusal(rig)
    assert (error.reason, error.retry_after_ms) == (ErrorReason.FLOOR_ABOVE_LIMIT, 60_000)
    assert rig.charge(a_charge("small", floor_w=1_380)).granted_w == 3_000


def test_when_too_many_wait_for_a_turn_the_next_is_refused() -> None:
    rig = Rig(a_config(rated_w=4_140))
    for n in range(10):
        rig.charge(a_charge(str(n)))
    assert refusal(rig).reason is ErrorReason.TOO_MANY_WAITING


def test_draining_refuses_new_cars_and_lets_live_ones_go_on() -> None:
    rig = Rig()
    session = rig.charge(a_charge())
    assert rig.do(rig.station.drain(True, rig.now)) == [ev.DrainChanged()]
    assert rig.station.drain(True, rig.now) == []
    assert refusal(rig).reason is ErrorReason.NOT_ACCEPTING
    assert rig.station.load().not_accepting is NotAccepting.DRAINING
    rig.run(10)
    assert session.measured_w > 0
    rig.do(rig.station.drain(False, rig.now))
    assert rig.charge(a_charge("new")).live


def test_a_ledger_that_cannot_write_admits_nothing() -> None:
    rig = Rig()
    rig.station.block(NotAccepting.LEDGER)
    error = refusal(rig)
    assert (type(error), error.reason) == (Unavailable, ErrorReason.LEDGER_UNAVAILABLE)
    rig.station.unblock(NotAccepting.LEDGER)
    assert rig.charge(a_charge()).live


def test_a_withdrawn_admission_leaves_no_trace() -> None:
    rig = Rig()
    session = rig.charge(a_charge())
    rig.do(rig.station.withdraw(session.session_id, rig.now))
    assert list(rig.station.sessions(include_ended=True)) == []
    assert rig.station.load().committed_w == 0
    assert rig.charge(a_charge(body=b"another")).live


def test_an_admission_that_ended_before_it_could_be_kept_is_withdrawn_too() -> None:
    rig = Rig()
    session = rig.charge(a_charge())
    rig.do(rig.station.stop(session.session_id, StopReason.REMOTE, rig.now))
    rig.do(rig.station.withdraw(session.session_id, rig.now))
    assert list(rig.station.sessions(include_ended=True)) == []


# --- one session per key


def test_a_resolved_key_is_fenced_for_this_attempt_and_older_ones_but_not_for_later_ones() -> None:
    rig = Rig()
    key = a_charge().key
    assert rig.station.resolve(key, an_attempt(5), rig.now) == [ev.Fenced(key, an_attempt(5))]
    assert rig.station.resolve(key, an_attempt(3), rig.now) == [ev.Fenced(key, an_attempt(5))]
    for attempt in (4, 5):
        with pytest.raises(AttemptFenced):
            rig.charge(a_charge(attempt=attempt))
    assert rig.charge(a_charge(attempt=6)).live


def test_a_known_key_is_resolved_with_its_session() -> None:
    rig = Rig()
    session = rig.charge(a_charge())
    assert rig.station.resolve(session.charge.key, an_attempt(9), rig.now) == [ev.Repeated(session, raised=False)]


def test_a_duplicate_ends_unless_its_own_attempt_is_later() -> None:
    rig = Rig()
    session = rig.charge(a_charge(attempt=5))
    with pytest.raises(PreconditionFailed) as caught:
        rig.station.end_duplicate(session.session_id, "b.x", an_attempt(4), rig.now)
    assert caught.value.reason is ErrorReason.ATTEMPT_NEWER
    assert session.live
    rig.do(rig.station.end_duplicate(session.session_id, "b.x", an_attempt(6), rig.now))
    assert (session.stop_reason, session.duplicate_of) == (StopReason.DUPLICATE, "b.x")
    assert rig.station.end_duplicate(session.session_id, "b.x", an_attempt(4), rig.now) == []


@pytest.mark.parametrize("attempt", [4, 5])
def test_two_sessions_are_never_both_ended_for_one_another(attempt: int) -> None:
    """One attempt raised both, and each of two balancers heard of one raise only."""
    one, other = Rig(a_config(substation_id="a")), Rig(a_config(substation_id="b"))
    here, there = one.charge(a_charge(attempt=attempt)), other.charge(a_charge(attempt=5))
    one.do(one.station.end_duplicate(here.session_id, there.session_id, an_attempt(5), one.now))
    with pytest.raises(PreconditionFailed) as caught:
        other.station.end_duplicate(there.session_id, here.session_id, an_attempt(5), other.now)
    assert caught.value.reason is ErrorReason.ATTEMPT_NEWER
    assert (here.live, there.live) == (False, True)


def test_no_session_is_ended_for_itself() -> None:
    rig = Rig()
    session = rig.charge(a_charge())
    with pytest.raises(PreconditionFailed):
        rig.station.end_duplicate(session.session_id, session.session_id, session.attempt_id, rig.now)
    assert session.live


# --- a session's life


def test_a_car_without_departure_leaves_when_it_has_what_it_asked_for() -> None:
    rig = Rig(a_config(time_scale=60))
    session = rig.charge(a_charge())
    rig.run(HOUR / 60 + 10)
    assert (session.state, session.stop_reason) == (SessionState.ENDED, StopReason.ENERGY_LIMIT_REACHED)
    assert session.delivered_mj == 36_000_000_000
    assert rig.station.load().free_charge_points == 120


def test_a_car_with_a_departure_holds_its_plug_until_then() -> None:
    rig = Rig(a_config(time_scale=60))
    session = rig.charge(a_charge(departure_ms=NOW + 100_000))
    rig.run(90)
    assert session.state is SessionState.EV_CONNECTED
    assert rig.station.load().active_sessions == 0
    assert rig.station.load().free_charge_points == 119
    assert rig.station.expected_end_ms(session) == NOW + 100_000
    rig.run(11)
    assert (session.ended_ms, session.stop_reason) == (NOW + 100_000, StopReason.ENERGY_LIMIT_REACHED)


def test_a_car_that_leaves_early_ends_as_disconnected() -> None:
    rig = Rig()
    session = rig.charge(a_charge(departure_ms=NOW + 60_000))
    rig.run(61)
    assert (session.ended_ms, session.stop_reason) == (NOW + 60_000, StopReason.EV_DISCONNECTED)
    assert 0 < session.delivered_mj < 36_000_000_000


def test_a_car_that_charges_until_full_ends_when_it_says_so() -> None:
    rig = Rig(a_config(time_scale=3600))
    session = rig.charge(a_charge(energy_j=None))
    rig.run(20)
    assert session.stop_reason is StopReason.SOC_LIMIT_REACHED
    assert rig.station.heard([Full(session.session_id)], rig.now) == []


def test_a_stop_frees_the_power_at_once_and_a_second_one_changes_nothing() -> None:
    rig = Rig()
    session = rig.charge(a_charge())
    rig.run(10)
    rig.do(rig.station.stop(session.session_id, StopReason.LOCAL, rig.now))
    assert (session.stop_reason, session.ended_ms, rig.committed_w()) == (StopReason.LOCAL, rig.now, 0)
    delivered = session.delivered_mj
    rig.run(10)
    assert rig.do(rig.station.stop(session.session_id, StopReason.REMOTE, rig.now)) == []
    assert (session.stop_reason, session.delivered_mj) == (StopReason.LOCAL, delivered)


def test_what_several_cars_say_at_one_moment_is_as_if_each_had_said_it_alone() -> None:
    together, alone = Rig(), Rig()
    said: list[ev.CarEvent] = []
    for number in range(3):
        session, same = (rig.charge(a_charge(f"car-{number}", energy_j=3_600_000)) for rig in (together, alone))
        assert session.session_id == same.session_id
        said += [
            Confirmed(session.session_id, session.last_offer),
            Reading(session.session_id, 10_000 + number, 3_600_000_000 if number == 1 else 1_000),
        ]
    said += [Full(said[0].session_id), Reading(said[0].session_id, 9_000, 2_000)]
    together.do(together.station.heard(said, together.now))
    for one in said:
        alone.do(alone.station.heard([one], alone.now))
    # In between, sharing anew for each may count the load's sequence on more often.
    assert replace(together.station.load(), sequence=0) == replace(alone.station.load(), sequence=0)
    assert list(together.station.sessions(include_ended=True)) == list(alone.station.sessions(include_ended=True))
    assert [session.session_id for session in together.station.sessions()] == [said[4].session_id]


def test_an_unknown_session_is_not_found() -> None:
    rig = Rig()
    with pytest.raises(NotFound):
        rig.station.stop("a.nobody", StopReason.REMOTE, rig.now)
    assert rig.station.heard([Confirmed("a.nobody", 1)], rig.now) == []
    assert rig.station.heard([Reading("a.nobody", 1, 1)], rig.now) == []
    assert rig.station.heard([Full("a.nobody")], rig.now) == []


def test_what_ended_is_remembered_for_24_hours() -> None:
    rig = Rig()
    session = rig.charge(a_charge())
    rig.do(rig.station.stop(session.session_id, StopReason.REMOTE, rig.now))
    rig.station.resolve(a_charge("fenced").key, an_attempt(5), rig.now)
    rig.charge(a_charge("other", energy_j=10**12, max_w=5_000))
    rig.run(REMEMBER_MS / 1000 - 60)
    assert rig.station.known(session.charge.key)
    rig.run(120)
    assert not rig.station.known(session.charge.key)
    with pytest.raises(NotFound):
        rig.station.session(session.session_id)
    assert rig.charge(a_charge("fenced", attempt=1)).live


# --- power


def test_power_is_lowered_first_and_handed_on_only_once_it_is_free() -> None:
    rig = Rig(a_config(rated_w=11_000))
    first = rig.charge(a_charge("1"))
    rig.run(10)
    second = rig.charge(a_charge("2"))
    assert (first.granted_w, second.granted_w, first.held_w) == (5_500, 0, 11_000)
    assert second.limit_reason is LimitReason.RAMP
    rig.run(6)
    assert (first.granted_w, second.granted_w) == (5_500, 5_500)
    assert first.limit_reason is LimitReason.SHARED


def test_a_limit_that_is_set_anew_every_second_is_reached_all_the_same() -> None:
    """An energy management that follows a meter: each small rise began the ramp again, from what was drawn then."""
    rig = Rig()
    for n in range(8):
        rig.charge(a_charge(str(n), energy_j=10**10))
    rig.set_limit(Limit(EMS, 10_000, rig.now))
    rig.run(60)
    for n in range(90):
        rig.set_limit(Limit(EMS, 60_000 + n % 2 * 300, rig.now))
        rig.run(1)
        assert rig.committed_w() <= 10_000 + (n + 1) * 60_300 // 60
    assert rig.station.load().granted_w > 59_000


def test_a_cut_lowers_grants_at_once_and_says_whose_it_is() -> None:
    rig = Rig()
    sessions = [rig.charge(a_charge(str(n))) for n in range(20)]
    rig.run(20)
    rig.set_limit(Limit(SO, 50_000, rig.now))
    assert sum(s.granted_w for s in sessions) <= 50_000
    assert rig.committed_w() > 50_000
    assert {(s.limit_reason, s.limit_source) for s in sessions} == {(LimitReason.LIMIT_CUT, SO)}
    rig.run(5)
    assert rig.committed_w() <= 50_000
    assert rig.drawn_w() <= 50_000
    (complied,) = rig.of(ev.LimitComplied)
    assert isinstance(complied, ev.LimitComplied)
    assert 0 < complied.took_ms <= 5_000
    assert rig.station.load().over_limit_ms == 0


def test_after_a_rise_of_the_limit_the_total_rises_by_a_sixtieth_a_second() -> None:
    rig = Rig()
    for n in range(20):
        rig.charge(a_charge(str(n)))
    rig.set_limit(Limit(EMS, 40_000, rig.now, rig.now + 20_000))
    rig.run(20)
    begin = rig.committed_w()
    for second in range(1, 36):
        rig.run(1)
        assert rig.committed_w() <= begin + second * 100_000 // 60 + 1
    rig.run(10)
    assert rig.committed_w() > 95_000
    assert rig.of(ev.LimitsChanged)


def test_a_limit_that_is_cleared_twice_is_no_news_the_second_time() -> None:
    rig = Rig()
    rig.set_limit(Limit(EMS, 40_000, rig.now))
    assert rig.station.limits() == [Limit(EMS, 40_000, rig.now)]
    assert rig.station.clear_limit(EMS, rig.now) == [ev.LimitsChanged()]
    assert rig.station.clear_limit(EMS, rig.now) == []


def test_cars_whose_floors_do_not_fit_take_turns_and_all_get_energy() -> None:
    rig = Rig(a_config(rated_w=5_000))
    sessions = [rig.charge(a_charge(str(n))) for n in range(3)]
    assert sorted(s.state for s in sessions) == sorted([SessionState.CHARGING] + [SessionState.SUSPENDED_EVSE] * 2)
    assert {s.limit_reason for s in sessions if s.granted_w == 0} == {LimitReason.WAITING_TURN}
    rig.run(3 * 900)
    delivered = [s.delivered_at(rig.now, scale=1) for s in sessions]
    assert min(delivered) > 0
    assert max(delivered) < 1.1 * min(delivered)


def test_what_a_car_leaves_undrawn_goes_to_others_until_it_reaches_for_it() -> None:
    rig = Rig(a_config(rated_w=20_000))
    lazy, eager = (
        rig.charge(a_charge("lazy", energy_j=10**9)),
        rig.charge(a_charge("eager", max_w=22_000, energy_j=10**9)),
    )
    rig.deaf = {lazy.session_id}
    rig.cars.open(lazy.session_id)
    rig.run(6)
    rig.do(rig.station.heard([Reading(lazy.session_id, 5_000, 0)], rig.now))
    rig.run(61)
    assert (lazy.granted_w, lazy.limit_reason) == (6_200, LimitReason.UNDRAWN)
    rig.run(6)
    assert eager.granted_w == 20_000 - 6_200
    rig.do(rig.station.heard([Reading(lazy.session_id, 6_100, 0)], rig.now))
    assert lazy.draws_at_most_w is None


def test_a_car_that_draws_nothing_of_its_grant_is_suspended_by_itself_until_it_draws() -> None:
    rig = Rig()
    session = rig.charge(a_charge())
    rig.cars.open(session.session_id)
    rig.run(61)
    rig.do(rig.station.heard([Reading(session.session_id, 0, 0)], rig.now))
    rig.run(61)
    assert (session.state, session.granted_w) == (SessionState.SUSPENDED_EV, 4_140)
    rig.do(rig.station.heard([Reading(session.session_id, 4_100, 0)], rig.now))
    assert (session.state, session.granted_w) == (SessionState.CHARGING, 11_000)


@pytest.mark.parametrize("max_w", [600, 4_140])
def test_a_car_that_draws_nothing_is_suspended_by_itself_also_where_nothing_can_be_taken_back(max_w: int) -> None:
    rig = Rig()
    session = rig.charge(a_charge(max_w=max_w, floor_w=max_w))
    rig.cars.open(session.session_id)
    rig.run(59)
    assert session.state is SessionState.CHARGING
    rig.run(2)
    assert (session.state, session.granted_w) == (SessionState.SUSPENDED_EV, max_w)
    rig.do(rig.station.heard([Reading(session.session_id, max_w, 0)], rig.now))
    assert (session.state, session.granted_w) == (SessionState.CHARGING, max_w)


def test_a_disobedient_car_is_disconnected() -> None:
    rig = Rig()
    session = rig.charge(a_charge(energy_j=10**9))
    rig.run(10)
    rig.deaf = {session.session_id}
    rig.cars.open(session.session_id)
    rig.set_limit(Limit(SO, 5_000, rig.now))
    for _ in range(9):
        rig.do(rig.station.heard([Reading(session.session_id, 10_900, 0)], rig.now))
        rig.run(1)
    assert session.live
    rig.run(2)
    assert session.stop_reason is StopReason.OVERCURRENT_FAULT
    assert ev.Opened(session.session_id) in rig.events


def test_cars_that_obey_late_are_not_punished_for_many_cuts() -> None:
    """In real time each arrival lowers all shares again before the cars have acted on the last."""
    for pause_s in (0.5, 1.0, 3.0):
        rig = Rig()
        for n in range(40):
            rig.charge(a_charge(str(n), energy_j=10**10))
            rig.run(pause_s)
        rig.run(60)
        assert rig.station.load().active_sessions == 40
        assert rig.station.load().over_limit_ms == 0


def test_a_disobedient_car_is_found_although_its_grant_is_lowered_again_and_again() -> None:
    rig = Rig(a_config(rated_w=22_000))
    session = rig.charge(a_charge(energy_j=10**10))
    rig.run(10)
    rig.cars.open(session.session_id)
    rig.do(rig.station.heard([Reading(session.session_id, 10_900, 0)], rig.now))
    for n in range(10):
        rig.set_limit(Limit(SO, 9_000 - 100 * n, rig.now))
        rig.run(1.1)
    assert session.stop_reason is StopReason.OVERCURRENT_FAULT


def test_after_a_restart_a_car_that_draws_too_much_is_still_judged() -> None:
    rig = Rig()
    session = rig.charge(a_charge(energy_j=10**10))
    rig.run(10)
    rig.do(rig.station.heard([Reading(session.session_id, 20_000, 0)], rig.now))
    rig.cars.open(session.session_id)
    again = restart(rig)
    again.run(11)
    assert again.station.session(session.session_id).stop_reason is StopReason.OVERCURRENT_FAULT


def test_a_little_more_than_granted_is_left_free_by_the_others() -> None:
    """A meter's tolerance is no reason to be over the limit: 20 cars that draw 4 % more add up to 4 kW."""
    rig = Rig()
    sessions = [rig.charge(a_charge(str(n), energy_j=10**10)) for n in range(20)]
    rig.run(10)
    for _ in range(4):
        for session in sessions:
            rig.do(rig.station.heard([Confirmed(session.session_id, session.last_offer)], rig.now))
            rig.do(rig.station.heard([Reading(session.session_id, session.granted_w * 104 // 100, 0)], rig.now))
    assert 95_000 < rig.committed_w() <= 100_000


def test_no_car_is_left_without_power_for_what_others_draw_above_their_grants() -> None:
    """With 2 % each, what 19 of them draw and the same again is more than is free beside the floor of the last one."""
    rig = Rig()
    sessions = []
    for n in range(20):
        session = rig.charge(a_charge(str(n), energy_j=10**10))
        rig.cars._cars[session.session_id].efficiency = 1.02
        sessions.append(session)
        rig.run(1)
    rig.run(60)
    assert min(session.measured_w for session in sessions) >= 4_140
    assert rig.committed_w() <= 100_000
    assert rig.station.load().over_limit_ms == 0


def test_what_is_left_free_for_a_meters_tolerance_is_no_ramp() -> None:
    rig = Rig(a_config(rated_w=20_000))
    rig.charge(a_charge("small", max_w=5_000, energy_j=10**10))
    session = rig.charge(a_charge("large", max_w=22_000, energy_j=10**10))
    rig.cars._cars[session.session_id].efficiency = 1.004
    rig.run(300)
    assert session.measured_w > session.granted_w > 14_900
    assert session.limit_reason is LimitReason.SHARED


def test_a_process_that_stood_still_counts_no_energy_beyond_the_leases() -> None:
    rig = Rig()
    session = rig.charge(a_charge())
    rig.run(60)
    rig.stall(HOUR)
    assert session.active
    assert session.delivered_at(rig.now, 1) == rig.registers()[session.session_id]
    assert session.measured_w == 0
    rig.run(10)
    assert session.measured_w > 0


def test_a_reading_that_comes_after_the_contactor_opened_makes_no_power() -> None:
    rig = Rig()
    session = rig.charge(a_charge(departure_ms=NOW + HOUR * 1000))
    rig.run(10)
    rig.do(rig.station.heard([Reading(session.session_id, 9_000, 36_000_000_000)], rig.now))
    rig.do(rig.station.heard([Reading(session.session_id, 9_000, 36_000_000_000)], rig.now))
    assert (session.state, session.measured_w, rig.committed_w()) == (SessionState.EV_CONNECTED, 0, 0)


def test_the_reason_not_to_accept_that_lasts_is_not_lifted_by_another() -> None:
    rig = Rig()
    rig.station.block(NotAccepting.SHUTTING_DOWN)
    rig.station.block(NotAccepting.LEDGER)
    rig.station.unblock(NotAccepting.LEDGER)
    assert rig.station.accepting is NotAccepting.SHUTTING_DOWN


def test_that_the_ledger_cannot_be_written_is_said_also_when_drained() -> None:
    rig = Rig()
    rig.do(rig.station.drain(True, rig.now))
    rig.station.block(NotAccepting.LEDGER)
    assert rig.station.accepting is NotAccepting.LEDGER


def test_a_car_that_draws_more_than_granted_without_any_cut_is_disconnected_too() -> None:
    rig = Rig()
    session = rig.charge(a_charge(energy_j=10**9))
    rig.run(10)
    rig.do(rig.station.heard([Reading(session.session_id, 14_000, 0)], rig.now))
    rig.cars.open(session.session_id)
    rig.run(11)
    assert session.stop_reason is StopReason.OVERCURRENT_FAULT


def test_time_over_the_limit_is_counted_outside_the_obedience_time() -> None:
    rig = Rig(a_config(rated_w=11_000))
    session = rig.charge(a_charge(energy_j=10**9))
    rig.run(10)
    rig.cars.open(session.session_id)
    rig.do(rig.station.heard([Reading(session.session_id, 11_400, 0)], rig.now))
    rig.run(3)
    assert rig.station.load().over_limit_ms == 3_000


def test_a_reading_that_completes_the_energy_ends_the_session_at_once() -> None:
    rig = Rig()
    session = rig.charge(a_charge())
    rig.do(rig.station.heard([Reading(session.session_id, 9_000, 36_000_000_000)], rig.now))
    assert session.stop_reason is StopReason.ENERGY_LIMIT_REACHED
    plugged = rig.charge(a_charge("2", departure_ms=NOW + HOUR * 1000))
    rig.do(rig.station.heard([Reading(plugged.session_id, 9_000, 36_000_000_000)], rig.now))
    assert plugged.state is SessionState.EV_CONNECTED
    rig.do(rig.station.heard([Reading(plugged.session_id, 0, 36_000_000_000)], rig.now))


# --- reports


def test_the_report_sums_up_and_its_sequence_grows_with_commitments_only() -> None:
    rig = Rig()
    before = rig.station.load()
    rig.charge(a_charge("1", departure_ms=NOW + 2 * HOUR * 1000))
    rig.charge(a_charge("2"))
    load = rig.station.load()
    assert (load.demand_w, load.floor_w, load.granted_w, load.active_sessions) == (22_000, 8_280, 22_000, 2)
    # 10 kWh in two hours take 5 kW; without a departure it is all the car can take.
    assert load.required_w == 5_000 + 11_000
    assert (load.admission_sequence, load.free_charge_points) == (2, 118)
    assert load.sequence > before.sequence
    rig.run(30)
    sequence = rig.station.load().sequence
    rig.run(3)
    assert rig.station.load().sequence == sequence


def test_the_outlook_is_what_the_active_sessions_still_want_and_fades_as_they_get_it() -> None:
    rig = Rig()
    assert rig.station.outlook(rig.now) == NOTHING
    two_hours = Need(36_000_000_000, 2 * HOUR * 1000, 11_000).outlook()
    rig.charge(a_charge("1", departure_ms=NOW + 2 * HOUR * 1000))
    # To a millijoule for each watt.
    assert rig.station.outlook(rig.now).evenly_mj == two_hours.evenly_mj
    assert rig.station.outlook(rig.now).at_latest_mj == pytest.approx(two_hours.at_latest_mj, abs=11_000)
    rig.charge(a_charge("2", departure_ms=NOW + 2 * HOUR * 1000))
    assert rig.station.outlook(rig.now).at_latest_mj == pytest.approx((two_hours + two_hours).at_latest_mj)
    rig.run(HOUR // 2)
    assert two_hours.evenly_mj[-1] > rig.station.outlook(rig.now).evenly_mj[-1] > 0
    rig.run(HOUR)
    assert rig.station.outlook(rig.now) == NOTHING


def test_the_largest_report_is_under_a_kilobyte() -> None:
    load = replace(Rig(a_config(rated_w=10**9)).station.load(), sequence=2**62, admission_sequence=2**62)
    most = Outlook((0, *[10**15 + 1] * 25), (0, *[10**15 + 1] * 25))
    assert wire.load_report(Report("s" * 40, 2**62, 3600, NOW, load, most)).ByteSize() < 500


# --- after a restart


def restart(rig: Rig, **config: int) -> Rig:
    """A station that knows what the ledger would."""
    kept = list(rig.station.sessions(include_ended=True))
    memory = Memory(kept, rig.station.limits(), rig.station.draining)
    return Rig(a_config(**config), memory=memory, before=rig)


def test_after_a_restart_sessions_limits_drain_and_registers_are_back() -> None:
    rig = Rig()
    live, ended = rig.charge(a_charge("live")), rig.charge(a_charge("ended"))
    rig.run(30)
    rig.do(rig.station.stop(ended.session_id, StopReason.REMOTE, rig.now))
    rig.set_limit(Limit(EMS, 60_000, rig.now))
    rig.do(rig.station.drain(True, rig.now))
    again = restart(rig)
    assert again.station.session(live.session_id).live
    assert again.station.known(ended.charge.key)
    assert again.station.limits() == rig.station.limits()
    assert again.station.draining
    assert [event.session_id for event in again.of(ev.Offered)] == [live.session_id]  # type: ignore[union-attr]


def test_after_a_restart_a_lower_limit_is_a_cut() -> None:
    rig = Rig()
    for n in range(9):
        rig.charge(a_charge(str(n)))
    rig.run(70)
    again = restart(rig, rated_w=50_000)
    assert again.station.load().granted_w <= 50_000
    assert again.station.load().over_limit_ms == 0


def test_with_fewer_charge_points_than_sessions_none_is_free_until_enough_have_left() -> None:
    """A report cannot say a number below 0: nobody would hear of the substation any more."""
    rig = Rig()
    sessions = [rig.charge(a_charge(str(n))) for n in range(3)]
    again = restart(rig, charge_points=2)
    free = [again.station.load().free_charge_points]
    assert refusal(again).reason is ErrorReason.NO_CHARGE_POINT
    for session in sessions:
        again.do(again.station.stop(session.session_id, StopReason.REMOTE, again.now))
        free.append(again.station.load().free_charge_points)
    assert free == [0, 0, 1, 2]


def test_fences_survive_a_restart() -> None:
    key = a_charge().key
    rig = Rig(memory=Memory(fences=[(key, an_attempt(5), NOW)]))
    with pytest.raises(AttemptFenced):
        rig.charge(a_charge(attempt=5))


def test_sessions_are_listed_live_first_and_ended_on_request() -> None:
    rig = Rig()
    sessions: list[Session] = [rig.charge(a_charge(str(n))) for n in range(2)]
    rig.do(rig.station.stop(sessions[0].session_id, StopReason.REMOTE, rig.now))
    assert list(rig.station.sessions()) == [sessions[1]]
    assert list(rig.station.sessions(include_ended=True)) == [sessions[1], sessions[0]]
