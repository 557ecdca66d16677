"""What a substation shows: sessions as last committed, the stream of admissions, and who waits for news of either."""

import asyncio
from collections import deque
from collections.abc import Collection, Iterable
from itertools import takewhile

from mesh.errors import NotFound
from mesh.model import ErrorReason
from substation.sessions import Session, kept

# Entries of the stream of admissions that can be resumed from.
_ADMISSIONS_HELD = 10_000


class Shown:
    """Sessions, each as it was in the last commit; only the measured power is as of now.

    Copies of those that lived then; of one that had ended the station's own, as it does not change any more.
    """

    def __init__(self, sessions: Iterable[Session]) -> None:
        self._sessions = {session.session_id: kept(session) for session in sessions}
        self._admissions: deque[Session] = deque(maxlen=_ADMISSIONS_HELD)
        self._watchers: dict[str, set[asyncio.Event]] = {}
        # Those who wait for news of the load, and of the admissions.
        self._listeners: set[asyncio.Event] = set()
        self._readers: set[asyncio.Event] = set()
        # Energy delivered since the start, as committed.
        self.delivered_mj = 0

    # --- reading ---------------------------------------------------------------------------------------

    def get(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    def session(self, session_id: str) -> Session:
        """A session. NotFound."""
        shown = self._sessions.get(session_id)
        if shown is None:
            raise NotFound(ErrorReason.SESSION_NOT_FOUND, f"no session {session_id[:80]!r} here")
        return shown

    def sessions(self) -> Collection[Session]:
        """All of them, also those that ended within 24 h."""
        return self._sessions.values()

    def admissions_after(self, sequence: int) -> list[Session] | None:
        """Entries after `sequence`, in order; None when they are no longer all held."""
        held = self._admissions
        if len(held) == held.maxlen and sequence < held[0].admission_sequence:
            return None
        news = takewhile(lambda session: session.admission_sequence > sequence, reversed(held))
        return list(news)[::-1]

    def admission_snapshot(self) -> tuple[list[Session], int]:
        """All sessions, and the position in the stream up to which they are complete."""
        last = self._admissions[-1].admission_sequence if self._admissions else 0
        return list(self._sessions.values()), last

    # --- waiting for news ------------------------------------------------------------------------------

    def watch(self, session_id: str) -> asyncio.Event:
        """An event that is set whenever the session shows something new; give it back with `unwatch`. NotFound."""
        self.session(session_id)
        event = asyncio.Event()
        self._watchers.setdefault(session_id, set()).add(event)
        return event

    def unwatch(self, session_id: str, event: asyncio.Event) -> None:
        watchers = self._watchers.get(session_id, set())
        watchers.discard(event)
        if not watchers:
            self._watchers.pop(session_id, None)

    def listen(self) -> asyncio.Event:
        """An event that is set whenever the load has news; give it back with `unlisten`."""
        event = asyncio.Event()
        self._listeners.add(event)
        return event

    def read_admissions(self) -> asyncio.Event:
        """The same for the admissions."""
        event = asyncio.Event()
        self._readers.add(event)
        return event

    def unlisten(self, event: asyncio.Event) -> None:
        self._listeners.discard(event)
        self._readers.discard(event)

    def tell_listeners(self) -> None:
        """The load has news."""
        for event in self._listeners:
            event.set()

    def _tell_readers(self) -> None:
        for event in self._readers:
            event.set()

    def tell_all(self) -> None:
        """Wakes everybody: the process stops."""
        self.tell_listeners()
        self._tell_readers()
        for session_id in self._watchers:
            self._notify(session_id)

    def _notify(self, session_id: str) -> None:
        for event in self._watchers.get(session_id, ()):
            event.set()

    # --- writing ---------------------------------------------------------------------------------------

    def publish(self, live: Iterable[Session], rows: list[Session]) -> None:
        """Shows what a commit wrote: live sessions, and in their order those with an entry in the admissions."""
        for session in (*live, *(session for session in rows if not session.live)):
            before = self._sessions.get(session.session_id)
            self.delivered_mj += session.delivered_mj - (before.delivered_mj if before else 0)
            self._sessions[session.session_id] = session
            if session.session_id in self._watchers and (before is None or _news(before) != _news(session)):
                self._notify(session.session_id)
        self._admissions.extend(rows)
        if rows:
            self._tell_readers()

    def measured(self, session_id: str, power_w: int) -> None:
        """Power is shown as it is measured; only registers wait for the disk."""
        shown = self._sessions.get(session_id)
        if shown is not None and shown.live:
            shown.measured_w = power_w
            if session_id in self._watchers:
                self._notify(session_id)

    def keep_only(self, session_ids: Iterable[str]) -> None:
        """Lets go of all others."""
        self._sessions = {name: self._sessions[name] for name in session_ids if name in self._sessions}


def _news(session: Session) -> tuple[object, ...]:
    """What a watcher is told at once; the register it is shown once a second."""
    return (
        session.state,
        session.granted_w,
        session.measured_w,
        session.limit_reason,
        session.limit_source,
        session.attempt_id,
        session.ended_ms,
    )
