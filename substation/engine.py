"""Drives the station in real time, as its only writer.

What is asked, what the cars say, and timers go in; everything that leaves has been on disk first.
One commit at a time, with all that has gathered since the one before. While it is under way the station
goes on; replies, admissions and what is shown wait for their own commit. Lowered grants wait for nothing.
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import structlog
from msgspec import structs

from mesh.charge import Charge, Key
from mesh.clock import Clock, seconds
from mesh.errors import MeshError, Unavailable
from mesh.model import ErrorReason, LimitSource, NotAccepting, StopReason
from substation import events as ev
from substation.ahead import Ahead
from substation.batch import Batch, Waiter
from substation.cars import Plugged
from substation.gathering import Gathering, Taken
from substation.journal import SessionJournal
from substation.ledger import Ledger, LedgerError
from substation.limits import Limit
from substation.load import Load, Report
from substation.metrics import SubstationMetrics
from substation.plant import Plant
from substation.records import LiveBody
from substation.sessions import Offer, Session
from substation.shown import Shown
from substation.station import STALL_MS, Station

log = structlog.get_logger()

# Registers are kept, and shown, at least this often while a session charges.
CHECKPOINT_S = 1.0
FORGET_S = 3600.0
# What the cars say, and what is due of their sessions, is answered to with power within this time, and what nobody
# waits for is written within it: a hundred cars that say something should share one look and one commit.
TURN_S = 0.05
# Where a look takes long, as it does where every car's share changes with each other's, the next is not before so many
# times of that; but one that was only held up holds up no other for long.
_REST, _REST_MOST_S = 3, 0.1
_TURN_MS = round(TURN_S * 1000)
# Not worth a timer.
_REST_LEAST_S = 0.001
# Promises shift as time passes.
_AHEAD_MS = 1_000
# A report that nothing has changed since may be said again for so long.
_REPORT_MS = 20
_RETRY_LEAST_S, _RETRY_MOST_S = 0.2, 5.0


class Engine:
    """The one writer of a substation."""

    def __init__(
        self, station: Station, plant: Plant, ledger: Ledger, clock: Clock, metrics: SubstationMetrics, epoch: int
    ) -> None:
        self._station = station
        self._plant = plant
        self._ledger = ledger
        self._clock = clock
        # Kept, as asking for it is a system call each time.
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self.epoch = epoch
        self._batch = Batch()
        self._wake = asyncio.Event()
        # Set when somebody waits for the next commit.
        self._urgent = asyncio.Event()
        # The turn that is due for what has come in, and when the last one was, in seconds.
        self._turn_due: asyncio.TimerHandle | None = None
        self._turned_s = self._turn_took_s = 0.0
        self._gathering = Gathering(self._wake_now)
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self.shown = Shown(station.sessions(include_ended=True))
        # What the ledger says each car may hold, and raises above it that wait for their commit.
        self._kept_w = {s.session_id: s.committed_w for s in station.sessions()}
        self._raises: dict[str, Offer] = {}
        # All live sessions as the ledger has them, to be written together.
        self._live = LiveBody()
        self._load = station.load()
        self._journal = SessionJournal(station.sessions())
        # Timers are of no call, whoever set them: their lines must not carry its trace.
        self._no_call = copy_context()
        # What is promised; made when somebody asks, and made anew after a second or under another limit.
        self._ahead: Ahead | None = None
        # When a charge point should become free; looked for where none is, as often as what is ahead.
        self._next_free_ms: int | None = None
        # What was reported last; None when that has changed.
        self._report: Report | None = None
        # Why the ledger could not be written at the last try; empty when it could.
        self._ledger_error = ""
        # What is done about each kind of event: looked up once, where a `match` compares with one after the other.
        self._noted: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.Metered: self._note_metered,
            ev.Changed: self._note_changed,
            ev.Offered: self._note_offered,
            ev.Admitted: self._note_admitted,
            ev.Opened: self._note_opened,
            ev.Ended: self._note_ended,
            ev.Repeated: self._note_repeated,
            ev.Fenced: self._note_fenced,
            ev.LimitsChanged: self._note_limits,
            ev.DrainChanged: self._note_drain,
            ev.LimitComplied: self._note_complied,
        }
        # No more streams, then no more commits.
        self.closing = False
        self._stopping = False
        # Set with what went wrong when the engine cannot go on: a defect, not a failure of the disk.
        self.broken: asyncio.Future[None] = self._loop.create_future()

    # --- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to turn: cars, timers, commits."""
        self._plant.start(self._hear)
        self._tasks = [asyncio.create_task(self._commit_forever()), asyncio.create_task(self._checkpoint_forever())]
        for task in self._tasks:
            task.add_done_callback(self._ended)
        # Not only once an hour: it may never run for so long.
        self._forget()
        self._absorb(self._station.advance(self._clock.now_ms()))

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self._break(error)

    def _break(self, error: BaseException) -> None:
        if not self.broken.done():
            self.broken.set_exception(error)

    def shut(self) -> None:
        """Admits nothing more and ends the streams, because the process stops."""
        self.closing = True
        self._station.block(NotAccepting.SHUTTING_DOWN)
        self._turn()
        self.shown.tell_all()

    async def stop(self) -> None:
        """Writes the registers a last time and ends."""
        self._stopping = True
        self._batch.live = self._batch.checkpoint = True
        self._gathering.hurry()
        self._wake_now()
        if self._tasks:
            self._tasks[1].cancel()
            await asyncio.wait(self._tasks, timeout=5)
            self._tasks[0].cancel()
        for timer in (self._timer, self._turn_due):
            if timer:
                timer.cancel()
        self._plant.stop()
        self._writer.shutdown()
        self._ledger.close()

    # --- what is asked ---------------------------------------------------------------------------------

    def knows(self, key: Key) -> bool:
        """Whether the key has a session here."""
        return self._station.known(key)

    def admit(self, charge: Charge, now: int) -> Taken:
        """Admits a charge, or finds its session: to be told once it is `written`, unless it is kept already."""
        return self._taken(self._station.charge(charge, now))

    def repeat(self, key: Key, body: bytes, attempt_id: str, now: int) -> Taken:
        """As `admit`, for a key that is known: its attempt is raised."""
        return self._taken(self._station.repeat(key, body, attempt_id, now))

    async def together(self, admit: Callable[[int], Taken]) -> Taken:
        """Admits with others, right before the next commit, and returns when that is over (see `Gathering`)."""
        if not self._ledger_error:
            return await self._gathering.admitted(admit)
        # The next try to write may be seconds away, and a refusal is known now.
        taken = admit(self._clock.now_ms())
        await self.written()
        return taken

    def join(self, calls: int) -> Waiter:
        """Waits for the next commit, for all that so many calls have led to."""
        self._gathering.hurry()
        self._wake_now()
        return self._batch.join(calls, self._loop.create_future())

    def _wake_now(self) -> None:
        """Somebody waits for the next commit."""
        self._wake.set()
        self._urgent.set()

    async def written(self) -> None:
        """Returns when all that was asked before is on disk. Unavailable (OUTCOME_UNKNOWN) when the disk failed."""
        waiter = self.join(1)
        try:
            await waiter.done
        finally:
            waiter.trace()

    def outcome(self, taken: Taken) -> Session:
        """The session as it is on disk. Unavailable for a repeat of an admission that the disk did not take."""
        shown = self.shown.get(taken.session_id)
        if shown is None:
            raise _unknown()
        return shown

    async def resolve(self, key: Key, attempt_id: str) -> Session | str:
        """The key's session, or the attempt id up to which it is now fenced, both on disk."""
        events = self._station.resolve(key, attempt_id, self._clock.now_ms())
        found = next((event for event in events if isinstance(event, ev.Repeated)), None)
        fenced = next((event.attempt_id for event in events if isinstance(event, ev.Fenced)), "")
        await self._committed(events)
        return self.shown.session(found.session.session_id) if found else fenced

    async def stop_session(self, session_id: str, reason: StopReason) -> Session:
        """The session as it ended."""
        await self._committed(self._station.stop(session_id, reason, self._clock.now_ms()))
        return self.shown.session(session_id)

    async def end_duplicate(self, session_id: str, survivor_id: str, survivor_attempt: str) -> Session:
        """The session as it ended, for the one that stays elsewhere."""
        now = self._clock.now_ms()
        await self._committed(self._station.end_duplicate(session_id, survivor_id, survivor_attempt, now))
        return self.shown.session(session_id)

    async def set_limit(self, limit: Limit) -> None:
        """Grants are lowered at once, before this waits for the disk."""
        self._absorb(self._station.set_limit(limit, self._clock.now_ms()))
        self._turn()
        await self._committed([])

    async def clear_limit(self, source: LimitSource) -> None:
        """Removes a source's limit."""
        await self._committed(self._station.clear_limit(source, self._clock.now_ms()))

    async def drain(self, draining: bool) -> None:
        """Stops or resumes admissions, durably."""
        await self._committed(self._station.drain(draining, self._clock.now_ms()))

    # --- what is shown ---------------------------------------------------------------------------------

    def limits(self) -> list[Limit]:
        """Those that are set, without any that ended while nobody was there to forget it."""
        now = self._clock.now_ms()
        return [limit for limit in self._station.limits() if not limit.over(now)]

    @property
    def load(self) -> Load:
        """The load as of the last change. May be read from any thread, as it is replaced whole."""
        return self._load

    def report(self) -> Report:
        """The load as of the last change. The same object as before where nothing has changed."""
        config, now = self._station.config, self._clock.now_ms()
        if self._report is not None and now - self._report.generated_ms < _REPORT_MS:
            return self._report
        if self._ahead is None or now - self._ahead.made_ms >= _AHEAD_MS:
            self._ahead = Ahead(self._station.sessions(), self._load.limit_w, config.time_scale, now)
            self._next_free_ms = None
        if self._load.free_charge_points:
            self._next_free_ms = None
        elif self._next_free_ms is None:
            self._next_free_ms = self._station.next_free_ms()
        ahead = self._ahead.outlook()
        self._report = Report(
            config.substation_id, self.epoch, config.time_scale, now, self._load, ahead, self._next_free_ms
        )
        return self._report

    @property
    def ledger_works(self) -> bool:
        """Whether the last commit succeeded."""
        return not self._ledger_error

    def expected_end_ms(self, session: Session) -> int | None:
        """When a session should be done."""
        return self._station.expected_end_ms(session)

    # --- events in -------------------------------------------------------------------------------------

    def _taken(self, events: list[ev.Event]) -> Taken:
        self._absorb(events)
        # What time brought along may come first.
        for event in events:
            if isinstance(event, ev.Admitted):
                return Taken(event.session.session_id, repeated=False, kept=False)
            if isinstance(event, ev.Repeated):
                return self._repeated(event.session)
        raise AssertionError("a charge that is not refused is admitted, or found")

    def _repeated(self, session: Session) -> Taken:
        shown = self.shown.get(session.session_id)
        # Raised but not written yet, it is to be waited for by all who ask.
        kept = shown is not None and shown.attempt_id == session.attempt_id
        return Taken(session.session_id, repeated=True, kept=kept)

    async def _committed(self, events: list[ev.Event]) -> None:
        """Absorbs what a call led to, and waits until it and all before it is on disk."""
        self._absorb(events)
        await self.written()

    def _hear(self, said: list[ev.CarEvent]) -> None:
        try:
            self._absorb(self._station.heard(said, self._clock.now_ms()))
            if seconds() >= self._next_turn_s():
                self._turn()
        except Exception as error:
            self._break(error)

    def _tick(self, due_ms: int) -> None:
        self._timer = None
        late_ms = self._clock.now_ms() - due_ms
        try:
            self._absorb(self._station.advance(self._clock.now_ms()))
            if late_ms >= STALL_MS:
                log.warning("the process stood still", seconds=late_ms / 1000)
                self._absorb(self._station.heard(self._plant.read(), self._clock.now_ms()))
            if seconds() >= self._next_turn_s():
                self._turn()
        except Exception as error:
            self._break(error)

    def _absorb(self, events: list[ev.Event]) -> None:
        """Notes what is to be kept, and does at once what need not wait.

        What costs a look at every session waits for the turn: the next commit's, or one that comes within TURN_S.
        """
        self._note(events)
        if self._turn_due is None:
            delay_s = max(TURN_S, self._next_turn_s() - seconds())
            self._turn_due = self._loop.call_later(delay_s, self._turn_at_last, context=self._no_call)
        if not self._wake.is_set() and self._batch:
            self._wake.set()

    def _next_turn_s(self) -> float:
        """When what the cars say, or what is due, is worth another turn."""
        return self._turned_s + max(TURN_S, self._rest_s)

    @property
    def _rest_s(self) -> float:
        return min(_REST_MOST_S, _REST * self._turn_took_s)

    def _turn_at_last(self) -> None:
        try:
            self._turn()
        except Exception as error:
            self._break(error)

    def _turn(self) -> None:
        """Shares the power anew, shows the load, and sees when something is due next."""
        if self._turn_due is not None:
            self._turn_due.cancel()
            self._turn_due = None
        began_s = seconds()
        self._note(self._station.settle())
        self._publish_load()
        self._arm()
        self._turned_s = seconds()
        self._turn_took_s = self._turned_s - began_s
        if self._batch:
            self._wake.set()

    def _note(self, events: list[ev.Event]) -> None:
        noted = self._noted
        for event in events:
            noted[type(event)](event)

    def _note_metered(self, event: ev.Metered) -> None:
        session = event.session
        self.shown.measured(session.session_id, session.measured_w)

    def _note_changed(self, event: ev.Changed) -> None:
        self._batch.live = True
        self._journal.changed(event.session)

    def _note_offered(self, event: ev.Offered) -> None:
        """A raise waits until the ledger knows of it; everything else goes to the car now."""
        session_id, offer = event.session_id, event.offer
        if offer.power_w > self._kept_w.get(session_id, 0):
            self._raises[session_id] = offer
            self._batch.live = True
        else:
            self._raises.pop(session_id, None)
            self._plant.offer(session_id, offer)

    def _note_admitted(self, event: ev.Admitted) -> None:
        self._batch.admit(event.session)
        if self._ahead is not None:
            self._ahead.add(event.session, event.session.started_ms)
        self._report = None

    def _note_opened(self, event: ev.Opened) -> None:
        session_id = event.session_id
        self._raises.pop(session_id, None)
        self._plant.open(session_id)
        if self._ahead is not None:
            self._ahead.drop(session_id)
        self._report = None

    def _note_ended(self, event: ev.Ended) -> None:
        self._batch.end(event.session)
        self._journal.ended(event.session)

    def _note_repeated(self, event: ev.Repeated) -> None:
        if event.raised:
            self._batch.sessions[event.session.session_id] = event.session

    def _note_fenced(self, event: ev.Fenced) -> None:
        self._batch.fences[event.key] = event.attempt_id

    def _note_limits(self, _: ev.LimitsChanged) -> None:
        self._batch.limits = True
        log.info("limits changed", limits=[f"{m.source.name} {m.limit_w} W" for m in self._station.limits()])

    def _note_drain(self, _: ev.DrainChanged) -> None:
        self._batch.draining = True
        log.info("drain changed", draining=self._station.draining)

    def _note_complied(self, event: ev.LimitComplied) -> None:
        """Written at once: what the ledger holds of the cars counts after a restart, and it was over the limit."""
        self._batch.live = True
        self._urgent.set()
        self._metrics.compliance.observe(event.took_ms / 1000)
        log.info("limit complied with", took_s=event.took_ms / 1000)

    def _publish_load(self) -> None:
        load = self._station.load()
        if load.limit_w != self._load.limit_w:
            source = load.limit_source.name if load.limit_source else "RATED"
            was_w = self._load.limit_w
            log.info(
                "limit cut" if load.limit_w < was_w else "limit raised",
                limit_w=load.limit_w,
                was_w=was_w,
                source=source,
                committed_w=load.committed_w,
                sessions=load.active_sessions,
            )
            self._ahead = None
        if load.over_limit_ms and not self._load.over_limit_ms:
            log.error("over the limit", limit_w=load.limit_w, committed_w=load.committed_w, measured_w=load.measured_w)
        if load.sequence != self._load.sequence:
            self.shown.tell_listeners()
        self._load, self._report = load, None

    def _arm(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        at = self._station.next_event()
        if at is None or self._stopping:
            return
        now = self._clock.now_ms()
        # What is due of sessions is looked at together, as what their cars say; a limit that begins waits for nothing.
        at = max(at, now + _TURN_MS)
        if (edge := self._station.next_limit_ms()) is not None:
            at = min(at, edge)
        self._timer = self._loop.call_later(max(0, at - now) / 1000, self._tick, at, context=self._no_call)

    # --- commits ---------------------------------------------------------------------------------------

    async def _checkpoint_forever(self) -> None:
        """Keeps the registers of what charges, once a second, and forgets what is old, once an hour."""
        forget_at = seconds() + FORGET_S
        while True:
            await asyncio.sleep(CHECKPOINT_S)
            if any(session.measured_w for session in self._station.sessions()):
                self._batch.live = self._batch.checkpoint = True
            if seconds() >= forget_at:
                forget_at = seconds() + FORGET_S
                self._forget()
            if self._batch:
                self._wake.set()

    def _forget(self) -> None:
        """Lets go of what ended more than 24 h ago, here and in the ledger."""
        self._batch.forget = True
        self.shown.keep_only(session.session_id for session in self._station.sessions(include_ended=True))

    async def _commit_forever(self) -> None:
        retry_s = _RETRY_LEAST_S
        while not (self._stopping and not self._batch and not self._gathering):
            await self._gathered()
            self._wake.clear()
            self._urgent.clear()
            now = self._clock.now_ms()
            self._gathering.admit(self._batch, now)
            self._note(self._station.advance(now))
            # What is written, and shown after it, is of one moment with the power shared.
            self._turn()
            self._wake.clear()
            batch, self._batch = self._batch, Batch()
            try:
                await self._commit(batch)
            except LedgerError as error:
                if self._stopping:
                    log.error("the last registers are not on disk", error=str(error))  # noqa: TRY400 - no defect
                    return
                self._failed(batch, str(error))
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_MOST_S)
                self._wake.set()
            else:
                retry_s = _RETRY_LEAST_S
                self._unblock()

    async def _gathered(self) -> None:
        """Returns when there is something to write: at once when somebody waits for it, else soon."""
        await self._wake.wait()
        if not self._urgent.is_set() and not self._stopping:
            timer = self._loop.call_later(TURN_S, self._urgent.set)
            try:
                await self._urgent.wait()
            finally:
                timer.cancel()
        rest_s = self._turned_s + self._rest_s - seconds()
        if rest_s > _REST_LEAST_S:
            await asyncio.sleep(rest_s)
        if self._gathering and not self._batch.waiting:
            await self._gathering.complete()

    async def _commit(self, batch: Batch) -> None:
        """Writes one batch, then lets out what waited for it."""
        now = self._clock.now_ms()
        copies = batch.copies(self._station)
        changes = batch.changes(self._station, copies, self._live, now)
        kept = {session.session_id: session.committed_w for session in copies.live}
        for session_id in batch.gone:
            self._kept_w.pop(session_id, None)
        # Until it is known which of the two the ledger says, only what both do is kept.
        self._kept_w.update({name: watts for name, watts in kept.items() if watts < self._kept_w.get(name, 0)})
        raises, self._raises = self._raises, {}
        batch.began_s = seconds()
        try:
            await self._loop.run_in_executor(self._writer, self._ledger.commit, changes)
        except LedgerError:
            self._raises = {**raises, **self._raises}
            raise
        finally:
            batch.ended_s = seconds()
        self._metrics.commit.observe(batch.ended_s - batch.began_s)
        self._kept_w.update(kept)
        for session in copies.live:
            # Read anew: the copy is as old as the commit took.
            session.measured_w = batch.changed[session.session_id].measured_w
        self.shown.publish(copies.live, copies.rows)
        # Here and not where it is answered: a caller that went away was admitted all the same.
        self._metrics.count_admitted(len(batch.admitted))
        self._metrics.count_ended(session for session in copies.rows if session.session_id in batch.ended)
        self._release(batch, raises)

    def _release(self, batch: Batch, raises: dict[str, Offer]) -> None:
        """Plugs in who was admitted, sends the raises that are kept now, and lets the callers go on."""
        for session in batch.admitted.values():
            if session.live:
                self._plant.plug_in(_arrived(session))
        for session_id, offer in raises.items():
            # A later, lower offer may have gone out meanwhile: the car keeps to the highest number.
            if session_id in self._kept_w:
                self._plant.offer(session_id, offer)
        batch.resolve(None)
        self._gathering.committed()

    def _failed(self, batch: Batch, message: str) -> None:
        """The disk did not take it: undo what nobody was told of, keep the rest for the next try."""
        if message != self._ledger_error:
            log.error("ledger cannot be written: not accepting", ledger=str(self._ledger.path), error=message)
        self._ledger_error = message
        self._station.block(NotAccepting.LEDGER)
        now = self._clock.now_ms()
        for session_id in batch.withdraw_admissions():
            self._journal.withdrawn(batch.admitted[session_id])
            self._absorb(self._station.withdraw(session_id, now))
        self._batch.take_back(batch)
        batch.resolve(_unknown())
        self._gathering.admit(self._batch, now)
        self._turn()

    def _unblock(self) -> None:
        if self._ledger_error:
            log.info("ledger can be written again: accepting")
            self._ledger_error = ""
            self._station.unblock(NotAccepting.LEDGER)
            self._turn()


