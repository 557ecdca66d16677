"""Turns shares into grants without ever committing more than the limit.

Power is lowered first, and handed on only once it is confirmed or measured free. After a start or a
rise of the limit the total rises slowly. Where floors do not all fit, turns are timed here.
"""

from collections.abc import Sequence

from msgspec import Struct

from mesh.model import LimitReason, LimitSource
from substation import draw
from substation.sessions import Session, Trigger
from substation.sharing import Claim, SharingPolicy

# Seconds of charging: how long a turn lasts, and how long the whole limit takes to be ramped up.
TURN_S = 900
RAMP_S = 60
# A raise that must wait for others is not handed on in crumbs.
LEAST_RAISE_W = 1_000
# A car that charges until full is never planned to be nearer to that than this much time at full power.
_LEAST_LEFT_S = 900
# What nearly every charge goes through. Python 3.11 looks a member of an Enum up by a call, each time.
_GRANT, _IN_FULL, _LIMIT_CUT = Trigger.GRANT, LimitReason.UNSPECIFIED, LimitReason.LIMIT_CUT
_NOBODYS = LimitSource.UNSPECIFIED


class Budget(Struct, frozen=True):
    """What may be granted now: `cap_w` is the limit, or less while it is ramped up, or where cars draw above grants."""

    limit_w: int
    source: LimitSource
    cap_w: int
    ramped: bool


class Ramp:
    """Holds the total back after a start or a rise of the limit: at most limit/60 more per second of charging."""

    def __init__(self, scale: int) -> None:
        self._scale = scale
        self._base_w = 0
        self._since_ms: int | None = None

    def begin(self, base_w: int, now: int) -> None:
        """From `base_w`, what is committed already."""
        self._base_w, self._since_ms = base_w, now

    def cap_w(self, limit_w: int, now: int) -> int:
        """What may be granted in total. Never above the limit."""
        if self._since_ms is None:
            return limit_w
        risen = limit_w * (now - self._since_ms) * self._scale // (RAMP_S * 1000)
        cap = self._base_w + risen
        if cap >= limit_w:
            self._since_ms = None
        return min(cap, limit_w)

    def reached_w(self, limit_w: int, now: int) -> int:
        """Where the next one begins at least, or a limit that rises every second would never let any end."""
        return 0 if self._since_ms is None else self.cap_w(limit_w, now)

    def next_step(self, now: int) -> int | None:
        """When it is worth sharing again; None when nothing is held back."""
        return None if self._since_ms is None else now + max(50, 1000 // self._scale)


class Turns:
    """When those who have power have had their turn. Runs only while somebody waits for one."""

    def __init__(self, scale: int) -> None:
        self._turn_ms = max(1, TURN_S * 1000 // scale)
        self.ends_ms: int | None = None

    def over(self, now: int) -> bool:
        return self.ends_ms is not None and self.ends_ms <= now

    def update(self, now: int, waiting: bool) -> None:
        """After sharing: starts, restarts or stops the clock."""
        if not waiting:
            self.ends_ms = None
        elif self.ends_ms is None or self.over(now):
            self.ends_ms = now + self._turn_ms


class Review:
    """When shares that depend on time are to be looked at again. Runs only while somebody wants more."""

    def __init__(self, review_s: int | None, scale: int) -> None:
        self._review_ms = None if review_s is None else max(1, review_s * 1000 // scale)
        self.next_ms: int | None = None

    def update(self, now: int, short: bool) -> None:
        """After sharing."""
        self.next_ms = now + self._review_ms if short and self._review_ms is not None else None


def claim(session: Session, now: int, scale: int) -> Claim:
    """What a session wants of the power: all its car can take, or what the car showed that it takes."""
    on = session.granted_w > 0
    return Claim(
        session.session_id,
        session.charge.floor_w,
        session.wanted_w,
        on,
        now if on else session.last_on_ms,
        session.started_ms,
        remaining_mj(session, now, scale),
        (session.planned_departure_ms - now) * scale,
        session.departure_assumed,
    )


def remaining_mj(session: Session, now: int, scale: int) -> int:
    """Energy still wanted; for a car that charges until full what half its stay at full power would bring."""
    delivered_mj = session.delivered_at(now, scale)
    target_mj = session.target_mj
    if target_mj is not None:
        return target_mj - delivered_mj if delivered_mj < target_mj else 0
    stay_ms = (session.planned_departure_ms - session.started_ms) * scale
    return max(session.charge.max_w * stay_ms // 2 - delivered_mj, session.charge.max_w * _LEAST_LEFT_S * 1000)


def shares(
    policy: SharingPolicy, claims: Sequence[Claim], budget: Budget, turns: Turns, review: Review, now: int
) -> dict[str, int]:
    """Watts per session as they should be. Advances the turns and the reviews."""
    targets = policy.share(claims, budget.cap_w, turns.over(now))
    turns.update(now, any(targets[c.session_id] == 0 and c.floor_w <= budget.cap_w for c in claims))
    review.update(now, any(targets[c.session_id] < c.max_w for c in claims))
    return targets


def lower(active: Sequence[Session], targets: dict[str, int], now: int) -> list[Session]:
    """Lowers every grant that is above its share, at once, and returns those sessions."""
    lowered = [session for session in active if targets[session.session_id] < session.granted_w]
    for session in lowered:
        session.granted_w = targets[session.session_id]
        session.undrawn_since_ms = None
        if session.granted_w == 0:
            session.last_on_ms = now
            session.move(Trigger.SUSPEND)
        draw.time_obedience(session, now)
    return lowered


def raise_(active: Sequence[Session], targets: dict[str, int], free_w: int, seen_w: int = 0) -> list[Session]:
    """Raises grants towards their shares as far as `free_w` that nobody holds goes; the smallest first.

    `seen_w`: what cars draw above their grants, for which as much is left free once more. That is a margin, but a car
    that would have nothing as long as they do so gets its floor of it.
    """
    rising = [session for session in active if targets[session.session_id] > session.granted_w]
    raised = []
    for session in sorted(rising, key=lambda s: (s.granted_w, s.last_on_ms, s.session_id)):
        target = targets[session.session_id]
        # What it still holds of an earlier grant is committed anyway.
        committed_w = session.committed_w
        power = min(target, committed_w + free_w)
        floor_w = session.charge.floor_w
        if session.granted_w == 0 and power < floor_w and draw.tolerated_w(floor_w) <= committed_w + free_w + seen_w:
            power = min(target, floor_w)
        if power < floor_w or (power < target and power - session.granted_w < LEAST_RAISE_W):
            continue
        free_w -= max(0, power - committed_w)
        if session.granted_w == 0:
            session.move(_GRANT)
        session.granted_w = power
        session.undrawn_since_ms = None
        raised.append(session)
    return raised


def explain(session: Session, target_w: int, budget: Budget) -> None:
    """Says why the grant is below what the car can take, and for an operator's limit whose."""
    reason = session.limit_reason = _reason(session, target_w, budget)
    session.limit_source = budget.source if reason is _LIMIT_CUT else _NOBODYS


def _reason(session: Session, target_w: int, budget: Budget) -> LimitReason:
    if session.granted_w >= session.charge.max_w:
        return _IN_FULL
    if session.draws_at_most_w is not None and session.granted_w >= session.draws_at_most_w:
        return LimitReason.UNDRAWN
    if budget.source:
        return _LIMIT_CUT
    if target_w > session.granted_w or budget.ramped:
        return LimitReason.RAMP
    return LimitReason.SHARED if target_w else LimitReason.WAITING_TURN
