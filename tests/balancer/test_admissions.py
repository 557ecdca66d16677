"""Which request has which session."""

from typing import Any

from balancer.admissions import REMEMBERED_MS, AdmissionIndex, Duplicate, Whereabouts
from mesh.model import StopReason
from tests.balancer.makers import NOW, attempt_id, entry, key, session


def index_of(*substations: str) -> AdmissionIndex:
    """Each has sent an empty snapshot."""
    index = AdmissionIndex()
    for substation_id in substations:
        index.snapshot_end(substation_id, NOW, 0)
    return index


def test_a_snapshot_counts_from_its_end_mark_on() -> None:
    index = AdmissionIndex()
    index.begin("a")
    index.snapshot("a", [entry(1)])
    assert index.find(key(1)) is None
    assert index.position("a") is None
    assert index.snapshot_end("a", NOW, 5) == [key(1)]
    assert index.find(key(1)) == Whereabouts(session("a", 1), "a")
    assert index.position("a") == (NOW, 5)
    assert index.position("z") is None
    assert len(index) == 1


def test_a_snapshot_that_was_cut_off_is_worth_nothing() -> None:
    index = AdmissionIndex()
    index.snapshot("a", [entry(1)])
    index.begin("a")
    index.snapshot("a", [entry(2)])
    assert index.snapshot_end("a", NOW, 5) == [key(2)]


def test_a_snapshot_of_a_newer_life_replaces_what_was_known_at_its_end() -> None:
    index = index_of("a")
    index.change("a", NOW, 2, [entry(1, sequence=1), entry(2, sequence=2)])
    index.begin("a")
    index.snapshot("a", [entry(2, epoch=NOW + 1, sequence=0)])
    assert index.find(key(1)) is not None, "until the end mark a repeat is still sent there"
    index.snapshot_end("a", NOW + 1, 0)
    assert index.find(key(1)) is None
    assert index.holds("a", key(2))
    assert not index.holds("a", key(1))
    assert not index.holds("z", key(1))


def test_a_snapshot_of_an_older_life_is_ignored() -> None:
    index = index_of("a")
    index.change("a", NOW, 1, [entry(1)])
    assert index.snapshot_end("a", NOW - 1, 99) == []
    assert index.holds("a", key(1))


def test_changes_are_added_and_move_the_position() -> None:
    index = index_of("a")
    assert index.change("a", NOW, 3, [entry(1, sequence=3)]) == [entry(1, sequence=3)]
    assert index.position("a") == (NOW, 3)


def test_changes_before_a_snapshot_or_of_another_life_are_ignored() -> None:
    index = AdmissionIndex()
    assert index.change("a", NOW, 1, [entry(1)]) == []
    index.snapshot_end("a", NOW, 0)
    assert index.change("a", NOW - 1, 1, [entry(1)]) == []
    assert index.find(key(1)) is None


def test_an_entry_that_comes_late_changes_nothing() -> None:
    index = index_of("a")
    ended = entry(1, sequence=5, ended_at_ms=NOW)
    index.change("a", NOW, 5, [ended])
    assert index.change("a", NOW, 5, [entry(1, sequence=4)]) == []


def test_an_own_reply_is_known_before_the_stream_tells_of_it() -> None:
    index = index_of("a")
    index.replied(entry(1, sequence=3, noted=True))
    assert index.find(key(1)) == Whereabouts(session("a", 1), "a")


def test_an_own_reply_that_is_ahead_of_a_snapshot_stays() -> None:
    index = index_of("a")
    index.replied(entry(1, sequence=3, noted=True))
    index.replied(entry(2, sequence=9, noted=True))
    index.snapshot("a", [entry(1, sequence=2)])
    index.snapshot_end("a", NOW, 4)
    assert index.holds("a", key(1))
    assert index.holds("a", key(2))


def test_what_the_stream_says_stands_above_an_own_reply() -> None:
    index = index_of("a")
    ended = entry(1, sequence=2, ended_at_ms=NOW)
    index.replied(entry(1, sequence=9, noted=True))
    assert index.change("a", NOW, 2, [ended]) == [ended]
    index.replied(entry(1, sequence=9, noted=True))
    assert index.change("a", NOW, 2, [ended]) == [ended], "an equal entry again does no harm"


def test_an_end_that_an_own_reply_shows_is_known_before_the_stream_tells_of_it() -> None:
    index = index_of("a")
    index.change("a", NOW, 1, [entry(1, sequence=1)])
    over: dict[str, Any] = {"ended_at_ms": NOW, "stop_reason": StopReason.DUPLICATE, "duplicate_of": session("b", 1)}
    index.replied(entry(1, sequence=3, noted=True, **over))
    assert index.find(key(1)) == Whereabouts(session("b", 1), "b")
    index.replied(entry(1, sequence=9, noted=True))
    assert index.find(key(1)) == Whereabouts(session("b", 1), "b"), "what has ended does not live again"


