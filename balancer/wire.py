"""The contract's messages to and from what the pure modules work with."""

from collections.abc import Mapping
from enum import IntEnum
from functools import partial
from operator import mul
from sys import intern
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from balancer.admissions import Entry
from balancer.attempt import Placement
from balancer.view import Known, Load
from gridmesh.v1 import charging_pb2, load_pb2, operations_pb2, reports_pb2
from mesh.charge import Key
from mesh.ids import SUBSTATION_ID, substation_of
from mesh.model import LimitSource, NotAccepting, ReportState, StopReason
from mesh.outlook import GRID_MS, Outlook
from mesh.units import MJ_PER_KWH, kilowatt_hours, kilowatts, watts

W = TypeVar("W", bound=IntEnum)

# What a report must say to be used at all. An absent number was not reported, which is not 0.
_REQUIRED = (
    "epoch",
    "sequence",
    "admission_sequence",
    "rated_power_kw",
    "limit_power_kw",
    "demand_kw",
    "free_charge_points",
    "charge_points",
    "accepting",
)
# More than any substation has.
_MOST_W, _MOST_KWH, _MOST_SCALE = 10**12, 1e12, 86_400.0
# What a Timestamp may say: the years 1 to 9999.
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999
_NO_ENTRIES: Mapping[Key, Entry] = {}

_millijoules = partial(mul, float(MJ_PER_KWH))


class Malformed(Exception):
    """A message that lacks what it must have. The sender is of another version, or broken."""


def load_of(report: load_pb2.LoadReport) -> Load:
    """A report in whole watts. Malformed when it lacks a number that placement rests on."""
    if not all(map(report.HasField, _REQUIRED)):  # type: ignore[arg-type]  # names from above
        missing = [name for name in _REQUIRED if not report.HasField(name)]  # type: ignore[arg-type]
        raise Malformed(f"load report without {', '.join(missing)}")
    if not SUBSTATION_ID.fullmatch(report.substation_id):
        raise Malformed("load report without a substation_id")
    try:
        return _load_of(report)
    except (ValueError, OverflowError):
        raise Malformed("load report with a number that is none") from None


def _load_of(report: load_pb2.LoadReport) -> Load:
    limit_w, demand_w = watts(report.limit_power_kw), watts(report.demand_kw)
    scale = report.time_scale if report.HasField("time_scale") else 1.0
    # Also not a number fails these: one broken report must not draw every car, or stop all placements.
    if not (0 <= limit_w <= _MOST_W and 0 <= demand_w <= _MOST_W and 0 < scale <= _MOST_SCALE):
        raise ValueError
    return Load(
        substation_id=report.substation_id,
        epoch=report.epoch,
        sequence=report.sequence,
        admission_sequence=report.admission_sequence,
        generated_at_ms=_time_ms(report.generated_at),
        rated_w=watts(report.rated_power_kw),
        limit_w=limit_w,
        limit_source=_LIMIT_SOURCES[report.limit_source],
        demand_w=demand_w,
        required_w=watts(report.required_kw),
        floor_w=watts(report.floor_kw),
        committed_w=watts(report.committed_kw),
        granted_w=watts(report.granted_kw),
        measured_w=watts(report.measured_kw),
        active_sessions=report.active_sessions,
        charge_points=report.charge_points,
        free_charge_points=report.free_charge_points,
        accepting=report.accepting,
        not_accepting=_NOT_ACCEPTING[report.not_accepting_reason],
        time_scale=scale,
        over_limit_s=report.over_limit_seconds,
        ahead=_ahead_of(report),
        next_free_ms=_time_ms(report.next_free_at) if report.HasField("next_free_at") else None,
    )


def _ahead_of(report: load_pb2.LoadReport) -> Outlook | None:
    """None when it does not say, as one of an older version."""
    # A slice makes the list in half the time of list().
    evenly_kwh, at_latest_kwh = report.evenly_kwh[:], report.at_latest_kwh[:]
    if not len(evenly_kwh) == len(at_latest_kwh) == len(GRID_MS) - 1:
        return None
    # The sum is a number only if all are.
    if not (sum(evenly_kwh) + sum(at_latest_kwh) <= _MOST_KWH and min(evenly_kwh) >= 0 and min(at_latest_kwh) >= 0):
        raise ValueError
    return Outlook((0, *map(_millijoules, evenly_kwh)), (0, *map(_millijoules, at_latest_kwh)))


