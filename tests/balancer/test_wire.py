"""Messages of another version: what only it knows is UNSPECIFIED, what lacks what it must have is refused."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from balancer import wire
from gridmesh.v1 import charging_pb2, reports_pb2
from mesh.model import LimitSource, NotAccepting, StopReason
from mesh.outlook import NOTHING, Need, outlook
from tests.balancer.makers import NOW, attempt_id, load, session

FROM_LATER = 99
ENDED = Timestamp(seconds=NOW // 1000)


def test_words_that_only_a_later_version_knows_are_unspecified() -> None:
    report = wire.report_of(load())
    report.limit_source = FROM_LATER  # type: ignore[assignment]
    report.not_accepting_reason = FROM_LATER  # type: ignore[assignment]
    read = wire.load_of(report)
    assert (read.limit_source, read.not_accepting) == (LimitSource.UNSPECIFIED, NotAccepting.UNSPECIFIED)
    admission = reports_pb2.Admission(session_id=session(), ended_at=ENDED, stop_reason=FROM_LATER)  # type: ignore[arg-type]
    assert wire.entry_of(admission, NOW).stop_reason is StopReason.UNSPECIFIED


def test_promises_are_read_as_they_were_said_to_seven_digits() -> None:
    need = Need(22 * 3_600_000_000, 4 * 3_600_000, 11_000)
    said = load(ahead=outlook([need] * 100))
    read = wire.load_of(wire.report_of(said)).ahead
    assert said.ahead is not None
    assert read is not None
    assert read.evenly_mj == pytest.approx(said.ahead.evenly_mj, rel=1e-6)
    assert read.at_latest_mj == pytest.approx(said.ahead.at_latest_mj, rel=1e-6)


def test_a_report_without_all_of_the_promises_tells_of_none() -> None:
    report = wire.report_of(load(ahead=NOTHING))
    assert wire.load_of(report).ahead == NOTHING
    report.evenly_kwh.pop()
    assert wire.load_of(report).ahead is None
    assert wire.load_of(wire.report_of(load())).ahead is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0, 1e298])
@pytest.mark.parametrize("field", ["time_scale", "limit_power_kw", "demand_kw", "evenly_kwh", "at_latest_kwh"])
def test_one_broken_number_makes_the_report_malformed(field: str, number: float) -> None:
    """It would draw every car, or stop all placements."""
    report = wire.report_of(load(ahead=NOTHING))
    if field.endswith("kwh"):
        getattr(report, field)[3] = number
    else:
        setattr(report, field, number)
    with pytest.raises(wire.Malformed, match="a number that is none"):
        wire.load_of(report)


@pytest.mark.parametrize("seconds", [2**62, -(2**62), 253_402_300_800])
@pytest.mark.parametrize("field", ["generated_at", "next_free_at"])
def test_one_broken_time_makes_the_report_malformed(field: str, seconds: int) -> None:
    """It could not be said again: no substation would be listed any more, and none watched."""
    report = wire.report_of(load())
    getattr(report, field).seconds = seconds
    with pytest.raises(wire.Malformed, match="a number that is none"):
        wire.load_of(report)


def test_an_admission_whose_session_names_no_substation_is_malformed() -> None:
    with pytest.raises(wire.Malformed, match="session_id 'nowhere'"):
        wire.entry_of(reports_pb2.Admission(session_id="nowhere"), NOW)


def test_an_admission_without_an_end_lives_whatever_it_says_of_one() -> None:
    admission = reports_pb2.Admission(session_id=session("a"), duplicate_of=session("b"))
    admission.stop_reason = charging_pb2.STOP_REASON_DUPLICATE
    read = wire.entry_of(admission, NOW)
    assert (read.live, read.stop_reason, read.duplicate_of) == (True, StopReason.UNSPECIFIED, "")
    admission.ended_at.CopyFrom(ENDED)
    read = wire.entry_of(admission, NOW)
    assert (read.ended_at_ms, read.stop_reason, read.duplicate_of) == (NOW, StopReason.DUPLICATE, session("b"))


def test_an_entry_shares_the_strings_of_the_one_that_tells_of_the_same_session() -> None:
    admission = reports_pb2.Admission(owner="o", request_id="r", session_id=session("a"), attempt_id=attempt_id(1))
    first = wire.entry_of(admission, NOW)
    known = {first.key: first}
    admission.ended_at.CopyFrom(ENDED)
    ended = wire.entry_of(admission, NOW, known)
    assert ended == wire.entry_of(admission, NOW)
    assert ended.key is first.key
    assert ended.session_id is first.session_id
    assert ended.attempt_id is first.attempt_id
    admission.attempt_id = attempt_id(9)
    assert wire.entry_of(admission, NOW, known) == wire.entry_of(admission, NOW)
    admission.session_id = session("a", 2)
    assert wire.entry_of(admission, NOW, known) == wire.entry_of(admission, NOW)
    admission.session_id = "nowhere"
    with pytest.raises(wire.Malformed, match="session_id 'nowhere'"):
        wire.entry_of(admission, NOW, known)
