"""Charges on their way to one destination: one that is alone leaves at once, those that gather leave together.

A call costs the same whether it carries one charge or fifty. While one that left for a destination is unanswered, what
comes for it gathers, and leaves as one batch with the answer: the busier the destination, the larger the
batches. So one caller waits for nobody, and a destination that stands still holds back only its own. Batches travel on
one call of StreamCharges that stays: to open a call, and to end it, costs more than to say a batch on it.
Behind a balancer one substation may stand still while others do not: none holds others back for longer than twice the
time in which half of a batch usually is answered, and then a tenth of it for those who come again (below).

Most callers ask again once they are answered, so that most of the next batch is on its way when the last has its
answer. It leaves when as many have come as were answered or waited then, or after a tenth of the usual time, once what
has come until then is read. Without that parts of the callers take turns, in more and smaller batches.

Each charge keeps its own deadline, status, trace and caller. Times are seconds of the monotonic clock.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from enum import Enum, auto
from typing import TYPE_CHECKING

import grpc
import structlog
from msgspec import Struct, field

from gridmesh.v1 import charging_pb2, load_pb2
from mesh import tracing
from mesh.admission import expired
from mesh.clock import seconds
from mesh.errors import MeshError
from mesh.model import ErrorReason
from mesh.status import from_rpc_error, from_status

if TYPE_CHECKING:
    from gridmesh.v1.charging_pb2_grpc import ChargingServiceAsyncStub

log = structlog.get_logger()

# So many unanswered, and others wait. With two there are twice as many batches of half the size: a fifth more CPU for
# a charge, and no more charges.
MOST_UNANSWERED = 1
# Of the usual time to an answer, how long a call that is not answered holds others back; and the bounds of that.
_PATIENCE = 2.0
_SHORTEST_HOLD_S, _LONGEST_HOLD_S = 0.002, 0.25
# Of the usual time, how long the next batch may wait for what the answer brings; and the bound of that.
_LINGER = 0.1
_LONGEST_LINGER_S = 0.01
# Then the event loop, which may have been busy with the answers for all of that time, turns so often before it leaves:
# what is in the sockets is read in one turn, and becomes a charge in the next.
LAST_LOOKS = 4
# How much the latest call counts for in what is usual.
_WEIGHT = 1 / 8
# In one batch. Larger ones take a server's event loop for long, and hold no more together.
MOST_ITEMS = 256
# A larger one leaves by itself: no message is then too large for its receiver, who would end the call for all that is
# on it. A charge that is right takes 3 KB at most.
MOST_BYTES = 8 * 1024
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Charged(Struct, frozen=True):
    """A reply. `load` is the substation's, the same object for all that came in one message."""

    response: charging_pb2.ChargeResponse
    load: load_pb2.LoadReport


class Unsent(Enum):
    """Why a charge did not leave: nothing was done for it."""

    # Its time was over, or its caller had gone.
    LATE = auto()
    # What it was for had changed, or the destination cannot be reached.
    VOID = auto()


# A MeshError is what the destination said; a call that broke says nothing of what became of the charge.
Outcome = Charged | Unsent | MeshError | grpc.aio.AioRpcError


class Item(Struct, eq=False):
    """One charge. `done` hears its outcome, once. `stands` is asked right before it leaves."""

    request: charging_pb2.ChargeRequest
    until: float
    done: Callable[[Outcome], None]
    stands: Callable[[], bool] | None = None
    traceparent: str = field(default_factory=tracing.here.get)
    # Nobody waits for it any more: if it has not left, it stays.
    dropped: bool = False
    heard: bool = False

    def hear(self, outcome: Outcome) -> None:
        """Tells it, the first time."""
        if self.heard:
            return
        self.heard = True
        try:
            self.done(outcome)
        except Exception:
            # Of one charge: the others of its batch go on.
            log.exception("an outcome could not be told", request_id=self.request.request_id)


