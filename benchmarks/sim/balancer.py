"""One balancer: the production desk and attempts, driven by the loop as the router drives them in real time.

It does what an attempt says over wires to the substations, settles doubts by asking until they are settled,
ends duplicates, and lets a second call with a key that is under way wait for the first.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Protocol

from msgspec.structs import replace

from balancer.admissions import Duplicate
from balancer.attempt import Answer, Ask, Attempt, Fail, Late, Outcome, Resolve, Step, Unreached
from balancer.desk import Desk, Doubt, Fenced, Found, Settled
from benchmarks.sim.loop import Loop
from mesh import ids
from mesh.charge import Charge, Key
from mesh.errors import Unavailable
from mesh.model import ErrorReason

Reply = Callable[[Answer | Fail], None]

# Pauses between two questions about the same doubt or duplicate.
_FIRST_PAUSE_MS, _LONGEST_PAUSE_MS = 20, 500
_UNDER_WAY = Fail(Unavailable(ErrorReason.OUTCOME_UNKNOWN, "an earlier call is still under way", 1_000))


class Wire(Protocol):
    """The way to one substation. Each call ends with `done`, once."""

    @property
    def ready(self) -> bool:
        """Whether a call made now leaves at once."""
        ...

    def charge(self, charge: Charge, timeout_ms: int | None, done: Callable[[Outcome], None]) -> None: ...

    def resolve(self, doubt: Doubt, done: Callable[[Found | Fenced | None], None]) -> None:
        """None: it could not be asked."""
        ...

    def end_duplicate(self, duplicate: Duplicate, done: Callable[[bool], None]) -> None: ...


@dataclass(eq=False, slots=True)
class _Call:
    """One charge under way. `deadline_ms` None: it has all the time there is."""

    attempt: Attempt
    charge: Charge
    reply: Reply
    deadline_ms: int | None


@dataclass(slots=True)
class Tally:
    """What balancers settled, over all their lives."""

    doubts: int = 0
    duplicates_ended: int = 0


class Balancer:
    """One life of a balancer. What reaches it after its end it does not hear."""

    def __init__(self, loop: Loop, desk: Desk, wires: Mapping[str, Wire], rng: Random, tally: Tally) -> None:
        self._loop = loop
        self.desk = desk
        self._wires = wires
        self._rng = rng
        self._tally = tally
        self.dead = False
        # Those that wait for a call with the same key.
        self._flights: dict[Key, list[Callable[[], None]]] = {}
        self._settling: dict[Doubt, list[Callable[[Outcome], None]]] = {}
        self._ending: set[str] = set()

    # --- charges ----------------------------------------------------------------------------------

    def charge(self, charge: Charge, reply: Reply, deadline_ms: int | None = None) -> None:
        """Places a car. The first hop names the attempt."""
        if self.dead:
            return
        now = self._loop.now
        if (waiting := self._flights.get(charge.key)) is not None:
            waiting.append(partial(self.charge, charge, reply, deadline_ms))
            return
        if deadline_ms is not None and now >= deadline_ms:
            reply(_UNDER_WAY)
            return
        if not charge.attempt_id:
            charge = replace(charge, attempt_id=ids.uuid7(now, self._rng))
        self._flights[charge.key] = []
        call = _Call(Attempt(self.desk, charge.key, charge.attempt_id, lambda _: charge), charge, reply, deadline_ms)
        self._do(call, call.attempt.begin(now))

    def _do(self, call: _Call, step: Step) -> None:
        match step:
            case Ask(pause_ms=pause_ms):
                if pause_ms:
                    self._loop.at(self._loop.now + pause_ms, partial(self._ask, call, step))
                else:
                    self._ask(call, step)
            case Resolve(doubt):
                self._resolve(call, doubt)
            case Answer() | Fail():
                self._land(call, step)

    def _ask(self, call: _Call, step: Ask) -> None:
        # At the moment of the choice: it must go to the life of the substation that the desk knows.
        wire, left_ms = self._wires[step.address], self._left_ms(call)
        if left_ms is not None and left_ms <= 0:
            self._after(call, Late())
        elif not wire.ready:
            self._after(call, Unreached())
        else:
            wire.charge(call.charge, left_ms, partial(self._after, call))

    def _left_ms(self, call: _Call) -> int | None:
        return None if call.deadline_ms is None else call.deadline_ms - self._loop.now

    def _after(self, call: _Call, outcome: Outcome) -> None:
        if not self.dead:
            self._do(call, call.attempt.after(outcome, self._loop.now))

    def _land(self, call: _Call, step: Answer | Fail) -> None:
        call.reply(step)
        for again in self._flights.pop(call.charge.key):
            again()

    # --- doubts -----------------------------------------------------------------------------------

    def _resolve(self, call: _Call, doubt: Doubt) -> None:
        """The call goes on when the doubt is settled or its time is over; the doubt is asked about until then."""
        go_on = _once(partial(self._after, call))
        if (waiting := self._settling.get(doubt)) is not None:
            waiting.append(go_on)
        else:
            self._settling[doubt] = [go_on]
            self._ask_about(doubt, _FIRST_PAUSE_MS)
        if call.deadline_ms is not None:
            self._loop.at(call.deadline_ms, partial(go_on, Late()))

    def _ask_about(self, doubt: Doubt, pause_ms: int) -> None:
        if self.dead or doubt not in self._settling:
            return
        wire = self._wires[self.desk.view.address_of(doubt.substation_id) or doubt.address]
        answered = partial(self._told_about, doubt, pause_ms)
        if wire.ready:
            wire.resolve(doubt, answered)
        else:
            answered(None)

    def _told_about(self, doubt: Doubt, pause_ms: int, outcome: Found | Fenced | None) -> None:
        if self.dead or doubt not in self._settling:
            return
        if outcome is not None:
            self._settled(self.desk.settle(doubt, outcome, self._loop.now))
            return
        self._pause(pause_ms, partial(self._ask_about, doubt))

    def _pause(self, pause_ms: int, then: Callable[[int], None]) -> None:
        following = min(2 * pause_ms, _LONGEST_PAUSE_MS)
        self._loop.at(self._loop.now + round(pause_ms * self._rng.uniform(0.5, 1.0)), partial(then, following))

    def _settled(self, settled: Settled) -> None:
        self._tally.doubts += 1
        for go_on in self._settling.pop(settled.doubt, []):
            go_on(settled.outcome)

    # --- what streams tell ------------------------------------------------------------------------

    def told(self, settled: Iterable[Settled], keys: Iterable[Key]) -> None:
        """The admissions stream has settled these doubts and told of these keys."""
        for one in settled:
            self._settled(one)
        for duplicate in self.desk.duplicates(keys):
            if duplicate.session_id not in self._ending:
                self._ending.add(duplicate.session_id)
                self._end_duplicate(duplicate.key, duplicate.session_id, _FIRST_PAUSE_MS)

    def _end_duplicate(self, key: Key, session_id: str, pause_ms: int) -> None:
        """Until the index says that it ended or is the one to stay, which may have changed."""
        duplicate = next((one for one in self.desk.duplicates([key]) if one.session_id == session_id), None)
        if self.dead or duplicate is None:
            self._ending.discard(session_id)
            return
        address = self.desk.view.address_of(duplicate.substation_id)
        answered = partial(self._told_of_end, duplicate, pause_ms)
        if address is not None and self._wires[address].ready:
            self._wires[address].end_duplicate(duplicate, answered)
        else:
            answered(False)

    def _told_of_end(self, duplicate: Duplicate, pause_ms: int, ended: bool) -> None:
        if ended:
            self._ending.discard(duplicate.session_id)
            self._tally.duplicates_ended += 1
        else:
            self._pause(pause_ms, partial(self._end_duplicate, duplicate.key, duplicate.session_id))


def _once(action: Callable[[Outcome], None]) -> Callable[[Outcome], None]:
    """Calls it the first time only."""
    left = [action]

    def call(outcome: Outcome) -> None:
        if left:
            left.pop()(outcome)

    return call
