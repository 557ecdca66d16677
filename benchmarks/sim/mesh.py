"""Clients, balancers and substations on one seeded clock, and what goes wrong between them.

Substations push a report 20 ms after a change and one every second, or report every `period_s` only. The reports of
every second are made only while somebody is about to ask or waits for an answer: nobody reads the others.

Clients repeat a request, with the same key and at the next balancer, when they hear nothing for ten seconds, when
the balancer dies, and when they are told that nobody can be asked or that the outcome is not known yet.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random

from msgspec.structs import replace

from balancer.attempt import Answer, Fail
from balancer.desk import Desk
from benchmarks.sim.balancer import Balancer, Reply, Tally
from benchmarks.sim.link import Link
from benchmarks.sim.loop import Loop
from benchmarks.sim.net import CALM, Net, Weather
from benchmarks.sim.site import Site
from benchmarks.sim.substation import Gate, Substation
from mesh.charge import Charge, Key
from mesh.errors import InvalidRequest, MeshError, Refused, Unavailable
from mesh.ids import substation_of
from mesh.model import ErrorReason, StopReason
from substation.sessions import Session

# Hears which session a car has; None: it has none.
Told = Callable[[str | None], None]

HOUR_MS = 3_600_000
BEAT_MS = 1_000
TIMEOUT_MS = 10_000
# A balancer keeps this much of a call's time to get the answer back.
_MARGIN_MS = 100
_RETRY_MS = 1_000
_BALANCER_DOWN_MS = 5_000
# A key that lives twice must be down to one so long after its substations are connected.
SETTLED_MS = 2_000
_LOOK_MS = 250
# Of reports that may be lost or late, so many seconds' worth are made beforehand.
_LOSSY_LEAD_MS = 8 * BEAT_MS
_DEAD = Fail(Unavailable(ErrorReason.SUBSTATION_UNREACHABLE, "no connection to the balancer", _RETRY_MS))


@dataclass(frozen=True, slots=True)
class Plan:
    """What the mesh is like. Hours None: that does not happen. `period_s` None: reports are pushed.

    `lease_ms`: see `Site.crash`.
    """

    balancers: int = 1
    period_s: int | None = None
    weather: Weather = CALM
    crash_every_h: int | None = None
    crash_ms: int = 60_000
    restart_every_h: int | None = None
    lease_ms: int = 10_000
    # Of so many admissions the substation dies at once, while its reply and its entry are on their way.
    fatal: float = 0.0


class Host:
    """Where one balancer runs, one life after the other."""

    def __init__(self, mesh: "Mesh", number: int) -> None:
        self._mesh = mesh
        self._number = number
        self._life = 0
        self.balancer: Balancer | None = None
        self.links: dict[str, Link] = {}
        # Clients that wait for an answer.
        self._open: dict[int, Reply] = {}
        self._calls = 0

    def start(self) -> None:
        """A new life, that knows nothing yet."""
        mesh = self._mesh
        self._life += 1
        rng = Random(f"{mesh.seed} balancer {self._number} {self._life}")
        interval_ms = BEAT_MS if mesh.plan.period_s is None else mesh.plan.period_s * 1000
        self.links = {name: Link(mesh.loop, mesh.net, rng, one) for name, one in mesh.substations.items()}
        desk = Desk(mesh.substations, interval_ms, rng)
        self.balancer = Balancer(mesh.loop, desk, self.links, rng, mesh.tally)
        for link in self.links.values():
            link.balancer = self.balancer
            link.start()

    def kill(self) -> None:
        """The process dies. Its clients hear that their connections broke."""
        assert self.balancer is not None
        self.balancer.dead = True
        self.balancer = None
        for link in self.links.values():
            link.close()
        calls, self._open = self._open, {}
        for reply in calls.values():
            self._mesh.net.later(partial(reply, _DEAD))

    def charge(self, charge: Charge, deadline_ms: int, reply: Reply) -> None:
        """A client's request has arrived."""
        if self.balancer is None:
            self._mesh.net.later(partial(reply, _DEAD))
            return
        self._calls += 1
        self._open[self._calls] = reply
        self.balancer.charge(charge, partial(self._answer, self._calls), deadline_ms)

    def _answer(self, call: int, step: Answer | Fail) -> None:
        reply = self._open.pop(call, None)
        if reply is not None:
            self._mesh.net.later(partial(reply, step))