class Coalescer:
    """All charges for one destination. Not `together`: each leaves by itself, to see what this is worth.

    `ready` is asked right before some leave: whether it can be reached. If not, what they were for is void.
    """

    def __init__(
        self, stub: "ChargingServiceAsyncStub", *, together: bool = True, ready: Callable[[], bool] = lambda: True
    ) -> None:
        self._stub = stub
        self._ready = ready
        self._together = together
        self._loop = asyncio.get_running_loop()
        self._gathered: list[Item] = []
        self._leaving = False
        self._unanswered = 0
        # The usual time until half of a batch is answered.
        self._usual_s = 0.0
        # While it lingers: until so many have gathered, or until then.
        self._expected = 0
        self._until: asyncio.Handle | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._stream: _Stream | None = None

    async def charge(self, request: charging_pb2.ChargeRequest, until: float) -> Charged:
        """One charge by that time. MeshError, or AioRpcError where nobody knows what became of it."""
        future: asyncio.Future[Outcome] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        item = Item(request, until, done)
        self.send(item)
        try:
            outcome = await future
        except asyncio.CancelledError:
            item.dropped = True
            raise
        if isinstance(outcome, Charged):
            return outcome
        raise expired() if isinstance(outcome, Unsent) else outcome

    def send(self, item: Item) -> None:
        """Lets it leave, with what comes in the same turn of the event loop, or as soon as there is an answer."""
        self._gathered.append(item)
        free = self._unanswered < MOST_UNANSWERED and len(self._gathered) >= self._expected
        if free or not self._together:
            self._leave_soon()

    def _leave_soon(self) -> None:
        if not self._leaving:
            self._leaving = True
            # What leaves together is of no one's trace.
            self._loop.call_soon(self._leave, context=Context())

    def _leave(self) -> None:
        self._leaving = False
        self._expected = 0
        if self._until is not None:
            self._until.cancel()
        gathered, self._gathered = self._gathered, []
        now, ready = seconds(), self._ready()
        leaving = [item for item in gathered if _leaves(item, now, ready)]
        if large := [item for item in leaving if item.request.ByteSize() > MOST_BYTES]:
            leaving = [item for item in leaving if item.request.ByteSize() <= MOST_BYTES]
        most = MOST_ITEMS if self._together else 1
        for first in range(0, len(leaving), most):
            _Call(self, leaving[first : first + most], now)
        for item in large:
            _Call(self, [item], now)

    # --- for its calls -----------------------------------------------------------------------------

    def began(self) -> None:
        """One more without an answer."""
        self._unanswered += 1

    def keep(self, work: "asyncio.Task[None]") -> None:
        """The loop itself does not."""
        self._calls.add(work)
        work.add_done_callback(self._calls.discard)

    def stream(self) -> "_Stream":
        """The call for the next batch. UsageError on a closed channel."""
        if self._stream is None or not self._stream.open:
            self._stream = _Stream(self._stub)
        return self._stream

    def answered(self, after_s: float) -> None:
        """Half of one was answered after that time, be it that nobody waited for it any longer."""
        self._usual_s += (after_s - self._usual_s) * _WEIGHT

    def let_go(self, callers: int) -> None:
        """One less holds others back. So many callers should be back soon; none where it was not answered."""
        self._unanswered -= 1
        if self._unanswered >= MOST_UNANSWERED:
            return
        if callers > max(1, len(self._gathered)):
            self._expected = callers
            linger_s = min(_LINGER * self._usual_s, _LONGEST_LINGER_S)
            self._until = self._loop.call_later(linger_s, self._lingered, LAST_LOOKS)
        elif self._gathered:
            self._leave_soon()

    def _lingered(self, looks: int) -> None:
        if looks:
            self._until = self._loop.call_soon(self._lingered, looks - 1)
            return
        self._expected = 0
        if self._gathered:
            self._leave_soon()

    @property
    def waiting(self) -> int:
        """How many have gathered."""
        return len(self._gathered)

    @property
    def hold_s(self) -> float:
        """How long a call that leaves now may hold others back."""
        return min(max(_PATIENCE * self._usual_s, _SHORTEST_HOLD_S), _LONGEST_HOLD_S)

    @property
    def stub(self) -> "ChargingServiceAsyncStub":
        return self._stub


