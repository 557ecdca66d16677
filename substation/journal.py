"""What an operator reads of the sessions: one line per change of state, each with request id and session id."""

import logging
from collections.abc import Iterable

import structlog

from mesh.model import SessionState, StopReason
from mesh.units import kilowatt_hours
from substation.sessions import Session

log = structlog.get_logger()

# Asked of for each session. Python 3.11 looks a member of an Enum up by a call, each time.
_CHARGING = SessionState.CHARGING
# How a session ends that somebody should look at.
_ALARMING = {
    StopReason.OVERCURRENT_FAULT: "car disconnected: it drew more than granted",
    StopReason.DUPLICATE: "duplicate ended",
}


class SessionJournal:
    """The states that were told. Who is admitted and charges at once is no news: whoever placed it says so."""

    def __init__(self, live: Iterable[Session]) -> None:
        self._told = {session.session_id: session.state for session in live}
        # Not the proxy, which looks for its logger each time it is asked anything.
        self._log: structlog.typing.FilteringBoundLogger = log.bind()

    def changed(self, session: Session) -> None:
        """Something of a live session changed."""
        state, before = session.state, self._told.get(session.session_id)
        if state is before:
            return
        self._told[session.session_id] = state
        if (before is None and state is _CHARGING) or not self._log.is_enabled_for(logging.INFO):
            return
        was = {} if before is None else {"was": before.name}
        self._log.info(f"session {state.name.lower()}", **_of(session), **was, **_why(session))

    def withdrawn(self, session: Session) -> None:
        """Its admission could not be kept, so nobody was told of it."""
        self._told.pop(session.session_id, None)
        self._log.warning("admission withdrawn: the ledger did not take it", **_of(session))

    def ended(self, session: Session) -> None:
        """It is over."""
        self._told.pop(session.session_id, None)
        event = _ALARMING.get(session.stop_reason)
        if not (event or self._log.is_enabled_for(logging.INFO)):
            return
        why: dict[str, object] = {
            "reason": session.stop_reason.name,
            "delivered_kwh": round(kilowatt_hours(session.delivered_mj), 3),
        }
        if session.stop_reason is StopReason.DUPLICATE:
            why["survivor"] = session.duplicate_of
        (self._log.warning if event else self._log.info)(event or "session ended", **_of(session), **why)


def _of(session: Session) -> dict[str, str]:
    return {"request_id": session.charge.key.request_id, "session_id": session.session_id}


def _why(session: Session) -> dict[str, str]:
    """Why it has less than it could take, if it has."""
    reason, source = session.limit_reason, session.limit_source
    return {**({"reason": reason.name} if reason else {}), **({"source": source.name} if source else {})}