class Client:
    """One car's driver: asks until there is an answer, or until the car leaves. `told` hears of which session."""

    def __init__(self, mesh: "Mesh", charge: Charge, until_ms: int, told: Told) -> None:
        self._mesh = mesh
        self._charge = replace(charge, attempt_id="")
        self._until_ms = until_ms
        self._told = told
        self._tries = 0

    def ask(self) -> None:
        """Sends the request to the next balancer."""
        loop, now = self._mesh.loop, self._mesh.loop.now
        if now >= self._until_ms:
            self._done(None)
            return
        self._tries += 1
        deadline_ms = now + TIMEOUT_MS
        host = self._mesh.next_host()
        answer = partial(self._answered, self._tries)
        self._mesh.net.later(partial(host.charge, self._charge, deadline_ms - _MARGIN_MS, answer))
        loop.at(deadline_ms, partial(self._timed_out, self._tries))

    def _timed_out(self, number: int) -> None:
        if number == self._tries:
            self.ask()

    def _answered(self, number: int, step: Answer | Fail) -> None:
        if number != self._tries:
            return
        self._tries += 1
        if isinstance(step, Answer):
            self._done(step.reply)
        elif isinstance(step.error, Refused | InvalidRequest):
            self._done(None)
        else:
            self._mesh.loop.at(self._mesh.loop.now + _wait_ms(step.error), partial(self._again, self._tries))

    def _again(self, number: int) -> None:
        if number == self._tries:
            self.ask()

    def _done(self, session_id: str | None) -> None:
        self._tries = 0
        self._told(session_id)


def _wait_ms(error: MeshError) -> int:
    return _RETRY_MS if error.retry_after_ms is None else error.retry_after_ms


class Twins:
    """Keys that live twice: how many, and those that still do when they must not any more."""

    def __init__(self, mesh: "Mesh") -> None:
        self._mesh = mesh
        self._live: dict[Key, set[str]] = {}
        # When a key's substations were first seen connected.
        self._since: dict[Key, int] = {}
        # What clients were told, and what was ended because its key had another one.
        self.told: dict[Key, str] = {}
        self._ended: set[str] = set()
        self.keys = 0
        self.too_long: set[Key] = set()
        self.longest_ms = 0

    def note(self, session: Session) -> None:
        """A session was admitted or has ended."""
        key = session.charge.key
        live = self._live.setdefault(key, set())
        if session.live and session.session_id not in live:
            live.add(session.session_id)
            if len(live) == 2:
                self.keys += 1
                self._look(key)
        elif not session.live:
            live.discard(session.session_id)
            if session.stop_reason is StopReason.DUPLICATE:
                self._ended.add(session.session_id)
            if not live:
                del self._live[key]

    def left(self) -> int:
        """Keys that live twice now."""
        return sum(len(live) > 1 for live in self._live.values())

    def misled(self) -> int:
        """Clients that were told of a session that was ended as the duplicate of another one."""
        return len(self._ended & set(self.told.values()))

    def _look(self, key: Key) -> None:
        live = self._live.get(key, set())
        if len(live) < 2:
            self._since.pop(key, None)
            return
        now = self._mesh.loop.now
        if self._mesh.connected([substation_of(session_id) or "" for session_id in live]):
            since = self._since.setdefault(key, now)
            self.longest_ms = max(self.longest_ms, now - since)
            if now - since > SETTLED_MS:
                self.too_long.add(key)
        else:
            self._since.pop(key, None)
        self._mesh.loop.at(now + _LOOK_MS, partial(self._look, key))


