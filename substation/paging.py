"""One page of a list of sessions. Pure: filters, order by id, and a token that names the last id shown."""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass

from gridmesh.v1 import charging_pb2
from mesh.errors import InvalidRequest, Violation
from substation.sessions import Session

_DEFAULT, _MOST = 100, 1_000


@dataclass(frozen=True, slots=True)
class Query:
    """Which sessions, and how many at a time. Empty filters let all pass."""

    page_size: int
    include_ended: bool
    states: frozenset[int]
    vehicle_id: str
    substation_id: str

    def matches(self, session: Session) -> bool:
        return (
            (self.include_ended or session.live)
            and (not self.states or session.state in self.states)
            and self.vehicle_id in {"", session.charge.vehicle_id}
            and self.substation_id in {"", session.session_id.partition(".")[0]}
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Sessions in order of id; an empty token on the last page."""

    sessions: list[Session]
    next_token: str


def query(request: charging_pb2.ListSessionsRequest) -> Query:
    """The query of a request. InvalidRequest names the field."""
    if request.page_size > _MOST:
        raise InvalidRequest(Violation("page_size", f"must be from 1 to {_MOST}, or absent for {_DEFAULT}"))
    return Query(
        page_size=request.page_size or _DEFAULT,
        include_ended=request.include_ended or charging_pb2.SESSION_STATE_ENDED in request.states,
        states=frozenset(request.states),
        vehicle_id=request.vehicle_id,
        substation_id=request.substation_id,
    )


def page(sessions: Iterable[Session], asked: Query, token: str) -> Page:
    """The page after `token`."""
    after = _last_shown(token)
    found = sorted((s for s in sessions if s.session_id > after and asked.matches(s)), key=lambda s: s.session_id)
    shown = found[: asked.page_size]
    more = len(found) > len(shown)
    return Page(shown, base64.urlsafe_b64encode(shown[-1].session_id.encode()).decode() if more else "")


def _last_shown(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        raise InvalidRequest(Violation("page_token", "is not one that this server gave")) from None
