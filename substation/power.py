"""The power of one substation: what may be granted now, who gets it, and how long it was over the limit."""

from collections.abc import Iterable

from msgspec import Struct

from substation import draw, grants
from substation.draw import OBEY_MS
from substation.grants import Budget, Ramp, Review, Turns
from substation.limits import Limits
from substation.live import Live
from substation.sessions import Session
from substation.sharing import SharingPolicy


class Settled(Struct, frozen=True):
    """What sharing anew changed: grants (to be offered), and what sessions show."""

    granted: list[Session]
    shown: list[Session]


_NOTHING = Settled([], [])


class Power:
    """Shares the power under the limits, and keeps account of it."""

    def __init__(self, policy: SharingPolicy, limits: Limits, scale: int, now: int) -> None:
        self._policy = policy
        self.limits = limits
        self._ramp = Ramp(scale)
        self._turns = Turns(scale)
        self._review = Review(policy.review_s, scale)
        self._scale = scale
        self._cut_ms: int | None = None
        # Until then committed power may be over the limit: the cars have their time to obey.
        self._excused_until_ms = now
        self._resumed_until_ms = now
        # Whether shares change with time alone, without an event.
        self.timed = policy.review_s is not None
        # Whether all that were looked at have what they want: then only who changed since can have another share.
        self._contented = False
        self._most_w = 0
        self.over_limit_ms = 0
        self.budget = self._budget_at(now)

    def recover(self, live: Iterable[Session], now: int) -> None:
        """After a restart: what cars still hold counts until their leases lapse, and the total rises slowly."""
        committed = sum(session.committed_w for session in live)
        self._ramp.begin(min(committed, self.budget.limit_w), now)
        self._note_cut(committed, self.budget.limit_w + 1, now)
        self.budget = self._budget_at(now)

    def resume(self, now: int) -> None:
        """After the process stood still: the cars have their time to obey what they are told only now."""
        self._resumed_until_ms = now + OBEY_MS

    def settle(self, live: Live, now: int) -> Settled:
        """Shares the power among the live sessions as they are. `note_committed` follows, once grants are offered."""
        sums = live.sums()
        committed, before_w = sums.committed_w, self.budget.limit_w
        if self.limits.in_force(now)[0] > before_w:
            self._ramp.begin(max(min(committed, before_w), self._ramp.reached_w(before_w, now)), now)
        self.budget = self._budget_at(now, sums.overdraw_w)
        self._note_cut(committed, before_w, now)
        enough = sums.wanted_w <= self.budget.cap_w
        changed = live.take_unsettled()
        looked_at = changed if enough and self._contented else live
        # Where there is enough for all, most have all that they can take: nothing is to be done about them.
        active = [session for session in looked_at if session.active and not (enough and session.unrestricted)]
        if enough and self._contented and not active:
            # As when somebody has left: the others have what they want.
            return _NOTHING
        before = [_shown(session) for session in active]
        targets = self._targets(active, enough, now)
        granted = self._grant(active, targets, live, now)
        shown = [session for session, was in zip(active, before, strict=True) if _shown(session) != was]
        for session in shown:
            live.touch(session)
        self._contented = enough and all(session.granted_w == targets[session.session_id] for session in active)
        return Settled(granted, shown)

    def _targets(self, active: list[Session], enough: bool, now: int) -> dict[str, int]:
        """Watts per session as they should be. Where there is enough for all, no policy needs to be asked."""
        if enough:
            self._turns.update(now, waiting=False)
            self._review.update(now, short=False)
            return {session.session_id: session.wanted_w for session in active}
        claims = [grants.claim(session, now, self._scale) for session in active]
        return grants.shares(self._policy, claims, self.budget, self._turns, self._review, now)

    def _grant(self, active: list[Session], targets: dict[str, int], live: Live, now: int) -> list[Session]:
        lowered = grants.lower(active, targets, now)
        for session in lowered:
            live.touch(session)
        sums = live.sums()
        seen_w = sum(map(draw.seen_overdraw_w, live)) if sums.overdraw_w else 0
        raised = grants.raise_(active, targets, self.budget.cap_w - sums.committed_w, seen_w)
        for session in active:
            grants.explain(session, targets[session.session_id], self.budget)
        return lowered + raised

    def note_committed(self, committed_w: int, now: int) -> int | None:
        """Remembers what is committed; once after a cut, how long it took until that was back under the limit."""
        self._most_w = committed_w
        if self._cut_ms is None or self._most_w > self.budget.limit_w:
            return None
        took_ms, self._cut_ms = now - self._cut_ms, None
        self._excused_until_ms = now
        return took_ms

    def account(self, since: int, to: int) -> None:
        """Adds the time over the limit from `since` to `to`, in which nothing changed."""
        since = max(since, self._excused_until_ms, self._resumed_until_ms)
        if to > since and self._most_w > self.budget.limit_w:
            self.over_limit_ms += to - since

    def limit_ends_ms(self) -> int | None:
        """When the limit in force ends by itself."""
        return self.limits.ends_at(self.budget.source)

    def next_event(self, now: int, anybody: bool) -> int | None:
        """When the power is to be shared anew by itself."""
        ramp = self._ramp.next_step(now) if anybody else None
        times = [self.limits.next_edge(now), self._turns.ends_ms, self._review.next_ms, ramp]
        return min([at for at in times if at is not None], default=None)

    def _budget_at(self, now: int, overdraw_w: int = 0) -> Budget:
        """What cars draw above confirmed grants is left free for them."""
        limit_w, source = self.limits.in_force(now)
        cap_w = self._ramp.cap_w(limit_w, now)
        return Budget(limit_w, source, max(0, cap_w - overdraw_w), ramped=cap_w < limit_w)

    def _note_cut(self, committed_w: int, before_w: int, now: int) -> None:
        """A cut below what is committed gives the cars their time to obey."""
        if self.budget.limit_w < before_w and committed_w > self.budget.limit_w:
            self._cut_ms = now
            self._excused_until_ms = now + OBEY_MS


def _shown(session: Session) -> tuple[object, ...]:
    return (session.state, session.granted_w, session.limit_reason, session.limit_source)