class Mesh:
    """All of it. `sites` are driven from here; who made them may listen to `on_end` and `on_admitted`."""

    def __init__(self, loop: Loop, sites: Mapping[str, Site], plan: Plan, seed: int, gate: Gate | None = None) -> None:
        self.loop = loop
        self.plan = plan
        self.seed = seed
        self.net = Net(loop, Random(f"{seed} net"), plan.weather)
        self._rng = Random(f"{seed} mesh")
        self._needs_mj: dict[Key, int] = {}
        pushed = plan.period_s is None
        self.substations = {
            name: Substation(loop, site, self._needs_mj.__getitem__, pushed=pushed, gate=gate)
            for name, site in sites.items()
        }
        self.tally = Tally()
        self.twins = Twins(self)
        self.hosts = [Host(self, number) for number in range(plan.balancers)]
        self._next_host = 0
        self._waiting = 0
        self._awake_until = 0
        self._beating: set[str] = set()
        self._phases = {name: self._rng.randrange(BEAT_MS) for name in sites}
        self.on_admitted: Callable[[Site, Session], None] = _ignore
        for substation in self.substations.values():
            substation.on_admission = partial(self._noted, substation.site)

    def start(self, until_ms: int) -> None:
        """From now on; crashes are planned until then."""
        now, plan = self.loop.now, self.plan
        for host in self.hosts:
            host.start()
        if plan.period_s is not None:
            for substation in self.substations.values():
                substation.reports.every(plan.period_s * 1000, now + self._rng.randrange(plan.period_s * 1000))
        for substation in self.substations.values():
            for at in self._times(plan.crash_every_h, until_ms):
                self.loop.at(at, partial(substation.crash_for, plan.crash_ms, plan.lease_ms))
        for host in self.hosts:
            for at in self._times(plan.restart_every_h, until_ms):
                self.loop.at(at, host.kill)
                self.loop.at(at + _BALANCER_DOWN_MS, host.start)
        for at in range(now + HOUR_MS, until_ms, HOUR_MS):
            self.loop.at(at, self._forget)

    def _times(self, every_h: int | None, until_ms: int) -> list[int]:
        """Once in each stretch of so many hours, at any time of it; the end stays quiet."""
        if every_h is None:
            return []
        starts = range(self.loop.now, until_ms - 2 * every_h * HOUR_MS, every_h * HOUR_MS)
        return [start + self._rng.randrange(every_h * HOUR_MS) for start in starts]

    def _forget(self) -> None:
        for host in self.hosts:
            if host.balancer is not None:
                host.balancer.desk.index.forget(self.loop.now)

    # --- clients ----------------------------------------------------------------------------------

    def expect(self, at: int) -> None:
        """Somebody will ask then: the reports of the seconds before are made."""
        lossy = self.plan.weather.reports_lost + self.plan.weather.reports_late > 0
        lead_ms = _LOSSY_LEAD_MS if lossy else BEAT_MS
        self.loop.at(at - lead_ms, partial(self._wake, at))

    def ask(self, charge: Charge, need_mj: int, until_ms: int, told: Told) -> None:
        """A car that can take `need_mj` asks for a place, until then."""
        self._needs_mj[charge.key] = need_mj
        self._waiting += 1
        self._wake(self.loop.now)
        Client(self, charge, until_ms, partial(self._answered, told, charge.key)).ask()

    def _answered(self, told: Told, key: Key, session_id: str | None) -> None:
        self._waiting -= 1
        if session_id is not None:
            self.twins.told[key] = session_id
        told(session_id)

    def next_host(self) -> Host:
        """Balancers in turn."""
        self._next_host += 1
        return self.hosts[self._next_host % len(self.hosts)]

    def _noted(self, site: Site, session: Session) -> None:
        if session.live:
            self.on_admitted(site, session)
            if self.plan.fatal and self._rng.random() < self.plan.fatal:
                substation = self.substations[site.config.substation_id]
                self.loop.at(self.loop.now, partial(substation.crash_for, self.plan.crash_ms, self.plan.lease_ms))
        self.twins.note(session)

    # --- the reports of every second --------------------------------------------------------------

    def _wake(self, until: int) -> None:
        self._awake_until = max(self._awake_until, until)
        if self.plan.period_s is not None:
            return
        now = self.loop.now
        for name, phase in self._phases.items():
            if name not in self._beating:
                self._beating.add(name)
                self.loop.at(now + (phase - now) % BEAT_MS, partial(self._beat, name))

    def _beat(self, name: str) -> None:
        if self.loop.now > self._awake_until and not self._waiting:
            self._beating.discard(name)
            return
        self.substations[name].reports.report()
        self.loop.at(self.loop.now + BEAT_MS, partial(self._beat, name))

    # --- what is left -----------------------------------------------------------------------------

    def connected(self, names: list[str]) -> bool:
        """Whether one balancer has all admissions of all of these."""
        return any(
            host.balancer is not None and all(host.links[name].complete_since_ms is not None for name in names)
            for host in self.hosts
        )

    def reservations(self) -> int:
        """Of all balancers."""
        desks = [host.balancer.desk for host in self.hosts if host.balancer is not None]
        return sum(len(known.reservations) for desk in desks for known in desk.view)

    def doubts(self) -> int:
        """Of all balancers."""
        return sum(len(host.balancer.desk.doubts) for host in self.hosts if host.balancer is not None)


def _ignore(_: Site, __: Session) -> None:
    """Nobody listens."""
