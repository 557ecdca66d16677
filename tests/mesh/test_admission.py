"""Who is let in, and what those who are not are told."""

from asyncio import CancelledError
from contextlib import suppress
from itertools import count
from random import Random

import pytest

from mesh.admission import Admission, Bound
from mesh.errors import AttemptExpired, Refused, Unavailable
from mesh.model import ErrorReason

NO_POINT = Refused(ErrorReason.NO_CHARGE_POINT, "all charge points are taken", 0)
UNKNOWN = Unavailable(ErrorReason.OUTCOME_UNKNOWN, "the disk failed", 0)


def serving(admission: Admission, calls: int, gap_s: float, until: int = 500) -> None:
    """That many calls at once, one of which is served, and followed by another, every `gap_s`."""
    for _ in range(calls):
        admission.enter(None)
    for number in range(until):
        admission.leave(number * gap_s, served=True)
        admission.enter(None)


def in_groups(admission: Admission, size: int, every_s: float, count: int, start_s: float = 0.0) -> list[float]:
    """So many groups are answered, each at once and followed by as many calls. The longest wait said in each."""
    longest = []
    for number in range(1, count + 1):
        waits = []
        for _ in range(size):
            admission.leave(start_s + number * every_s, served=True)
            admission.enter(None)
            waits.append(admission.wait_s)
        longest.append(max(waits))
    return longest


def with_calls(calls: int) -> Admission:
    """One that lets in 1,000, with so many in flight."""
    admission = Admission(1_000, Random(1))
    for _ in range(calls):
        admission.enter(None)
    return admission


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


@pytest.mark.parametrize("pause_s", [1.0, 60.0])
@pytest.mark.parametrize("before", [0, 20], ids=["at the start", "in the midst"])
def test_a_pause_refuses_nobody(before: int, pause_s: float) -> None:
    admission = with_calls(240)
    in_groups(admission, 64, 0.01, before + 1)
    waits = in_groups(admission, 64, 0.01, 20, start_s=before * 0.01 + pause_s)
    assert max(waits) < 0.5, "one with a second left would be refused"


@pytest.mark.parametrize(
    ("calls", "size", "every_s", "groups"), [(240, 1, 0.001, 64), (240, 64, 0.05, 4), (300, 240, 0.05, 4)]
)
def test_what_is_slower_by_20_from_now_on_shows_within_a_few_groups(
    calls: int, size: int, every_s: float, groups: int
) -> None:
    admission = with_calls(calls)
    in_groups(admission, size, every_s, 600 // size)
    *_, wait_s = in_groups(admission, size, 20 * every_s, groups, start_s=600 // size * every_s)
    assert wait_s > calls / size * 20 * every_s / 2


@pytest.mark.parametrize("every_s", [0.0001, 0.01, 0.1, 2.0])
@pytest.mark.parametrize("size", [1, 64, 256])
def test_replies_in_groups_of_one_pace_count_as_they_come_however_slow_they_are(size: int, every_s: float) -> None:
    *_, wait_s = in_groups(with_calls(400), size, every_s, max(20, 1_000 // size))
    # The mean right after the one long time between two, when all of it counts.
    of_one = every_s / 64 / (1 - (63 / 64) ** size)
    assert wait_s == pytest.approx(400 * of_one, rel=0.01)


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


@pytest.mark.parametrize(
    ("error", "served"),
    [(None, True), (NO_POINT, True), (UNKNOWN, False), (CancelledError(), False), (ZeroDivisionError(), False)],
)
def test_only_an_answer_says_how_fast_calls_are_served(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None, *, served: bool
) -> None:
    admission, now = with_calls(100), count(1.0)
    monkeypatch.setattr("mesh.admission.seconds", lambda: next(now))
    for _ in range(2):
        with suppress(BaseException), admission.admitted(None):
            if error is not None:
                raise error
    assert admission.in_flight == 100
    assert (admission.wait_s > 0) is served


def test_streams_are_bounded_too() -> None:
    streams = Bound(1, "streams")
    with streams, pytest.raises(Refused, match="1 streams are open"), streams:
        pass
    with streams:
        pass
