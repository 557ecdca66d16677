"""Sessions and limits as the ledger keeps them: msgpack of plain structs, versioned by the ledger's schema."""

from collections.abc import Iterable
from sys import intern

import msgspec

from mesh.charge import Charge, Key
from mesh.model import LimitReason, LimitSource, SessionState, StopReason
from substation.limits import Limit
from substation.sessions import Offer, Session


class SessionRecord(msgspec.Struct, array_like=True):
    """What is written when a session is admitted, when its attempt is raised, and when it ends."""

    session_id: str
    owner: str
    request_id: str
    vehicle_id: str
    energy_j: int | None
    max_w: int
    floor_w: int
    phases: int
    departure_ms: int | None
    allowed: list[str]
    evse_id: str
    body: bytes
    started_ms: int
    planned_departure_ms: int
    attempt_id: str
    ended_ms: int | None
    stop_reason: int
    duplicate_of: str
    delivered_mj: int


class LiveRecord(msgspec.Struct, array_like=True):
    """What changes while a session lives. All of a station are written together, so they are of one moment."""

    session_id: str
    state: int
    granted_w: int
    held_w: int
    measured_w: int
    delivered_mj: int
    metered_ms: int
    lease_until_ms: int
    last_offer: int
    satisfied_by: int
    draws_at_most_w: int | None
    last_on_ms: int
    limit_reason: int
    limit_source: int


class LimitRecord(msgspec.Struct, array_like=True):
    """One source's limit."""

    source: int
    limit_w: int
    start_ms: int
    end_ms: int | None
    reason: str
    grid_critical: bool


_encode = msgspec.msgpack.Encoder().encode
_decode_session = msgspec.msgpack.Decoder(SessionRecord).decode
_decode_live = msgspec.msgpack.Decoder(list[LiveRecord]).decode
_decode_bodies = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_limits = msgspec.msgpack.Decoder(list[LimitRecord]).decode


def session_body(session: Session) -> bytes:
    """The session's row."""
    charge = session.charge
    record = SessionRecord(
        session.session_id,
        charge.key.owner,
        charge.key.request_id,
        charge.vehicle_id,
        charge.energy_j,
        charge.max_w,
        charge.floor_w,
        charge.phases,
        charge.departure_ms,
        sorted(charge.allowed) if charge.allowed else [],  # mostly none
        charge.evse_id,
        charge.body,
        session.started_ms,
        session.planned_departure_ms,
        session.attempt_id,
        session.ended_ms,
        session.stop_reason,
        session.duplicate_of,
        session.delivered_mj,
    )
    return _encode(record)


def live_body(sessions: Iterable[Session]) -> bytes:
    """What changes of all live sessions, of one moment."""
    return _encode([_live_record(session) for session in sessions])


class LiveBody:
    """The same, kept ready session by session: only what changed is encoded anew."""

    def __init__(self) -> None:
        self._parts: dict[str, msgspec.Raw] = {}

    def put(self, sessions: Iterable[Session]) -> None:
        for session in sessions:
            self._parts[session.session_id] = msgspec.Raw(_encode(_live_record(session)))

    def drop(self, session_ids: Iterable[str]) -> None:
        """Those that are not there are none of its business."""
        for session_id in session_ids:
            self._parts.pop(session_id, None)

    def body(self) -> bytes:
        return _encode(list(self._parts.values()))


def _live_record(session: Session) -> LiveRecord:
    return LiveRecord(
        session.session_id,
        session.state,
        session.granted_w,
        session.held_w,
        session.measured_w,
        session.delivered_mj,
        session.metered_ms,
        session.lease_until_ms,
        session.last_offer,
        session.satisfied_by,
        session.draws_at_most_w,
        session.last_on_ms,
        session.limit_reason,
        session.limit_source,
    )


def history_body(bodies: list[bytes]) -> bytes:
    """Rows of sessions as one."""
    return _encode(bodies)


def read_history(body: bytes) -> list[bytes]:
    """The rows that were put together."""
    return _decode_bodies(body)


def limits_body(limits: Iterable[Limit]) -> bytes:
    """All limits that are set."""
    return _encode(
        [LimitRecord(int(m.source), m.limit_w, m.start_ms, m.end_ms, m.reason, m.grid_critical) for m in limits]
    )


def read_limits(body: bytes) -> list[Limit]:
    """The limits of a body."""
    return [
        Limit(LimitSource(r.source), r.limit_w, r.start_ms, r.end_ms, r.reason, r.grid_critical)
        for r in _decode_limits(body)
    ]


def read_sessions(bodies: Iterable[bytes], live: bytes | None) -> list[Session]:
    """The sessions of their rows, live ones as they were when last written together."""
    changing = {record.session_id: record for record in _decode_live(live)} if live else {}
    sessions = []
    for body in bodies:
        record = _decode_session(body)
        session = _session(record)
        if record.ended_ms is None and (latest := changing.get(record.session_id)):
            _carry_on(session, latest)
        sessions.append(session)
    return sessions


def _session(r: SessionRecord) -> Session:
    charge = Charge(
        key=Key(intern(r.owner), r.request_id),
        vehicle_id=r.vehicle_id,
        energy_j=r.energy_j,
        max_w=r.max_w,
        floor_w=r.floor_w,
        phases=r.phases,
        departure_ms=r.departure_ms,
        allowed=frozenset(r.allowed),
        evse_id=r.evse_id,
        attempt_id=r.attempt_id,
        body=r.body,
    )
    return Session(
        session_id=r.session_id,
        charge=charge,
        started_ms=r.started_ms,
        planned_departure_ms=r.planned_departure_ms,
        attempt_id=r.attempt_id,
        state=SessionState.SUSPENDED_EVSE if r.ended_ms is None else SessionState.ENDED,
        delivered_mj=r.delivered_mj,
        metered_ms=r.started_ms if r.ended_ms is None else r.ended_ms,
        ended_ms=r.ended_ms,
        stop_reason=StopReason(r.stop_reason),
        duplicate_of=r.duplicate_of,
        last_on_ms=r.started_ms,
    )


def _carry_on(session: Session, r: LiveRecord) -> None:
    session.enter(SessionState(r.state))
    session.granted_w = r.granted_w
    session.measured_w = r.measured_w
    session.delivered_mj = r.delivered_mj
    session.metered_ms = r.metered_ms
    session.last_offer = r.last_offer
    # One offer stands for all that the car may still hold.
    session.offers = (Offer(r.last_offer, r.held_w, r.lease_until_ms),) if r.held_w else ()
    session.confirmed_until_ms = r.lease_until_ms
    session.satisfied_by = StopReason(r.satisfied_by)
    session.draws_at_most_w = r.draws_at_most_w
    session.last_on_ms = r.last_on_ms
    session.limit_reason = LimitReason(r.limit_reason)
    session.limit_source = LimitSource(r.limit_source)