def _leaves(item: Item, now: float, ready: bool) -> bool:
    """Whether it may; if not, it hears so."""
    if item.dropped or item.until <= now:
        item.hear(Unsent.LATE)
    elif not ready or (item.stands is not None and not item.stands()):
        item.hear(Unsent.VOID)
    else:
        return True
    return False


class _Stream:
    """A call that batches travel on, until it ends or the server is about to stop. UsageError on a closed channel."""

    def __init__(self, stub: "ChargingServiceAsyncStub") -> None:
        self._call = stub.StreamCharges()
        self.open = True
        # Those without an answer, by their numbers.
        self._batches: dict[int, _Call] = {}
        self._count = 0
        self._unsent: deque[charging_pb2.StreamChargesRequest] = deque()
        self._news = asyncio.Event()
        self._writing = asyncio.create_task(self._write())
        self._reading = asyncio.create_task(self._read())

    def send(self, batch: "_Call", items: Iterable[Item], now: float) -> int:
        """Lets it go out, after those before it. Returns its number."""
        self._count += 1
        self._batches[self._count] = batch
        request = charging_pb2.StreamChargesRequest(number=self._count)
        add = request.batch.items.add
        for item in items:
            _fill(add(), item, now)
        self._unsent.append(request)
        self._news.set()
        return self._count

    def forget(self, number: int) -> None:
        """Nobody waits for its answer."""
        self._batches.pop(number, None)

    async def _write(self) -> None:
        # What is wrong with the call its reader hears.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while self.open or self._unsent:
                await self._news.wait()
                self._news.clear()
                while self._unsent:
                    request = self._unsent.popleft()
                    if request.number in self._batches:  # else all of it is too late
                        await self._call.write(request)
            await self._call.done_writing()

    async def _read(self) -> None:
        broken: Outcome = _lost(grpc.StatusCode.UNKNOWN, "the batch ended without an outcome")
        try:
            while isinstance(message := await self._call.read(), charging_pb2.StreamChargesResponse):
                if message.leaving:
                    self.open = False
                    self._news.set()
                elif (batch := self._batches.get(message.number)) is not None:
                    batch.take(message.batch)
        except grpc.aio.AioRpcError as error:
            broken = _of_batch(error)
        finally:
            self.open = False
            self._writing.cancel()
            for batch in list(self._batches.values()):
                batch.over(broken)


