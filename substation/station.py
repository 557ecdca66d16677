"""The station: takes requests, stops, limits, what the cars say, and the passing of time; returns events.

Pure. Time goes from event to event (energy reached, departure, limit edge, turn, lease), so the result
does not depend on how often it is advanced. The order of use: any calls, then `settle`, which shares
the power anew; `advance` does both for all that is due. What a call refuses it has not changed.
"""

from collections.abc import Collection, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from random import Random

from mesh import ids
from mesh.charge import Charge, Key
from mesh.errors import NotFound, PreconditionFailed
from mesh.model import ErrorReason, LimitReason, LimitSource, NotAccepting, StopReason
from mesh.outlook import Outlook, assumed_stay_ms
from substation import admission, draw, grants
from substation.completion import promised
from substation.events import (
    Admitted,
    CarEvent,
    Changed,
    Confirmed,
    DrainChanged,
    Ended,
    Event,
    Fenced,
    Full,
    LimitComplied,
    LimitsChanged,
    Metered,
    Offered,
    Opened,
    Repeated,
)
from substation.keys import REMEMBER_MS, Keys
from substation.limits import Limit, Limits
from substation.live import Live
from substation.load import Load, Sums
from substation.power import Power
from substation.sessions import Session, Trigger
from substation.sharing import EqualShare, SharingPolicy

# Later than that for what was due: the process stood still.
STALL_MS = 1_000
# What nearly every charge goes through. Python 3.11 looks a member of an Enum up by a call, each time.
_ACCEPTING, _IN_FULL, _NOBODYS = NotAccepting.UNSPECIFIED, LimitReason.UNSPECIFIED, LimitSource.UNSPECIFIED
_SATISFIED, _END = StopReason.ENERGY_LIMIT_REACHED, Trigger.END


@dataclass(frozen=True)
class StationConfig:
    """What is fixed while a substation runs. Power in watts, `lease_ms` in wall milliseconds."""

    substation_id: str
    rated_w: int
    charge_points: int
    # Seconds of charging that pass in one second.
    time_scale: int = 1
    # How long an offer is valid; it is renewed three times as often.
    lease_ms: int = 10_000


@dataclass(frozen=True)
class Memory:
    """What a station is started with: all that the ledger kept."""

    sessions: Sequence[Session] = ()
    limits: Sequence[Limit] = ()
    draining: bool = False
    fences: Sequence[tuple[Key, str, int]] = ()


