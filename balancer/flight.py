"""One charge under way: does what its attempt says until that answers, and tells its caller.

It is made of callbacks and not of a task: a charge that goes through is a decision, a call that it shares with others
(`mesh.coalescing`), and an answer. What must wait for something else, a doubt, a pause, an earlier call with the same
key, waits in a task. What is part of a trace runs in a context of its own, so that its log lines and spans are of that.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVarTuple

import grpc
import structlog
from msgspec import Struct

from balancer import journal, wire
from balancer.attempt import Answer, Ask, Attempt, Fail, Late, Lost, Outcome, Refused, Resolve, Step, Unreached
from balancer.desk import Replied
from balancer.peers import Peer
from mesh import tracing
from mesh.clock import seconds
from mesh.coalescing import Charged, Item, Unsent
from mesh.coalescing import Outcome as Came
from mesh.errors import MeshError, Unavailable
from mesh.model import ErrorReason

if TYPE_CHECKING:
    from balancer.router import Router
    from gridmesh.v1 import charging_pb2

log = structlog.get_logger()

# A MeshError is an answer; any other exception is a defect.
Done = Callable[[Charged | Exception], None]
Args = TypeVarTuple("Args")
_ENDS = (Answer, Fail)
_ANSWERED = (Replied, Refused)


class Flight(Struct, eq=False):
    """`done` hears the outcome, once, also where nobody waits for it any more. `until_s` is monotonic seconds.

    `context` is where it is made and begins, and where all that it does is done; None for one that is part of no
    trace, which needs none of its own.
    """

    _router: "Router"
    attempt: Attempt
    _request: "charging_pb2.ChargeRequest"
    _until_s: float
    _done: Done
    _context: Context | None
    # Who was asked and did not take it, and why.
    _not_at: tuple[str, ...] = ()
    # While a substation is asked: where, and the span of it.
    _peer: Peer | None = None
    _step: Ask | None = None
    _item: Item | None = None
    _span: tracing.Span | None = None
    _waiting: asyncio.Task[None] | None = None
    _landed: tuple[asyncio.Future[None], ...] = ()
    over: bool = False

    def begin(self) -> None:
        """Takes off, or waits until an earlier call with the same key has landed."""
        if not self._router.take_off(self):
            self._waiting = self._spawn(self._queue())
            return
        self._attended(self._start)

    def abandon(self) -> None:
        """The caller is gone. What was sent stands; what was not is not sent."""
        self.attempt.abandoned = True
        if self._item is not None:
            self._item.dropped = True

    def cancel(self) -> None:
        """The process ends."""
        if self._waiting is not None:
            self._waiting.cancel()

    async def landed(self, within_s: float) -> bool:
        """Whether it is over within that time."""
        if not self.over:
            future = asyncio.get_running_loop().create_future()
            self._landed += (future,)
            await asyncio.wait({future}, timeout=max(0.0, within_s))
        return self.over

    # --- from step to step -------------------------------------------------------------------------

    async def _queue(self) -> None:
        """Behind the flights with the same key."""
        try:
            while (earlier := self._router.flight(self.attempt.key)) is not None:
                if not await earlier.landed(self._left_s()):
                    self._land(Fail(_still_under_way()))
                    return
            self.begin()
        except asyncio.CancelledError:
            self._land(Fail(_still_under_way()))
            raise

    def _left_s(self) -> float:
        return self._until_s - seconds()

    def _attended(self, work: Callable[[*Args], None], *args: *Args) -> None:
        """A defect ends the flight; what was sent is in doubt."""
        try:
            work(*args)
        except Exception as defect:
            self._router.interrupted(self.attempt)
            self._land(Fail(defect) if isinstance(defect, MeshError) else defect)

    def _start(self) -> None:
        self._go(self._router.first(self.attempt))

    def _go(self, step: Step) -> None:
        while not isinstance(step, _ENDS):
            outcome = self._do(step)
            if outcome is None:
                return  # it comes later
            step = self._after(step, outcome)
        self._land(step)

    def _go_on(self, step: Step, outcome: Outcome) -> None:
        self._go(self._after(step, outcome))

    def _after(self, step: Step, outcome: Outcome) -> Step:
        if not isinstance(outcome, Replied):  # as it nearly always is
            self._not_at += journal.not_taken(step, outcome)
        return self._router.after(self.attempt, step, outcome)

    def _do(self, step: Step) -> Outcome | None:
        match step:
            case Ask(pause_ms=0):
                return self._ask(step)
            case Ask(pause_ms=pause_ms):
                self._waiting = self._spawn(self._ask_after(step, pause_ms / 1000))
            case Resolve():
                self._waiting = self._spawn(self._resolve(step))
        return None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        return asyncio.get_running_loop().create_task(work, context=self._context)

    async def _ask_after(self, step: Ask, pause_s: float) -> None:
        with self._router.peers[step.address].in_use():
            await asyncio.sleep(pause_s)
            outcome = self._ask(step)
        if outcome is not None:
            self._attended(self._go_on, step, outcome)

    async def _resolve(self, step: Resolve) -> None:
        outcome = await self._router.resolve(step.doubt, self._left_s())
        self._attended(self._go_on, step, outcome)

    # --- asking a substation -----------------------------------------------------------------------

    def _ask(self, step: Ask) -> Outcome | None:
        """Hands it over; what comes of that is heard later. The outcome at once where it was not sent."""
        peer, left_s = self._router.peers[step.address], self._left_s()
        if left_s <= 0:
            return Late()
        if not peer.ready():
            return Unreached()
        try:
            peer.admission.enter(left_s)
        except MeshError as overloaded:
            return Refused(overloaded, sent=False)
        peer.calls += 1
        self._step, self._peer = step, peer
        if tracing.exporting():
            self._span = tracing.calling(self._request, step.address)
            self._span.__enter__()
        self._item = Item(self._request, self._until_s, self._came, self.attempt.stands)
        peer.charges.send(self._item)
        return None

    def _came(self, came: Came) -> None:
        if self._context is None:
            self._attended(self._heard, came)
        else:
            self._context.run(self._attended, self._heard, came)

    def _heard(self, came: Came) -> None:
        step, peer, span = self._step, self._peer, self._span
        assert step is not None
        assert peer is not None
        self._step = self._peer = self._item = self._span = None
        peer.calls -= 1
        outcome = _replied(came, peer) if isinstance(came, Charged) else self._unserved(came, step)
        peer.admission.leave(seconds(), served=isinstance(outcome, _ANSWERED))
        if span is not None:
            tracing.end(span, came if isinstance(came, Exception) else None)
        self._go(self._after(step, outcome))

    def _unserved(self, came: Unsent | MeshError | grpc.aio.AioRpcError, step: Ask) -> Outcome:
        match came:
            case MeshError():
                outcome: Outcome = Refused(came)
            case Unsent.LATE:
                return Late()
            case Unsent.VOID:
                return Unreached()
            case grpc.aio.AioRpcError():
                outcome = Lost()
        log.debug(
            "charge failed",
            request_id=self._request.request_id,
            substation=step.substation_id,
            address=step.address,
            why=str(came),
        )
        return outcome

    # --- the end -----------------------------------------------------------------------------------

    def _land(self, step: "Answer | Fail | Exception") -> None:
        if self.over:
            return
        self.over = True
        self._router.landed(self)
        for future in self._landed:
            if not future.done():
                future.set_result(None)
        if isinstance(step, Answer):
            if self._router.tells_placed:
                journal.placed(self.attempt.key.request_id, step, self._not_at)
            self._done(self._router.reply(step))
        elif isinstance(step, Fail):
            journal.failed(self.attempt.key.request_id, step.error, self._not_at)
            self._router.refused(step.error)
            self._done(step.error)
        else:
            self._done(step)


def _replied(came: Charged, peer: Peer) -> Outcome:
    response = came.response
    session = response.session
    try:
        load = peer.load_of(came.load)
    except wire.Malformed as malformed:
        log.warning("reply without a usable load", details=str(malformed))
        return Lost()
    ended_at_ms, repeated = wire.ended_at_ms(session), response.repeated
    return Replied(load, session.session_id, session.attempt_id, ended_at_ms, repeated, came, session.duplicate_of)


def _still_under_way() -> MeshError:
    return Unavailable(
        ErrorReason.OUTCOME_UNKNOWN,
        "an earlier call with this request_id is still under way; repeat with the same request_id",
        retry_after_ms=1_000,
    )
