"""The checker finds each kind of broken promise in a small log, and nothing in one where all is well."""

from dataclasses import replace

import pytest

from tests.faults import findings, timeline
from tests.faults.checker import check
from tests.faults.records import Back, Call, Fault, Kept, Left, Limit, Log, Look, Meter, Read, Report, Seen, Span

A1, B1 = "a.1", "b.1"
KEPT = Kept("a", A1, "k", True, 5.0)


def good() -> Log:
    """One car that asked x, was told, was shown, and is in the ledger."""
    return Log(
        calls=[Call(1.0, 1.1, "k", "x", A1)],
        reads=[Read(1.0, 1.1, A1, 0.0), Read(2.0, 2.1, A1, 1.0)],
        looks=[a_look(3.0, Seen(A1, "k", 11.0, 10.9, 2.0))],
        reports=[Report(3.0, "a", 100.0, 99.0, 98.0)],
        meters=[Meter(3.0, "a", 0.0)],
        kept=[KEPT],
        left=[Left("x", 0.0, 0)],
        back=[Back("a", 1.5, 0.0)],
    )


def a_look(at: float, *sessions: Seen, place: str = "a") -> Look:
    return Look(at, at + 0.1, place, sessions)


def kinds(log: Log) -> set[str]:
    return {violation.kind for violation in check(log)}


def test_nothing_is_found_where_all_is_well() -> None:
    assert check(good()) == []


# --- never lost ----------------------------------------------------------------------------------------


def test_a_session_that_a_client_was_told_of_and_no_ledger_has_is_lost() -> None:
    log = good()
    log.kept = []
    assert kinds(log) == {findings.LOST}


def test_a_session_that_is_another_key_s_is_lost() -> None:
    log = good()
    log.kept = [replace(KEPT, key="other")]
    assert findings.LOST in kinds(log)


def test_a_register_that_was_heard_before_a_lower_one_was_asked_for_went_back() -> None:
    log = good()
    log.reads.append(Read(2.2, 2.3, A1, 0.9))
    assert kinds(log) == {findings.BACKWARDS}


def test_registers_that_were_asked_for_at_the_same_time_may_be_heard_in_any_order() -> None:
    log = good()
    log.reads.append(Read(2.05, 2.2, A1, 0.9))
    assert check(log) == []


def test_a_ledger_that_keeps_less_than_was_shown_went_back() -> None:
    log = good()
    log.kept = [replace(KEPT, delivered_kwh=1.9)]
    assert kinds(log) == {findings.BACKWARDS}


# --- never double --------------------------------------------------------------------------------------


def test_a_key_that_lives_twice_at_the_end_is_double() -> None:
    log = good()
    log.calls.append(Call(1.2, 1.3, "k", "y", B1))
    log.kept.append(Kept("b", B1, "k", True, 5.0))
    assert kinds(log) == {findings.DOUBLE}


def twice(**first: object) -> Log:
    """The key has two sessions, of which one has ended."""
    log = good()
    log.kept = [replace(KEPT, live=False, **first), Kept("b", B1, "k", True, 5.0)]  # type: ignore[arg-type]
    return log


def test_two_sessions_of_a_key_whose_balancer_heard_everything_are_double_also_if_one_has_ended() -> None:
    assert kinds(twice()) == {findings.DOUBLE}


def test_a_duplicate_has_no_cause_where_one_balancer_heard_everything() -> None:
    assert findings.DUPLICATE in kinds(twice(duplicate_of=B1))


def test_a_duplicate_has_a_cause_where_two_balancers_were_asked() -> None:
    log = twice(duplicate_of=B1)
    log.calls.append(Call(1.2, 1.3, "k", "y", B1))
    assert check(log) == []


def test_a_duplicate_has_a_cause_where_the_balancer_died_meanwhile() -> None:
    log = twice(duplicate_of=B1)
    log.calls.append(Call(4.0, 4.1, "k", "x", B1))
    log.faults.append(Fault("kill", "x", 2.0, 3.0, 2.5))
    assert check(log) == []


def test_a_duplicate_of_a_session_that_is_nowhere_is_a_loss() -> None:
    log = twice(duplicate_of="c.1")
    log.calls.append(Call(1.2, 1.3, "k", "y", B1))
    assert kinds(log) == {findings.LOST}


@pytest.mark.parametrize(("at", "found"), [(11.9, set()), (12.1, {findings.DOUBLE}), (15.1, set())])
def test_two_seconds_after_all_is_connected_no_key_may_live_twice(at: float, found: set[str]) -> None:
    log = good()
    log.calls.append(Call(1.2, 1.3, "k", "y", B1))
    log.kept = [replace(KEPT, live=False, duplicate_of=B1), Kept("b", B1, "k", True, 5.0)]
    log.whole = [Span(10.0, 15.0)]
    log.looks += [a_look(at, Seen(A1, "k", 1, 1, 2.0)), a_look(at + 0.5, Seen(B1, "k", 1, 1, 2.0), place="b")]
    assert kinds(log) == found


# --- never over ----------------------------------------------------------------------------------------


def test_a_report_over_the_rated_power_is_over() -> None:
    log = good()
    log.reports.append(Report(4.0, "a", 100.0, 100.1, 0.0))
    assert kinds(log) == {findings.OVER}


def test_sessions_that_together_draw_more_than_the_limit_are_over_whatever_the_report_says() -> None:
    log = good()
    log.looks.append(a_look(4.0, Seen(A1, "k", 60, 50, 3.0), Seen("a.2", "l", 40, 41, 0.0)))
    assert kinds(log) == {findings.OVER}


