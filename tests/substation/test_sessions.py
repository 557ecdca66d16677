import itertools
from copy import copy

import pytest

from mesh.model import SessionState
from substation.sessions import IllegalMove, Offer, Session, Trigger
from tests.substation.rig import NOW, a_charge

LEGAL = {
    (SessionState.SUSPENDED_EVSE, Trigger.GRANT): SessionState.CHARGING,
    (SessionState.SUSPENDED_EVSE, Trigger.SATISFY): SessionState.EV_CONNECTED,
    (SessionState.SUSPENDED_EVSE, Trigger.END): SessionState.ENDED,
    (SessionState.CHARGING, Trigger.SUSPEND): SessionState.SUSPENDED_EVSE,
    (SessionState.CHARGING, Trigger.IDLE): SessionState.SUSPENDED_EV,
    (SessionState.CHARGING, Trigger.SATISFY): SessionState.EV_CONNECTED,
    (SessionState.CHARGING, Trigger.END): SessionState.ENDED,
    (SessionState.SUSPENDED_EV, Trigger.DRAW): SessionState.CHARGING,
    (SessionState.SUSPENDED_EV, Trigger.SUSPEND): SessionState.SUSPENDED_EVSE,
    (SessionState.SUSPENDED_EV, Trigger.SATISFY): SessionState.EV_CONNECTED,
    (SessionState.SUSPENDED_EV, Trigger.END): SessionState.ENDED,
    (SessionState.EV_CONNECTED, Trigger.END): SessionState.ENDED,
}


def a_session(**changes: object) -> Session:
    session = Session("a.x", a_charge(), NOW, NOW, "", metered_ms=NOW)
    session.offers = (Offer(1, 11_000, NOW + 10**10),)
    session.confirmed_until_ms = NOW + 10**10
    for name, value in changes.items():
        setattr(session, name, value)
    return session


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(SessionState, Trigger)))
def test_each_trigger_moves_as_the_table_says_or_is_an_error(state: SessionState, trigger: Trigger) -> None:
    session = a_session(state=state)
    if (state, trigger) in LEGAL:
        session.move(trigger)
        assert session.state is LEGAL[state, trigger]
    else:
        with pytest.raises(IllegalMove):
            session.move(trigger)
        assert session.state is state


@pytest.mark.parametrize("state", SessionState)
def test_whether_it_lives_and_wants_energy_follows_from_its_state(state: SessionState) -> None:
    live = state is not SessionState.ENDED
    active = live and state is not SessionState.EV_CONNECTED
    made = Session("a.x", a_charge(), NOW, NOW, "", state)
    assert (made.live, made.active) == (live, active)
    session = a_session()
    session.enter(state)
    assert (session.state, session.live, session.active) == (state, live, active)


def test_a_move_tells_whether_it_lives_and_wants_energy() -> None:
    session = a_session()
    session.move(Trigger.SATISFY)
    assert (session.live, session.active) == (True, False)
    session.move(Trigger.END)
    assert (session.live, session.active) == (False, False)


def test_a_copy_is_as_it_was() -> None:
    session = a_session(measured_w=10_000)
    copied = copy(session)
    session.move(Trigger.END)
    session.measured_w = 0
    assert (copied.state, copied.live, copied.measured_w) == (SessionState.SUSPENDED_EVSE, True, 10_000)
    assert copied.offers is session.offers


def test_the_register_grows_with_the_measured_power_and_the_scale() -> None:
    session = a_session(measured_w=10_000)
    assert session.delivered_at(NOW + 1_000, scale=60) == 10_000 * 1_000 * 60


def test_the_register_never_passes_what_was_asked() -> None:
    session = a_session(measured_w=10_000)
    session.meter(NOW + 10**9, scale=60)
    assert session.delivered_mj == session.target_mj


def test_the_register_stands_still_when_the_clock_goes_back() -> None:
    session = a_session(measured_w=10_000)
    session.meter(NOW + 5_000, scale=1)
    register = session.delivered_mj
    session.meter(NOW, scale=1)
    assert (session.delivered_mj, session.metered_ms) == (register, NOW + 5_000)


def test_satisfaction_is_predicted_to_the_millisecond_and_never_early() -> None:
    session = a_session(measured_w=7_001)
    at = session.satisfied_at(scale=7)
    assert at is not None
    assert session.delivered_at(at, 7) == session.target_mj
    assert session.delivered_at(at - 1, 7) < (session.target_mj or 0)


def test_a_car_that_draws_nothing_is_not_predicted_but_one_that_has_all_is() -> None:
    assert a_session().satisfied_at(scale=1) is None
    assert a_session(delivered_mj=36_000_000_000).satisfied_at(scale=1) == NOW
    assert a_session(measured_w=1).done_at(scale=1) == NOW + 36_000_000_000
    until_full = Session("a.x", a_charge(energy_j=None), NOW, NOW, "", metered_ms=NOW, measured_w=5)
    assert until_full.satisfied_at(scale=1) is None
    until_full.offers = (Offer(1, 5, NOW + 800),)
    until_full.confirm(1)
    assert until_full.delivered_at(NOW + 1_000, 1) == 4_000


def test_nothing_is_counted_beyond_the_last_lease_that_was_confirmed() -> None:
    session = a_session(measured_w=10_000, offers=(Offer(1, 10_000, NOW + 3_000), Offer(2, 10_000, NOW + 5_000)))
    session.confirm(2)
    session.offer(10_000, NOW + 9_000)
    assert session.delivered_at(NOW + 60_000, scale=1) == 10_000 * 5_000
    assert session.satisfied_at(scale=1) is None
    assert session.done_at(scale=1) == NOW + 3_600_000


def test_an_offer_counts_until_a_later_one_is_confirmed_or_its_lease_is_over() -> None:
    session = a_session(offers=())
    first = session.offer(9_000, NOW + 10_000)
    second = session.offer(4_000, NOW + 13_000)
    session.granted_w = 4_000
    assert session.held_w == 9_000
    assert session.lapses_at() == NOW + 10_000
    session.confirm(first.number)
    assert session.held_w == 9_000
    session.lapse(NOW + 10_000)
    assert session.held_w == 4_000
    session.offer(6_000, NOW + 16_000)
    session.confirm(second.number)
    assert session.held_w == 6_000
    session.confirm(second.number + 1)
    assert (session.held_w, session.committed_w, len(session.offers)) == (6_000, 6_000, 1)