class Station:
    """One writer's view of one substation."""

    def __init__(
        self,
        config: StationConfig,
        rng: Random,
        now: int,
        memory: Memory | None = None,
        policy: SharingPolicy | None = None,
    ) -> None:
        memory = memory or Memory()
        self.config = config
        self._rng = rng
        self._now = now
        # Whether all that was due at that moment is done: what many say in one moment is looked at once.
        self._passed = False
        self._power = Power(policy or EqualShare(), Limits(config.rated_w, memory.limits), config.time_scale, now)
        self._draining = memory.draining
        self._blocked: set[NotAccepting] = set()
        self._live = Live(self._next_of)
        # In the order of their ends, so that the oldest are forgotten first.
        self._ended: dict[str, Session] = {}
        self._keys = Keys(memory.sessions, memory.fences)
        self._events: list[Event] = []
        self._touched: dict[str, Session] = {}
        self._sequence = 0
        self._admission_sequence = 0
        self._renew_ms: int | None = None
        self._highest_floor_w = max((session.charge.floor_w for session in memory.sessions), default=0)
        self._commitments: tuple[object, ...] = ()
        # Whether sharing anew at this moment could change anything; when the next event is, once that is known.
        self._unsettled = True
        self._next: tuple[int | None] | None = None
        self._restore(memory, now)

    def _restore(self, memory: Memory, now: int) -> None:
        for session in sorted(memory.sessions, key=lambda s: s.ended_ms or 0):
            if session.live:
                self._live.add(session)
            else:
                self._ended[session.session_id] = session
        for session in self._live:
            if session.active:
                draw.time_obedience(session, now)
        if self._live:
            self._power.recover(self._live, now)
            self._renew_ms = now
        self._settle()

    # --- what is asked of it -----------------------------------------------------------------------

    def known(self, key: Key) -> bool:
        """Whether the key has a session here, also one that ended within 24 h."""
        return self._keys.get(key) is not None

    def repeat(self, key: Key, body: bytes, attempt_id: str, now: int) -> list[Event]:
        """The session of a known key, as Repeated. PreconditionFailed when the body is another."""
        self._pass_to(now)
        session = self._keys.same_request(key, body)
        raised = attempt_id > session.attempt_id
        if raised:
            if session.live:
                self._live.touch(session)
            else:
                session = self._another(session)
            session.attempt_id = attempt_id
            self._number(session)
        self._events.append(Repeated(session, raised))
        return self._take()

    def charge(self, charge: Charge, now: int) -> list[Event]:
        """Admits a session as Admitted, or finds it as Repeated. Refused says why not, and when to try again."""
        self._pass_to(now)
        if self.known(charge.key):
            return self.repeat(charge.key, charge.body, charge.attempt_id, now)
        self._keys.check_fence(charge.key, charge.attempt_id)
        admission.check(charge, self._room(), self._now)
        self._highest_floor_w = max(self._highest_floor_w, charge.floor_w)
        session = self._new_session(charge)
        self._keys.add(session)
        self._live.add(session)
        self._number(session)
        self._events.append(Admitted(session))
        return self._take()

    def withdraw(self, session_id: str, now: int) -> list[Event]:
        """Undoes an admission that could not be kept: nobody was told of it."""
        self._pass_to(now)
        session = self._live.get(session_id) or self._ended.pop(session_id)
        self._live.remove(session)
        self._keys.remove(session)
        self._touched.pop(session_id, None)
        self._events.append(Opened(session_id))
        return self._take()

    def stop(self, session_id: str, reason: StopReason, now: int) -> list[Event]:
        """Ends a session and frees its power. Nothing happens to one that has ended. NotFound."""
        self._pass_to(now)
        session = self.session(session_id)
        if session.live:
            self._end(session, reason)
        return self._take()

    def resolve(self, key: Key, attempt_id: str, now: int) -> list[Event]:
        """The key's session as Repeated, or a fence for this attempt and all before it as Fenced."""
        self._pass_to(now)
        if session := self._keys.get(key):
            self._events.append(Repeated(session, raised=False))
        else:
            self._events.append(Fenced(key, self._keys.fence(key, attempt_id, now)))
        return self._take()

    def end_duplicate(self, session_id: str, survivor_id: str, survivor_attempt: str, now: int) -> list[Event]:
        """Ends a session whose key has another one elsewhere. PreconditionFailed when it ranks above that one.

        One attempt may have raised both, and two balancers may each have heard of one raise: the ids decide here
        as they do in the balancers, or each session would be ended for the other.
        """
        self._pass_to(now)
        session = self.session(session_id)
        if session.live:
            if (session.attempt_id, session_id) >= (survivor_attempt, survivor_id):
                raise PreconditionFailed(
                    ErrorReason.ATTEMPT_NEWER, f"{session_id} was answered to a later attempt than {survivor_id}"
                )
            session.duplicate_of = survivor_id
            self._end(session, StopReason.DUPLICATE)
        return self._take()

    def set_limit(self, limit: Limit, now: int) -> list[Event]:
        """Sets one source's limit; grants follow in `settle`."""
        self._pass_to(now)
        self._power.limits.set(limit)
        self._events.append(LimitsChanged())
        return self._take()

    def clear_limit(self, source: LimitSource, now: int) -> list[Event]:
        """Removes one source's limit; no event when it had none."""
        self._pass_to(now)
        if self._power.limits.clear(source):
            self._events.append(LimitsChanged())
        return self._take()

    def drain(self, draining: bool, now: int) -> list[Event]:
        """Stops or resumes admissions; live sessions go on."""
        self._pass_to(now)
        if self._draining != draining:
            self._draining = draining
            self._events.append(DrainChanged())
        return self._take()

    def block(self, reason: NotAccepting) -> None:
        """Admits nothing for a reason of the process: its ledger, or that it stops."""
        self._blocked.add(reason)

    def unblock(self, reason: NotAccepting) -> None:
        """That reason is gone."""
        self._blocked.discard(reason)

    # --- what the cars say ---------------------------------------------------------------------------

    def heard(self, said: Iterable[CarEvent], now: int) -> list[Event]:
        """All of it, in order: time passes once, and what it led to is told at once. A register never goes back."""
        self._pass_to(now)
        for event in said:
            if session := self._live.get(event.session_id):
                self._hear(event, session)
        return self._take()

    def _hear(self, event: CarEvent, session: Session) -> None:
        if isinstance(event, Full):
            if session.active:
                self._satisfy(session, StopReason.SOC_LIMIT_REACHED)
            return
        session.meter(self._now, self.config.time_scale)
        self._live.touch(session)
        if isinstance(event, Confirmed):
            session.confirm(event.number)
            return
        session.delivered_mj = max(session.delivered_mj, event.register_mj)
        # A reading that was on its way when the contactor opened says nothing of the power any more.
        if session.active:
            session.measured_w = event.power_w
            self._note_reading(session)
            self._events.append(Metered(session))

    # --- time ----------------------------------------------------------------------------------------

    def advance(self, now: int) -> list[Event]:
        """Carries everything to `now`, stopping at each event on the way, and shares the power."""
        self._passed = False
        self._pass_to(now)
        self._settle()
        return self._taken()

    def settle(self) -> list[Event]:
        """Shares the power among the sessions as they are now."""
        self._settle()
        return self._taken()

    def _carry_registers(self) -> None:
        for session in self._live:
            session.meter(self._now, self.config.time_scale)

    def next_event(self) -> int | None:
        """When something happens by itself next, in wall milliseconds."""
        if self._next is None:
            times = [self._power.next_event(self._now, bool(self._live)), self._renew_ms, self._live.next_due()]
            self._next = (min([at for at in times if at is not None], default=None),)
        return self._next[0]

    def next_limit_ms(self) -> int | None:
        """When an operator's limit begins or ends next, in wall milliseconds."""
        return self._power.limits.next_edge(self._now)

    # --- what it shows -------------------------------------------------------------------------------

    def session(self, session_id: str) -> Session:
        """A live session or one that ended within 24 h. NotFound."""
        found = self._live.get(session_id) or self._ended.get(session_id)
        if found is None:
            raise NotFound(ErrorReason.SESSION_NOT_FOUND, f"no session {session_id[:80]!r} here")
        return found

    def sessions(self, include_ended: bool = False) -> Iterable[Session]:
        """Live sessions, and on request those that ended within 24 h."""
        return [*self._live, *(self._ended.values() if include_ended else ())]

    def lives(self, session_id: str) -> bool:
        """Whether it is a session that has not ended."""
        return self._live.get(session_id) is not None

    def take_changed(self, *, everything: bool = False) -> Collection[Session]:
        """Live sessions to be kept and shown, with registers as of now: those that changed since this was asked before.

        What only flowed on is no change. `everything`: all that live.
        """
        changed = self._live.take_changed()
        if everything:
            changed = list(self._live)
        for session in changed:
            session.meter(self._now, self.config.time_scale)
        return changed

    def limits(self) -> list[Limit]:
        return self._power.limits.all()

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def accepting(self) -> NotAccepting:
        """UNSPECIFIED: it is; else why not."""
        if self._blocked:
            return max(self._blocked)
        return NotAccepting.DRAINING if self._draining else _ACCEPTING

    def load(self) -> Load:
        """The load as of the last call; its sequence grows when commitments changed since."""
        total = self._note_commitments()
        budget = self._power.budget
        return Load(
            sequence=self._sequence,
            admission_sequence=self._admission_sequence,
            rated_w=self.config.rated_w,
            limit_w=budget.limit_w,
            limit_source=budget.source,
            demand_w=total.demand_w,
            required_w=self._live.required_w(self._now, self.config.time_scale),
            floor_w=total.floor_w,
            committed_w=total.committed_w,
            granted_w=total.granted_w,
            measured_w=total.measured_w,
            active_sessions=total.active,
            charge_points=self.config.charge_points,
            # Before the last start there may have been more of them.
            free_charge_points=max(0, self.config.charge_points - total.live),
            not_accepting=self.accepting,
            over_limit_ms=self._power.over_limit_ms,
            curtailed=tuple(self._live.curtailed()),
        )

    def outlook(self, now: int) -> Outlook:
        """What is promised for the hours ahead."""
        claims = [grants.claim(s, now, self.config.time_scale) for s in self._live if s.active]
        return promised(claims, self._power.budget.limit_w)

    def _note_commitments(self) -> Sums:
        """Counts the sequence on when commitments changed since the last time."""
        total = self._live.sums()
        budget = self._power.budget
        commitments = (
            self._admission_sequence,
            budget.limit_w,
            budget.source,
            total.demand_w,
            total.floor_w,
            total.committed_w,
            total.granted_w,
            total.active,
            total.live,
            self.accepting,
        )
        if commitments != self._commitments:
            self._commitments = commitments
            self._sequence += 1
        return total

    def expected_end_ms(self, session: Session) -> int | None:
        """When it should be done if it goes on as it does now, or its departure if that is earlier."""
        departure = session.charge.departure_ms
        done = session.done_at(self.config.time_scale) if session.active else None
        if departure is None or done is None:
            return departure if done is None else done
        return min(departure, done)

    # --- admission -----------------------------------------------------------------------------------

    def _room(self) -> admission.Room:
        return admission.Room(
            substation_id=self.config.substation_id,
            accepting=self.accepting,
            charge_points=self.config.charge_points,
            taken=len(self._live),
            highest_floor_w=self._highest_floor_w,
            limit_w=self._power.budget.limit_w,
            floors_w=self._floors_w,
            limit_ends_ms=self._power.limit_ends_ms,
            next_free_ms=self.next_free_ms,
        )

    def _floors_w(self) -> int:
        return self._live.sums().floor_w

    def next_free_ms(self) -> int | None:
        """When the first of the live sessions should end, where any says."""
        ends = (self.expected_end_ms(session) for session in self._live)
        return min((at for at in ends if at is not None), default=None)

    def _new_session(self, charge: Charge) -> Session:
        uuid = ids.uuid7(self._now, self._rng)
        return Session(
            session_id=ids.session_id(self.config.substation_id, uuid),
            charge=charge,
            started_ms=self._now,
            planned_departure_ms=charge.departure_ms or self._now + self._assumed_stay_ms(charge),
            attempt_id=charge.attempt_id,
            metered_ms=self._now,
            last_on_ms=self._now,
        )

    def _assumed_stay_ms(self, charge: Charge) -> int:
        return assumed_stay_ms((charge.energy_j or 0) * 1000, charge.max_w) // self.config.time_scale

    # --- the passing of time -------------------------------------------------------------------------

    def _pass_to(self, now: int) -> None:
        """Handles all that is due up to `now`, each at its own time. A clock that goes back stands still."""
        if self._passed and now <= self._now:
            return
        if (due := self.next_event()) is not None and due + STALL_MS <= now:
            self._resume(now)
        while (at := self.next_event()) is not None and at <= now:
            self._account(at)
            self._handle_due(max(at, self._now))
            self._changed()
            self._settle()
        self._account(now)
        self._passed = True

    def _resume(self, now: int) -> None:
        """The process stood still: it has neither sent nor heard anything, so it must not judge by that.

        What was due then is done now. What flowed then the meters will say: no register is carried over it.
        """
        self._carry_registers()
        self._now = now
        self._changed()
        self._power.resume(now)
        self._live.touch_all()
        for session in self._live:
            session.metered_ms = now
            if session.obey_by_ms is not None:
                session.obey_by_ms = max(session.obey_by_ms, now + draw.OBEY_MS)

    def _account(self, to: int) -> None:
        """Lets time pass without an event: only the time over the limit adds up."""
        self._power.account(self._now, to)
        if to > self._now:
            self._now = to
            # When something is due next follows from the sessions alone, and so does what they should have, unless
            # the policy looks at the time.
            self._unsettled |= self._power.timed

    def _changed(self) -> None:
        """What was found out of this moment holds no longer."""
        self._unsettled = True
        self._next = None

    def _next_of(self, session: Session) -> int | None:
        """When something is due for this session next."""
        departure = session.charge.departure_ms
        if not session.active:
            return departure  # it holds its plug and nothing else
        # Asked of every session in every turn: what is usually None costs no call.
        scale = self.config.time_scale
        at = session.satisfied_at(scale)
        if departure is not None and (at is None or departure < at):
            at = departure
        lapses = session.lapses_at()
        if lapses is not None and (at is None or lapses < at):
            at = lapses
        if session.undrawn_since_ms is not None:
            undrawn = draw.undrawn_until_ms(session, scale)
            at = undrawn if at is None or (undrawn is not None and undrawn < at) else at
        obey_by = session.obey_by_ms
        return obey_by if obey_by is not None and (at is None or obey_by < at) else at

    def _handle_due(self, at: int) -> None:
        for session in self._live.take_due(at):
            self._handle_session(session, at)
        if self._power.limits.forget_over(at):
            self._events.append(LimitsChanged())
        if self._renew_ms is not None and self._renew_ms <= at:
            self._renew(at)
        self._forget(at)

    def _handle_session(self, session: Session, at: int) -> None:
        session.meter(at, self.config.time_scale)
        session.lapse(at)
        departure = session.charge.departure_ms
        target = session.target_mj
        if session.active and target is not None and session.delivered_mj >= target:
            self._satisfy(session, _SATISFIED)
        if session.live and departure is not None and departure <= at:
            self._end(session, session.satisfied_by or StopReason.EV_DISCONNECTED)
        if not session.active:
            return
        if session.obey_by_ms is not None and session.obey_by_ms <= at:
            self._judge(session)
        undrawn_until = draw.undrawn_until_ms(session, self.config.time_scale)
        if undrawn_until is not None and undrawn_until <= at:
            draw.take_back(session)
            self._touched[session.session_id] = session

    def _renew(self, now: int) -> None:
        """Offers every grant again before its lease is over, and every cut that the car has not confirmed."""
        self._renew_ms = None
        self._live.touch_all()
        for session in self._live:
            session.meter(now, self.config.time_scale)
            session.lapse(now)
            if session.granted_w > 0 or session.held_w > 0:
                self._offer(session)

    def _forget(self, now: int) -> None:
        """Drops ended sessions and fences after their 24 h."""
        while self._ended:
            session = next(iter(self._ended.values()))
            if session.ended_ms is None or session.ended_ms > now - REMEMBER_MS:
                break
            del self._ended[session.session_id]
            self._keys.remove(session)
        self._keys.forget_fences(now)

    # --- a session's life ----------------------------------------------------------------------------

    def _satisfy(self, session: Session, reason: StopReason) -> None:
        """It has all it wanted: keeps its plug until a given departure, else it leaves."""
        session.satisfied_by = reason
        if session.charge.departure_ms is None:
            self._end(session, reason)
            return
        self._live.touch(session)
        session.move(Trigger.SATISFY)
        self._open(session)
        self._touched[session.session_id] = session

    def _end(self, session: Session, reason: StopReason) -> None:
        session.meter(self._now, self.config.time_scale)
        session.move(_END)
        session.ended_ms = self._now
        session.stop_reason = reason
        self._open(session)
        self._live.remove(session)
        self._ended[session.session_id] = session
        self._touched.pop(session.session_id, None)
        self._number(session)
        self._events.append(Ended(session))

    def _another(self, ended: Session) -> Session:
        """Stands for one that has ended, which is shown, or being written, as it is."""
        session = copy(ended)
        self._ended[session.session_id] = session
        self._keys.add(session)
        return session

    def _number(self, session: Session) -> None:
        """A new entry in the stream of admissions."""
        self._admission_sequence += 1
        session.admission_sequence = self._admission_sequence

    def _open(self, session: Session) -> None:
        """Opens the contactor, the charge point's own switch: nothing flows from here on."""
        session.granted_w = session.measured_w = 0
        session.offers, session.confirmed_until_ms = (), 0
        session.undrawn_since_ms = session.obey_by_ms = None
        session.overdraw_w = 0
        session.limit_reason, session.limit_source = _IN_FULL, _NOBODYS
        self._events.append(Opened(session.session_id))

    def _note_reading(self, session: Session) -> None:
        target = session.target_mj
        if target is not None and session.delivered_mj >= target:
            self._satisfy(session, _SATISFIED)
        elif draw.note_reading(session, self._now):
            self._touched[session.session_id] = session

    def _judge(self, session: Session) -> None:
        """A lowered grant had its time to show: who still draws more is disconnected."""
        if draw.disobeys(session, session.obey_w):
            self._end(session, StopReason.OVERCURRENT_FAULT)
        else:
            draw.time_obedience(session, self._now)

    # --- power ---------------------------------------------------------------------------------------

    def _settle(self) -> None:
        if not self._unsettled:
            return
        self._next = None
        settled = self._power.settle(self._live, self._now)
        for session in settled.granted:
            self._offer(session)
            draw.time_undrawn(session, self._now)
        for session in settled.shown:
            self._touched[session.session_id] = session
        # Each change counts, also one that the next takes back before anybody looks.
        total = self._note_commitments()
        complied_ms = self._power.note_committed(total.committed_w, self._now)
        if complied_ms is not None:
            self._events.append(LimitComplied(complied_ms))
        # Where nothing was granted, sharing once more would change nothing either.
        self._unsettled = bool(settled.granted)

    def _offer(self, session: Session) -> None:
        self._live.touch(session)
        # Before the lease is longer: what it did not cover was not drawn.
        session.meter(self._now, self.config.time_scale)
        offer = session.offer(session.granted_w, self._now + self.config.lease_ms)
        self._events.append(Offered(session.session_id, offer))
        if self._renew_ms is None:
            self._renew_ms = self._now + self.config.lease_ms // 3

    def _take(self) -> list[Event]:
        """The events of a call that may have changed anything."""
        self._changed()
        return self._taken()

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        if self._touched:
            events += [Changed(session) for session in self._touched.values()]
            self._touched = {}
        return events
