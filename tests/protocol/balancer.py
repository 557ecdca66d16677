"""A balancer of the model: the production desk and attempts, driven by messages as the router drives them.

Nothing happens by itself: `timers` does what the router does after its pauses, `expire` what it does when time is over.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol, TypeVar

from balancer.admissions import Duplicate, Entry
from balancer.attempt import Answer, Ask, Attempt, Fail, Late, Lost, Outcome, Resolve, Step, Unreached
from balancer.desk import Desk, Doubt, Fenced, Found, Settled
from balancer.view import Load
from gridmesh.v1 import charging_pb2
from mesh.charge import Key
from mesh.errors import Unavailable
from mesh.model import ErrorReason
from mesh.requests import key_of, parse_charge

T = TypeVar("T")

ASK_TIMEOUT_MS = 2_000


class Wire(Protocol):
    """The way to one substation; every call ends with `done`, once or never."""

    @property
    def ready(self) -> bool: ...

    def charge(self, request: charging_pb2.ChargeRequest, done: Callable[[Outcome], None]) -> None: ...

    def resolve(self, doubt: Doubt, done: Callable[[Found | Fenced | None], None]) -> None: ...

    def end_duplicate(self, duplicate: Duplicate, done: Callable[[bool], None]) -> None: ...


@dataclass(eq=False, slots=True)
class Flight:
    """One call of a client that is under way."""

    attempt: Attempt
    request: charging_pb2.ChargeRequest
    deadline_ms: int
    reply: Callable[[Answer | Fail], None]
    # The call or the doubt that it waits for, or the question that it asks again after a pause.
    pending: "Pending | None" = None
    doubt: Doubt | None = None
    paused: Ask | None = None


@dataclass(eq=False, slots=True)
class Pending:
    """A call to a substation. What comes after its end is not heard."""

    address: str
    deadline_ms: int
    lost: Callable[[], None]
    over: bool = False


@dataclass(slots=True)
class Watch:
    """What the model's checks are told."""

    asked: Callable[["Balancer", str, Flight], None]
    heard: Callable[["Balancer", str, Key, Outcome], None]
    # By asking, or by the admissions.
    settled: Callable[["Balancer", Settled, bool], None]
    answered: Callable[[Flight, Answer], None]


