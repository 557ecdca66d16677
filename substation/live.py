"""The live sessions, and what is asked of all of them at once: kept up with every change, not looked up each time.

Whoever changes a session says so with `touch`. What then costs a look is the sessions that were touched since the
last one, however many there are besides.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import heapify, heappop, heappush
from operator import itemgetter

from mesh.model import LimitReason
from substation.load import NOTHING, Part, Sums, part, planned, required_w
from substation.sessions import Session

# Of the entries in the heap so many may be of the past for each that counts.
_SLACK = 4


class Live:
    """Sessions by id, in the order of their admission. `due_of` says when something is due for a session next."""

    def __init__(self, due_of: Callable[[Session], int | None]) -> None:
        self._due_of = due_of
        self._sessions: dict[str, Session] = {}
        self._sums = Sums()
        self._parts: dict[str, Part] = {}
        # Why they have less than they could take, of those who have.
        self._curtailed: dict[str, LimitReason] = {}
        # With an amount and a departure.
        self._planned: dict[str, Session] = {}
        # When something is due next, and for whom: those due together come in the order of their admission.
        self._due: dict[str, int] = {}
        self._heap: list[tuple[int, int, str]] = []
        self._numbers: dict[str, int] = {}
        self._count = 0
        # Touched just now; then those touched since the sums were added up, since the power was shared, and since the
        # last `take_changed`.
        self._touched: dict[str, Session] = {}
        self._stale: dict[str, Session] = {}
        self._unsettled: dict[str, Session] = {}
        self._changed: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    # --- changes ---------------------------------------------------------------------------------------

    def add(self, session: Session) -> None:
        name = session.session_id
        self._sessions[name] = session
        self._count += 1
        self._numbers[name] = self._count
        if planned(session):
            self._planned[name] = session
        self.touch(session)

    def remove(self, session: Session) -> None:
        """Of one that is not here nothing is removed."""
        name = session.session_id
        if self._sessions.pop(name, None) is None:
            return
        del self._numbers[name]
        self._due.pop(name, None)
        self._planned.pop(name, None)
        self._curtailed.pop(name, None)
        for touched in (self._touched, self._stale, self._unsettled, self._changed):
            touched.pop(name, None)
        self._sums.replace(self._parts.pop(name, NOTHING), NOTHING)

    def touch(self, session: Session) -> None:
        """It is about to change, or has just changed."""
        self._touched[session.session_id] = session

    def touch_all(self) -> None:
        self._touched.update(self._sessions)

    def _spread(self) -> None:
        """Tells all who look at what was touched: they look less often than a session is touched."""
        if self._touched:
            for touched in (self._stale, self._unsettled, self._changed):
                touched.update(self._touched)
            self._touched.clear()

    def take_changed(self) -> Collection[Session]:
        """Those touched since this was asked the last time."""
        self._spread()
        changed, self._changed = self._changed, {}
        return changed.values()

    def take_unsettled(self) -> Collection[Session]:
        """Those touched since this was asked the last time."""
        self._spread()
        unsettled, self._unsettled = self._unsettled, {}
        return unsettled.values()

    # --- what follows ----------------------------------------------------------------------------------

    def sums(self) -> Sums:
        """Of all of them as they are now; the next call may change what was returned."""
        self._look()
        self._sums.live = len(self._sessions)
        return self._sums

    def curtailed(self) -> Collection[LimitReason]:
        """Why those active ones have less than they could take who have; the next change changes what was returned."""
        self._look()
        return self._curtailed.values()

    def required_w(self, now: int, scale: int) -> int:
        """The average power that brings all of them their energy by their departures."""
        total = self.sums().required_w
        return total + sum([required_w(session, now, scale) for session in self._planned.values() if session.active])

    def next_due(self) -> int | None:
        """When something is due for one of them next, in wall milliseconds."""
        self._look()
        heap, due = self._heap, self._due
        while heap:
            at, _, name = heap[0]
            if due.get(name) == at:
                return at
            heappop(heap)
        return None

    def take_due(self, at: int) -> Iterable[Session]:
        """Those for whom something is due by then, once; what is due for them after that is found anew."""
        self._look()
        taken = []
        while self._heap and self._heap[0][0] <= at:
            due, number, name = heappop(self._heap)
            if self._due.get(name) == due:
                del self._due[name]
                taken.append((number, self._sessions[name]))
        sessions = [session for _, session in sorted(taken, key=itemgetter(0))]
        for session in sessions:
            self.touch(session)
        return sessions

    def _look(self) -> None:
        self._spread()
        if not self._stale:
            return
        stale, self._stale = self._stale, {}
        parts, curtailed = self._parts, self._curtailed
        for name, session in stale.items():
            now = part(session)
            self._sums.replace(parts.get(name, NOTHING), now)
            parts[name] = now
            if session.limit_reason and session.active:
                curtailed[name] = session.limit_reason
            elif name in curtailed:
                del curtailed[name]
            self._note_due(name, self._due_of(session))
        if len(self._heap) > _SLACK * len(self._due) + 64:
            self._heap = [(at, self._numbers[name], name) for name, at in self._due.items()]
            heapify(self._heap)

    def _note_due(self, name: str, at: int | None) -> None:
        if at is None:
            self._due.pop(name, None)
        elif self._due.get(name) != at:
            self._due[name] = at
            heappush(self._heap, (at, self._numbers[name], name))