def report_of(load: Load) -> load_pb2.LoadReport:
    """The report as it came."""
    report = load_pb2.LoadReport(
        substation_id=load.substation_id,
        epoch=load.epoch,
        sequence=load.sequence,
        admission_sequence=load.admission_sequence,
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
        accepting=load.accepting,
        not_accepting_reason=load_pb2.NotAcceptingReason.ValueType(load.not_accepting),
        time_scale=load.time_scale,
        over_limit_seconds=load.over_limit_s,
    )
    if load.ahead is not None:
        report.evenly_kwh.extend(map(kilowatt_hours, load.ahead.evenly_mj[1:]))
        report.at_latest_kwh.extend(map(kilowatt_hours, load.ahead.at_latest_mj[1:]))
    report.generated_at.FromMilliseconds(load.generated_at_ms)
    if load.next_free_ms is not None:
        report.next_free_at.FromMilliseconds(load.next_free_ms)
    return report


def substation_message(known: Known, state: ReportState, ejected: bool, now: int) -> operations_pb2.Substation:
    """One substation of the load view."""
    message = operations_pb2.Substation(
        substation_id=known.substation_id,
        address=known.address,
        state=operations_pb2.ReportState.ValueType(state),
        reserved_kw=kilowatts(known.reserved_w),
        reservations=len(known.reservations),
        ejected=ejected,
    )
    if known.load is not None and known.received_ms is not None:
        message.report.CopyFrom(report_of(known.load))
        message.report_age.FromMilliseconds(max(0, now - known.received_ms))
    return message


def entry_of(admission: reports_pb2.Admission, epoch: int, known: Mapping[Key, Entry] = _NO_ENTRIES) -> Entry:
    """One admission of that epoch. Malformed when its session id names no substation.

    Without an end it lives, whatever else it says of one: not to know it could cost its key a second session.
    `known` are that substation's entries: one of the same session shares its strings, as they are kept for a day.
    """
    key = Key(intern(admission.owner), admission.request_id)
    session_id, attempt_id = admission.session_id, admission.attempt_id
    before = known.get(key)
    if before is not None and before.session_id == session_id:
        key, session_id, substation_id = before.key, before.session_id, before.substation_id
        if attempt_id == before.attempt_id:
            attempt_id = before.attempt_id
    else:
        named = substation_of(session_id)
        if named is None:
            raise Malformed(f"admission with session_id {session_id[:80]!r}")
        substation_id = intern(named)
    # In order: names take as long as the rest of it.
    if not admission.HasField("ended_at"):
        return Entry(key, session_id, substation_id, attempt_id, epoch, admission.sequence)
    return Entry(
        key, session_id, substation_id, attempt_id, epoch, admission.sequence,
        _millis(admission.ended_at), _STOP_REASONS[admission.stop_reason], admission.duplicate_of,
    )  # fmt: skip


def ended_at_ms(session: charging_pb2.Session) -> int | None:
    """When the session ended, in wall milliseconds; None while it lives."""
    return _millis(session.ended_at) if session.HasField("ended_at") else None


def set_placement(message: charging_pb2.Placement, placement: Placement) -> None:
    """Why a session is where it is."""
    message.Clear()  # a substation says what it knows of that
    message.substation_id = placement.substation_id
    message.policy = placement.policy
    message.score = placement.score
    message.utilisation_before = placement.before
    message.utilisation_after = placement.after
    message.eligible = placement.eligible
    message.tried = placement.tried


class _Words(dict[int, W]):
    """The words of an enum by number; UNSPECIFIED where only a later version knows it, as in a rolling upgrade."""

    def __init__(self, words: type[W]) -> None:
        super().__init__({int(word): word for word in words})

    def __missing__(self, number: int) -> W:
        return self[0]


_LIMIT_SOURCES = _Words(LimitSource)
_NOT_ACCEPTING = _Words(NotAccepting)
_STOP_REASONS = _Words(StopReason)


def _time_ms(time: Timestamp) -> int:
    """Of one that is to be said again as it came: ValueError where that cannot be."""
    if not _FIRST_MS <= (time_ms := _millis(time)) <= _LAST_MS:
        raise ValueError
    return time_ms


def _millis(time: Timestamp) -> int:
    # By hand: ToMilliseconds() raises on what a broken sender can put on the wire.
    return time.seconds * 1000 + time.nanos // 1_000_000