def test_a_key_whose_session_was_replaced_by_another_is_taken_from_a_reply() -> None:
    """More than 24 h later the substation may give the key a new session."""
    index = index_of("a")
    index.change("a", NOW, 1, [entry(1, sequence=1, ended_at_ms=NOW)])
    index.replied(entry(1, sequence=8, session_id=session("a", 77), noted=True))
    assert index.find(key(1)) == Whereabouts(session("a", 77), "a")


def test_a_snapshot_with_entries_that_could_not_be_read_forgets_nothing() -> None:
    index = index_of("a")
    index.change("a", NOW, 1, [entry(1, sequence=1)])
    index.snapshot("a", [entry(2, epoch=NOW + 1, sequence=2)])
    assert index.snapshot_end("a", NOW + 1, 2, whole=False) == [key(2)]
    assert index.holds("a", key(1))
    assert index.holds("a", key(2))


def test_what_a_snapshot_should_show_and_does_not_is_told_before_its_end() -> None:
    index = index_of("a", "b")
    index.change("a", NOW, 3, [entry(n, sequence=n) for n in (1, 2, 3)])
    index.change("b", NOW, 1, [entry(4, "b", sequence=1)])
    index.replied(entry(5, epoch=NOW + 1, sequence=9, noted=True))
    index.snapshot("a", [entry(2, epoch=NOW + 1, sequence=2)])
    assert [each.key for each in index.unshown("a", NOW + 1, 8)] == [key(1), key(3)]
    assert index.unshown("a", NOW - 1, 99) == []
    index.snapshot_end("a", NOW + 1, 8)
    assert index.unshown("a", NOW + 1, 8) == [entry(2, epoch=NOW + 1, sequence=2)], "the next has to show it again"


def test_of_two_live_sessions_the_one_with_the_highest_attempt_survives() -> None:
    index = index_of("a", "b")
    index.change("a", NOW, 1, [entry(1, "a", attempt_id=attempt_id(20))])
    index.change("b", NOW, 1, [entry(1, "b", attempt_id=attempt_id(30))])
    assert index.find(key(1)) == Whereabouts(session("b", 1), "b")
    assert list(index.duplicates([key(1), key(2)])) == [
        Duplicate(key(1), session("a", 1), "a", session("b", 1), attempt_id(30)),
    ]


def test_equal_attempts_are_told_apart_alike_by_everybody() -> None:
    for order in (("a", "b"), ("b", "a")):
        index = index_of(*order)
        for substation_id in order:
            index.change(substation_id, NOW, 1, [entry(1, substation_id)])
        assert [d.session_id for d in index.duplicates([key(1)])] == [session("a", 1)]


def test_a_live_session_and_one_that_ended_are_no_duplicates() -> None:
    index = index_of("a", "b")
    index.change("a", NOW, 1, [entry(1, "a", ended_at_ms=NOW, attempt_id=attempt_id(99))])
    index.change("b", NOW, 1, [entry(1, "b")])
    assert list(index.duplicates([key(1)])) == []
    assert index.find(key(1)) == Whereabouts(session("b", 1), "b")


def test_a_repeat_that_meets_a_duplicate_goes_to_its_survivor() -> None:
    index = index_of("a")
    survivor = session("b", 1)
    over = entry(1, "a", ended_at_ms=NOW, stop_reason=StopReason.DUPLICATE, duplicate_of=survivor)
    index.change("a", NOW, 1, [over])
    assert index.find(key(1)) == Whereabouts(survivor, "b")


def test_of_two_that_ended_the_duplicate_is_not_the_answer() -> None:
    index = index_of("a", "b")
    over: dict[str, Any] = {"ended_at_ms": NOW, "stop_reason": StopReason.DUPLICATE, "duplicate_of": session("b", 1)}
    index.change("a", NOW, 1, [entry(1, "a", attempt_id=attempt_id(99), **over)])
    index.change("b", NOW, 1, [entry(1, "b", ended_at_ms=NOW, stop_reason=StopReason.REMOTE)])
    assert index.find(key(1)) == Whereabouts(session("b", 1), "b")


def test_a_duplicate_without_a_survivor_answers_for_itself() -> None:
    index = index_of("a")
    index.change("a", NOW, 1, [entry(1, ended_at_ms=NOW, stop_reason=StopReason.DUPLICATE)])
    assert index.find(key(1)) == Whereabouts(session("a", 1), "a")


def test_what_ended_is_forgotten_after_a_day_and_what_lives_never() -> None:
    index = index_of("a", "b")
    index.change("a", NOW, 2, [entry(1, "a", ended_at_ms=NOW), entry(2, "a", sequence=2)])
    index.change("b", NOW, 1, [entry(1, "b", ended_at_ms=NOW + 1)])
    assert index.forget(NOW + REMEMBERED_MS - 1) == 0
    assert index.forget(NOW + REMEMBERED_MS) == 1
    assert index.find(key(1)) == Whereabouts(session("b", 1), "b")
    assert index.forget(NOW + 10 * REMEMBERED_MS) == 1
    assert index.find(key(1)) is None
    assert index.find(key(2)) is not None