class _Call:
    """What left together, until each has heard its outcome."""

    def __init__(self, coalescer: Coalescer, items: Sequence[Item], now: float) -> None:
        self._coalescer = coalescer
        self._loop = asyncio.get_running_loop()
        self._items = items
        self._unheard = len(items)
        # How many others waited when the first of it was answered: who came later may be that one again.
        self._others = 0
        self._holds = True
        self._began_s = now
        coalescer.began()
        self._hold = self._loop.call_later(coalescer.hold_s, self._let_others)
        self._end: asyncio.TimerHandle | None = None
        if len(items) == 1:
            coalescer.keep(self._loop.create_task(self._one(items[0])))
            return
        self._end = self._loop.call_at(self._next_end(), self._expire)
        try:
            self._stream = coalescer.stream()
        except grpc.aio.UsageError:
            self.over(Unsent.VOID)
        else:
            self._number = self._stream.send(self, items, now)

    def _let_others(self) -> None:
        """It is answered, or not waited for any longer: others may leave."""
        if self._holds:
            self._holds = False
            self._hold.cancel()
            answered = len(self._items) - self._unheard
            self._coalescer.let_go(answered and answered + self._others)

    def _heard(self, count: int) -> None:
        if self._unheard == len(self._items):
            self._others = self._coalescer.waiting
        half = len(self._items) // 2
        before, self._unheard = self._unheard, self._unheard - count
        if self._unheard <= half < before:
            self._coalescer.answered(seconds() - self._began_s)
        if not self._unheard:
            self._let_others()

    async def _one(self, item: Item) -> None:
        metadata = ((tracing.TRACEPARENT, item.traceparent),) if item.traceparent else ()
        try:
            response = await self._coalescer.stub.Charge(
                item.request, timeout=item.until - seconds(), metadata=metadata
            )
            item.hear(Charged(response, response.load))
            self._heard(1)
        except grpc.aio.AioRpcError as error:
            item.hear(from_rpc_error(error) or error)
        except grpc.aio.UsageError:
            item.hear(Unsent.VOID)  # the channel is closed: nobody is there any more
        finally:
            item.hear(_lost(grpc.StatusCode.UNKNOWN, "the call was given up"))
            self._let_others()

    def take(self, message: charging_pb2.ChargeBatchResponse) -> None:
        """What is known of some of them."""
        loads = {load.substation_id: load for load in message.loads}
        for outcome in message.outcomes:
            self._items[outcome.index].hear(_read(outcome, loads))
        self._heard(len(message.outcomes))
        # Who tells of one twice has not told of all: the others hear when their time is over.
        if self._unheard <= 0 and all(item.heard for item in self._items):
            self._stream.forget(self._number)
            self._finish()

    def over(self, broken: Outcome) -> None:
        """Nothing more is known of those that have heard nothing."""
        for item in self._items:
            item.hear(broken)
        self._let_others()
        self._finish()

    def _finish(self) -> None:
        if self._end is not None:
            self._end.cancel()

    # --- each item's end ---------------------------------------------------------------------------

    def _next_end(self) -> float:
        return min(item.until for item in self._items if not item.heard)

    def _expire(self) -> None:
        """One timer for all: it goes to the earliest end there is then."""
        now = seconds()
        for item in self._items:
            if item.until <= now:
                item.hear(_lost(grpc.StatusCode.DEADLINE_EXCEEDED, "no outcome in time"))
        if all(item.heard for item in self._items):
            self._stream.forget(self._number)
            self._let_others()
        else:
            self._end = self._loop.call_at(self._next_end(), self._expire)


def _fill(message: charging_pb2.ChargeBatchItem, item: Item, now: float) -> None:
    # In place: a message that is made or added with others as arguments takes them in by writing and reading them.
    message.request.CopyFrom(item.request)
    ms, timeout = int((item.until - now) * 1000) or 1, message.timeout
    timeout.seconds, timeout.nanos = ms // 1000, ms % 1000 * 1_000_000
    if item.traceparent:
        message.traceparent = item.traceparent


def _read(outcome: charging_pb2.ChargeBatchOutcome, loads: dict[str, load_pb2.LoadReport]) -> Outcome:
    if outcome.HasField("response"):
        response = outcome.response
        # One of an older version says it with each.
        load = loads.get(response.session.substation_id) or response.load
        return Charged(response, load)
    error = from_status(outcome.status)
    code = _CODES.get(outcome.status.code, grpc.StatusCode.UNKNOWN)
    return _lost(code, outcome.status.message) if error is None else error


def _of_batch(error: grpc.aio.AioRpcError) -> MeshError | grpc.aio.AioRpcError:
    """What a batch that failed says of its items: only one refused at the door says that nothing was done."""
    ours = from_rpc_error(error)
    if ours is not None and ours.reason is ErrorReason.OVERLOADED:
        return ours
    return _lost(error.code(), error.details() or "")


def _lost(code: grpc.StatusCode, why: str) -> grpc.aio.AioRpcError:
    """As if a call of its own had broken."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=why)