@dataclass(eq=False)
class Balancer:
    """One life of a balancer; what reaches it after its end it does not hear."""

    addresses: tuple[str, ...]
    offset_ms: int
    rng: Random
    watch: Watch
    wires: dict[str, Wire] = field(default_factory=dict)
    now: int = 0
    dead: bool = False

    def __post_init__(self) -> None:
        self.desk = Desk(self.addresses, 1_000, self.rng)
        self.flights: dict[Key, Flight] = {}
        self.queue: list[Flight] = []
        self.pending: list[Pending] = []
        # Each with whether a question about it is under way.
        self.settling: dict[Doubt, bool] = {}
        self.ending: dict[str, tuple[Key, bool]] = {}

    @property
    def idle(self) -> bool:
        return not (self.flights or self.queue or self.settling or self.ending)

    # --- charges ---------------------------------------------------------------------------------------

    def charge(
        self, request: charging_pb2.ChargeRequest, timeout_ms: int, reply: Callable[[Answer | Fail], None]
    ) -> None:
        key = key_of(request)
        attempt = Attempt(self.desk, key, request.attempt_id, lambda now: parse_charge(request, key, now))
        self.queue.append(Flight(attempt, request, self.now + timeout_ms, reply))
        self._take_off()

    def _take_off(self) -> None:
        """One flight per key."""
        late = [flight for flight in self.queue if flight.deadline_ms <= self.now]
        self.queue = [flight for flight in self.queue if flight not in late]
        for one in late:
            one.reply(Fail(Unavailable(ErrorReason.OUTCOME_UNKNOWN, "an earlier call is under way", 1_000)))
        # What takes off may land at once, and let the next take off.
        while (flight := next((f for f in self.queue if f.attempt.key not in self.flights), None)) is not None:
            self.queue.remove(flight)
            self.flights[flight.attempt.key] = flight
            self._do(flight, flight.attempt.begin(self.now))

    def _do(self, flight: Flight, step: Step) -> None:
        match step:
            case Ask(pause_ms=0):
                self._ask(flight, step)
            case Ask():
                flight.paused = step
            case Resolve(doubt):
                flight.doubt = doubt
                self.settling.setdefault(doubt, False)
            case Answer() | Fail():
                del self.flights[flight.attempt.key]
                if isinstance(step, Answer):
                    self.watch.answered(flight, step)
                flight.reply(step)
                self._take_off()

    def _ask(self, flight: Flight, step: Ask) -> None:
        flight.paused = None
        if flight.deadline_ms <= self.now:
            self._after(flight, Late())
        elif not self.wires[step.address].ready:
            self._after(flight, Unreached())
        else:
            self.watch.asked(self, step.address, flight)
            flight.pending = Pending(step.address, flight.deadline_ms, lambda: self._after(flight, Lost()))
            self.wires[step.address].charge(
                flight.request, self._once(flight.pending, lambda outcome: self._heard(flight, step.address, outcome))
            )

    def _heard(self, flight: Flight, address: str, outcome: Outcome) -> None:
        self.watch.heard(self, address, flight.attempt.key, outcome)
        self._after(flight, outcome)

    def _after(self, flight: Flight, outcome: Outcome) -> None:
        flight.pending = flight.doubt = None
        self._do(flight, flight.attempt.after(outcome, self.now))

    def _once(self, pending: Pending, then: Callable[[T], None]) -> Callable[[T], None]:
        self.pending.append(pending)

        def done(outcome: T) -> None:
            if not pending.over and not self.dead:
                pending.over = True
                self.pending.remove(pending)
                then(outcome)

        return done

    # --- doubts and duplicates -------------------------------------------------------------------------

    def timers(self) -> None:
        """Every pause is over: what is not under way is asked again."""
        for flight in list(self.flights.values()):
            if flight.paused is not None and self.flights.get(flight.attempt.key) is flight:
                self._ask(flight, flight.paused)
        for doubt in [doubt for doubt, asked in self.settling.items() if not asked]:
            self._ask_about(doubt)
        for session_id in [session_id for session_id, (_, asked) in self.ending.items() if not asked]:
            self._ask_to_end(session_id)

    def _ask_about(self, doubt: Doubt) -> None:
        address = self.desk.view.address_of(doubt.substation_id) or doubt.address
        if not self.wires[address].ready:
            return
        self.settling[doubt] = True

        def heard(outcome: Found | Fenced | None) -> None:
            if doubt in self.settling:
                self.settling[doubt] = False
                if outcome is not None:
                    self._settled(self.desk.settle(doubt, outcome, self.now), asked=True)

        pending = Pending(address, self.now + ASK_TIMEOUT_MS, lambda: heard(None))
        self.wires[address].resolve(doubt, self._once(pending, heard))

    def _settled(self, settled: Settled, *, asked: bool = False) -> None:
        # A doubt that the admissions settle may not have been taken up yet.
        self.settling.pop(settled.doubt, None)
        self.watch.settled(self, settled, asked)
        for flight in [one for one in self.flights.values() if one.doubt is settled.doubt]:
            self._after(flight, settled.outcome)

    def _told(self, settled: list[Settled], keys: list[Key]) -> None:
        for one in settled:
            self._settled(one)
        for duplicate in self.desk.duplicates(keys):
            self.ending.setdefault(duplicate.session_id, (duplicate.key, False))

    def _ask_to_end(self, session_id: str) -> None:
        key, _ = self.ending[session_id]
        duplicate = next((one for one in self.desk.duplicates([key]) if one.session_id == session_id), None)
        if duplicate is None:
            del self.ending[session_id]
            return
        address = self.desk.view.address_of(duplicate.substation_id)
        if address is None or not self.wires[address].ready:
            return
        self.ending[session_id] = (key, True)

        def heard(ended: bool) -> None:
            del self.ending[session_id]
            if not ended:
                self.ending[session_id] = (key, False)

        pending = Pending(address, self.now + ASK_TIMEOUT_MS, lambda: heard(False))
        self.wires[address].end_duplicate(duplicate, self._once(pending, heard))

    # --- time, and what its connections tell -----------------------------------------------------------

    def pass_to(self, now: int) -> bool:
        """Its own clock says so. Whether the time of a call was over."""
        self.now = now
        late = [pending for pending in self.pending if pending.deadline_ms <= now]
        self._give_up(late)
        waiting = [f for f in self.flights.values() if f.doubt is not None and f.deadline_ms <= now]
        for flight in waiting:
            self._after(flight, Late())
        self._take_off()
        return bool(late or waiting)

    def _give_up(self, calls: list[Pending]) -> None:
        for pending in calls:
            if not pending.over:
                pending.over = True
                self.pending.remove(pending)
                pending.lost()

    def broke(self, address: str) -> None:
        """The connection is gone, and with it both streams and all calls."""
        self.desk.disconnected(address)
        self._give_up([pending for pending in self.pending if pending.address == address])

    def reported(self, address: str, load: Load) -> None:
        self.desk.reported(address, load, self.now)

    def snapshot_chunk(self, address: str, entries: list[Entry]) -> None:
        self.desk.snapshot(address, entries)

    def snapshot_end(self, address: str, epoch: int, sequence: int) -> None:
        self._told(*self.desk.snapshot_end(address, address, epoch, sequence, self.now))

    def changes(self, address: str, epoch: int, entries: list[Entry], sequence: int) -> None:
        self._told(*self.desk.changes(address, address, epoch, sequence, entries, self.now))
