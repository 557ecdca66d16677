"""A mesh of the production parts over a network that loses, delays, reorders and duplicates what it likes.

Three substations, two balancers, and hops before them that name attempts; each with a clock of its own that is wrong
by up to two seconds. Only `World` knows the true time. It also checks along the way, at the moment when something
would go wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from balancer.admissions import Duplicate
from balancer.attempt import Answer, Fail, Outcome, Refused, State
from balancer.desk import Doubt, Fenced, Found, Settled
from balancer.view import HOLD_MS
from gridmesh.v1 import charging_pb2
from mesh.charge import Key
from mesh.ids import substation_of, uuid7
from mesh.model import ErrorReason, StopReason
from mesh.requests import ANONYMOUS, CLOCK_TOLERANCE_MS
from substation.keys import REMEMBER_MS
from substation.sessions import Session
from tests.protocol.balancer import Balancer, Flight, Watch
from tests.protocol.substation import Stream, Substation

NOW = 1_800_000_000_000
# The smallest substation refuses, so that the next best is asked.
PLUGS = {"a": 3, "b": 3, "c": 1}
BALANCERS = 2
# Clocks that name attempts: two gateways, then the balancers themselves.
GATEWAYS = 2
# Reports come at least so often.
_INTERVAL_MS = 400
# In the stream of admissions, so that snapshots take several messages.
_CHUNK = 2
# By how much earlier others may forget: two clocks, and the time that it takes to ask.
_EDGE_MS = 20_000
# Statuses of ours that say nothing of what became of a call.
_UNKNOWN = {ErrorReason.OUTCOME_UNKNOWN, ErrorReason.INTERNAL}
# Once all is connected and nothing is lost, everything is settled within this.
_SETTLED_WITHIN_MS = 6_000


@dataclass(eq=False, slots=True)
class Connection:
    """Between one life of a balancer and one life of a substation. Cut: nothing comes back any more."""

    epoch: int
    cut: bool = False
    reported: bool = False
    stream: Stream | None = None


@dataclass(eq=False, slots=True)
class Packet:
    """On its way; may arrive at any time, several times, or never."""

    what: str
    arrive: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Told:
    """A client was told of this session."""

    key: Key
    session_id: str
    attempt_id: str


class Link:
    """One balancer's way to one substation."""

    def __init__(self, world: "World", balancer: Balancer, substation: Substation) -> None:
        self._world = world
        self._balancer = balancer
        self._substation = substation
        self.connection: Connection | None = None

    @property
    def ready(self) -> bool:
        """As the balancer sees it: a connection whose other end has died may go unnoticed."""
        return self.connection is not None

    @property
    def works(self) -> bool:
        return self.connection is not None and self._reaches(self.connection)

    def _reaches(self, connection: Connection) -> bool:
        return self._substation.up and self._substation.epoch == connection.epoch

    def connect(self) -> None:
        if self._substation.up and not self._balancer.dead and self.connection is None:
            self.connection = Connection(self._substation.epoch)

    def report(self) -> None:
        """A report arrives; with the first of a connection the admissions are asked for."""
        if self.connection is None or not self.works:
            return
        self._balancer.reported(self._substation.name, self._substation.load())
        if not self.connection.reported:
            self.connection.reported = True
            self.open_stream()

    def open_stream(self) -> None:
        connection, name = self.connection, self._substation.name
        if connection is None or not connection.reported or connection.stream is not None or not self.works:
            return
        desk, shown, epoch = self._balancer.desk, self._substation.shown, self._substation.epoch
        position = desk.index.position(name)
        desk.admissions_begin(name, name, self._balancer.now)
        if position is not None and position[0] == epoch and shown.admissions_after(position[1]) is not None:
            stream = Stream(position[1])
            stream.messages.append(partial(self._balancer.changes, name, epoch, [], stream.after))
            news = shown.admissions_after(position[1])
        else:
            sessions, after = shown.admission_snapshot()
            stream, news = Stream(after), []
            chunks = [sessions[i : i + _CHUNK] for i in range(0, len(sessions), _CHUNK)]
            entries = [self._substation.entries(chunk) for chunk in chunks]
            stream.messages += [partial(self._balancer.snapshot_chunk, name, chunk) for chunk in entries]
            stream.messages.append(partial(self._balancer.snapshot_end, name, epoch, after))
        stream.on_changes = lambda entries, after: partial(self._balancer.changes, name, epoch, entries, after)
        if news:
            stream.after = news[-1].admission_sequence
            stream.messages.append(stream.on_changes(self._substation.entries(news), stream.after))
        connection.stream = stream
        self._substation.streams.append(stream)

    def hear(self, most: int = 1_000_000) -> None:
        """The next messages of the stream of admissions; those of a dead substation were under way."""
        stream = self.connection.stream if self.connection else None
        for _ in range(min(most, len(stream.messages) if stream else 0)):
            if stream is not None and stream.messages and not self._balancer.dead:
                stream.messages.pop(0)()

    def break_stream(self) -> None:
        if self.connection is not None and (stream := self.connection.stream) is not None:
            self.connection.stream = None
            if stream in self._substation.streams:
                self._substation.streams.remove(stream)
            self._balancer.desk.admissions_end(self._substation.name, self._balancer.now)

    def cut(self) -> None:
        """The balancer's side of it: what was sent may arrive all the same, what comes back does not."""
        if self.connection is not None:
            self.break_stream()
            self.connection.cut = True
            self.connection = None
            self._balancer.broke(self._substation.name)

    # --- calls -----------------------------------------------------------------------------------------

    def charge(self, request: charging_pb2.ChargeRequest, done: Callable[[Outcome], None]) -> None:
        copy = charging_pb2.ChargeRequest()
        copy.CopyFrom(request)
        self._send(f"Charge {request.request_id}", lambda answer: self._substation.charge(copy, answer), done)

    def resolve(self, doubt: Doubt, done: Callable[[Found | Fenced | None], None]) -> None:
        what = f"ResolveCharge {doubt.key.request_id}"
        self._send(what, lambda answer: self._substation.resolve(doubt.key, doubt.attempt_id, answer), done)

    def end_duplicate(self, duplicate: Duplicate, done: Callable[[bool], None]) -> None:
        one, survivor, attempt_id = duplicate.session_id, duplicate.survivor_session_id, duplicate.survivor_attempt_id
        what = f"EndDuplicate {duplicate.key.request_id}"
        self._send(what, lambda answer: self._substation.end_duplicate(one, survivor, attempt_id, answer), done)

    def _send(self, what: str, ask: Callable[[Callable[[Any], None]], None], done: Callable[[Any], None]) -> None:
        connection = self.connection
        assert connection is not None
        name, send = self._substation.name, self._world.send

        def hear(answer: Any) -> None:  # noqa: ANN401
            if not connection.cut:
                done(answer)

        def arrive() -> None:
            if self._reaches(connection):
                self._world.sender = self._balancer
                ask(lambda answer: send(f"{name} answers {what}", lambda: hear(answer)))

        send(f"{what} to {name}", arrive)


