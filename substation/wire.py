"""Between the contract's messages and the core's whole watts, joules and milliseconds. Decides nothing."""

import math
from collections.abc import Iterable
from enum import IntEnum

from google.protobuf.timestamp_pb2 import Timestamp

from gridmesh.v1 import charging_pb2, load_pb2, operations_pb2, reports_pb2
from mesh.errors import InvalidRequest, Violation
from mesh.model import LimitSource, StopReason
from mesh.requests import MAX_LIMIT_KW
from mesh.units import MJ_PER_KWH, kilowatt_hours, kilowatts, watts
from substation.limits import Limit
from substation.load import Report
from substation.sessions import Session

_STOPPABLE = {
    StopReason.REMOTE,
    StopReason.LOCAL,
    StopReason.EV_DISCONNECTED,
    StopReason.EMERGENCY_STOP,
    StopReason.OTHER,
}
# The last millisecond that a Timestamp may name.
_END_OF_TIME_MS = 253_402_300_799_999


def timestamp(ms: int) -> Timestamp:
    """Wall milliseconds as a Timestamp."""
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def _set(at: Timestamp, ms: int) -> None:
    at.seconds, at.nanos = ms // 1000, ms % 1000 * 1_000_000


def millis(at: Timestamp) -> int:
    """A Timestamp as wall milliseconds."""
    return at.seconds * 1000 + at.nanos // 1_000_000


def substation_id(s: Session) -> str:
    """Whose session it is."""
    return s.session_id.partition(".")[0]


def session(s: Session, expected_end_ms: int | None) -> charging_pb2.Session:
    """A session as it is shown."""
    shown = charging_pb2.Session()
    show(s, expected_end_ms, shown)
    return shown


def show(s: Session, expected_end_ms: int | None, shown: charging_pb2.Session) -> None:
    """The same, where it stands in another message, empty so far: put there, a message would be copied each time."""
    charge = s.charge
    shown.session_id = s.session_id
    shown.substation_id = substation_id(s)
    shown.owner, shown.request_id = charge.key.owner, charge.key.request_id
    shown.vehicle_id = charge.vehicle_id
    if charge.energy_j is not None:
        shown.energy_kwh = kilowatt_hours(charge.energy_j * 1000)
    shown.max_power_kw = kilowatts(charge.max_w)
    shown.phases = charge.phases
    shown.min_power_kw = kilowatts(charge.floor_w)
    shown.departure_assumed = charge.departure_ms is None
    shown.state = charging_pb2.SessionState.ValueType(s.state)
    shown.granted_power_kw = kilowatts(s.granted_w)
    shown.attempt_id = s.attempt_id
    _show_rare(s, shown)
    _show_times(s, expected_end_ms, shown)


def _show_rare(s: Session, shown: charging_pb2.Session) -> None:
    """What a session that was just admitted has nothing of, mostly: to write a 0 costs as much as a number."""
    if s.charge.evse_id:
        shown.evse_id = s.charge.evse_id
    if s.measured_w:
        shown.measured_power_kw = kilowatts(s.measured_w)
    if s.delivered_mj:
        shown.delivered_kwh = kilowatt_hours(s.delivered_mj)
    if s.duplicate_of:
        shown.duplicate_of = s.duplicate_of
    if s.stop_reason:
        shown.stop_reason = charging_pb2.StopReason.ValueType(s.stop_reason)
    if s.limit_reason:
        shown.limit_reason = charging_pb2.LimitReason.ValueType(s.limit_reason)
        shown.limit_source = load_pb2.LimitSource.ValueType(s.limit_source)


def _show_times(s: Session, expected_end_ms: int | None, shown: charging_pb2.Session) -> None:
    _set(shown.started_at, s.started_ms)
    if s.charge.departure_ms is not None:
        _set(shown.departure_time, s.charge.departure_ms)
    if s.ended_ms is not None:
        _set(shown.ended_at, s.ended_ms)
    elif expected_end_ms is not None:
        _set(shown.expected_end_at, expected_end_ms)


def load_report(report: Report) -> load_pb2.LoadReport:
    """The load with whose it is."""
    load = report.load
    return load_pb2.LoadReport(
        substation_id=report.substation_id,
        epoch=report.epoch,
        sequence=load.sequence,
        admission_sequence=load.admission_sequence,
        generated_at=timestamp(report.generated_ms),
        rated_power_kw=kilowatts(load.rated_w),
        limit_power_kw=kilowatts(load.limit_w),
        limit_source=load_pb2.LimitSource.ValueType(load.limit_source),
        demand_kw=kilowatts(load.demand_w),
        required_kw=kilowatts(load.required_w),
        floor_kw=kilowatts(load.floor_w),
        committed_kw=kilowatts(load.committed_w),
        granted_kw=kilowatts(load.granted_w),
        measured_kw=kilowatts(load.measured_w),
        active_sessions=load.active_sessions,
        charge_points=load.charge_points,
        free_charge_points=load.free_charge_points,
        accepting=not load.not_accepting,
        not_accepting_reason=load_pb2.NotAcceptingReason.ValueType(load.not_accepting),
        time_scale=report.time_scale,
        over_limit_seconds=load.over_limit_ms / 1000,
        evenly_kwh=[mj / MJ_PER_KWH for mj in report.ahead.evenly_mj[1:]],
        at_latest_kwh=[mj / MJ_PER_KWH for mj in report.ahead.at_latest_mj[1:]],
        next_free_at=None if report.next_free_ms is None else timestamp(report.next_free_ms),
    )