def test_time_over_the_limit_that_a_substation_counts_itself_is_over() -> None:
    log = good()
    log.meters.append(Meter(4.0, "a", 0.1))
    assert kinds(log) == {findings.OVER}


@pytest.mark.parametrize(("at", "found"), [(4.5, set()), (9.0, set()), (9.5, {findings.OVER}), (21.0, set())])
def test_a_limit_that_operators_set_counts_from_its_obedience_time_until_it_is_cleared(
    at: float, found: set[str]
) -> None:
    log = good()
    log.limits = [Limit(4.0, 4.1, "a", "SO", 50.0), Limit(20.0, 20.1, "a", "SO", None)]
    log.reports.append(Report(at, "a", 100.0 if at > 20.1 else 50.0, 60.0, 0.0))
    assert kinds(log) == found


def test_a_substation_that_goes_by_another_limit_than_the_operator_s_is_over() -> None:
    log = good()
    log.limits = [Limit(4.0, 4.1, "a", "SO", 50.0)]
    log.reports.append(Report(5.0, "a", 100.0, 20.0, 0.0))
    assert check(log) == []
    log.reports.append(Report(5.2, "a", 100.0, 20.0, 0.0))
    assert kinds(log) == {findings.OVER}


def test_of_several_limits_the_lowest_counts() -> None:
    log = good()
    log.limits = [Limit(4.0, 4.1, "a", "SO", 50.0), Limit(4.0, 4.1, "a", "EMS", 30.0)]
    assert timeline.limit_kw(log, "a", 5.0, 6.0) == 30.0


def test_a_substation_that_died_of_a_cut_has_the_time_of_a_lease_to_tell_its_cars() -> None:
    log = good()
    log.limits = [Limit(4.0, 4.1, "a", "SO", 50.0)]
    log.faults = [Fault("kill", "a", 4.2, 6.0, 5.0)]
    log.reports.append(Report(15.0, "a", 50.0, 60.0, 0.0))
    assert check(log) == []
    log.reports.append(Report(16.2, "a", 50.0, 60.0, 0.0))
    assert kinds(log) == {findings.OVER}


@pytest.mark.parametrize(("drew_kwh", "found"), [(20.0, set()), (24.0, {findings.LEASE})])
def test_cars_of_a_dead_substation_draw_for_a_lease_and_no_longer(drew_kwh: float, found: set[str]) -> None:
    """100 kW at 60x are 1.67 kWh a second: 13 s without a lease, and 1.9 s with one, would be 24.8."""
    log = good()
    log.kept = [replace(KEPT, delivered_kwh=50.0)]
    log.faults = [Fault("stop", "a", 10.0, 23.0)]
    before, first = a_look(9.8, Seen(A1, "k", 100, 100, 2.0)), a_look(23.1, Seen(A1, "k", 100, 100, 2.0))
    log.looks = [before, first, a_look(24.6, Seen(A1, "k", 100, 100, 2.0 + drew_kwh))]
    assert kinds(log) == found


def test_a_substation_that_was_dead_for_less_than_a_lease_tells_nothing_of_it() -> None:
    log = good()
    log.kept = [replace(KEPT, delivered_kwh=50.0)]
    log.faults = [Fault("stop", "a", 10.0, 19.0)]
    log.looks = [a_look(9.8, Seen(A1, "k", 100, 100, 2.0)), a_look(19.1, Seen(A1, "k", 100, 100, 20.0))]
    assert check(log) == []


# --- nothing is left, nobody waits -----------------------------------------------------------------------


@pytest.mark.parametrize("left", [Left("x", 11_000.0, 0), Left("x", 0.0, 1)])
def test_what_a_balancer_still_holds_at_the_end_has_leaked(left: Left) -> None:
    log = good()
    log.left = [left]
    assert kinds(log) == {findings.LEAKED}


def test_a_client_without_an_answer_and_a_wrong_answer_are_told() -> None:
    log = good()
    log.unanswered, log.wrong = ["k2"], ["INTERNAL"]
    assert kinds(log) == {findings.UNANSWERED, findings.WRONG}


def test_a_slow_start_is_told_but_not_the_time_that_it_waited_for_a_processor() -> None:
    log = good()
    log.back = [Back("a", 3.0, 1.5)]
    assert check(log) == []
    log.back = [Back("a", 3.0, 0.5)]
    assert kinds(log) == {findings.SLOW}


def failing(*balancers: str) -> Log:
    """A car that fails at these, one after the other, while x is dead, and is then told by y."""
    log = good()
    log.faults = [Fault("kill", "x", 4.0, 6.0, 5.0)]
    log.calls = [Call(4.0 + i / 10, 4.1 + i / 10, "k", name) for i, name in enumerate(balancers)]
    log.calls.append(Call(5.0, 5.1, "k", "y", A1))
    return log


def test_a_dead_balancer_may_cost_one_retry() -> None:
    assert check(failing("x")) == []
    assert kinds(failing("x", "y")) == {findings.RETRIES}


def test_a_doubt_about_a_substation_is_not_the_dead_balancer_s() -> None:
    log = failing("x")
    log.calls.append(Call(4.2, 4.3, "k", "y", reason="OUTCOME_UNKNOWN"))
    assert check(log) == []
    log.calls.append(Call(4.4, 4.5, "k", "x", reason="OUTCOME_UNKNOWN"))
    assert kinds(log) == {findings.RETRIES}


def test_retries_are_not_counted_where_more_was_wrong() -> None:
    log = failing("x", "y")
    log.faults.append(Fault("cut", "y-a", 4.0, 4.5))
    assert check(log) == []
