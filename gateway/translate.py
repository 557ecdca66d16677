"""Between the contract's messages and the API's JSON types, by hand: this runs for every request."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TypeVar, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from msgspec import UNSET, Raw
from msgspec.json import Encoder

from gateway import schemas
from gridmesh.v1 import charging_pb2, load_pb2, operations_pb2
from mesh import model
from mesh.errors import InvalidRequest, Violation
from mesh.requests import ANONYMOUS

T = TypeVar("T")

_encode = Encoder().encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)
_SECOND = timedelta(seconds=1)
_MICROSECOND = timedelta(microseconds=1)
_SECONDS = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?s")

# A number that a newer balancer knows and we do not is left out, as an unspecified one is.
_STATES = {int(model.SessionState[word.name]): word for word in schemas.SessionState}
_STOP_REASONS = {int(model.StopReason[word.name]): word for word in schemas.StopReason}
_LIMIT_REASONS = {int(model.LimitReason[word.name]): word for word in schemas.LimitReason}
_LIMIT_SOURCES = {int(model.LimitSource[word.name]): word for word in schemas.LimitSource}
_NOT_ACCEPTING = {int(model.NotAccepting[word.name]): word for word in schemas.NotAcceptingReason}
_REPORT_STATES = {int(model.ReportState[word.name]): word for word in schemas.ReportState}


# --- to the contract -------------------------------------------------------------------------------


def charge_request(
    body: schemas.ChargeBody,
    request_id: str,
    attempt_id: str,
    not_after_ms: int,
    into: charging_pb2.ChargeRequest | None = None,
) -> charging_pb2.ChargeRequest:
    """The request as the first hop sends it. InvalidRequest when a departure cannot be said in the contract.

    `into`: an empty one to fill, as a message that is put into another one is copied.
    """
    # Field by field: the constructor takes twice as long, most of it for what is absent.
    request = charging_pb2.ChargeRequest() if into is None else into
    request.request_id = request_id
    request.vehicle_id = body.vehicle_id
    request.max_power_kw = body.max_power_kw
    if body.energy_kwh is not None:
        request.energy_kwh = body.energy_kwh
    if body.phases is not None:
        request.phases = body.phases
    if body.min_power_kw is not None:
        request.min_power_kw = body.min_power_kw
    if body.allowed_substation_ids:
        request.allowed_substation_ids.extend(body.allowed_substation_ids)
    if body.evse_id:
        request.evse_id = body.evse_id
    _set_departure(request, body)
    request.owner = ANONYMOUS
    request.attempt_id = attempt_id
    not_after = request.not_after
    not_after.seconds, not_after.nanos = not_after_ms // 1000, not_after_ms % 1000 * 1_000_000
    return request


def _set_departure(request: charging_pb2.ChargeRequest, body: schemas.ChargeBody) -> None:
    if body.departure_in is not None:
        if body.departure_time is not None:
            raise InvalidRequest(Violation("departure_in", "must not be given together with departure_time"))
        request.departure_in.CopyFrom(_duration(body.departure_in))
    elif body.departure_time is not None:
        request.departure_time.CopyFrom(timestamp(body.departure_time))


def _duration(text: str) -> Duration:
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise InvalidRequest(Violation("departure_in", 'must be seconds with an "s", such as "5400s"'))
    sign = -1 if match[1] else 1
    return Duration(seconds=sign * int(match[2]), nanos=sign * int((match[3] or "0").ljust(9, "0")))


def timestamp(at: datetime) -> Timestamp:
    """A point in time, of whatever zone."""
    since = at - _EPOCH
    return Timestamp(seconds=since // _SECOND, nanos=since % _SECOND // _MICROSECOND * 1000)


def limit_request(
    substation_id: str, source: schemas.LimitSource, body: schemas.LimitBody
) -> operations_pb2.SetLimitRequest:
    """One source's limit for one substation."""
    limit = operations_pb2.Limit(
        source=load_pb2.LimitSource.Value(f"LIMIT_SOURCE_{source}"),
        limit_kw=body.limit_kw,
        start_at=None if body.start_at is None else timestamp(body.start_at),
        end_at=None if body.end_at is None else timestamp(body.end_at),
        reason=body.reason or "",
        grid_critical=bool(body.grid_critical),
    )
    return operations_pb2.SetLimitRequest(substation_id=substation_id, limit=limit)


def states(words: Iterable[schemas.SessionState]) -> list[charging_pb2.SessionState.ValueType]:
    """The contract's numbers."""
    return [charging_pb2.SessionState.Value(f"SESSION_STATE_{word}") for word in words]


# --- from the contract -----------------------------------------------------------------------------


# To look these up takes a third of the time of formatting them.
_MILLIS = tuple(f".{ms:03}Z" for ms in range(1000))


