"""Drives the station in real time, as its only writer.

What is asked, what the cars say, and timers go in; everything that leaves has been on disk first.
One commit at a time, with all that has gathered since the one before. While it is under way the station
goes on; replies, admissions and what is shown wait for their own commit. Lowered grants wait for nothing.
"""

import asyncio
import copy
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import takewhile

import structlog

from mesh.charge import Charge, Key
from mesh.clock import Clock, seconds
from mesh.errors import MeshError, NotFound, Unavailable
from mesh.model import ErrorReason, LimitSource, NotAccepting, StopReason
from substation import events as ev
from substation import records
from substation.cars import CarEvent, Confirmed, Full, Plugged, Reading
from substation.ledger import Changes, Ledger, LedgerError, SessionRow
from substation.limits import Limit
from substation.load import Load
from substation.metrics import SubstationMetrics
from substation.plant import Plant
from substation.sessions import Offer, Session
from substation.station import REMEMBER_MS, Station

log = structlog.get_logger()

# Registers are kept, and shown, at least this often while a session charges.
CHECKPOINT_S = 1.0
FORGET_S = 3600.0
_RETRY_LEAST_S, _RETRY_MOST_S = 0.2, 5.0
# Entries of the stream of admissions that can be resumed from.
_ADMISSIONS_HELD = 10_000


@dataclass(frozen=True, slots=True)
class Report:
    """A load with whose it is and when."""

    substation_id: str
    epoch: int
    time_scale: int
    generated_ms: int
    load: Load


@dataclass(slots=True)
class _Batch:
    """What the next commit is to write, and who waits for it."""

    sessions: dict[str, Session] = field(default_factory=dict)
    admitted: dict[str, Session] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    fences: dict[Key, str] = field(default_factory=dict)
    limits: bool = False
    draining: bool = False
    live: bool = False
    forget: bool = False
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.sessions
            or self.removed
            or self.fences
            or self.limits
            or self.draining
            or self.live
            or self.forget
            or self.waiting
        )

    def take_back(self, failed: "_Batch") -> None:
        """Adds what a failed commit was to write; what is newer here stays."""
        self.sessions = {**failed.sessions, **self.sessions}
        self.ended |= failed.ended
        self.removed |= failed.removed
        self.fences = {**failed.fences, **self.fences}
        self.limits |= failed.limits
        self.draining |= failed.draining
        self.live |= failed.live
        self.forget |= failed.forget


