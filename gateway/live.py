"""The grid as it lives, for any number of watchers: the load view, and what this gateway placed and refused.

The view comes in one stream from a balancer, whoever watches. Each message is translated and encoded
once. Watchers are woken together, at most every `GATHER_S`, so that a burst costs each of them one write. What each
holds of its own is a number.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import grpc
import msgspec
import structlog
from msgspec import UNSET

from gateway import problems, schemas, translate
from gateway.balancers import Balancers
from gateway.events import event
from gateway.feed import Feed
from gateway.problems import Naming, ProblemError
from gateway.schemas import Problem
from gridmesh.v1 import operations_pb2
from mesh.clock import Clock

if TYPE_CHECKING:
    from grpc.aio import UnaryStreamCall

    Call: TypeAlias = UnaryStreamCall[operations_pb2.WatchSubstationsRequest, operations_pb2.WatchSubstationsResponse]

log = structlog.get_logger()

GATHER_S = 0.1
# What a watcher that comes again can resume from: ten seconds of a hundred charges a second, or a day of few.
KEPT = 1_000

_encode = msgspec.json.Encoder().encode
_NO_NAMES = Naming()


_Feed: TypeAlias = Feed[schemas.Placed | schemas.Refused]


class Live:
    """What the gateway tells of itself, and who listens."""

    def __init__(self, balancers: Balancers, clock: Clock) -> None:
        self._clock = clock
        self._pulse = _Pulse()
        self._balancers = balancers
        self._view: _View | None = None
        self._opening = asyncio.Lock()
        self._feed: _Feed = Feed(f"{clock.now_ms():x}", KEPT, _lines)

    # --- what happens: called for every charge, so nothing is encoded here ---------------------------

    def placed(self, reply: schemas.ChargeReply) -> None:
        """A new session."""
        self._feed.add(_placed(translate.time(self._clock.now_ms()), reply))
        self._pulse.ring()

    def batch(self, outcomes: Iterable[schemas.BatchOutcome]) -> None:
        """What became of many at once."""
        now = translate.time(self._clock.now_ms())
        for outcome in outcomes:
            if outcome.status == 201 and outcome.charge:
                self._feed.add(_placed(now, outcome.charge))
            elif outcome.problem:
                self.refused(outcome.request_id or "", None, outcome.problem)
        self._pulse.ring()

    def refused(self, request_id: str, vehicle_id: str | None, problem: Problem) -> None:
        """A charge that was not served. A client's own mistake is nobody else's news."""
        if problem.status >= 500 or problem.status == 429:
            at, named = translate.time(self._clock.now_ms()), UNSET if vehicle_id is None else vehicle_id
            self._feed.add(schemas.Refused(at, request_id, problem, named))
            self._pulse.ring()

    # --- who watches ---------------------------------------------------------------------------------

    async def watch(self, last_event_id: str) -> "GridWatch":
        """A source for `/v1/events`. ProblemError when no balancer can be asked."""
        return GridWatch(await self._join(), self._pulse, self._feed, last_event_id)

    async def watch_substations(self, last_id: int) -> "ViewWatch":
        """A source for `/v1/substations/events`. ProblemError when no balancer can be asked."""
        return ViewWatch(await self._join(), self._pulse, last_id)

    async def _join(self) -> "_View":
        async with self._opening:
            if self._view is None or self._view.broken:
                call, first = await self._balancers.open(
                    lambda to: to.operations.WatchSubstations, operations_pb2.WatchSubstationsRequest()
                )
                self._view = _View(call, first, self._pulse)
            self._view.watchers += 1
            return self._view


class _Pulse:
    """Wakes all that wait: soon after a silence, and never twice within GATHER_S."""

    def __init__(self) -> None:
        # Set at the next ring after which whoever holds it looks again.
        self.next = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._woken = 0.0

    def ring(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._woken + GATHER_S), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._woken = asyncio.get_running_loop().time()
        woken, self.next = self.next, asyncio.Event()
        woken.set()


class _View:
    """The load view as one stream tells it, until that breaks or the last watcher has left."""

    def __init__(self, call: "Call", first: operations_pb2.WatchSubstationsResponse, pulse: _Pulse) -> None:
        self.watchers = 0
        self.number = 1
        # Why there will be no more.
        self.broken: Problem | None = None
        self._call = call
        self._message = first
        self._encoded = (0, b"")
        self._pulse = pulse
        self._reading = asyncio.create_task(self._read_all())

    @property
    def data(self) -> bytes:
        """The view as JSON; made when somebody reads it, as many are overtaken."""
        number, data = self._encoded
        if number != self.number:
            data = _encode(translate.substation_list(self._message))
            self._encoded = self.number, data
        return data

    async def _read_all(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self._message = message  # type: ignore[assignment]  # the stub's read() may be EOF
                self.number += 1
                self._pulse.ring()
            self.broken = problems.ended()
        except grpc.aio.AioRpcError as error:
            self.broken = problems.of_call(error, _NO_NAMES)
        self._pulse.ring()

    def leave(self) -> None:
        """One watcher less."""
        self.watchers -= 1
        if not self.watchers:
            self.broken = self.broken or problems.ended()  # the next to come opens another one
            self._reading.cancel()
            self._call.cancel()


class _Watch(ABC):
    """One watcher, who looks at once and then at each ring. A slow one is sent the latest load view only."""

    def __init__(self, view: _View, pulse: _Pulse) -> None:
        self._view = view
        self._pulse = pulse
        self._seen = 0
        self._ring: asyncio.Event | None = None

    async def read(self) -> bytes:
        while True:
            if self._ring is not None:
                await self._ring.wait()
            self._ring = self._pulse.next
            if block := self._news():
                return block
            if self._view.broken:
                raise ProblemError(self._view.broken)

    @abstractmethod
    def _news(self) -> bytes:
        """What this watcher has not been told yet, as events; empty: nothing."""

    def _changed(self) -> bool:
        seen, self._seen = self._seen, self._view.number
        return seen != self._seen

    def close(self) -> None:
        self._view.leave()


class ViewWatch(_Watch):
    """The load view whenever it changed."""

    def __init__(self, view: _View, pulse: _Pulse, last_id: int) -> None:
        super().__init__(view, pulse)
        self._id = last_id

    def _news(self) -> bytes:
        if not self._changed():
            return b""
        self._id += 1
        return event("substations", self._view.data, str(self._id))


class GridWatch(_Watch):
    """The load view whenever it changed, and each event of the feed once and in order."""

    def __init__(self, view: _View, pulse: _Pulse, feed: _Feed, last_event_id: str) -> None:
        super().__init__(view, pulse)
        self._feed = feed
        self._at, self._first = feed.begin(last_event_id)

    def _news(self) -> bytes:
        # A state and no event, and so without an id: what resumes is the feed.
        state = event("substations", self._view.data) if self._changed() else b""
        block, self._first = state + self._first + self._feed.after(self._at), b""
        self._at = self._feed.last
        return block


def _placed(at: str, reply: schemas.ChargeReply) -> schemas.Placed:
    """What is told of it, and no more: a thousand whole replies that are kept cost every later one, in caches."""
    session = reply.session
    return schemas.Placed(
        at,
        session.request_id,
        session.session_id,
        session.vehicle_id,
        session.max_power_kw,
        reply.placement,
        session.energy_kwh,
    )


def _lines(what: schemas.Placed | schemas.Refused) -> bytes:
    if isinstance(what, schemas.Placed):
        name = b"placed"
    else:
        name = b"in_doubt" if what.problem.reason in problems.IN_DOUBT else b"refused"
    return b"event: %b\ndata: %b\n" % (name, _encode(what))
