"""One charge from its request to its answer.

An attempt says what to do next (`Ask`, `Resolve`, `Answer`, `Fail`); its caller does it and says what
came of it. Nothing here waits or sends, so a simulator and a model test drive the same code as the
router.

    NEW ------ place ---> ASKING ---- lost ----> RESOLVING -- fenced --> place again
     |                      |  ^                     |
     |                      |  +--- refused          +--- found ---> REPEATING or answered
     +-- key is known --> REPEATING -- replied --> DONE

Wherever the session that comes back was ended as the duplicate of another one, REPEATING goes on at that one.

The rule on doubt (exactly one session per key): after a call was sent, only a reply, a definite
refusal, the session or a fence may end the attempt at that substation. Until one of them no other is
asked, and the doubt outlives the call that caused it.

Times are wall milliseconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from msgspec import Struct

from balancer.desk import Desk, Doubt, Fenced, Found, Replied
from balancer.view import Reservation
from mesh.charge import Charge, Key
from mesh.errors import AttemptExpired, MeshError, Unavailable
from mesh.ids import substation_of
from mesh.model import ErrorReason

REPEAT = "repeat"
# A lost repeat is asked again after so long: its session exists, so nothing else can be done.
ASK_AGAIN_MS = 100
# What a caller is told to wait before it repeats a request whose outcome is not known.
UNKNOWN_RETRY_MS = 1_000
_UNREACHED_RETRY_MS = 1_000

# Answers that another substation would give as well, or that say that somebody else settles this attempt.
_FINAL = frozenset(
    {
        ErrorReason.INVALID_REQUEST,
        ErrorReason.KEY_REUSED,
        ErrorReason.ATTEMPT_EXPIRED,
        ErrorReason.ATTEMPT_FENCED,
    }
)
# A defect may have struck after the commit, whatever the contract says of its status.
_IN_DOUBT = frozenset({ErrorReason.OUTCOME_UNKNOWN, ErrorReason.INTERNAL})
# Of several refusals the caller hears the first of these: what goes away by itself comes first.
_MOST_USEFUL = (
    ErrorReason.OVERLOADED,
    ErrorReason.TOO_MANY_WAITING,
    ErrorReason.NO_CHARGE_POINT,
    ErrorReason.FLOOR_ABOVE_LIMIT,
    ErrorReason.NOT_ACCEPTING,
    ErrorReason.LEDGER_UNAVAILABLE,
    ErrorReason.NO_SUBSTATION,
    ErrorReason.SUBSTATION_UNREACHABLE,
)


# --- what came of a step ---------------------------------------------------------------------------

# As in `balancer.desk` and `pick`: a charge makes half a dozen, and a Struct takes a third of the time of a NamedTuple.


class Refused(Struct, frozen=True):
    """A status of ours came back; or none was asked for, as it has more calls from here than it can answer in time."""

    error: MeshError
    sent: bool = True


@dataclass(frozen=True, slots=True)
class Unreached:
    """There was no connection, and nothing was sent."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Sent, and what became of it is not known: broken connection, time-out, a status that is not ours."""


@dataclass(frozen=True, slots=True)
class Late:
    """The deadline is near."""


Outcome = Replied | Refused | Unreached | Lost | Found | Fenced | Late


# --- what to do next -------------------------------------------------------------------------------


class Placement(Struct, frozen=True):
    """Why a session is where it is; utilisation as demand over limit."""

    substation_id: str
    policy: str
    score: float = 0.0
    before: float = 0.0
    after: float = 0.0
    eligible: int = 0
    tried: int = 1


class Ask(Struct, frozen=True):
    """Send the request there, after a pause in milliseconds."""

    address: str
    substation_id: str
    pause_ms: int = 0


class Resolve(Struct, frozen=True):
    """Wait until that doubt is settled, or the deadline is near."""

    doubt: Doubt


class Answer(Struct, frozen=True):
    """Done: the `reply` of `Replied` or `Found`."""

    reply: Any
    placement: Placement
    repeated: bool


class Fail(Struct, frozen=True):
    """Done: this error."""

    error: MeshError


Step = Ask | Resolve | Answer | Fail


# --- one call --------------------------------------------------------------------------------------


# Both are text: a member of a plain Enum is hashed in Python, and each move looks one up.
class State(StrEnum):
    """Where a charge is in its life."""

    NEW = "new"
    ASKING = "asking"
    REPEATING = "repeating"
    RESOLVING = "resolving"
    DONE = "done"


