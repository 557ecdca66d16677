"""What a car's draw says of it: whether it takes its grant, obeys a cut, or leaves power for others.

Works on one session; times are wall milliseconds.
"""

from mesh.model import SessionState
from substation.sessions import Session, Trigger

# A car may take 5 s to obey; 5 s after that its power must show it.
OBEY_MS = 10_000
# A car that draws under 90 % of its grant for 60 s of charging keeps what it draws and some room.
_UNDRAWN_PERCENT = 90
_REACHES_PERCENT = 95
_UNDRAWN_S = 60
_ROOM_W = 700
# Asked of at each reading. Python 3.11 looks a member of an Enum up by a call, each time.
_CHARGING, _SUSPENDED_EV = SessionState.CHARGING, SessionState.SUSPENDED_EV


def disobeys(session: Session, power_w: int) -> bool:
    """Draws clearly more than that power; 5 % and 100 W are a meter's tolerance."""
    return session.measured_w > tolerated_w(power_w)


def tolerated_w(power_w: int) -> int:
    """The most that a car with that grant may be seen to draw."""
    return power_w * 105 // 100 + 100


def time_obedience(session: Session, now: int) -> None:
    """Starts the clock of a car that draws more than granted, and stops it when it does not.

    The clock is for the grant that it was started with: a car that came down to that while its grant
    was lowered again is given its time anew, else one that always obeys would be caught by many cuts.
    """
    if not disobeys(session, session.granted_w):
        session.obey_by_ms = None
    elif session.obey_by_ms is None or not disobeys(session, session.obey_w):
        session.obey_by_ms, session.obey_w = now + OBEY_MS, session.granted_w
    else:
        session.obey_w = max(session.obey_w, session.granted_w)


def note_reading(session: Session, now: int) -> bool:
    """After a reading of an active session. True when its state changed."""
    resumed = session.measured_w > 0 and session.state is _SUSPENDED_EV
    if resumed:
        session.move(Trigger.DRAW)
    time_obedience(session, now)
    note_overdraw(session)
    if session.measured_w * 100 >= session.granted_w * _REACHES_PERCENT:
        session.draws_at_most_w = None
    time_undrawn(session, now)
    return resumed


def note_overdraw(session: Session) -> None:
    """What it draws above a grant that it has confirmed, within the tolerance: others must leave it free.

    Kept until the next reading of a confirmed grant: it is the car's habit, not of one grant.
    """
    over_w = session.measured_w - session.granted_w
    if over_w <= 0 and not session.overdraw_w:  # the usual case
        return
    if session.held_w <= session.granted_w and session.obey_by_ms is None:
        session.overdraw_w = max(0, over_w)


def seen_overdraw_w(session: Session) -> int:
    """What of that is committed for it already, as it draws it now."""
    return min(session.overdraw_w, session.committed_w - max(session.granted_w, session.held_w))


def time_undrawn(session: Session, now: int) -> None:
    """Starts the clock of a car that leaves power that could be taken back, or draws none, and stops it when not."""
    if session.measured_w * 100 >= session.granted_w * _UNDRAWN_PERCENT:
        session.undrawn_since_ms = None
    elif session.undrawn_since_ms is None and (session.granted_w > _kept_w(session) or _pauses(session)):
        session.undrawn_since_ms = now


def undrawn_until_ms(session: Session, scale: int) -> int | None:
    """When what it leaves is taken back."""
    since = session.undrawn_since_ms
    return None if since is None else since + _UNDRAWN_S * 1000 // scale


def take_back(session: Session) -> None:
    """Leaves the car what it draws and some room to show that it wants more."""
    session.undrawn_since_ms = None
    session.draws_at_most_w = _kept_w(session)
    if _pauses(session):
        session.move(Trigger.IDLE)


def _kept_w(session: Session) -> int:
    return max(session.charge.floor_w, session.measured_w * 11 // 10 + _ROOM_W)


def _pauses(session: Session) -> bool:
    return session.measured_w == 0 and session.state is _CHARGING
