"""Who is let in, and what those who are not are told."""

from random import Random

import pytest

from mesh.admission import Admission, Bound
from mesh.errors import AttemptExpired, Refused
from mesh.model import ErrorReason


def serving(admission: Admission, calls: int, gap_s: float, until: int = 500) -> None:
    """That many calls at once, one of which is served, and followed by another, every `gap_s`."""
    for _ in range(calls):
        admission.enter(None)
    for number in range(until):
        admission.leave(number * gap_s, served=True)
        admission.enter(None)


def test_no_more_than_the_most_at_once_are_let_in() -> None:
    admission = Admission(2, Random(1))
    admission.enter(None)
    admission.enter(None)
    with pytest.raises(Refused) as refused:
        admission.enter(None)
    assert refused.value.reason is ErrorReason.OVERLOADED
    admission.leave(1.0, served=True)
    admission.enter(None)
    assert admission.in_flight == 2


def test_a_call_that_would_wait_half_of_its_time_is_refused_while_one_with_more_time_is_let_in() -> None:
    admission = Admission(1_000, Random(1))
    serving(admission, 100, gap_s=0.01)
    assert admission.wait_s == pytest.approx(1.0, rel=0.01)
    with pytest.raises(Refused):
        admission.enter(1.5)
    admission.enter(2.5)
    admission.enter(None)


def test_the_retry_delay_is_when_those_before_should_have_been_served() -> None:
    admission = Admission(100, Random(1))
    serving(admission, 100, gap_s=0.02)
    delays = []
    for _ in range(100):
        with pytest.raises(Refused) as refused:
            admission.enter(None)
        delays.append(refused.value.retry_after_ms or 0)
    assert 1_950 < min(delays) < max(delays) < 3_050
    assert len(set(delays)) > 50, "all would come back together"


def test_a_burst_after_calm_is_let_in_however_slow_single_calls_were() -> None:
    admission = Admission(1_000, Random(1))
    for number in range(100):
        admission.enter(5.0)
        admission.leave(number * 0.5, served=True)
    for _ in range(1_000):
        admission.enter(1.0)


def test_calls_that_nobody_answered_do_not_say_how_fast_others_are_served() -> None:
    admission = Admission(1_000, Random(1))
    for _ in range(100):
        admission.enter(None)
    for number in range(50):
        admission.leave(5.0 + 5.0 * number, served=False)
    assert admission.wait_s == 0
    admission.enter(0.1)


def test_a_call_whose_time_is_over_is_not_let_in() -> None:
    admission = Admission(1, Random(1))
    with pytest.raises(AttemptExpired):
        admission.enter(0.0)
    assert admission.in_flight == 0


def test_a_failed_call_is_counted_out() -> None:
    admission = Admission(1, Random(1))
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), admission.admitted(None):
            raise error
    assert admission.in_flight == 0


def test_streams_are_bounded_too() -> None:
    streams = Bound(1, "streams")
    with streams, pytest.raises(Refused, match="1 streams are open"), streams:
        pass
    with streams:
        pass