def _unknown() -> MeshError:
    message = "the ledger could not be written, so what became of this is not known: repeat it"
    return Unavailable(ErrorReason.OUTCOME_UNKNOWN, message, 1000)


def _arrived(session: Session) -> Plugged:
    """A new session's car, which has heard of no offer yet."""
    charge = session.charge
    return Plugged(session.session_id, charge.max_w, session.target_mj, charge.departure_ms, session.started_ms)


def _found(session: Session, now: int) -> Plugged:
    """A car as the ledger last knew it, with what it may still hold. A clock that was set back is no future."""
    return structs.replace(
        _arrived(session),
        at_ms=min(session.metered_ms, now),
        register_mj=session.delivered_mj,
        power_w=session.measured_w,
        held_w=session.held_w,
        lease_until_ms=session.lease_until_ms,
    )


def find_cars(plant: Plant, sessions: Iterable[Session], now: int) -> None:
    """After a restart: reads the meters, so that the station starts from what the cars really drew."""
    live = {session.session_id: session for session in sessions if session.live}
    waiting = [_found(session, now) for session in live.values() if session.active]
    for reading in plant.recover(waiting, now):
        session = live[reading.session_id]
        session.delivered_mj = max(session.delivered_mj, reading.register_mj)
        session.measured_w = reading.power_w
    for session in live.values():
        session.metered_ms = now
        session.lapse(now)
