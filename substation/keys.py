"""Which request has which session, and which attempts are refused: the memory behind "never double"."""

from collections.abc import Iterable
from operator import itemgetter

from mesh.charge import Key
from mesh.errors import AttemptFenced, PreconditionFailed
from mesh.model import ErrorReason
from substation.sessions import Session

# How long a key, its session and its fence are remembered after the end.
REMEMBER_MS = 24 * 3_600_000


class Keys:
    """Sessions by key, and fences: the highest attempt at a key that was resolved as not admitted."""

    def __init__(self, sessions: Iterable[Session], fences: Iterable[tuple[Key, str, int]]) -> None:
        self._sessions = {session.charge.key: session for session in sessions}
        # In the order of their times, so that the oldest are forgotten first.
        self._fences = {key: (attempt_id, at) for key, attempt_id, at in sorted(fences, key=itemgetter(2))}

    def get(self, key: Key) -> Session | None:
        return self._sessions.get(key)

    def add(self, session: Session) -> None:
        self._sessions[session.charge.key] = session

    def remove(self, session: Session) -> None:
        if self._sessions.get(session.charge.key) is session:
            del self._sessions[session.charge.key]

    def same_request(self, key: Key, body: bytes) -> Session:
        """The session of a known key. PreconditionFailed when it was for another request."""
        session = self._sessions[key]
        if session.charge.body != body:
            message = f"request_id {key.request_id!r} was used for another request"
            raise PreconditionFailed(ErrorReason.KEY_REUSED, message)
        return session

    def check_fence(self, key: Key, attempt_id: str) -> None:
        """AttemptFenced when this attempt or a later one was resolved as not admitted."""
        fence = self._fences.get(key)
        if fence and attempt_id <= fence[0]:
            raise AttemptFenced(ErrorReason.ATTEMPT_FENCED, "this attempt was resolved as not admitted")

    def fence(self, key: Key, attempt_id: str, now: int) -> str:
        """Refuses this attempt and all before it from now on; returns the highest that is refused."""
        highest = max(attempt_id, self._fences.pop(key, ("", 0))[0])
        self._fences[key] = (highest, now)
        return highest

    def forget_fences(self, now: int) -> None:
        """Drops those that are 24 h old."""
        while self._fences:
            key, (_, at) = next(iter(self._fences.items()))
            if at > now - REMEMBER_MS:
                break
            del self._fences[key]
