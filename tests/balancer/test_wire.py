"""Messages of another version: what only it knows is UNSPECIFIED, what lacks what it must have is refused."""

import pytest

from balancer import wire
from gridmesh.v1 import reports_pb2
from mesh.model import LimitSource, NotAccepting, StopReason
from tests.balancer.makers import NOW, load, session

FROM_LATER = 99


def test_words_that_only_a_later_version_knows_are_unspecified() -> None:
    report = wire.report_of(load())
    report.limit_source = FROM_LATER  # type: ignore[assignment]
    report.not_accepting_reason = FROM_LATER  # type: ignore[assignment]
    read = wire.load_of(report)
    assert (read.limit_source, read.not_accepting) == (LimitSource.UNSPECIFIED, NotAccepting.UNSPECIFIED)
    admission = reports_pb2.Admission(session_id=session(), stop_reason=FROM_LATER)  # type: ignore[arg-type]
    assert wire.entry_of(admission, NOW).stop_reason is StopReason.UNSPECIFIED


def test_an_admission_whose_session_names_no_substation_is_malformed() -> None:
    with pytest.raises(wire.Malformed, match="session_id 'nowhere'"):
        wire.entry_of(reports_pb2.Admission(session_id="nowhere"), NOW)
