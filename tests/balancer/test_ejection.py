"""Who is left out after failures, and how much may be tried again."""

from balancer.ejection import CONSECUTIVE_FAILURES, LONGEST_MS, Ejections, RetryBudget
from tests.balancer.makers import NOW


def ejected() -> Ejections:
    ejections = Ejections()
    for _ in range(CONSECUTIVE_FAILURES):
        ejections.failed("a", NOW)
    return ejections


def test_seven_failures_in_a_row_eject() -> None:
    """Successes long before keep the rate above what ejects."""
    ejections = Ejections()
    for _ in range(100):
        ejections.succeeded("a", NOW)
    for failure in range(CONSECUTIVE_FAILURES):
        assert not ejections.ejected("a"), failure
        ejections.failed("a", NOW)
    assert ejections.ejected("a")
    assert not ejections.permits("a", NOW)
    assert ejections.wait_ms("a", NOW + 300) == 700


def test_a_success_in_between_starts_the_count_anew() -> None:
    ejections = Ejections()
    for _ in range(100):
        ejections.succeeded("a", NOW)
    for _ in range(3):
        for _ in range(CONSECUTIVE_FAILURES - 1):
            ejections.failed("a", NOW)
        ejections.succeeded("a", NOW)
    assert not ejections.ejected("a")


def test_fewer_than_four_of_five_successes_eject_but_not_before_five_samples() -> None:
    ejections = Ejections()
    for outcome in (ejections.failed, ejections.failed, ejections.succeeded, ejections.succeeded):
        outcome("a", NOW)
    assert not ejections.ejected("a")
    ejections.failed("a", NOW)
    assert ejections.ejected("a")


def test_four_of_five_is_enough() -> None:
    ejections = Ejections()
    for _ in range(4):
        ejections.succeeded("a", NOW)
    ejections.failed("a", NOW)
    assert not ejections.ejected("a")


def test_failures_of_more_than_ten_seconds_ago_do_not_count() -> None:
    ejections = Ejections()
    for _ in range(4):
        ejections.failed("a", NOW)
    ejections.succeeded("a", NOW + 5_000)
    ejections = Ejections()
    ejections.failed("a", NOW)
    for later in (10_000, 10_100, 10_200, 10_300):
        ejections.succeeded("a", NOW + later)
    ejections.failed("a", NOW + 10_400)
    assert not ejections.ejected("a")


def test_after_its_time_one_call_probes_and_the_others_stay_away() -> None:
    ejections = ejected()
    assert not ejections.permits("a", NOW + 999)
    assert ejections.permits("a", NOW + 1_000)
    ejections.sent("a", NOW + 1_000)
    assert not ejections.permits("a", NOW + 1_001)


def test_a_probe_that_succeeds_readmits() -> None:
    ejections = ejected()
    ejections.sent("a", NOW + 1_000)
    ejections.succeeded("a", NOW + 1_010)
    assert ejections.permits("a", NOW + 1_010)
    assert not ejections.ejected("a")
    assert ejections.wait_ms("a", NOW) == 0


def test_each_failed_probe_doubles_the_time_up_to_a_minute() -> None:
    ejections, now, lengths = ejected(), NOW, []
    for _ in range(8):
        now += ejections.wait_ms("a", now)
        ejections.sent("a", now)
        ejections.failed("a", now)
        lengths.append(ejections.wait_ms("a", now))
    assert lengths == [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]


def test_one_that_flaps_stays_out_longer_than_one_that_fails_once() -> None:
    ejections, now = ejected(), NOW
    for _ in range(5):
        now += ejections.wait_ms("a", now)
        ejections.sent("a", now)
        ejections.failed("a", now)
    now += ejections.wait_ms("a", now)
    ejections.sent("a", now)
    ejections.succeeded("a", now)
    for _ in range(CONSECUTIVE_FAILURES):
        ejections.failed("a", now)
    assert ejections.wait_ms("a", now) == 16_000


def test_calls_from_before_the_ejection_change_nothing() -> None:
    ejections = ejected()
    ejections.failed("a", NOW + 10)
    ejections.succeeded("a", NOW + 20)
    assert ejections.wait_ms("a", NOW) == 1_000


def test_a_probe_that_did_not_leave_is_given_to_the_next_call() -> None:
    ejections = ejected()
    ejections.sent("a", NOW + 1_000)
    ejections.unsent("a")
    assert ejections.permits("a", NOW + 1_001)


def test_a_probe_of_which_nothing_was_heard_does_not_lock_out_for_ever() -> None:
    ejections = ejected()
    ejections.sent("a", NOW + 1_000)
    assert ejections.permits("a", NOW + 1_000 + LONGEST_MS)


def test_a_restarted_one_may_be_probed_at_once() -> None:
    ejections = ejected()
    ejections.restarted("a", NOW + 1)
    assert ejections.permits("a", NOW + 1)
    assert ejections.ejected("a")


def test_what_nobody_called_is_permitted() -> None:
    ejections = Ejections()
    ejections.sent("a", NOW)
    ejections.unsent("a")
    ejections.restarted("a", NOW)
    assert ejections.permits("a", NOW)
    assert not ejections.ejected("a")
    assert ejections.wait_ms("a", NOW) == 0


def spendable(budget: RetryBudget, now: int) -> int:
    count = 0
    while budget.spend(now):
        count += 1
    return count


def test_the_retry_budget_is_saved_up_to_a_hundred() -> None:
    assert spendable(RetryBudget(), NOW) == 100


def test_ten_tries_a_second_are_earned_by_waiting() -> None:
    budget = RetryBudget()
    spendable(budget, NOW)
    assert spendable(budget, NOW + 1_000) == 10
    assert spendable(budget, NOW + 500) == 0, "a clock that goes back earns nothing"


def test_five_calls_earn_one_try() -> None:
    budget = RetryBudget()
    spendable(budget, NOW)
    for _ in range(50):
        budget.call(NOW)
    assert spendable(budget, NOW) in {9, 10}
