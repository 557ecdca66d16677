"""Who is let in: so many calls at once, and only those that will be served in half of the time they have.

How long a call will wait follows from what is seen here: the calls in flight before it, times the time between two
that were served lately (Little's law), whatever it is that holds them up, here or at the next hop. Who is refused
hears at once, while nothing was done for it, and when those before it should have been served.

A pause of the process or the machine is one long time between two, and says nothing of how fast calls are served after
it. So no time counts for more than a few times the longest before it: a pause is one slow group of replies, however
long it was, and what is slower from now on shows within a few groups.

Times are seconds of a monotonic clock.
"""

import asyncio
from random import Random

from mesh.clock import seconds
from mesh.errors import AttemptExpired, MeshError, Refused
from mesh.model import ErrorReason

# Waiting may take this part of a caller's time; the rest is for the way there and back, and for the next hop's work.
_MOST_WAITING = 0.5
# Fewer than this are no queue: the time between two of them says nothing of what could be served.
_A_QUEUE = 16
# How much the latest call counts for. Replies come in groups, as a ledger commits in groups.
_WEIGHT = 1 / 64
# No time between two counts for more than so many times the longest lately, which is at least what a commit may take.
_MOST_GROWTH = 4
_A_COMMIT_S = 0.01
# How much of the longest is left with each call: it outlives a group, in which the others are next to nothing.
_FADING = 1 - 1 / 1024
_LEAST_RETRY_S, _MOST_RETRY_S = 0.1, 5.0


class Admission:
    """Lets in at most `most` calls at once. Each that `enter` let in is given back to `leave`."""

    def __init__(self, most: int, rng: Random) -> None:
        self.most = most
        self.in_flight = 0
        # Set when the server stops: who is here may stay until all is answered, and should ask elsewhere from now on.
        self.leaving = asyncio.Event()
        self._rng = rng
        # Average time between two served calls while there was a queue; 0 before there ever was one.
        self._gap_s = 0.0
        # The longest that counted lately.
        self._longest_s = _A_COMMIT_S
        # When the last one was served; None when there has been no queue since.
        self._served_at: float | None = None

    @property
    def wait_s(self) -> float:
        """How long those that are here now will take."""
        return self.in_flight * self._gap_s if self.in_flight >= _A_QUEUE else 0.0

    def enter(self, left_s: float | None) -> None:
        """Counts the call in. `left_s`: its caller's time, or None for any. AttemptExpired, or Refused (OVERLOADED)."""
        if left_s is not None and left_s <= 0:
            raise expired()
        if self.in_flight >= self.most or (left_s is not None and self.wait_s > left_s * _MOST_WAITING):
            raise self.overloaded()
        self.in_flight += 1

    def leave(self, now: float, *, served: bool) -> None:
        """Counts it out. `served`: it was answered, if only with a refusal; what nobody answered says nothing."""
        queued = self.in_flight >= _A_QUEUE
        self.in_flight -= 1
        if served and queued and self._served_at is not None:
            self._count(now - self._served_at)
        if served or not queued:
            self._served_at = now if queued else None

    def _count(self, gap_s: float) -> None:
        if gap_s < self._longest_s:  # as nearly always
            self._longest_s = max(gap_s, self._longest_s * _FADING, _A_COMMIT_S)
        else:
            gap_s = self._longest_s = min(gap_s, _MOST_GROWTH * self._longest_s)
        self._gap_s += (gap_s - self._gap_s) * _WEIGHT

    def admitted(self, left_s: float | None) -> "_Admitted":
        """For `with`: `enter` and `leave` around a call that fails with a MeshError or not at all."""
        return _Admitted(self, left_s)

    def overloaded(self) -> Refused:
        """The refusal. With jitter, so that those who were refused together do not come back together."""
        retry_s = min(max(self.wait_s, _LEAST_RETRY_S), _MOST_RETRY_S) * self._rng.uniform(1.0, 1.5)
        message = f"{self.in_flight} calls are being served, more than can be in time: come back later"
        return Refused(ErrorReason.OVERLOADED, message, round(1000 * retry_s))


class _Admitted:
    """One call. A class, as a generator is twice the work, and every single call has one."""

    __slots__ = ("_admission", "_left_s")

    def __init__(self, admission: Admission, left_s: float | None) -> None:
        self._admission = admission
        self._left_s = left_s

    def __enter__(self) -> None:
        self._admission.enter(self._left_s)

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        served = error is None or (isinstance(error, MeshError) and error.definite)
        self._admission.leave(seconds(), served=served)


class Bound:
    """At most `most` of what is neither short nor queued, such as streams. For `with`; Refused (OVERLOADED)."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._open = 0

    def __enter__(self) -> None:
        if self._open >= self._most:
            message = f"{self._open} {self._what} are open, and that is the most"
            raise Refused(ErrorReason.OVERLOADED, message, round(1000 * _LEAST_RETRY_S * 10))
        self._open += 1

    def __exit__(self, *_: object) -> None:
        self._open -= 1


def expired() -> AttemptExpired:
    """For a call that nobody waits for any more: nothing was done for it."""
    return AttemptExpired(ErrorReason.ATTEMPT_EXPIRED, "the caller's time was over before anything was done")
