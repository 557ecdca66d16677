"""One charge from request to answer: who is asked next, and when nobody may be."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from balancer.admissions import Whereabouts
from balancer.attempt import (
    ASK_AGAIN_MS,
    REPEAT,
    Answer,
    Ask,
    Attempt,
    Event,
    Fail,
    IllegalMove,
    Late,
    Lost,
    Outcome,
    Placement,
    Refused,
    Resolve,
    State,
    Step,
    Unreached,
)
from balancer.desk import Desk, Doubt, Fenced, Found, Replied
from balancer.view import HOLD_MS
from mesh import errors
from mesh.charge import Charge
from mesh.errors import InvalidRequest, MeshError, PreconditionFailed, Unavailable, Violation
from mesh.model import ErrorReason
from tests.balancer.makers import (
    NOW,
    address,
    attempt_id,
    charge,
    desk_of,
    entry,
    key,
    load,
    replied,
    session,
)


def attempt_of(desk: Desk, number: int = 0, attempt: int | None = None, **car: Any) -> Attempt:  # noqa: ANN401
    name = attempt_id(number if attempt is None else attempt)
    return Attempt(desk, key(number), name, lambda _: charge(number, **car))


def no_plug(retry_after_ms: int = 5_000) -> Refused:
    return Refused(errors.Refused(ErrorReason.NO_CHARGE_POINT, "every charge point is taken", retry_after_ms))


def two() -> Desk:
    """`a` is the better one."""
    return desk_of(load("a"), load("b", demand_w=50_000))


def reserved(desk: Desk) -> int:
    return sum(known.reserved_w for known in desk.view)


def failure(step: Step) -> MeshError:
    assert isinstance(step, Fail), step
    return step.error


def in_doubt(desk: Desk, number: int = 0, **car: Any) -> tuple[Attempt, Doubt]:  # noqa: ANN401
    """A call whose reply from `a` was lost."""
    attempt = attempt_of(desk, number, **car)
    assert attempt.begin(NOW) == Ask("a:1", "a")
    step = attempt.after(Lost(), NOW)
    assert isinstance(step, Resolve)
    return attempt, step.doubt


# --- the plain way -----------------------------------------------------------------------------------


def test_the_best_substation_is_asked_and_its_reply_answers() -> None:
    desk = two()
    attempt = attempt_of(desk)
    assert attempt.begin(NOW) == Ask("a:1", "a")
    assert reserved(desk) == 11_000
    after = load("a", sequence=2, admission_sequence=1, demand_w=11_000)
    step = attempt.after(replied(after), NOW)
    assert step == Answer(
        reply="reply 0",
        placement=Placement("a", "least_utilisation", 0.11, 0.0, 0.11, eligible=2, tried=1),
        repeated=False,
    )
    assert reserved(desk) == 0
    assert desk.view["a:1"].demand_w == 11_000
    assert desk.index.find(key()) is not None


def test_a_substation_that_knew_the_key_makes_it_a_repeat() -> None:
    attempt = attempt_of(two())
    attempt.begin(NOW)
    step = attempt.after(replied(load("a", sequence=2), repeated=True), NOW)
    assert step == Answer("reply 0", Placement("a", REPEAT), repeated=True)


def test_a_bad_request_asks_nobody() -> None:
    def parse(_: int) -> Charge:
        raise InvalidRequest(Violation("max_power_kw", "must be above 0"))

    desk = two()
    with pytest.raises(InvalidRequest, match="max_power_kw"):
        Attempt(desk, key(), attempt_id(), parse).begin(NOW)
    assert reserved(desk) == 0


def test_nobody_up_fails_with_the_reason() -> None:
    desk = desk_of(load("a"))
    assert failure(attempt_of(desk).begin(NOW + 60_000)).reason is ErrorReason.NO_SUBSTATION


# --- definite refusals -------------------------------------------------------------------------------


def test_a_refusal_sends_the_car_to_the_next_best() -> None:
    desk = two()
    attempt = attempt_of(desk)
    attempt.begin(NOW)
    assert attempt.after(no_plug(), NOW) == Ask("b:1", "b")
    assert desk.view["a:1"].reserved_w == 0
    step = attempt.after(replied(load("b", sequence=2, demand_w=61_000)), NOW)
    assert isinstance(step, Answer)
    assert (step.placement.substation_id, step.placement.tried) == ("b", 2)


def test_when_all_refuse_the_most_useful_refusal_is_the_answer() -> None:
    attempt = attempt_of(desk_of(load("a"), load("b"), load("c")))
    attempt.begin(NOW)
    attempt.after(Refused(errors.Refused(ErrorReason.NOT_ACCEPTING, "draining", 100)), NOW)
    attempt.after(no_plug(9_000), NOW)
    error = failure(attempt.after(no_plug(3_000), NOW))
    assert (error.reason, error.retry_after_ms) == (ErrorReason.NO_CHARGE_POINT, 3_000)


def test_a_reason_that_nobody_ranked_comes_last() -> None:
    attempt = attempt_of(desk_of(load("a"), load("b")))
    attempt.begin(NOW)
    odd = errors.NotFound(ErrorReason.SUBSTATION_NOT_FOUND, "what?")
    attempt.after(Refused(odd), NOW)
    assert failure(attempt.after(no_plug(), NOW)).reason is ErrorReason.NO_CHARGE_POINT


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest(Violation("vehicle_id", "is wrong")),
        PreconditionFailed(ErrorReason.KEY_REUSED, "another request"),
        errors.AttemptExpired(ErrorReason.ATTEMPT_EXPIRED, "too late"),
        errors.AttemptFenced(ErrorReason.ATTEMPT_FENCED, "fenced"),
    ],
)
def test_what_another_would_say_as_well_is_answered_at_once(error: MeshError) -> None:
    desk = two()
    attempt = attempt_of(desk)
    attempt.begin(NOW)
    assert failure(attempt.after(Refused(error), NOW)) is error
    assert reserved(desk) == 0
    assert attempt.state is State.DONE


def test_an_unreached_substation_counts_as_a_failure_and_costs_no_budget() -> None:
    desk = two()
    while desk.budget.spend(NOW):
        pass
    attempt = attempt_of(desk)
    attempt.begin(NOW)
    assert attempt.after(Unreached(), NOW) == Ask("b:1", "b")
    error = failure(attempt.after(Unreached(), NOW))
    assert error.reason is ErrorReason.NO_SUBSTATION
    assert reserved(desk) == 0


def test_without_budget_the_first_refusal_is_the_answer() -> None:
    desk = two()
    while desk.budget.spend(NOW):
        pass
    attempt = attempt_of(desk)
    attempt.begin(NOW)
    assert failure(attempt.after(no_plug(), NOW)).reason is ErrorReason.NO_CHARGE_POINT


def test_one_that_has_too_many_calls_already_is_passed_over_at_no_cost_and_is_not_ejected() -> None:
    desk = two()
    busy = errors.Refused(ErrorReason.OVERLOADED, "1000 calls are being served", 700)
    for number in range(10):
        while desk.budget.spend(NOW):
            pass
        attempt = attempt_of(desk, number)
        attempt.begin(NOW)
        assert attempt.after(Refused(busy, sent=False), NOW) == Ask("b:1", "b")
        assert failure(attempt.after(Refused(busy, sent=False), NOW)).retry_after_ms == 700
    assert reserved(desk) == 0
    assert not desk.ejections.ejected("a:1")


def test_when_one_is_overloaded_and_one_is_full_the_client_hears_of_what_passes_by_itself() -> None:
    attempt = attempt_of(two())
    attempt.begin(NOW)
    attempt.after(Refused(errors.Refused(ErrorReason.OVERLOADED, "too many calls", 700)), NOW)
    error = failure(attempt.after(no_plug(), NOW))
    assert (error.reason, error.retry_after_ms) == (ErrorReason.OVERLOADED, 700)


def test_refusals_for_want_of_plugs_never_eject_but_a_broken_ledger_does() -> None:
    for error, ejected in (
        (no_plug().error, False),
        (Unavailable(ErrorReason.LEDGER_UNAVAILABLE, "disk full"), True),
    ):
        desk = desk_of(load("a"))
        for number in range(10):
            attempt = attempt_of(desk, number)
            if isinstance(attempt.begin(NOW), Ask):
                attempt.after(Refused(error), NOW)
        assert desk.ejections.ejected("a:1") is ejected


def test_without_time_left_nothing_is_sent() -> None:
    desk = two()
    attempt = attempt_of(desk)
    attempt.begin(NOW)
    assert failure(attempt.after(Late(), NOW)).reason is ErrorReason.ATTEMPT_EXPIRED
    assert reserved(desk) == 0


# --- doubt -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outcome",
    [
        Lost(),
        Refused(Unavailable(ErrorReason.OUTCOME_UNKNOWN, "the ledger was slow")),
        Refused(errors.InternalError()),
    ],
)
def test_what_is_not_definite_is_resolved_where_it_was_sent(outcome: Outcome) -> None:
    desk = two()
    attempt = attempt_of(desk)
    attempt.begin(NOW)
    step = attempt.after(outcome, NOW)
    assert isinstance(step, Resolve)
    doubt = step.doubt
    assert (doubt.key, doubt.address, doubt.substation_id, doubt.attempt_id, doubt.epoch) == (
        key(), "a:1", "a", attempt_id(), NOW,
    )  # fmt: skip
    assert reserved(desk) == 11_000, "in doubt still counts"


def test_a_fence_lets_the_next_best_be_asked() -> None:
    desk = two()
    attempt, doubt = in_doubt(desk)
    desk.settle(doubt, Fenced(), NOW)
    assert attempt.after(Fenced(), NOW) == Ask("b:1", "b")
    assert desk.view["a:1"].reserved_w == 0
    assert desk.doubts == {}


def test_a_fence_and_nobody_else_says_that_nobody_can_be_asked() -> None:
    desk = desk_of(load("a"))
    attempt, doubt = in_doubt(desk)
    desk.settle(doubt, Fenced(), NOW)
    assert failure(attempt.after(Fenced(), NOW)).reason is ErrorReason.NO_SUBSTATION


def test_a_session_found_of_this_attempt_is_the_answer() -> None:
    desk = two()
    attempt, doubt = in_doubt(desk)
    found = Found(load("a", sequence=2, demand_w=11_000), session("a"), attempt_id(), reply="the session")
    desk.settle(doubt, found, NOW)
    step = attempt.after(found, NOW)
    assert isinstance(step, Answer)
    assert (step.reply, step.repeated, step.placement.policy) == ("the session", False, "least_utilisation")
    assert reserved(desk) == 0
    assert desk.view["a:1"].demand_w == 11_000


def test_a_session_found_of_an_older_attempt_is_asked_again_so_that_its_attempt_is_raised() -> None:
    desk = two()
    _, doubt = in_doubt(desk)
    later = attempt_of(desk, attempt=5)
    assert isinstance(later.begin(NOW), Resolve)
    found = Found(load("a", sequence=2), session("a"), attempt_id(), reply="the session")
    desk.settle(doubt, found, NOW)
    assert later.after(found, NOW) == Ask("a:1", "a")
    assert isinstance(later.after(replied(load("a", sequence=3), repeated=True), NOW), Answer)


def test_a_key_in_doubt_is_resolved_before_anything_else_and_an_old_fence_bars_nobody() -> None:
    desk = two()
    first, doubt = in_doubt(desk)
    assert failure(first.after(Late(), NOW)).reason is ErrorReason.OUTCOME_UNKNOWN
    later = attempt_of(desk, attempt=5)
    assert later.begin(NOW) == Resolve(doubt)
    desk.settle(doubt, Fenced(), NOW)
    assert later.after(Fenced(), NOW) == Ask("a:1", "a"), "only the older attempt was fenced there"


def test_unknown_until_the_deadline_says_so_and_keeps_the_doubt() -> None:
    desk = two()
    attempt, doubt = in_doubt(desk)
    error = failure(attempt.after(Late(), NOW))
    assert isinstance(error, Unavailable)
    assert (error.reason, error.retry_after_ms, error.definite) == (ErrorReason.OUTCOME_UNKNOWN, 1_000, False)
    assert desk.doubts == {key(): doubt}
    assert reserved(desk) == 11_000


def test_the_admissions_stream_settles_a_doubt() -> None:
    desk = two()
    attempt, doubt = in_doubt(desk)
    desk.admissions_begin("a:1", "a", NOW)
    settled, keys = desk.snapshot_end("a:1", "a", NOW, 0, NOW)
    assert (settled, keys) == ([], []), "a snapshot of the same life proves nothing"
    settled, keys = desk.changes("a:1", "a", NOW, 1, [entry(0)], NOW)
    assert [one.doubt for one in settled] == [doubt]
    assert keys == [key()]
    assert attempt.after(settled[0].outcome, NOW) == Ask("a:1", "a")
    assert reserved(desk) == 11_000
    desk.reported("a:1", load("a", sequence=2, admission_sequence=1, demand_w=11_000), NOW)
    assert reserved(desk) == 0


def test_a_complete_snapshot_of_a_later_life_without_the_key_is_a_fence() -> None:
    desk = two()
    _, doubt = in_doubt(desk)
    desk.admissions_begin("a:1", "a", NOW)
    settled, _ = desk.snapshot_end("a:1", "a", NOW + 1, 0, NOW)
    assert [(one.doubt, one.outcome) for one in settled] == [(doubt, Fenced())]
    assert reserved(desk) == 0


def test_a_snapshot_of_a_later_life_with_the_key_finds_the_session() -> None:
    desk = two()
    _, doubt = in_doubt(desk)
    desk.snapshot("a", [entry(0, epoch=NOW + 1)])
    settled, _ = desk.snapshot_end("a:1", "a", NOW + 1, 1, NOW)
    assert [(one.doubt, one.outcome) for one in settled] == [(doubt, Found(None, session("a")))]


def test_a_snapshot_with_entries_that_could_not_be_read_proves_no_absence() -> None:
    desk = two()
    _, doubt = in_doubt(desk)
    desk.snapshot("a", [entry(1, epoch=NOW + 1)])
    settled, keys = desk.snapshot_end("a:1", "a", NOW + 1, 1, NOW, whole=False)
    assert (settled, keys) == ([], [key(1)])
    assert desk.doubts == {key(): doubt}


def test_a_snapshot_proves_nothing_when_the_life_that_was_asked_is_not_certain() -> None:
    """The report stream was down at the send: the call may have gone to the life that sent the snapshot."""
    desk = two()
    desk.disconnected("a:1")
    _, doubt = in_doubt(desk)
    assert doubt.epoch is None
    assert desk.snapshot_end("a:1", "a", NOW + 1, 0, NOW) == ([], [])
    assert key() in desk.doubts


def test_a_snapshot_of_one_substation_settles_no_doubt_about_another() -> None:
    desk = two()
    in_doubt(desk)
    assert desk.snapshot_end("b:1", "b", NOW + 1, 0, NOW) == ([], [])


def test_an_interrupted_call_leaves_a_doubt_only_if_it_was_sent() -> None:
    desk = two()
    attempt = attempt_of(desk)
    assert attempt.interrupted(NOW) is None
    attempt.begin(NOW)
    doubt = attempt.interrupted(NOW)
    assert doubt is desk.doubts[key()]
    assert attempt.interrupted(NOW) is None


# --- repeats -----------------------------------------------------------------------------------------


def known_at_b() -> Desk:
    desk = two()
    desk.snapshot_end("b:1", "b", NOW, 0, NOW)
    desk.changes("b:1", "b", NOW, 1, [entry(0, "b")], NOW)
    return desk


def test_a_repeat_goes_to_its_session_and_reserves_nothing() -> None:
    desk = known_at_b()
    attempt = attempt_of(desk, attempt=3)
    assert attempt.begin(NOW) == Ask("b:1", "b")
    assert reserved(desk) == 0
    step = attempt.after(replied(load("b", sequence=2), repeated=True), NOW)
    assert step == Answer("reply 0", Placement("b", REPEAT), repeated=True)


def test_a_repeat_is_recognised_before_the_rest_is_read() -> None:
    def parse(_: int) -> Charge:
        raise AssertionError("not needed")

    assert isinstance(Attempt(known_at_b(), key(), attempt_id(3), parse).begin(NOW), Ask)


def test_a_repeat_that_is_refused_asks_nobody_else() -> None:
    attempt = attempt_of(known_at_b(), attempt=3)
    attempt.begin(NOW)
    error = failure(attempt.after(Refused(Unavailable(ErrorReason.LEDGER_UNAVAILABLE, "disk full")), NOW))
    assert error.reason is ErrorReason.LEDGER_UNAVAILABLE


def test_a_repeat_whose_substation_is_down_is_not_definite() -> None:
    """A balancer above this one must not go elsewhere: the session exists."""
    attempt = attempt_of(known_at_b(), attempt=3)
    attempt.begin(NOW)
    error = failure(attempt.after(Unreached(), NOW))
    assert not error.definite
    assert "substation b" in error.message


def test_a_repeat_whose_reply_is_lost_is_asked_again_until_the_deadline() -> None:
    attempt = attempt_of(known_at_b(), attempt=3)
    attempt.begin(NOW)
    assert attempt.after(Lost(), NOW) == Ask("b:1", "b", ASK_AGAIN_MS)
    assert failure(attempt.after(Late(), NOW)).reason is ErrorReason.OUTCOME_UNKNOWN


def test_a_repeat_of_a_session_on_a_substation_that_has_not_reported_waits_for_it() -> None:
    desk = desk_of(load("a"))
    desk.index.replied(entry(0, "z"))
    assert failure(attempt_of(desk).begin(NOW)).reason is ErrorReason.OUTCOME_UNKNOWN


def test_a_key_that_another_balancer_placed_meanwhile_is_not_placed_again() -> None:
    desk = two()
    attempt = attempt_of(desk)
    attempt.begin(NOW)
    desk.index.replied(entry(0, "b"))
    assert attempt.after(no_plug(), NOW) == Ask("b:1", "b")
    assert attempt.state is State.REPEATING
    assert reserved(desk) == 0


def test_two_live_sessions_of_a_key_are_reported_once_both_are_known() -> None:
    desk = known_at_b()
    desk.snapshot_end("a:1", "a", NOW, 0, NOW)
    _, keys = desk.changes("a:1", "a", NOW, 1, [entry(0, "a", attempt_id=attempt_id(9))], NOW)
    assert [one.session_id for one in desk.duplicates(keys)] == [session("b")]


def test_a_report_held_back_long_enough_counts_for_the_next_pick() -> None:
    desk = two()
    desk.snapshot_end("a:1", "a", NOW, 0, NOW)
    attempt_of(desk).begin(NOW)
    desk.reported("a:1", load("a", sequence=2, admission_sequence=9, demand_w=90_000), NOW + 1)
    assert attempt_of(desk, 1).begin(NOW + 2) == Ask("a:1", "a"), "the report is ahead of the admissions"
    desk.reported("b:1", load("b", sequence=2, demand_w=40_000), NOW + 3)
    later = NOW + 1 + HOLD_MS
    assert attempt_of(desk, 2).begin(later) == Ask("b:1", "b")


# --- sessions that were ended for another one ----------------------------------------------------------


def superseded(at: str, survivor: str, number: int = 0) -> Replied:
    """The reply of a substation whose session was ended for that one."""
    after = load(at, sequence=2, admission_sequence=2)
    return replied(after, number, ended_at_ms=NOW, repeated=True, duplicate_of=survivor)


def test_a_repeat_that_meets_a_duplicate_is_answered_from_its_survivor() -> None:
    desk = known_at_b()
    attempt = attempt_of(desk, attempt=3)
    assert attempt.begin(NOW) == Ask("b:1", "b")
    assert attempt.after(superseded("b", session("a")), NOW) == Ask("a:1", "a")
    step = attempt.after(replied(load("a", sequence=2), repeated=True), NOW)
    assert step == Answer("reply 0", Placement("a", REPEAT), repeated=True)


def test_a_duplicate_that_a_reply_has_shown_is_known_from_then_on() -> None:
    desk = known_at_b()
    attempt = attempt_of(desk, attempt=3)
    attempt.begin(NOW)
    attempt.after(superseded("b", session("a")), NOW)
    assert desk.index.find(key()) == Whereabouts(session("a"), "a")
    assert attempt_of(desk, attempt=4).begin(NOW) == Ask("a:1", "a")


def test_a_key_that_is_new_here_and_meets_a_duplicate_is_a_repeat_and_reserves_nothing() -> None:
    desk = two()
    attempt = attempt_of(desk, attempt=3)
    assert attempt.begin(NOW) == Ask("a:1", "a")
    assert attempt.after(superseded("a", session("b")), NOW) == Ask("b:1", "b")
    assert attempt.state is State.REPEATING
    assert reserved(desk) == 0
    assert isinstance(attempt.after(no_plug(), NOW), Fail), "nobody else is asked: the session exists"


@pytest.mark.parametrize("found_attempt", [0, 5], ids=["of another attempt", "of this attempt"])
def test_a_duplicate_that_settles_a_doubt_leads_to_its_survivor(found_attempt: int) -> None:
    desk = two()
    _, doubt = in_doubt(desk)
    later = attempt_of(desk, attempt=5)
    assert later.begin(NOW) == Resolve(doubt)
    found = Found(
        load("a", sequence=2), session("a"), attempt_id(found_attempt), NOW, "the duplicate", duplicate_of=session("b")
    )
    desk.settle(doubt, found, NOW)
    assert later.after(found, NOW) == Ask("b:1", "b")
    assert desk.index.find(key()) == Whereabouts(session("b"), "b")


def test_a_survivor_that_was_ended_for_another_one_leads_on() -> None:
    desk = desk_of(load("a"), load("b", demand_w=50_000), load("c", demand_w=60_000))
    attempt = attempt_of(desk, attempt=3)
    attempt.begin(NOW)
    assert attempt.after(superseded("a", session("b")), NOW) == Ask("b:1", "b")
    assert attempt.after(superseded("b", session("c")), NOW) == Ask("c:1", "c")
    assert isinstance(attempt.after(replied(load("c", sequence=2), repeated=True), NOW), Answer)


def test_duplicates_of_one_another_are_not_followed_for_ever() -> None:
    attempt = attempt_of(two(), attempt=3)
    attempt.begin(NOW)
    attempt.after(superseded("a", session("b")), NOW)
    assert attempt.after(superseded("b", session("a")), NOW) == Ask("a:1", "a")
    assert failure(attempt.after(superseded("a", session("b")), NOW)).reason is ErrorReason.OUTCOME_UNKNOWN


def test_a_survivor_on_a_substation_that_has_not_reported_is_waited_for() -> None:
    attempt = attempt_of(two(), attempt=3)
    attempt.begin(NOW)
    error = failure(attempt.after(superseded("a", session("z")), NOW))
    assert (error.reason, error.definite) == (ErrorReason.OUTCOME_UNKNOWN, False)
    assert "substation z" in error.message


def test_a_survivor_that_names_no_substation_is_not_looked_for() -> None:
    attempt = attempt_of(two(), attempt=3)
    attempt.begin(NOW)
    assert isinstance(attempt.after(superseded("a", "nowhere"), NOW), Answer)


# --- given up ----------------------------------------------------------------------------------------


def test_a_call_that_nobody_waits_for_sends_nothing_more() -> None:
    for desk, outcome in ((two(), no_plug()), (known_at_b(), Lost()), (known_at_b(), superseded("b", session("a")))):
        attempt = attempt_of(desk, attempt=3)
        attempt.begin(NOW)
        attempt.abandoned = True
        assert isinstance(attempt.after(outcome, NOW), Fail)
        assert reserved(desk) == 0


def test_giving_up_leaves_no_trace_of_one_call_in_the_next() -> None:
    errors = []
    for _ in range(2):
        attempt = attempt_of(two(), attempt=3)
        attempt.begin(NOW)
        attempt.abandoned = True
        step = attempt.after(no_plug(), NOW)
        assert isinstance(step, Fail)
        errors.append(step.error)
    assert errors[0] is not errors[1]


# --- the table ---------------------------------------------------------------------------------------

CALLED = {
    Event.REPLIED,
    Event.SUPERSEDED,
    Event.REFUSED,
    Event.REJECTED,
    Event.UNREACHED,
    Event.LOST,
    Event.LATE,
}
LEGAL = {
    State.NEW: {Event.UNHEARD, Event.KNOWN, Event.DOUBTED},
    State.ASKING: CALLED,
    State.REPEATING: CALLED,
    State.RESOLVING: {Event.FOUND_OURS, Event.FOUND_OTHER, Event.SUPERSEDED, Event.FENCED, Event.LATE},
    State.DONE: set(),
}


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_a_move_that_is_not_in_the_table_is_a_defect(state: State, event: Event) -> None:
    attempt = attempt_of(two())
    attempt.state = state
    if event not in LEGAL[state]:
        with pytest.raises(IllegalMove):
            attempt._move(event, None, NOW)


# --- the desk ----------------------------------------------------------------------------------------


def test_a_restarted_substation_may_be_probed_at_once() -> None:
    desk = desk_of(load("a"))
    for _ in range(7):
        desk.ejections.failed("a:1", NOW)
    desk.reported("a:1", load("a", sequence=2), NOW + 1)
    assert not desk.ejections.permits("a:1", NOW + 1)
    desk.reported("a:1", load("a", epoch=NOW + 1), NOW + 1)
    assert desk.ejections.permits("a:1", NOW + 1)


def test_admissions_that_end_hold_back_no_reports() -> None:
    desk = desk_of(load("a"))
    desk.snapshot_end("a:1", "a", NOW, 0, NOW)
    assert desk.view["a:1"].caught_up == (NOW, 0)
    desk.admissions_end("a:1", NOW)
    assert desk.view["a:1"].caught_up is None


def test_an_admissions_stream_that_resumes_without_news_is_caught_up() -> None:
    desk = two()
    desk.snapshot_end("a:1", "a", NOW, 0, NOW)
    desk.admissions_end("a:1", NOW)
    desk.admissions_begin("a:1", "a", NOW)
    assert desk.changes("a:1", "a", NOW, 0, [], NOW) == ([], [])
    attempt_of(desk).begin(NOW)
    desk.reported("a:1", load("a", sequence=2, admission_sequence=1, demand_w=11_000), NOW)
    assert desk.view["a:1"].demand_w == 11_000, "the car is counted once: the report waits for its admission"


def settle_twice(settle: Callable[[], object]) -> None:
    settle()
    settle()


def test_a_doubt_that_is_settled_twice_is_settled_once() -> None:
    desk = two()
    _, doubt = in_doubt(desk)
    settle_twice(lambda: desk.settle(doubt, Fenced(), NOW))
    assert reserved(desk) == 0
    assert address("a") == "a:1"
    assert entry(0, sequence=2).live