def _time(at: Timestamp) -> str:
    return _second(at.seconds) + _MILLIS[at.nanos // 1_000_000 % 1000]


def time(ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339."""
    return _second(ms // 1000) + _MILLIS[ms % 1000]


@lru_cache(4096)  # what happens at one time is told many times
def _second(seconds: int) -> str:
    return (_NAIVE_EPOCH + timedelta(seconds=seconds)).isoformat()


def session(message: charging_pb2.Session) -> schemas.Session:
    """A session as JSON."""
    has = message.HasField
    # In the order of the fields: there are so many that to find each by its name takes a quarter of the time.
    return schemas.Session(
        message.session_id,
        message.substation_id,
        message.owner,
        message.request_id,
        message.vehicle_id,
        message.max_power_kw,
        message.phases,
        message.min_power_kw,
        message.departure_assumed,
        _STATES.get(message.state, UNSET),
        message.granted_power_kw,
        message.measured_power_kw,
        message.delivered_kwh,
        message.attempt_id,
        message.energy_kwh if has("energy_kwh") else UNSET,
        _time(message.departure_time) if has("departure_time") else UNSET,
        message.evse_id or UNSET,
        _time(message.started_at) if has("started_at") else UNSET,
        _time(message.expected_end_at) if has("expected_end_at") else UNSET,
        _time(message.ended_at) if has("ended_at") else UNSET,
        _STOP_REASONS.get(message.stop_reason, UNSET),
        _LIMIT_REASONS.get(message.limit_reason, UNSET),
        _LIMIT_SOURCES.get(message.limit_source, UNSET),
        message.duplicate_of or UNSET,
    )


def placement(message: charging_pb2.Placement) -> schemas.Placement:
    """A placement as JSON."""
    return schemas.Placement(  # in the order of the fields, as above
        message.substation_id,
        message.policy,
        message.score,
        message.utilisation_before,
        message.utilisation_after,
        message.eligible,
        message.tried,
    )


def load(message: load_pb2.LoadReport) -> schemas.LoadReport:
    """A load report as JSON; what was not reported is absent."""
    has = message.HasField
    return schemas.LoadReport(
        substation_id=message.substation_id,
        epoch=message.epoch if has("epoch") else UNSET,
        sequence=message.sequence if has("sequence") else UNSET,
        admission_sequence=message.admission_sequence if has("admission_sequence") else UNSET,
        generated_at=_time(message.generated_at) if has("generated_at") else UNSET,
        rated_power_kw=message.rated_power_kw if has("rated_power_kw") else UNSET,
        limit_power_kw=message.limit_power_kw if has("limit_power_kw") else UNSET,
        limit_source=_LIMIT_SOURCES.get(message.limit_source, UNSET),
        demand_kw=message.demand_kw if has("demand_kw") else UNSET,
        required_kw=message.required_kw if has("required_kw") else UNSET,
        floor_kw=message.floor_kw if has("floor_kw") else UNSET,
        committed_kw=message.committed_kw if has("committed_kw") else UNSET,
        granted_kw=message.granted_kw if has("granted_kw") else UNSET,
        measured_kw=message.measured_kw if has("measured_kw") else UNSET,
        active_sessions=message.active_sessions if has("active_sessions") else UNSET,
        charge_points=message.charge_points if has("charge_points") else UNSET,
        free_charge_points=message.free_charge_points if has("free_charge_points") else UNSET,
        accepting=message.accepting if has("accepting") else UNSET,
        not_accepting_reason=_NOT_ACCEPTING.get(message.not_accepting_reason, UNSET),
        time_scale=message.time_scale if has("time_scale") else UNSET,
        over_limit_seconds=message.over_limit_seconds if has("over_limit_seconds") else UNSET,
        next_free_at=_time(message.next_free_at) if has("next_free_at") else UNSET,
    )


def charge_reply(message: charging_pb2.ChargeResponse, after: load_pb2.LoadReport) -> schemas.ChargeReply:
    """What became of a request, as JSON; `after` is the load after it, often the same object for many."""
    return schemas.ChargeReply(session(message.session), placement(message.placement), _once(after))


# By identity, with the message, so that no other one has its id. One commit admits many charges.
_encoded: dict[int, tuple[load_pb2.LoadReport, schemas.LoadReport]] = {}
_MOST_ENCODED = 64


def _once(message: load_pb2.LoadReport) -> schemas.LoadReport:
    """A load as `load` gives it, to be encoded only: it is JSON already, made once for each message."""
    known = _encoded.get(id(message))
    if known is None:
        if len(_encoded) >= _MOST_ENCODED:
            _encoded.clear()
        known = _encoded[id(message)] = message, cast("schemas.LoadReport", Raw(_encode(load(message))))
    return known[1]


def session_list(message: charging_pb2.ListSessionsResponse) -> schemas.SessionList:
    """One page as JSON."""
    return schemas.SessionList(
        [session(each) for each in message.sessions],
        message.next_page_token or UNSET,
        list(message.unreachable_substation_ids) or UNSET,
    )


def limits_reply(
    message: operations_pb2.SetLimitResponse | operations_pb2.ClearLimitResponse,
) -> schemas.LimitsReply:
    """A substation's limits as JSON."""
    return schemas.LimitsReply(load(message.load), [_limit(each) for each in message.limits])


def _limit(message: operations_pb2.Limit) -> schemas.Limit:
    has = message.HasField
    return schemas.Limit(
        source=_LIMIT_SOURCES.get(message.source, UNSET),
        grid_critical=message.grid_critical,
        limit_kw=message.limit_kw if has("limit_kw") else UNSET,
        start_at=_time(message.start_at) if has("start_at") else UNSET,
        end_at=_time(message.end_at) if has("end_at") else UNSET,
        reason=message.reason or UNSET,
    )


def substation_list(
    message: operations_pb2.ListSubstationsResponse | operations_pb2.WatchSubstationsResponse,
) -> schemas.SubstationList:
    """The load view as JSON."""
    return schemas.SubstationList([_substation(each) for each in message.substations])


def _substation(message: operations_pb2.Substation) -> schemas.Substation:
    age = message.report_age
    return schemas.Substation(
        address=message.address,
        state=_REPORT_STATES.get(message.state, UNSET),
        reserved_kw=message.reserved_kw,
        reservations=message.reservations,
        ejected=message.ejected,
        substation_id=message.substation_id or UNSET,
        report_age=f"{age.seconds + age.nanos / 1e9:.3f}s" if message.HasField("report_age") else UNSET,
        report=load(message.report) if message.HasField("report") else UNSET,
    )