class Engine:
    """The one writer of a substation."""

    def __init__(
        self, station: Station, plant: Plant, ledger: Ledger, clock: Clock, metrics: SubstationMetrics, epoch: int
    ) -> None:
        self._station = station
        self._plant = plant
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self.epoch = epoch
        self._batch = _Batch()
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        # Sessions as last committed: all that is ever shown.
        self._shown = {s.session_id: copy.copy(s) for s in station.sessions(include_ended=True)}
        # What the ledger says each car may hold, and raises above it that wait for their commit.
        self._kept_w = {s.session_id: s.committed_w for s in station.sessions()}
        self._raises: dict[str, Offer] = {}
        self._admissions: deque[Session] = deque(maxlen=_ADMISSIONS_HELD)
        self._load = station.load()
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._listeners: set[asyncio.Event] = set()
        self._delivered_mj = 0
        # No more streams, then no more commits.
        self.closing = False
        self._stopping = False

    # --- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to turn: cars, timers, commits."""
        self._plant.start(self._hear)
        self._tasks = [asyncio.create_task(self._commit_forever()), asyncio.create_task(self._checkpoint_forever())]
        self._absorb(self._station.advance(self._clock.now_ms()))

    def shut(self) -> None:
        """Admits nothing more and ends the streams, because the process stops."""
        self.closing = True
        self._station.block(NotAccepting.SHUTTING_DOWN)
        self._absorb(self._station.settle())
        self._tell_listeners()
        for session_id in self._watchers:
            self._notify(session_id)

    async def stop(self) -> None:
        """Writes the registers a last time and ends."""
        self._stopping = True
        self._batch.live = True
        self._wake.set()
        if self._tasks:
            self._tasks[1].cancel()
            await asyncio.wait(self._tasks, timeout=5)
            self._tasks[0].cancel()
        if self._timer:
            self._timer.cancel()
        self._plant.stop()
        self._writer.shutdown()
        self._ledger.close()

    # --- what is asked ---------------------------------------------------------------------------------

    def knows(self, key: Key) -> bool:
        """Whether the key has a session here."""
        return self._station.known(key)

    async def charge(self, charge: Charge) -> tuple[Session, bool]:
        """The session, on disk, and whether the key was known."""
        events = self._station.charge(charge, self._clock.now_ms())
        return await self._admission(events)

    async def repeat(self, key: Key, body: bytes, attempt_id: str) -> tuple[Session, bool]:
        """The session of a known key, with its attempt raised on disk."""
        return await self._admission(self._station.repeat(key, body, attempt_id, self._clock.now_ms()))

    async def resolve(self, key: Key, attempt_id: str) -> Session | str:
        """The key's session, or the attempt id up to which it is now fenced, both on disk."""
        events = self._station.resolve(key, attempt_id, self._clock.now_ms())
        found = next((event for event in events if isinstance(event, ev.Repeated)), None)
        fenced = next((event.attempt_id for event in events if isinstance(event, ev.Fenced)), "")
        await self._committed(events)
        return self._shown[found.session.session_id] if found else fenced

    async def stop_session(self, session_id: str, reason: StopReason) -> Session:
        """The session as it ended."""
        await self._committed(self._station.stop(session_id, reason, self._clock.now_ms()))
        return self._shown[session_id]

    async def end_duplicate(self, session_id: str, survivor_id: str, survivor_attempt: str) -> Session:
        """The session as it ended, for the one that stays elsewhere."""
        now = self._clock.now_ms()
        await self._committed(self._station.end_duplicate(session_id, survivor_id, survivor_attempt, now))
        return self._shown[session_id]

    async def set_limit(self, limit: Limit) -> None:
        """Grants are lowered before this waits for the disk."""
        await self._committed(self._station.set_limit(limit, self._clock.now_ms()))

    async def clear_limit(self, source: LimitSource) -> None:
        """Removes a source's limit."""
        await self._committed(self._station.clear_limit(source, self._clock.now_ms()))

    async def drain(self, draining: bool) -> None:
        """Stops or resumes admissions, durably."""
        await self._committed(self._station.drain(draining, self._clock.now_ms()))

    # --- what is shown ---------------------------------------------------------------------------------

    def session(self, session_id: str) -> Session:
        """A session as last committed. NotFound."""
        shown = self._shown.get(session_id)
        if shown is None:
            raise NotFound(ErrorReason.SESSION_NOT_FOUND, f"no session {session_id!r} here")
        return shown

    def sessions(self) -> Iterable[Session]:
        """All sessions as last committed, also those that ended within 24 h."""
        return self._shown.values()

    def limits(self) -> list[Limit]:
        return self._station.limits()

    def report(self) -> Report:
        """The load as of the last change."""
        config = self._station.config
        return Report(config.substation_id, self.epoch, config.time_scale, self._clock.now_ms(), self._load)

    def expected_end_ms(self, session: Session) -> int | None:
        """When a session should be done."""
        return self._station.expected_end_ms(session)

    def admissions_after(self, sequence: int) -> list[Session] | None:
        """Entries after `sequence`, in order; None when they are no longer all held."""
        if sequence < self._oldest_admission():
            return None
        news = takewhile(lambda session: session.admission_sequence > sequence, reversed(self._admissions))
        return list(news)[::-1]

    def admission_snapshot(self) -> tuple[list[Session], int]:
        """All sessions, and the position in the stream up to which they are complete."""
        return list(self._shown.values()), self._last_admission()

    def _oldest_admission(self) -> int:
        held = self._admissions
        return held[0].admission_sequence if len(held) == held.maxlen else 0

    def _last_admission(self) -> int:
        return self._admissions[-1].admission_sequence if self._admissions else 0

    def watch(self, session_id: str) -> asyncio.Event:
        """An event that is set whenever the session shows something new. Give it back with `unwatch`."""
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
        """An event that is set whenever the load or the admissions have news. Give it back with `unlisten`."""
        event = asyncio.Event()
        self._listeners.add(event)
        return event

    def unlisten(self, event: asyncio.Event) -> None:
        self._listeners.discard(event)

    def delivered_j(self) -> int:
        """Energy delivered since the start, as committed, in joules."""
        return self._delivered_mj // 1000

    # --- events in -------------------------------------------------------------------------------------

    async def _admission(self, events: list[ev.Event]) -> tuple[Session, bool]:
        # What time brought along may come first.
        outcome = next(event for event in events if isinstance(event, ev.Admitted | ev.Repeated))
        await self._committed(events)
        shown = self._shown.get(outcome.session.session_id)
        if shown is None:
            # A repeat of an admission that the disk did not take.
            raise _unknown()
        return shown, isinstance(outcome, ev.Repeated)

    async def _committed(self, events: list[ev.Event]) -> None:
        """Absorbs what a call led to, and waits until it and all before it is on disk."""
        self._absorb(events)
        self._absorb(self._station.settle())
        done = asyncio.get_running_loop().create_future()
        self._batch.waiting.append(done)
        self._wake.set()
        await done

    def _hear(self, said: list[CarEvent]) -> None:
        now = self._clock.now_ms()
        for event in said:
            match event:
                case Confirmed(session_id, number):
                    self._absorb(self._station.confirmed(session_id, number, now))
                case Reading(session_id, power_w, register_mj):
                    self._absorb(self._station.measured(session_id, power_w, register_mj, now))
                case Full(session_id):
                    self._absorb(self._station.full(session_id, now))
        self._absorb(self._station.settle())

    def _tick(self) -> None:
        self._timer = None
        self._absorb(self._station.advance(self._clock.now_ms()))

    def _absorb(self, events: list[ev.Event]) -> None:
        """Notes what is to be kept, and does at once what need not wait."""
        for event in events:
            self._note(event)
        self._publish_load()
        self._arm()
        if self._batch:
            self._wake.set()

    def _note(self, event: ev.Event) -> None:  # noqa: C901 - one line per event
        batch = self._batch
        match event:
            case ev.Admitted(session):
                batch.admitted[session.session_id] = batch.sessions[session.session_id] = session
                batch.live = True
            case ev.Repeated(session, raised=True):
                batch.sessions[session.session_id] = session
            case ev.Ended(session):
                batch.sessions[session.session_id] = session
                batch.ended.add(session.session_id)
                batch.live = True
            case ev.Changed():
                batch.live = True
            case ev.Metered(session):
                self._show_measured(session)
            case ev.Offered(session_id, offer):
                self._send(session_id, offer)
            case ev.Opened(session_id):
                self._raises.pop(session_id, None)
                self._plant.open(session_id)
            case ev.LimitsChanged():
                batch.limits = True
            case ev.DrainChanged():
                batch.draining = True
            case ev.Fenced(key, attempt_id):
                batch.fences[key] = attempt_id
            case ev.LimitComplied(took_ms):
                self._metrics.compliance.observe(took_ms / 1000)

    def _send(self, session_id: str, offer: Offer) -> None:
        """A raise waits until the ledger knows of it; everything else goes to the car now."""
        if offer.power_w > self._kept_w.get(session_id, 0):
            self._raises[session_id] = offer
            self._batch.live = True
        else:
            self._raises.pop(session_id, None)
            self._plant.offer(session_id, offer)

    def _show_measured(self, session: Session) -> None:
        """Power is shown as it is measured; only registers wait for the disk."""
        shown = self._shown.get(session.session_id)
        if shown is not None and shown.live:
            shown.measured_w = session.measured_w
            self._notify(session.session_id)

    def _publish_load(self) -> None:
        load = self._station.load()
        if load.sequence != self._load.sequence:
            self._tell_listeners()
        self._load = load

    def _tell_listeners(self) -> None:
        for event in self._listeners:
            event.set()

    def _notify(self, session_id: str) -> None:
        for event in self._watchers.get(session_id, ()):
            event.set()

    def _arm(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        at = self._station.next_event()
        if at is not None and not self._stopping:
            delay_ms = max(0, at - self._clock.now_ms())
            self._timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._tick)

    # --- commits ---------------------------------------------------------------------------------------

    async def _checkpoint_forever(self) -> None:
        """Keeps the registers of what charges, once a second, and forgets what is old, once an hour."""
        forget_at = seconds() + FORGET_S
        while True:
            await asyncio.sleep(CHECKPOINT_S)
            self._batch.live |= any(session.measured_w for session in self._station.sessions())
            if seconds() >= forget_at:
                forget_at = seconds() + FORGET_S
                self._forget()
            if self._batch:
                self._wake.set()

    def _forget(self) -> None:
        """Lets go of what ended more than 24 h ago, here and in the ledger."""
        self._batch.forget = True
        kept = {session.session_id for session in self._station.sessions(include_ended=True)}
        self._shown = {name: session for name, session in self._shown.items() if name in kept}

    async def _commit_forever(self) -> None:
        retry_s = _RETRY_LEAST_S
        while not (self._stopping and not self._batch):
            await self._wake.wait()
            self._wake.clear()
            batch, self._batch = self._batch, _Batch()
            try:
                await self._commit(batch)
            except LedgerError as error:
                if self._stopping:
                    return
                self._failed(batch, str(error))
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_MOST_S)
                self._wake.set()
            else:
                retry_s = _RETRY_LEAST_S
                self._unblock()

    async def _commit(self, batch: _Batch) -> None:
        """Writes one batch, then lets out what waited for it."""
        live, changed = self._copies(batch)
        changes = self._changes(batch, live, changed)
        kept = {session.session_id: session.committed_w for session in live}
        raises, self._raises = self._raises, {}
        started = seconds()
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._ledger.commit, changes)
        except LedgerError:
            self._raises = {**raises, **self._raises}
            raise
        self._metrics.commit.observe(seconds() - started)
        self._kept_w = kept
        self._show(live, changed)
        self._metrics.count_ended(session for session in changed if session.session_id in batch.ended)
        self._release(batch, raises)

    def _copies(self, batch: _Batch) -> tuple[list[Session], list[Session]]:
        """All live sessions, and those whose rows changed in the order of their admissions, as of this moment."""
        now, scale = self._clock.now_ms(), self._station.config.time_scale
        live = {session.session_id: copy.copy(session) for session in self._station.sessions()}
        for session in live.values():
            session.meter(now, scale)
        changed = [live.get(name) or copy.copy(session) for name, session in batch.sessions.items()]
        return list(live.values()), sorted(changed, key=lambda session: session.admission_sequence)

    def _changes(self, batch: _Batch, live: list[Session], changed: list[Session]) -> Changes:
        now = self._clock.now_ms()
        changes = Changes(
            sessions=[SessionRow(s.session_id, s.ended_ms, records.session_body(s)) for s in changed],
            removed=list(batch.removed),
            fences=[(key, attempt_id, now) for key, attempt_id in batch.fences.items()],
            state={"live": records.live_body(live)},
            forget_before_ms=now - REMEMBER_MS if batch.forget else None,
        )
        if batch.limits:
            changes.state["limits"] = records.limits_body(self._station.limits())
        if batch.draining:
            changes.state["draining"] = int(self._station.draining)
        return changes

    def _show(self, live: list[Session], changed: list[Session]) -> None:
        """Shows what is now on disk, and appends to the stream of admissions."""
        for session in (*live, *(s for s in changed if not s.live)):
            before = self._shown.get(session.session_id)
            self._delivered_mj += session.delivered_mj - (before.delivered_mj if before else 0)
            self._shown[session.session_id] = session
            # Read anew: the copy is as old as the commit took.
            session.measured_w = self._station.session(session.session_id).measured_w
            self._notify(session.session_id)
        self._admissions.extend(changed)
        if changed:
            self._tell_listeners()

    def _release(self, batch: _Batch, raises: dict[str, Offer]) -> None:
        """Plugs in who was admitted, sends the raises that are kept now, and lets the callers go on."""
        for session in batch.admitted.values():
            if session.live:
                self._plant.plug_in(plugged(session))
        for session_id, offer in raises.items():
            # A later, lower offer may have gone out meanwhile: the car keeps to the highest number.
            if session_id in self._kept_w:
                self._plant.offer(session_id, offer)
        for done in batch.waiting:
            if not done.done():
                done.set_result(None)

    def _failed(self, batch: _Batch, message: str) -> None:
        """The disk did not take it: undo what nobody was told of, keep the rest for the next try."""
        log.error("ledger cannot be written: not accepting", error=message)
        self._station.block(NotAccepting.LEDGER)
        now = self._clock.now_ms()
        for session_id in batch.admitted:
            batch.sessions.pop(session_id, None)
            batch.removed.add(session_id)
            self._absorb(self._station.withdraw(session_id, now))
        self._batch.take_back(batch)
        for done in batch.waiting:
            if not done.done():
                done.set_exception(_unknown())
        self._absorb(self._station.settle())

    def _unblock(self) -> None:
        if self._station.accepting is NotAccepting.LEDGER:
            log.info("ledger can be written again: accepting")
            self._station.block(NotAccepting.UNSPECIFIED)
            self._absorb(self._station.settle())


def _unknown() -> MeshError:
    message = "the ledger did not take it in time; repeat with the same request_id"
    return Unavailable(ErrorReason.OUTCOME_UNKNOWN, message, 1000)


def plugged(session: Session) -> Plugged:
    """What the cars' side needs to know of a session, new or found again."""
    return Plugged(
        session_id=session.session_id,
        max_w=session.charge.max_w,
        need_mj=session.target_mj,
        leaves_ms=session.charge.departure_ms,
        at_ms=session.metered_ms,
        register_mj=session.delivered_mj,
        power_w=session.measured_w,
        held_w=session.held_w,
        lease_until_ms=max((offer.valid_until_ms for offer in session.offers), default=0),
    )


def find_cars(plant: Plant, sessions: Iterable[Session], now: int) -> None:
    """After a restart: reads the meters, so that the station starts from what the cars really drew."""
    live = {session.session_id: session for session in sessions if session.live}
    waiting = [plugged(session) for session in live.values() if session.active]
    for reading in plant.recover(waiting, now):
        session = live[reading.session_id]
        session.delivered_mj = max(session.delivered_mj, reading.register_mj)
        session.measured_w = reading.power_w
    for session in live.values():
        session.metered_ms = now
        session.lapse(now)
