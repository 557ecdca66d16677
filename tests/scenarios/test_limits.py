"""A substation that is cut while its cars charge: lowered at once, obeyed in time, raised only when free."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, takewhile

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gridmesh.v1 import charging_pb2, load_pb2
from mesh.clock import SystemClock
from tests.mesh_processes import Mesh, wait_for
from tests.scenarios.asking import Server

CARS, RATED_KW, CUT_KW = 20, 100.0, 50.0
SCALE = 8
# A car acts within 5 s of charging; what is read of it is a little older.
OBEDIENCE_S = 5 / SCALE
SLACK_S = 0.5
# Watts are whole numbers, their sums in kW are not.
ROUNDING_KW = 1e-6


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One substation of 100 kW with 20 cars of 11 kW that charge for long."""
    with Mesh(tmp_path_factory.mktemp("mesh"), rated_kw=(RATED_KW,), time_scale=SCALE) as running:
        substation = Server(running.start("a"), "a")
        for _ in range(CARS):
            substation.charge()
        yield running


@pytest.fixture
def substation(mesh: Mesh) -> Iterator[Server]:
    """Asked directly. Whatever a test did, the substation was never over its limit."""
    if not mesh.alive("a"):
        mesh.restart("a")
    yield Server(mesh, "a")
    assert Server(mesh, "a").load().over_limit_seconds == 0
    assert mesh.metric("a", "substation_over_limit_seconds_total") == 0


def uncut(substation: Server) -> None:
    """Without limits, and all but full power in use."""
    for source in load_pb2.LimitSource.values():
        if source != load_pb2.LIMIT_SOURCE_UNSPECIFIED:
            substation.clear_limit(source)
    wait_for(lambda: substation.load().measured_kw > 0.9 * RATED_KW, 30, "the cars draw almost all there is")


def cut(substation: Server) -> None:
    """At 50 kW, and obeyed."""
    substation.set_limit(CUT_KW)
    wait_for(lambda: substation.load().committed_kw <= CUT_KW, 10, "the cars obey")


def charging(sessions: list[charging_pb2.Session]) -> list[charging_pb2.Session]:
    return [session for session in sessions if session.granted_power_kw > 0]


def seconds_from(start: Timestamp, end: Timestamp) -> float:
    return (end.ToMilliseconds() - start.ToMilliseconds()) / 1000


Reports = list[load_pb2.LoadReport]
Shown = dict[str, charging_pb2.Session]


@dataclass
class Cut:
    """What was seen of a cut: the reply, and until it was obeyed the reports and the sessions."""

    reply: load_pb2.LoadReport
    reports: Reports
    sessions: list[Shown]

    def until_obeyed(self) -> Reports:
        return list(takewhile(lambda report: report.committed_kw > CUT_KW, self.reports))


@pytest.fixture(scope="module")
def seen(mesh: Mesh) -> Cut:
    """A cut from 100 to 50 kW."""
    substation = Server(mesh, "a")
    uncut(substation)
    with substation.load_reports() as reports:
        assert next(reports).committed_kw > 0.9 * RATED_KW
        seen = Cut(substation.set_limit(CUT_KW).load, [], [])
        while substation.load().committed_kw > CUT_KW:
            seen.sessions.append({session.session_id: session for session in substation.sessions()})
        for report in reports:
            if report.limit_power_kw == CUT_KW:
                seen.reports.append(report)
                if report.committed_kw <= CUT_KW:
                    return seen
    raise AssertionError("the stream of reports ended")


@pytest.mark.usefixtures("substation")
def test_a_cut_lowers_grants_at_once(seen: Cut) -> None:
    assert (seen.reply.limit_power_kw, seen.reply.limit_source) == (CUT_KW, load_pb2.LIMIT_SOURCE_SO)
    assert seen.reply.granted_kw <= CUT_KW
    assert seen.reply.committed_kw > CUT_KW, "a car that has not confirmed still counts"
    assert all(report.granted_kw <= CUT_KW for report in seen.reports)


@pytest.mark.usefixtures("substation")
def test_cars_follow_a_cut_within_their_time_to_obey(seen: Cut) -> None:
    obeyed = seen.reports[-1]
    assert obeyed.measured_kw <= obeyed.committed_kw <= CUT_KW
    assert seconds_from(seen.reply.generated_at, obeyed.generated_at) <= OBEDIENCE_S + SLACK_S
    assert len(seen.until_obeyed()) > 3, "each step of the way down is reported"


@pytest.mark.usefixtures("substation")
def test_nothing_is_raised_before_it_is_free(seen: Cut) -> None:
    for one, following in pairwise([seen.reply, *seen.until_obeyed()]):
        assert following.committed_kw <= one.committed_kw + ROUNDING_KW
        assert following.granted_kw <= one.granted_kw + ROUNDING_KW
    assert len(seen.sessions) > 3
    for before, after in pairwise(seen.sessions):
        risen = [i for i in before if after[i].granted_power_kw > before[i].granted_power_kw + ROUNDING_KW]
        assert risen == []


def test_each_affected_session_says_that_it_is_cut_and_by_whom(substation: Server) -> None:
    cut(substation)
    # Floors of 4.14 kW: twelve fit, the others wait for their turn.
    wait_for(lambda: len(charging(substation.sessions())) == 12, 5, "twelve have what is free")
    sessions = substation.sessions()
    assert len(sessions) == CARS
    assert {session.limit_reason for session in sessions} == {charging_pb2.LIMIT_REASON_LIMIT_CUT}
    assert {session.limit_source for session in sessions} == {load_pb2.LIMIT_SOURCE_SO}
    assert {session.state for session in charging(sessions)} == {charging_pb2.SESSION_STATE_CHARGING}
    assert all(session.granted_power_kw >= session.min_power_kw for session in charging(sessions))
    suspended = [session for session in sessions if session.granted_power_kw == 0]
    assert {session.state for session in suspended} == {charging_pb2.SESSION_STATE_SUSPENDED_EVSE}
    shown = sum(max(session.granted_power_kw, session.measured_power_kw) for session in sessions)
    assert shown <= CUT_KW + ROUNDING_KW


