"""A substation of the model: the production station, keys, batches and records; the disk is a dictionary.

`Substation` does in a few lines what the servicers and the engine do around the station: what is asked waits for
the commit that holds it, a commit that fails withdraws its admissions, a crash leaves only what is on the disk.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from balancer import wire as balancer_wire
from balancer.admissions import Entry
from balancer.attempt import Outcome, Refused
from balancer.desk import Fenced, Found, Replied
from balancer.view import Load
from gridmesh.v1 import charging_pb2
from mesh import requests
from mesh.charge import Key
from mesh.errors import MeshError, Unavailable
from mesh.model import ErrorReason, NotAccepting, StopReason
from mesh.outlook import NOTHING
from substation import events as ev
from substation import records, wire
from substation.batch import Batch, Copies
from substation.keys import REMEMBER_MS
from substation.ledger import Changes, SessionRow
from substation.load import Report
from substation.sessions import Session
from substation.shown import Shown
from substation.station import Memory, Station, StationConfig


class Write(Enum):
    """How a commit ends. A failed one may be on the disk all the same."""

    DONE = "done"
    FAILED = "failed"
    FAILED_BUT_ON_DISK = "failed, but on the disk"


@dataclass(slots=True)
class Disk:
    """What survives a crash."""

    epoch: int = 0
    rows: dict[str, SessionRow] = field(default_factory=dict)
    fences: dict[Key, tuple[str, int]] = field(default_factory=dict)
    live: bytes | None = None

    def write(self, changes: Changes) -> None:
        for name in changes.removed:
            self.rows.pop(name, None)
        self.rows.update((row.session_id, row) for row in changes.sessions)
        self.fences.update((key, (attempt_id, at)) for key, attempt_id, at in changes.fences)
        live = changes.state.get("live", self.live)
        assert live is None or isinstance(live, bytes)
        self.live = live
        if (before := changes.forget_before_ms) is not None:
            self.rows = {n: row for n, row in self.rows.items() if row.ended_ms is None or row.ended_ms > before}
            self.fences = {key: fence for key, fence in self.fences.items() if fence[1] > before}

    def recall(self, now: int) -> Memory:
        since = now - REMEMBER_MS
        bodies = [row.body for row in self.rows.values() if row.ended_ms is None or row.ended_ms > since]
        fences = [(key, attempt_id, at) for key, (attempt_id, at) in self.fences.items() if at > since]
        return Memory(sessions=records.read_sessions(bodies, self.live), fences=fences)


class _Waiter:
    """Stands where the engine has a future: called when the commit is over."""

    def __init__(self, then: Callable[[MeshError | None], None]) -> None:
        self._then = then

    def done(self) -> bool:
        return False

    def set_result(self, _: None) -> None:
        self._then(None)

    def set_exception(self, error: MeshError) -> None:
        self._then(error)


@dataclass(eq=False, slots=True)
class Stream:
    """Admissions on their way to one balancer, in order."""

    after: int
    messages: list[Callable[[], None]] = field(default_factory=list)
    on_changes: Callable[[list[Entry], int], Callable[[], None]] | None = None


class Substation:
    """`offset_ms`: by how much its clock is wrong."""

    def __init__(self, name: str, charge_points: int, offset_ms: int, rng: Random) -> None:
        self.name = name
        self.config = StationConfig(name, rated_w=100_000, charge_points=charge_points)
        self.offset_ms = offset_ms
        self.disk = Disk()
        self._rng = rng
        self.now = 0
        self.up = False
        self.streams: list[Stream] = []
        # Called with each admission and ending as it happens, and with each session as it gets durable.
        self.on_admitted: Callable[[Session], None] = lambda _: None
        self.on_ended: Callable[[Session], None] = lambda _: None
        self.on_durable: Callable[[Session], None] = lambda _: None

    # --- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        memory = self.disk.recall(self.now)
        for session in memory.sessions:
            session.metered_ms = self.now
            session.lapse(self.now)
        self._on_disk(copy.copy(session) for session in memory.sessions)
        self.epoch = self.disk.epoch = max(self.disk.epoch + 1, self.now)
        self.station = Station(self.config, self._rng, self.now, memory)
        self.shown = Shown(self.station.sessions(include_ended=True))
        self._live = records.LiveBody()
        self._batch = Batch()
        self._writing: tuple[Batch, Copies, Changes] | None = None
        self._failing = False
        self.up = True

    def crash(self) -> None:
        """Only the disk is left; a commit under way is on it or not."""
        self.up = False
        self.streams.clear()

    def pass_to(self, now: int) -> None:
        """Its own clock says so."""
        self.now = now
        if self.up:
            self._absorb(self.station.advance(now))

    # --- what is asked ---------------------------------------------------------------------------------

    def charge(self, request: charging_pb2.ChargeRequest, answer: Callable[[Outcome], None]) -> None:
        try:
            events = self._admit(request)
        except MeshError as error:
            answer(Refused(error))
            return
        outcome = next(event for event in events if isinstance(event, ev.Admitted | ev.Repeated))
        session_id, repeated = outcome.session.session_id, isinstance(outcome, ev.Repeated)
        if not repeated:
            self.on_admitted(outcome.session)

        def then(error: MeshError | None) -> None:
            shown = self.shown.get(session_id)
            if error or shown is None:
                answer(Refused(error or _unknown()))
            else:
                answer(self._replied(shown, repeated=repeated))

        self._committed(events, then)

    def _admit(self, request: charging_pb2.ChargeRequest) -> list[ev.Event]:
        key = requests.key_of(request)
        requests.check_not_after(request, self.now)
        if self.station.known(key):
            return self.station.repeat(key, requests.body_of(request), request.attempt_id, self.now)
        return self.station.charge(requests.parse_charge(request, key, self.now), self.now)

    def _replied(self, shown: Session, *, repeated: bool) -> Replied:
        name, load = shown.session_id, self.load()
        return Replied(load, name, shown.attempt_id, shown.ended_ms, repeated, name, shown.duplicate_of)

    def resolve(self, key: Key, attempt_id: str, answer: Callable[[Found | Fenced | None], None]) -> None:
        events = self.station.resolve(key, attempt_id, self.now)
        found = next((event.session.session_id for event in events if isinstance(event, ev.Repeated)), None)

        def then(error: MeshError | None) -> None:
            shown = self.shown.get(found) if found else None
            if error or (found and shown is None):
                answer(None)
            elif shown is None:
                answer(Fenced())
            else:
                one = self._replied(shown, repeated=True)
                answer(Found(one.load, one.session_id, one.attempt_id, one.ended_at_ms, one.reply, one.duplicate_of))

        self._committed(events, then)

    def end_duplicate(self, session_id: str, survivor: str, attempt_id: str, answer: Callable[[bool], None]) -> None:
        try:
            events = self.station.end_duplicate(session_id, survivor, attempt_id, self.now)
        except MeshError:
            answer(False)
            return
        self._committed(events, lambda error: answer(error is None))

    def end(self, session_id: str) -> None:
        """The car leaves."""
        self._committed(self.station.stop(session_id, StopReason.EV_DISCONNECTED, self.now), lambda _: None)

    def forget(self) -> None:
        """What the engine does once an hour."""
        self._batch.forget = True
        self.shown.keep_only(session.session_id for session in self.station.sessions(include_ended=True))

    # --- commits ---------------------------------------------------------------------------------------

    @property
    def unwritten(self) -> bool:
        batch = self._batch
        return self._writing is not None or any((batch.waiting, batch.sessions, batch.fences, batch.removed))

    def _committed(self, events: list[ev.Event], then: Callable[[MeshError | None], None]) -> None:
        self._absorb(events)
        self._batch.waiting.append(_Waiter(then))  # type: ignore[arg-type]

    def _absorb(self, events: list[ev.Event]) -> None:
        for event in [*events, *self.station.settle()]:
            match event:
                case ev.Admitted(session):
                    self._batch.admit(session)
                case ev.Repeated(session, raised=True):
                    self._batch.sessions[session.session_id] = session
                case ev.Ended(session):
                    self._batch.end(session)
                    self.on_ended(session)
                case ev.Fenced(key, attempt_id):
                    self._batch.fences[key] = attempt_id

    def write(self, how: Write = Write.DONE) -> None:
        """A commit under way ends so; where there is none, one begins and ends."""
        if self._writing is None:
            self.begin_write()
        assert self._writing is not None
        (batch, copies, changes), self._writing = self._writing, None
        if how is not Write.FAILED:
            self.disk.write(changes)
        if how is Write.DONE:
            self._written(batch, copies)
            return
        if how is Write.FAILED_BUT_ON_DISK:
            self._on_disk([session for session in copies.rows if session.session_id not in batch.admitted])
        self._failed(batch)

    def _on_disk(self, sessions: Iterable[Session]) -> None:
        for session in sessions:
            self.on_durable(session)

    def begin_write(self) -> None:
        if self._writing is None:
            self._absorb(self.station.advance(self.now))
            batch, self._batch = self._batch, Batch()
            copies = batch.copies(self.station)
            self._writing = batch, copies, batch.changes(self.station, copies, self._live, self.now)

    def crash_while_writing(self, how: Write) -> None:
        if self._writing is not None and how is not Write.FAILED:
            self.disk.write(self._writing[2])
            self._on_disk(self._writing[1].rows)
        self.crash()

    def _written(self, batch: Batch, copies: Copies) -> None:
        self.shown.publish(copies.live, copies.rows)
        self._on_disk(copies.rows)
        if self._failing:
            self._failing = False
            self.station.unblock(NotAccepting.LEDGER)
            self._absorb([])
        batch.resolve(None)
        for stream in self.streams:
            self._tell(stream)

    def _failed(self, batch: Batch) -> None:
        self._failing = True
        self.station.block(NotAccepting.LEDGER)
        for session_id in batch.withdraw_admissions():
            self._absorb(self.station.withdraw(session_id, self.now))
        self._batch.take_back(batch)
        batch.resolve(_unknown())

    # --- what it shows ---------------------------------------------------------------------------------

    def load(self) -> Load:
        report = Report(self.name, self.epoch, 1, self.now, self.station.load(), NOTHING)
        return balancer_wire.load_of(wire.load_report(report))

    def entries(self, sessions: list[Session]) -> list[Entry]:
        return [balancer_wire.entry_of(wire.admission(session), self.epoch) for session in sessions]

    def _tell(self, stream: Stream) -> None:
        news = self.shown.admissions_after(stream.after)
        assert news is not None
        assert stream.on_changes is not None
        if news:
            stream.after = news[-1].admission_sequence
            stream.messages.append(stream.on_changes(self.entries(news), stream.after))


def _unknown() -> MeshError:
    return Unavailable(ErrorReason.OUTCOME_UNKNOWN, "the ledger could not be written", 1_000)