@dataclass
class World:
    """`clocks`: by how many milliseconds each process is wrong: substations, balancers, gateways."""

    clocks: tuple[int, ...] = (0,) * (len(PLUGS) + BALANCERS + GATEWAYS)
    now: int = NOW
    network: list[Packet] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    # Every session that was ever durable, as it last was.
    durable: dict[str, Session] = field(default_factory=dict)
    # What must never be admitted: attempts up to this one at a key of a substation.
    fenced: dict[tuple[str, Key], str] = field(default_factory=dict)
    # Whose message admitted a session, and whose is being processed.
    admitted_from: dict[str, Balancer] = field(default_factory=dict)
    sender: Balancer | None = None
    # Where a balancer asked for a key and does not know what became of it.
    open: dict[tuple[Balancer, Key], str] = field(default_factory=dict)
    # The attempt that a session had when it was ended as a duplicate.
    ended_at_attempt: dict[str, str] = field(default_factory=dict)
    # Calls of a key since everything was last settled, and whether anything was lost since then.
    calls: dict[Key, int] = field(default_factory=dict)
    disturbed: bool = False

    def __post_init__(self) -> None:
        self.rng = Random(1)
        clocks = iter(self.clocks)
        self.substations = {name: Substation(name, plugs, next(clocks), self.rng) for name, plugs in PLUGS.items()}
        self._balancer_clocks = [next(clocks) for _ in range(BALANCERS)]
        self._gateway_clocks = list(clocks)
        for substation in self.substations.values():
            substation.on_admitted = partial(self._admitted, substation.name)
            substation.on_ended = self._ended
            substation.on_durable = self._is_durable
            substation.pass_to(self.now + substation.offset_ms)
            substation.start()
        self.balancers: list[Balancer] = []
        self.links: dict[tuple[int, str], Link] = {}
        for number in range(BALANCERS):
            self.start_balancer(number)
        for link in self.links.values():
            link.connect()
            link.report()
            link.hear()

    def start_balancer(self, number: int) -> None:
        """A new life of it, which knows nothing."""
        watch = Watch(self._asked, self._heard, self._settled, self._answered)
        balancer = Balancer(tuple(self.substations), self._balancer_clocks[number], Random(number), watch)
        balancer.now = self.now + balancer.offset_ms
        self.balancers[number:] = [balancer, *self.balancers[number + 1 :]]
        for name, substation in self.substations.items():
            self.links[number, name] = Link(self, balancer, substation)
        balancer.wires = {name: self.links[number, name] for name in self.substations}

    # --- what happens ----------------------------------------------------------------------------------

    def send(self, what: str, arrive: Callable[[], None]) -> None:
        self.network.append(Packet(what, arrive))

    def call(self, number: int, request_id: str, hop: int, timeout_ms: int) -> charging_pb2.ChargeRequest:
        """A client sends a request, by way of a gateway or to the balancer itself, which is then the first hop."""
        clocks = [*self._gateway_clocks, self._balancer_clocks[number]]
        at = self.now + clocks[hop % len(clocks)]
        request = charging_pb2.ChargeRequest(
            request_id=request_id, vehicle_id="EV", max_power_kw=11.0, attempt_id=uuid7(at, self.rng)
        )
        request.not_after.FromMilliseconds(at + timeout_ms + CLOCK_TOLERANCE_MS)
        self.call_with(number, request, timeout_ms)
        return request

    def call_with(self, number: int, request: charging_pb2.ChargeRequest, timeout_ms: int) -> None:
        """The same attempt may come to a balancer twice."""
        key = Key(ANONYMOUS, request.request_id)
        self.calls[key] = self.calls.get(key, 0) + 1
        self.balancers[number].charge(request, timeout_ms, partial(self._reply, key, request.attempt_id))

    def _reply(self, key: Key, attempt_id: str, step: Answer | Fail) -> None:
        if isinstance(step, Answer):
            told = Told(key, step.reply, attempt_id)
            self.send(f"{key.request_id} has {step.reply}", lambda: self.told.append(told))

    def pass_time(self, milliseconds: int) -> None:
        self.now += milliseconds
        for substation in self.substations.values():
            substation.pass_to(self.now + substation.offset_ms)
        for balancer in self.balancers:
            if balancer.pass_to(self.now + balancer.offset_ms):
                self.disturbed = True
            if milliseconds >= REMEMBER_MS:
                balancer.desk.index.forget(balancer.now)
        if milliseconds >= _INTERVAL_MS:
            self.report()

    def report(self) -> None:
        """Reports come over every connection that works."""
        for link in self.links.values():
            if link.connection is not None and link.connection.reported:
                link.report()

    def crash_balancer(self, number: int) -> None:
        self.balancers[number].dead = True
        for name in self.substations:
            self.links[number, name].break_stream()
        self.start_balancer(number)

    # --- what must hold at that moment -----------------------------------------------------------------

    def _asked(self, balancer: Balancer, address: str, flight: Flight) -> None:
        """The rule on doubt: nobody is asked to admit what somebody else may have admitted already."""
        key = flight.attempt.key
        assert key not in balancer.desk.doubts, "asked while the key is in doubt"
        if flight.attempt.state is State.ASKING:
            before = self.open.get((balancer, key))
            assert before in {None, address}, f"{address} is asked while what became of it at {before} is not known"
            self.open[balancer, key] = address

    def _heard(self, balancer: Balancer, address: str, key: Key, outcome: Outcome) -> None:
        unknown = isinstance(outcome, Refused) and outcome.error.reason in _UNKNOWN
        if not unknown and self.open.get((balancer, key)) == address:
            del self.open[balancer, key]

    def _settled(self, balancer: Balancer, settled: Settled, asked: bool) -> None:
        """A durable fence holds for the attempt, a newer life only for what this balancer sent to the one before."""
        doubt = settled.doubt
        self.open.pop((balancer, doubt.key), None)
        if isinstance(settled.outcome, Found):
            return
        if asked:
            where = doubt.substation_id, doubt.key
            self.fenced[where] = max(self.fenced.get(where, ""), doubt.attempt_id)
        for session in self.durable.values():
            here = session.charge.key == doubt.key and substation_of(session.session_id) == doubt.substation_id
            if here and session.charge.attempt_id == doubt.attempt_id and not self.forgotten(session):
                sender = self.admitted_from.get(session.session_id)
                assert not asked, f"{session.session_id} exists and was fenced"
                assert sender is not balancer, f"{session.session_id} exists and is taken for fenced"

    def _admitted(self, name: str, session: Session) -> None:
        fence = self.fenced.get((name, session.charge.key), "")
        assert session.attempt_id > fence, f"{session.session_id} was admitted in spite of a fence"
        if self.sender is not None:
            self.admitted_from[session.session_id] = self.sender

    def _ended(self, session: Session) -> None:
        if session.stop_reason is StopReason.DUPLICATE:
            self.ended_at_attempt[session.session_id] = session.attempt_id

    def _is_durable(self, session: Session) -> None:
        name = substation_of(session.session_id) or ""
        fence = self.fenced.get((name, session.charge.key), "")
        assert session.attempt_id > fence, f"{session.session_id} is on disk in spite of a fence"
        self.durable[session.session_id] = session

    def _answered(self, flight: Flight, answer: Answer) -> None:
        session = self.durable.get(answer.reply)
        assert session is not None, f"{answer.reply} is not on disk and a client is told of it"
        assert session.attempt_id >= flight.attempt.attempt_id, "its attempt was not raised first"

    def forgotten(self, session: Session, early_ms: int = 0) -> bool:
        """Whether it ended so long ago that nobody need know it, or will have within that time."""
        substation = self.substations[substation_of(session.session_id) or ""]
        return session.ended_ms is not None and session.ended_ms <= substation.now - REMEMBER_MS + early_ms

    # --- peace -----------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Everybody is up and connected."""
        for substation in self.substations.values():
            if not substation.up:
                substation.start()
        for link in self.links.values():
            if not link.works:
                link.cut()
            if link.connection is None or not link.connection.reported:
                link.connect()
                link.report()
            link.open_stream()

    def turn(self) -> None:
        """A round without losses: what is on its way arrives, is written, and is heard of."""
        packets, self.network = self.network, []
        for packet in packets:
            packet.arrive()
        for substation in self.substations.values():
            if substation.up and substation.unwritten:
                substation.write()
        for link in self.links.values():
            link.hear()
        for balancer in self.balancers:
            balancer.timers()

    @property
    def settled(self) -> bool:
        return (
            not self.network
            and all(balancer.idle for balancer in self.balancers)
            and not any(substation.unwritten for substation in self.substations.values())
            and not any(s.messages for link in self.links.values() if link.connection and (s := link.connection.stream))
        )

    def settle(self) -> None:
        """No more losses, until nothing happens any more."""
        started = self.now
        while True:
            self.heal()
            self.turn()
            if self.settled:
                self.report()
                return
            self.pass_time(50)
            assert self.now - started < _SETTLED_WITHIN_MS, [packet.what for packet in self.network]

    def sessions(self) -> list[Session]:
        """All that the substations know."""
        return [s for substation in self.substations.values() for s in substation.station.sessions(include_ended=True)]

    def check(self) -> None:
        """What must hold once all is settled."""
        by_key: dict[Key, list[Session]] = {}
        for session in self.sessions():
            by_key.setdefault(session.charge.key, []).append(session)
        for key, sessions in by_key.items():
            live = [session.session_id for session in sessions if session.live]
            assert len(live) <= 1, f"{key} has {live}"
            self._check_duplicates(sessions)
        for told in self.told:
            self._check_told(told, by_key.get(told.key, []))
        for balancer in self.balancers:
            assert not balancer.desk.doubts
            # A withdrawn admission leaves a gap in the sequence: reports seem ahead of the stream and are held back.
            balancer.desk.view.tick(balancer.now + HOLD_MS)
            assert [known.reserved_w for known in balancer.desk.view] == [0] * len(PLUGS), "reserved for ever"

    def _check_duplicates(self, sessions: list[Session]) -> None:
        calm = not self.disturbed and self.calls.get(sessions[0].charge.key, 0) <= 1
        for session in sessions:
            if session.stop_reason is StopReason.DUPLICATE:
                survivor = self.durable.get(self.survivor(session).session_id)
                assert survivor is not None
                assert survivor.stop_reason is not StopReason.DUPLICATE, "nobody survived"
                assert (survivor.attempt_id, survivor.session_id) > (
                    self.ended_at_attempt[session.session_id],
                    session.session_id,
                ), "the highest attempt was ended"
                assert not calm or session.session_id in self.old_duplicates, "ended although nothing was lost"

    old_duplicates: set[str] = field(default_factory=set)

    def survivor(self, session: Session) -> Session:
        """Where the chain of duplicates ends."""
        seen = {session.session_id}
        while session.stop_reason is StopReason.DUPLICATE and session.duplicate_of in self.durable:
            session = self.durable[session.duplicate_of]
            assert session.session_id not in seen, f"{seen} are duplicates of one another"
            seen.add(session.session_id)
        return session

    def _check_told(self, told: Told, sessions: list[Session]) -> None:
        session = self.durable[told.session_id]
        if self.forgotten(session):
            return
        known = next((s for s in sessions if s.session_id == told.session_id), None)
        assert known is not None, f"a client was told of {told.session_id}, which is lost"
        survivor = self.survivor(known)
        assert self.forgotten(survivor) or survivor.attempt_id >= told.attempt_id, "an older session survived"

    def ask_everybody(self, key: Key) -> None:
        """Every balancer answers a repeat with the key's session: the live one, where one lives."""
        known = [session for session in self.sessions() if session.charge.key == key]
        kept = [session for session in known if session.stop_reason is not StopReason.DUPLICATE]
        # At the end of its 24 h a key may be known to some and forgotten by others.
        ever = [session for session in self.durable.values() if session.charge.key == key]
        if not kept or any(self.forgotten(session, _EDGE_MS) for session in ever):
            return
        answers = []
        for number in range(BALANCERS):
            before = len(self.told)
            self.call(number, key.request_id, GATEWAYS, 3_000)
            self.settle()
            answers.append([told.session_id for told in self.told[before:]])
        kept.sort(key=lambda session: (session.live, session.attempt_id, session.session_id))
        expected = [session.session_id for session in kept[-1:]]
        assert answers == [expected] * BALANCERS, f"{key}: {answers} instead of {expected}"

    def make_peace(self) -> None:
        """All of it: nothing is lost any more, and then everything that was promised holds."""
        self.settle()
        self.check()
        for key in sorted({session.charge.key for session in self.sessions()}):
            self.ask_everybody(key)
        self.check()
        self.disturbed = False
        self.calls.clear()
        self.old_duplicates = set(self.ended_at_attempt)