def test_a_limit_survives_a_kill(mesh: Mesh, substation: Server) -> None:
    cut(substation)
    registers = {session.session_id: session.delivered_kwh for session in substation.sessions()}
    mesh.kill9("a")
    mesh.restart("a")
    again = Server(mesh, "a")
    with again.load_reports() as reports:
        seen = [next(reports) for _ in range(3)]
    assert {(report.limit_power_kw, report.limit_source) for report in seen} == {(CUT_KW, load_pb2.LIMIT_SOURCE_SO)}
    assert max(report.committed_kw for report in seen) <= CUT_KW
    after = {session.session_id: session.delivered_kwh for session in again.sessions()}
    assert after.keys() == registers.keys()
    assert all(after[session_id] >= register for session_id, register in registers.items())
    wait_for(lambda: again.load().measured_kw > 0.8 * CUT_KW, 20, "the cars charge again")


def test_power_rises_again_when_the_limit_is_cleared(substation: Server) -> None:
    cut(substation)
    reply = substation.clear_limit()
    assert (reply.load.limit_power_kw, reply.load.limit_source) == (RATED_KW, load_pb2.LIMIT_SOURCE_UNSPECIFIED)
    assert list(reply.limits) == []
    with substation.load_reports() as reports:
        seen = list(takewhile(lambda report: report.granted_kw < 0.9 * RATED_KW, reports))
    assert max(report.committed_kw for report in seen) <= RATED_KW
    assert len(seen) > 3, "it rises step by step"
    # At most the whole limit in 60 s of charging.
    took_s = seconds_from(reply.load.generated_at, seen[-1].generated_at) * SCALE
    assert seen[-1].granted_kw - CUT_KW <= RATED_KW * (took_s + 1) / 60
    said = {session.limit_reason for session in substation.sessions()}
    assert charging_pb2.LIMIT_REASON_LIMIT_CUT not in said


def test_the_lowest_limit_counts(substation: Server) -> None:
    for source in (load_pb2.LIMIT_SOURCE_SO, load_pb2.LIMIT_SOURCE_OTHER):
        substation.clear_limit(source)
    substation.set_limit(80.0, load_pb2.LIMIT_SOURCE_EMS)
    reply = substation.set_limit(30.0, load_pb2.LIMIT_SOURCE_CSO)
    assert (reply.load.limit_power_kw, reply.load.limit_source) == (30.0, load_pb2.LIMIT_SOURCE_CSO)
    assert len(reply.limits) == 2
    cleared = substation.clear_limit(load_pb2.LIMIT_SOURCE_CSO)
    assert (cleared.load.limit_power_kw, cleared.load.limit_source) == (80.0, load_pb2.LIMIT_SOURCE_EMS)
    # Above the rated power it changes nothing.
    above = substation.set_limit(500.0, load_pb2.LIMIT_SOURCE_EMS)
    assert (above.load.limit_power_kw, above.load.limit_source) == (RATED_KW, load_pb2.LIMIT_SOURCE_UNSPECIFIED)
    substation.clear_limit(load_pb2.LIMIT_SOURCE_EMS)


def test_a_limit_begins_and_ends_by_itself(substation: Server) -> None:
    substation.clear_limit()
    now_ms = SystemClock().now_ms()
    start_at, end_at = Timestamp(), Timestamp()
    start_at.FromMilliseconds(now_ms + 1000)
    end_at.FromMilliseconds(now_ms + 2000)
    with substation.load_reports() as reports:
        reply = substation.set_limit(20.0, load_pb2.LIMIT_SOURCE_EMS, start_at=start_at, end_at=end_at)
        assert reply.load.limit_power_kw == RATED_KW
        assert [limit.limit_kw for limit in reply.limits] == [20.0]
        begun = next(report for report in reports if report.limit_power_kw == 20.0)
        over = next(report for report in reports if report.limit_power_kw == RATED_KW)
    assert 0 <= seconds_from(start_at, begun.generated_at) < SLACK_S
    assert begun.limit_source == load_pb2.LIMIT_SOURCE_EMS
    assert begun.granted_kw <= 20.0
    assert 0 <= seconds_from(end_at, over.generated_at) < SLACK_S
    assert list(substation.clear_limit(load_pb2.LIMIT_SOURCE_EMS).limits) == []


def test_a_limit_of_nothing_stops_all_cars_and_keeps_them(substation: Server) -> None:
    reply = substation.set_limit(0.0, load_pb2.LIMIT_SOURCE_OTHER, grid_critical=True, reason="grid in danger")
    assert reply.load.granted_kw == 0
    assert [(limit.reason, limit.grid_critical) for limit in reply.limits if limit.limit_kw == 0] == [
        ("grid in danger", True)
    ]
    wait_for(lambda: substation.load().measured_kw == 0, OBEDIENCE_S + SLACK_S, "nobody draws")
    sessions = substation.sessions()
    assert len(sessions) == CARS
    assert {session.state for session in sessions} == {charging_pb2.SESSION_STATE_SUSPENDED_EVSE}
    substation.clear_limit(load_pb2.LIMIT_SOURCE_OTHER)