def admission(s: Session) -> reports_pb2.Admission:
    """A session as an entry in the stream of admissions."""
    entry = reports_pb2.Admission()
    admit(s, entry)
    return entry


def admit(s: Session, entry: reports_pb2.Admission) -> None:
    """The same, where it stands in another message, empty so far."""
    key = s.charge.key
    entry.sequence = s.admission_sequence
    entry.owner, entry.request_id = key.owner, key.request_id
    entry.session_id = s.session_id
    entry.attempt_id = s.attempt_id
    if s.ended_ms is not None:
        _set(entry.ended_at, s.ended_ms)
        entry.stop_reason = charging_pb2.StopReason.ValueType(s.stop_reason)
        if s.duplicate_of:
            entry.duplicate_of = s.duplicate_of


def stop_reason(request: charging_pb2.StopSessionRequest) -> StopReason:
    """The reason of a stop; REMOTE when none is given. InvalidRequest for one that only the mesh may use."""
    reason = StopReason(request.reason) if request.reason in _values(StopReason) else None
    if reason is StopReason.UNSPECIFIED:
        return StopReason.REMOTE
    if reason not in _STOPPABLE:
        raise InvalidRequest(Violation("reason", "must be REMOTE, LOCAL, EV_DISCONNECTED, EMERGENCY_STOP or OTHER"))
    return reason


def limit(message: operations_pb2.Limit, now: int) -> Limit:
    """A limit to be set. InvalidRequest names every wrong field."""
    violations = list(_check_limit(message, now))
    if violations:
        raise InvalidRequest(*violations)
    return Limit(
        source=LimitSource(message.source),
        limit_w=watts(message.limit_kw),
        start_ms=millis(message.start_at) if message.HasField("start_at") else now,
        end_ms=millis(message.end_at) if message.HasField("end_at") else None,
        reason=message.reason,
        grid_critical=message.grid_critical,
    )


def _check_limit(message: operations_pb2.Limit, now: int) -> Iterable[Violation]:
    yield from _check_source(message.source, "limit.source")
    if not message.HasField("limit_kw"):
        yield Violation("limit.limit_kw", "is required")
    elif not (math.isfinite(message.limit_kw) and 0 <= message.limit_kw <= MAX_LIMIT_KW):
        yield Violation("limit.limit_kw", f"must be from 0 to {MAX_LIMIT_KW:.0f}")
    start_ms = now
    if message.HasField("start_at"):
        start_ms = millis(message.start_at)
        if not 0 <= start_ms <= _END_OF_TIME_MS:
            yield Violation("limit.start_at", "must be from 1970 to 9999")
    if message.HasField("end_at") and millis(message.end_at) > _END_OF_TIME_MS:
        yield Violation("limit.end_at", "must be before the year 10000")
    elif message.HasField("end_at") and millis(message.end_at) <= max(now, start_ms):
        yield Violation("limit.end_at", "must be in the future and after the start")
    if len(message.reason) > 256:
        yield Violation("limit.reason", "must be at most 256 characters")


def limit_source(source: int) -> LimitSource:
    """A source to be cleared. InvalidRequest when it is none."""
    violations = list(_check_source(source, "source"))
    if violations:
        raise InvalidRequest(*violations)
    return LimitSource(source)


def _check_source(source: int, field: str) -> Iterable[Violation]:
    if source not in _values(LimitSource) or source == LimitSource.UNSPECIFIED:
        yield Violation(field, "must be EMS, SO, CSO or OTHER")


def _values(enum: type[IntEnum]) -> frozenset[int]:
    return frozenset(enum)


def limit_message(m: Limit) -> operations_pb2.Limit:
    """A limit as it is shown."""
    message = operations_pb2.Limit(
        source=load_pb2.LimitSource.ValueType(m.source),
        limit_kw=kilowatts(m.limit_w),
        start_at=timestamp(m.start_ms),
        reason=m.reason,
        grid_critical=m.grid_critical,
    )
    if m.end_ms is not None:
        message.end_at.CopyFrom(timestamp(m.end_ms))
    return message