class Event(StrEnum):
    """What can happen to it."""

    UNHEARD = "the key is new here"
    KNOWN = "the key has a session"
    DOUBTED = "the key is in doubt"
    REPLIED = "replied"
    SUPERSEDED = "a session was shown that was ended because its key has another one"
    REFUSED = "refused, another may be asked"
    REJECTED = "refused for good"
    UNREACHED = "not sent"
    LOST = "lost"
    FOUND_OURS = "the session was found, of this attempt or a later one"
    FOUND_OTHER = "a session was found, of an older attempt or not known of which"
    FENCED = "fenced"
    LATE = "late"


# What nearly every charge goes through. Python 3.11 looks a member of an Enum up by a call, each time.
_ASKING, _REPEATING, _DONE = State.ASKING, State.REPEATING, State.DONE
_UNHEARD, _REPLIED = Event.UNHEARD, Event.REPLIED


class IllegalMove(Exception):
    """An event that cannot happen in that state: a defect of the caller."""


class Attempt(Struct, eq=False):
    """One call. `parse` makes the valid charge, as of `now`, when one is needed; it may raise InvalidRequest."""

    _desk: Desk
    key: Key
    attempt_id: str
    _parse: Callable[[int], Charge]
    state: State = State.NEW
    # Nobody waits for the answer any more: what was sent stands, nothing more is sent.
    abandoned: bool = False
    _charge: Charge | None = None
    # Whom this call asked, to how many of them something was sent, and what they said. Tuples: nearly all have one
    # address and nothing else.
    _addresses: tuple[str, ...] = ()
    _sent: int = 0
    _refusals: tuple[MeshError, ...] = ()
    # Survivors that it was sent on to.
    _survivors: tuple[str, ...] = ()
    _asked: Ask | None = None
    _reservation: Reservation | None = None
    _epoch: int | None = None
    _placement: Placement | None = None

    def begin(self, now: int) -> Step:
        """The first step. A repeat goes to where its session is; a key in doubt is resolved first."""
        self._desk.budget.call(now)
        if self.key in self._desk.doubts:
            return self._move(Event.DOUBTED, None, now)
        known = self._desk.index.find(self.key) is not None
        return self._move(Event.KNOWN if known else _UNHEARD, None, now)

    def after(self, outcome: Outcome, now: int) -> Step:
        """The next step after what came of the last."""
        return self._move(self._event(outcome), outcome, now)

    def stands(self) -> bool:
        """Whether what it said may still be sent: to the life of the substation on which it was decided.

        A later life's complete snapshot, if it came before the call is sent, would settle a doubt of which it knows
        nothing. A repeat finds its session in every life.
        """
        if self.state is not _ASKING or self._epoch is None:
            return True
        assert self._asked is not None
        return self._desk.epoch_of(self._asked.address) == self._epoch

    def interrupted(self, now: int) -> Doubt | None:
        """The caller stops for a reason of its own. What was sent is in doubt; the doubt is returned."""
        if self.state is _ASKING:
            self._doubt(None, now)
            return self._desk.doubts[self.key]
        return None

    def _event(self, outcome: Outcome) -> Event:
        if isinstance(outcome, Replied) and not outcome.duplicate_of:  # as nearly always
            return _REPLIED
        match outcome:
            case Refused(error):
                if not error.definite or error.reason in _IN_DOUBT:
                    return Event.LOST
                return Event.REJECTED if error.reason in _FINAL else Event.REFUSED
            case Replied(duplicate_of=survivor) | Found(duplicate_of=survivor) if substation_of(survivor) is not None:
                return Event.SUPERSEDED
            case Found(attempt_id=attempt_id, reply=reply):
                return Event.FOUND_OURS if reply is not None and attempt_id >= self.attempt_id else Event.FOUND_OTHER
            case _:
                return _EVENTS[type(outcome)]

    def _move(self, event: Event, outcome: Outcome | None, now: int) -> Step:
        action = self._TRANSITIONS.get((self.state, event))
        if action is None:
            raise IllegalMove(f"{event} in {self.state}")
        return action(self, outcome, now)

    # Each action below does one move and sets the state that it leads to.

    def _place_again(self, now: int) -> Step:
        if not self.abandoned and self._desk.index.find(self.key) is not None:
            return self._repeat(None, now)  # another balancer was faster
        return self._place(None, now)

    def _place(self, _: Outcome | None, now: int) -> Step:
        if self.abandoned:
            return self._fail(_given_up())
        desk = self._desk
        charge = self._charge = self._charge or self._parse(now)
        if self._sent and not desk.budget.spend(now):
            return self._fail(self._most_useful())
        desk.view.tick(now)
        pick = desk.picker.pick(charge, now, self._addresses)
        if isinstance(pick, MeshError):
            return self._fail(self._most_useful(pick))
        address = pick.address
        self._reservation = desk.view.reserve(address, self.key, charge.max_w, now, pick.need)
        desk.ejections.sent(address, now)
        self._epoch = desk.epoch_of(address)
        self._addresses += (address,)
        self._sent += 1
        self._placement = Placement(
            pick.substation_id, pick.policy, pick.score, pick.before, pick.after, pick.eligible, len(self._addresses)
        )
        asked = self._asked = Ask(address, pick.substation_id)
        self.state = _ASKING
        return asked

    def _repeat(self, outcome: Outcome | None, now: int) -> Step:
        found = outcome.session_id if isinstance(outcome, Found) else ""
        where = self._desk.index.find(self.key)
        return self._repeat_at(where.substation_id if where else substation_of(found) or "")

    def _follow(self, outcome: Outcome | None, now: int) -> Step:
        """The index did not know yet that this session was ended for another: that one is the answer."""
        assert isinstance(outcome, Replied | Found)
        if isinstance(outcome, Replied):
            self._take(outcome, now)
        if self.abandoned:
            return self._fail(_given_up())
        survivor = outcome.duplicate_of
        if survivor in self._survivors:
            return self._fail(_unknown(f"its session {survivor} leads back to itself"))
        self._survivors += (survivor,)
        return self._repeat_at(substation_of(survivor) or "")

    def _repeat_at(self, substation_id: str) -> Step:
        address = self._desk.view.address_of(substation_id)
        self._placement = Placement(substation_id, REPEAT, tried=len(self._addresses) + 1)
        if address is None:
            return self._fail(_unknown(f"its session is on substation {substation_id}, which has not reported"))
        self._asked = Ask(address, substation_id)
        self.state = _REPEATING
        return self._asked

    def _ask_again(self, _: Outcome | None, now: int) -> Step:
        assert self._asked is not None
        if self.abandoned:
            return self._fail(_given_up())
        return Ask(self._asked.address, self._asked.substation_id, ASK_AGAIN_MS)

    def _answer(self, outcome: Outcome | None, now: int) -> Step:
        assert isinstance(outcome, Replied)
        assert self._placement is not None
        self._take(outcome, now)
        repeated = outcome.repeated or self.state is _REPEATING
        self.state = _DONE
        placement = Placement(self._placement.substation_id, REPEAT) if repeated else self._placement
        return Answer(outcome.reply, placement, repeated)

    def _take(self, reply: Replied, now: int) -> None:
        """What a reply tells, whatever the client will be told."""
        assert self._asked is not None
        self._desk.ejections.succeeded(self._asked.address, now)
        self._desk.replied(self.key, self._asked.address, self._reservation, reply, now)
        self._reservation = None

    def _next(self, outcome: Outcome | None, now: int) -> Step:
        """Definitely not admitted there: the next best."""
        assert self._asked is not None
        if isinstance(outcome, Refused):
            self._sent -= not outcome.sent
            self._refusals += (outcome.error,)
            self._answered(outcome.error, now)
        else:
            self._sent -= 1
            self._refusals += (_unreachable(self._asked.substation_id),)
            self._desk.ejections.failed(self._asked.address, now)
        self._release()
        return self._place_again(now)

    def _reject(self, outcome: Outcome | None, now: int) -> Step:
        assert isinstance(outcome, Refused)
        self._answered(outcome.error, now)
        self._release()
        return self._fail(outcome.error)

    def _answered(self, error: MeshError, now: int) -> None:
        assert self._asked is not None
        if error.reason is ErrorReason.OVERLOADED:
            self._desk.ejections.unsent(self._asked.address)  # alive, and no proof that it works
        elif isinstance(error, Unavailable):
            self._desk.ejections.failed(self._asked.address, now)
        else:
            self._desk.ejections.succeeded(self._asked.address, now)

    def _doubt(self, _: Outcome | None, now: int) -> Step:
        """Sent and not answered: whether it was admitted must be known before anything else is done."""
        assert self._asked is not None
        assert self._reservation is not None
        self._desk.ejections.failed(self._asked.address, now)
        doubt = Doubt(
            key=self.key,
            address=self._asked.address,
            substation_id=self._asked.substation_id,
            attempt_id=self.attempt_id,
            epoch=self._epoch,
            reservation=self._reservation,
        )
        self._reservation = None
        self._desk.doubts[self.key] = doubt
        return self._resolve(None, now)

    def _resolve(self, _: Outcome | None, now: int) -> Step:
        self.state = State.RESOLVING
        return Resolve(self._desk.doubts[self.key])

    def _fenced(self, _: Outcome | None, now: int) -> Step:
        """Certainly not admitted there. An attempt of an older call was fenced, or this one was."""
        if self._asked is not None:
            self._refusals += (_unreachable(self._asked.substation_id),)
        return self._place_again(now)

    def _out_of_time(self, _: Outcome | None, now: int) -> Step:
        """Not sent, and no time is left to send it."""
        assert self._asked is not None
        self._desk.ejections.unsent(self._asked.address)
        self._release()
        return self._fail(AttemptExpired(ErrorReason.ATTEMPT_EXPIRED, "no time was left to ask a substation"))

    def _answer_found(self, outcome: Outcome | None, now: int) -> Step:
        assert isinstance(outcome, Found)
        self.state = _DONE
        placement = self._placement or Placement(substation_of(outcome.session_id) or "", REPEAT)
        return Answer(outcome.reply, placement, repeated=placement.policy == REPEAT)

    def _unreached(self, _: Outcome | None, now: int) -> Step:
        assert self._asked is not None
        return self._fail(
            _unknown(f"its session is on substation {self._asked.substation_id}, which cannot be reached")
        )

    def _late(self, _: Outcome | None, now: int) -> Step:
        return self._fail(_unknown("a substation was asked and its answer is not known yet"))

    def _release(self) -> None:
        if self._reservation is not None:
            self._desk.view.release(self._reservation)
            self._reservation = None

    def _fail(self, error: MeshError) -> Fail:
        self.state = _DONE
        return Fail(error)

    def _most_useful(self, *more: MeshError) -> MeshError:
        return min((*self._refusals, *more), key=_usefulness)

    # An absent pair is an error.
    _TRANSITIONS: ClassVar[dict[tuple[State, Event], Callable[["Attempt", Outcome | None, int], Step]]] = {
        (State.NEW, Event.UNHEARD): _place,
        (State.NEW, Event.KNOWN): _repeat,
        (State.NEW, Event.DOUBTED): _resolve,
        (State.ASKING, Event.REPLIED): _answer,
        (State.ASKING, Event.SUPERSEDED): _follow,
        (State.ASKING, Event.REFUSED): _next,
        (State.ASKING, Event.UNREACHED): _next,
        (State.ASKING, Event.REJECTED): _reject,
        (State.ASKING, Event.LOST): _doubt,
        (State.ASKING, Event.LATE): _out_of_time,
        (State.REPEATING, Event.REPLIED): _answer,
        (State.REPEATING, Event.SUPERSEDED): _follow,
        (State.REPEATING, Event.REFUSED): _reject,
        (State.REPEATING, Event.REJECTED): _reject,
        (State.REPEATING, Event.UNREACHED): _unreached,
        (State.REPEATING, Event.LOST): _ask_again,
        (State.REPEATING, Event.LATE): _late,
        (State.RESOLVING, Event.FOUND_OURS): _answer_found,
        (State.RESOLVING, Event.FOUND_OTHER): _repeat,
        (State.RESOLVING, Event.SUPERSEDED): _follow,
        (State.RESOLVING, Event.FENCED): _fenced,
        (State.RESOLVING, Event.LATE): _late,
    }


def _usefulness(error: MeshError) -> tuple[int, float]:
    rank = _MOST_USEFUL.index(error.reason) if error.reason in _MOST_USEFUL else len(_MOST_USEFUL)
    return rank, float("inf") if error.retry_after_ms is None else error.retry_after_ms


def _unknown(why: str) -> MeshError:
    return Unavailable(
        ErrorReason.OUTCOME_UNKNOWN, f"{why}; repeat with the same request_id", retry_after_ms=UNKNOWN_RETRY_MS
    )


def _given_up() -> MeshError:
    """Nobody hears this one. Made anew each time: an error that is raised again keeps the frames of every raise."""
    return Unavailable(ErrorReason.NO_SUBSTATION, "the call was given up")


def _unreachable(substation_id: str) -> MeshError:
    return Unavailable(
        ErrorReason.SUBSTATION_UNREACHABLE, f"substation {substation_id} cannot be reached", _UNREACHED_RETRY_MS
    )


_EVENTS: dict[type[Outcome], Event] = {
    Replied: Event.REPLIED,
    Unreached: Event.UNREACHED,
    Lost: Event.LOST,
    Fenced: Event.FENCED,
    Late: Event.LATE,
}
