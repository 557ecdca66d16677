"""One balancer's connection to one substation: two streams, and calls that may be lost.

It breaks when the substation's process dies, and is tried again every second at most. Then reports are
followed, and once one has come, admissions from where they broke off, or from a snapshot.
"""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import TypeVar

from balancer.admissions import Duplicate, Entry
from balancer.attempt import Lost, Outcome
from balancer.desk import Doubt, Fenced, Found
from balancer.view import Load
from benchmarks.sim.balancer import Balancer
from benchmarks.sim.loop import Loop
from benchmarks.sim.net import Action, Net
from benchmarks.sim.substation import Ear, Substation
from mesh.charge import Charge

T = TypeVar("T")

# Milliseconds: the first try after a start, tries for a connection, a stream that broke.
_START_MS, _CONNECT_MS, _SOON_MS = 200, 1_000, 300
# When nothing comes back, a call is given up at some moment within its time; of a question that is this.
_ASK_TIMEOUT_MS = 2_000
_LEAST_PATIENCE_MS = 20


class _Pending:
    """A call whose outcome is still open."""

    def __init__(self, lost: Callable[[], None]) -> None:
        self.over = False
        self.lost = lost


class Link(Ear):
    """`balancer` is set by who makes both."""

    balancer: Balancer

    def __init__(self, loop: Loop, net: Net, rng: Random, substation: Substation) -> None:
        self._loop = loop
        self._net = net
        self._rng = rng
        self._substation = substation
        # The epoch of the substation that it is connected to.
        self._life: int | None = None
        self.closed = False
        # Numbers of the streams: what is of another one is heard no more.
        self._reports = 0
        self._admissions = 0
        # The one of admissions that the substation knows of.
        self._subscribed = 0
        self._following = False
        # When the last message of the admissions arrives: they keep their order.
        self._last_ms = 0
        # Since when all admissions are known; None while they are not.
        self.complete_since_ms: int | None = None
        # In the order of their sending.
        self._pending: dict[_Pending, None] = {}

    @property
    def ready(self) -> bool:
        return self._life is not None

    # --- the connection ---------------------------------------------------------------------------

    def start(self) -> None:
        """The balancer starts."""
        self._soon(_START_MS, 0.0, self._connect)

    def close(self) -> None:
        """The balancer's process died."""
        self.closed = True
        if self in self._substation.ears:
            self._substation.ears.remove(self)

    def _soon(self, most_ms: int, least: float, action: Action) -> None:
        self._loop.at(self._loop.now + round(most_ms * self._rng.uniform(least, 1.0)), action)

    def _connect(self) -> None:
        if self.closed or self.ready:
            return
        if self._substation.life is None:
            self._soon(_CONNECT_MS, 0.5, self._connect)
            return
        self._life = self._substation.life
        self._substation.ears.append(self)
        self._soon(_SOON_MS, 0.5, partial(self._open_reports, self._life))

    def broke(self, life: int) -> None:
        self._substation.ears.remove(self)
        self._net.later(partial(self._broke, life))

    def _broke(self, life: int) -> None:
        if self.closed or self._life != life:
            return
        self._life = None
        self._reports += 1
        self.balancer.desk.disconnected(self._substation.name)
        self._lose_admissions()
        for call in list(self._pending):
            self._give_up(call)
        self._soon(_CONNECT_MS, 0.0, self._connect)

    # --- reports ----------------------------------------------------------------------------------

    def _open_reports(self, life: int) -> None:
        if not self.closed and self._life == life:
            self._reports += 1
            self._net.later(partial(self._first_report, life))

    def _first_report(self, life: int) -> None:
        if self._substation.life == life and not self.closed:
            self.report(self._substation.reports.load())

    def report(self, load: Load) -> None:
        if self._reports:
            self._net.report(partial(self._reported, self._reports, load))

    def _reported(self, stream: int, load: Load) -> None:
        if self.closed or stream != self._reports:
            return
        self.balancer.desk.reported(self._substation.name, load, self._loop.now)
        if not self._following:
            self._open_admissions()

    # --- admissions -------------------------------------------------------------------------------

    def _open_admissions(self) -> None:
        self._following = True
        self._admissions += 1
        name, desk = self._substation.name, self.balancer.desk
        position = desk.index.position(name)
        desk.admissions_begin(name, name, self._loop.now)
        self._net.later(partial(self._subscribe, self._admissions, position))

    def _subscribe(self, stream: int, position: tuple[int, int] | None) -> None:
        """At the substation: what it sends first."""
        if self.closed or stream != self._admissions or self._substation.life != self._life:
            return
        entries, sequence = self._substation.admissions_after(position), self._substation.admission_sequence
        if entries is None:
            self._in_order(partial(self._snapshot, self._substation.snapshot()))
            self._in_order(partial(self._snapshot_end, self._substation.site.epoch, sequence))
        else:
            self._in_order(partial(self._changes, self._substation.site.epoch, entries, sequence))
        self._subscribed = stream

    def admissions(self, entries: list[Entry], sequence: int) -> None:
        if self._subscribed != self._admissions or not self._following:
            return
        if self._net.breaks():
            self._subscribed = 0
            self._in_order(self._break)
        else:
            self._in_order(partial(self._changes, self._substation.site.epoch, entries, sequence))

    def _in_order(self, action: Action) -> None:
        self._last_ms = max(self._last_ms, self._loop.now + self._net.delay_ms())
        self._loop.at(self._last_ms, partial(self._deliver, self._admissions, action))

    def _deliver(self, stream: int, action: Action) -> None:
        if not self.closed and stream == self._admissions and self._following:
            action()

    def _snapshot(self, entries: list[Entry]) -> None:
        self.balancer.desk.snapshot(self._substation.name, entries)

    def _snapshot_end(self, epoch: int, sequence: int) -> None:
        name = self._substation.name
        self.complete_since_ms = self._loop.now
        self.balancer.told(*self.balancer.desk.snapshot_end(name, name, epoch, sequence, self._loop.now))

    def _changes(self, epoch: int, entries: list[Entry], sequence: int) -> None:
        name = self._substation.name
        if self.complete_since_ms is None:
            self.complete_since_ms = self._loop.now
        self.balancer.told(*self.balancer.desk.changes(name, name, epoch, sequence, entries, self._loop.now))

    def _break(self) -> None:
        """The stream broke: it is opened anew, and goes on from where it was."""
        self._lose_admissions()
        self._following = True
        self._soon(_SOON_MS, 0.5, partial(self._reopen, self._admissions))

    def _reopen(self, stream: int) -> None:
        if not self.closed and stream == self._admissions and self._following:
            self._open_admissions()

    def _lose_admissions(self) -> None:
        self._admissions += 1
        self.complete_since_ms = None
        if self._following:
            self._following = False
            self.balancer.desk.admissions_end(self._substation.name, self._loop.now)

    # --- calls ------------------------------------------------------------------------------------

    def charge(self, charge: Charge, timeout_ms: int | None, done: Callable[[Outcome], None]) -> None:
        lost: Outcome = Lost()
        self._call(lambda: self._substation.charge(charge), done, lost, timeout_ms or _ASK_TIMEOUT_MS)

    def resolve(self, doubt: Doubt, done: Callable[[Found | Fenced | None], None]) -> None:
        self._call(lambda: self._substation.resolve(doubt), done, None, _ASK_TIMEOUT_MS)

    def end_duplicate(self, duplicate: Duplicate, done: Callable[[bool], None]) -> None:
        self._call(lambda: self._substation.end_duplicate(duplicate), done, False, _ASK_TIMEOUT_MS)

    def _call(self, ask: Callable[[], T], done: Callable[[T], None], lost: T, timeout_ms: int) -> None:
        pending = _Pending(partial(done, lost))
        self._pending[pending] = None
        until = self._loop.now + timeout_ms
        arrive = partial(self._arrive, self._life, pending, ask, done, until)
        if not self._net.call(arrive):
            self._lose(pending, until)

    def _arrive(
        self, life: int | None, pending: _Pending, ask: Callable[[], T], done: Callable[[T], None], until: int
    ) -> None:
        """At the substation. One that died meanwhile answers nothing: the connection breaks."""
        if self._substation.life != life:
            return
        answer = ask()
        if not self._net.call(partial(self._answer, life, pending, done, answer)):
            self._lose(pending, until)

    def _answer(self, life: int | None, pending: _Pending, done: Callable[[T], None], answer: T) -> None:
        if not self.closed and not pending.over and self._life == life:
            pending.over = True
            del self._pending[pending]
            done(answer)

    def _lose(self, pending: _Pending, until: int) -> None:
        """Something of it was lost, or comes so late that it may be given up before."""
        most_ms = max(1, until - self._loop.now)
        wait_ms = self._rng.randint(min(_LEAST_PATIENCE_MS, most_ms), most_ms)
        self._loop.at(self._loop.now + wait_ms, partial(self._give_up, pending))

    def _give_up(self, pending: _Pending) -> None:
        if not self.closed and not pending.over:
            pending.over = True
            del self._pending[pending]
            pending.lost()
