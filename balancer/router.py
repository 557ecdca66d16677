"""Does what an attempt says: asks substations, resolves doubts, ends duplicates.

One flight per key: a second call with a key that is under way here waits for the first and is then
sent to where that went. A charge runs in a task of its own, so that a client that goes away does not
cancel what was sent; a doubt is resolved in a task of its own, so that it outlives its call.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
import structlog

from balancer import wire
from balancer.admissions import Duplicate
from balancer.attempt import Answer, Ask, Attempt, Fail, Late, Lost, Outcome, Refused, Resolve, Step, Unreached
from balancer.desk import Desk, Doubt, Fenced, Found, Replied, Settled
from balancer.journal import Decision, EjectionJournal, News, doubt_opened, doubt_settled
from balancer.metrics import BalancerMetrics
from balancer.peers import Peer, Peers
from gridmesh.v1 import charging_pb2, reports_pb2
from mesh import logs, tracing
from mesh.charge import Charge, Key
from mesh.clock import Clock, seconds
from mesh.errors import MeshError, Unavailable
from mesh.ids import uuid7
from mesh.model import ErrorReason
from mesh.requests import CLOCK_TOLERANCE_MS, key_of, parse_charge
from mesh.status import from_rpc_error

log = structlog.get_logger()

# Of a call's time, what is kept to get the answer back to the caller before its own timer ends.
_MARGIN = 0.1
_MARGIN_MOST_MS = 100
# One ResolveCharge or EndDuplicate, and the pauses between them.
_RESOLVE_TIMEOUT_S = 2.0
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
_FORGET_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class _Open:
    """A doubt that is being settled. `since` is monotonic seconds."""

    future: asyncio.Future[Found | Fenced]
    since: float


class Router:
    """Places charges. `peers` are the substations, `desk` is what is known of them."""

    def __init__(self, desk: Desk, peers: Peers, clock: Clock, rng: Random, metrics: BalancerMetrics) -> None:
        self._desk = desk
        self._peers = peers
        self._clock = clock
        self._rng = rng
        self._metrics = metrics
        self._flights: dict[Key, asyncio.Task[charging_pb2.ChargeResponse]] = {}
        self._settling: dict[Doubt, _Open] = {}
        self._ending: set[str] = set()
        self._ejections = EjectionJournal(desk)
        self._background: set[asyncio.Task[None]] = set()

    # --- charges --------------------------------------------------------------------------------

    async def charge(self, request: charging_pb2.ChargeRequest, timeout_s: float) -> charging_pb2.ChargeResponse:
        """Admits one session within that time, or raises a MeshError."""
        try:
            return await self._charge(request, timeout_s)
        except MeshError as error:
            self._metrics.refusals.labels(error.reason.name).inc()
            raise

    async def _charge(self, request: charging_pb2.ChargeRequest, timeout_s: float) -> charging_pb2.ChargeResponse:
        arrived_ms, timeout_ms = self._clock.now_ms(), round(timeout_s * 1000)
        deadline_ms = arrived_ms + timeout_ms - round(min(_MARGIN * timeout_ms, _MARGIN_MOST_MS))
        try:
            key = key_of(request)
            request = self._with_attempt(request, arrived_ms, arrived_ms + timeout_ms)
            while (flight := self._flights.get(key)) is not None:
                await self._landed(flight, deadline_ms)
        except MeshError as error:
            logs.refused(request.request_id, error)
            raise
        attempt = Attempt(self._desk, key, request.attempt_id, lambda: self._parse(request, key))
        task = asyncio.create_task(self._fly(attempt, request, deadline_ms))
        self._flights[key] = task
        task.add_done_callback(lambda _: self._flights.pop(key, None))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            attempt.abandoned = True
            task.add_done_callback(_unheard)
            raise

    def _with_attempt(
        self, request: charging_pb2.ChargeRequest, arrived_ms: int, until_ms: int
    ) -> charging_pb2.ChargeRequest:
        """The first hop names the attempt and says until when somebody waits for it."""
        named = charging_pb2.ChargeRequest()
        named.CopyFrom(request)
        if not named.attempt_id:
            named.attempt_id = uuid7(arrived_ms, self._rng)
        if not named.HasField("not_after"):
            named.not_after.FromMilliseconds(until_ms + CLOCK_TOLERANCE_MS)
        return named

    def _parse(self, request: charging_pb2.ChargeRequest, key: Key) -> Charge:
        return parse_charge(request, key, self._clock.now_ms())

    async def _landed(self, flight: asyncio.Task[charging_pb2.ChargeResponse], deadline_ms: int) -> None:
        done, _ = await asyncio.wait({flight}, timeout=max(0.0, (deadline_ms - self._clock.now_ms()) / 1000))
        if not done:
            raise Unavailable(
                ErrorReason.OUTCOME_UNKNOWN,
                "an earlier call with this request_id is still under way; repeat with the same request_id",
                retry_after_ms=1_000,
            )

    async def _fly(
        self, attempt: Attempt, request: charging_pb2.ChargeRequest, deadline_ms: int
    ) -> charging_pb2.ChargeResponse:
        decision = Decision(attempt.key.request_id)
        try:
            step = self._timed(attempt.begin)
            while not isinstance(step, Answer | Fail):
                outcome = await self._do(step, request, deadline_ms)
                decision.tried(step, outcome)
                step = self._after(attempt, step, outcome)
        except MeshError as error:
            step = Fail(error)
        finally:
            if (doubt := attempt.interrupted(self._clock.now_ms())) is not None:
                self._settle(doubt)
                self._ejections.look(doubt.address, self._clock.now_ms())
        decision.made(step)
        if isinstance(step, Fail):
            raise step.error
        return self._response(step)

    def _after(self, attempt: Attempt, step: Step, outcome: Outcome) -> Step:
        self._metrics.tried(type(outcome), times=1)
        following = self._timed(lambda now: attempt.after(outcome, now))
        if isinstance(step, Ask):
            self._ejections.look(step.address, self._clock.now_ms())
        return following

    def _timed(self, decide: Callable[[int], Step]) -> Step:
        started = seconds()
        step = decide(self._clock.now_ms())
        self._metrics.pick_seconds.observe(seconds() - started)
        return step

    def _response(self, answer: Answer) -> charging_pb2.ChargeResponse:
        response: charging_pb2.ChargeResponse = answer.reply
        response.repeated = answer.repeated
        response.placement.CopyFrom(wire.placement_message(answer.placement))
        if not answer.repeated:
            self._metrics.picks.labels(answer.placement.substation_id).inc()
        return response

    # --- steps ----------------------------------------------------------------------------------

    async def _do(self, step: Step, request: charging_pb2.ChargeRequest, deadline_ms: int) -> Outcome:
        match step:
            case Ask(address=address, pause_ms=pause_ms):
                with self._peers[address].in_use():
                    if pause_ms:
                        await asyncio.sleep(pause_ms / 1000)
                    return await self._ask(step, request, deadline_ms)
            case Resolve(doubt):
                return await self._resolve(doubt, deadline_ms)
        raise AssertionError(step)

    async def _ask(self, step: Ask, request: charging_pb2.ChargeRequest, deadline_ms: int) -> Outcome:
        # No await before the call: it must go to the life of the substation that the desk knows.
        peer, left_ms = self._peers[step.address], deadline_ms - self._clock.now_ms()
        if left_ms <= 0:
            return Late()
        if not peer.ready():
            return Unreached()
        try:
            peer.admission.enter(left_ms / 1000)
        except MeshError as overloaded:
            return Refused(overloaded, sent=False)
        outcome: Outcome = Lost()
        try:
            outcome = await self._send(step, peer, request, left_ms)
        finally:
            peer.admission.leave(seconds(), served=not isinstance(outcome, Lost))
        return outcome

    async def _send(
        self,
        step: Ask,
        peer: Peer,
        request: charging_pb2.ChargeRequest,
        left_ms: int,
    ) -> Outcome:
        try:
            with tracing.calling(request, step.address):
                response = await peer.charging.Charge(request, timeout=left_ms / 1000, metadata=tracing.metadata())
        except grpc.aio.AioRpcError as error:
            ours = from_rpc_error(error)
            log.debug(
                "charge failed",
                request_id=request.request_id,
                substation=step.substation_id,
                address=step.address,
                code=error.code().name,
                details=error.details(),
            )
            return Lost() if ours is None else Refused(ours)
        return _replied(response)

    async def _resolve(self, doubt: Doubt, deadline_ms: int) -> Outcome:
        future = self._settle(doubt)
        done, _ = await asyncio.wait({future}, timeout=max(0.0, (deadline_ms - self._clock.now_ms()) / 1000))
        return future.result() if done else Late()

    # --- doubts ---------------------------------------------------------------------------------

    def _settle(self, doubt: Doubt) -> asyncio.Future[Found | Fenced]:
        """The outcome of a doubt, which is asked for in the background until it is known."""
        known = self._settling.get(doubt)
        if known is not None:
            return known.future
        future: asyncio.Future[Found | Fenced] = asyncio.get_running_loop().create_future()
        self._settling[doubt] = _Open(future, seconds())
        doubt_opened(doubt)
        self._spawn(self._settle_by_asking(doubt, future))
        return future

    def settled(self, settled: list[Settled], keys: list[Key]) -> None:
        """The admissions stream has settled these doubts and told of these keys."""
        for one in settled:
            self._end_doubt(one, "admissions")
        for duplicate in self._desk.duplicates(keys):
            if duplicate.session_id not in self._ending:
                self._ending.add(duplicate.session_id)
                self._spawn(self._end_duplicate(duplicate.key, duplicate.session_id))

    def _end_doubt(self, settled: Settled, by: str) -> None:
        known = self._settling.pop(settled.doubt, None)
        if known is not None and not known.future.done():
            doubt_settled(settled.doubt, settled.outcome, by, seconds() - known.since)
            known.future.set_result(settled.outcome)

    async def _settle_by_asking(self, doubt: Doubt, future: asyncio.Future[Found | Fenced]) -> None:
        """Whatever goes wrong here, it asks again: nobody else may be asked before it is settled."""
        pause_s, news = _FIRST_PAUSE_S, News()
        while not future.done():
            try:
                outcome = await self._ask_what_became_of(doubt, news)
                if outcome is not None and not future.done():
                    self._end_doubt(self._desk.settle(doubt, outcome, self._clock.now_ms()), "asking")
            except Exception as defect:
                if news.is_new(repr(defect)):
                    log.exception("a doubt could not be settled; asked again", substation=doubt.substation_id)
            await asyncio.wait({future}, timeout=pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _ask_what_became_of(self, doubt: Doubt, news: News) -> Found | Fenced | None:
        """The session, or a durable fence; None when it could not be asked."""
        peer = self._peers[self._desk.view.address_of(doubt.substation_id) or doubt.address]
        if not peer.ready():
            return None
        request = reports_pb2.ResolveChargeRequest(
            owner=doubt.key.owner, request_id=doubt.key.request_id, attempt_id=doubt.attempt_id
        )
        try:
            with peer.in_use(), tracing.calling(request, peer.address):
                response = await peer.reports.ResolveCharge(
                    request, timeout=_RESOLVE_TIMEOUT_S, metadata=tracing.metadata()
                )
            return _resolved(response, doubt)
        except grpc.aio.AioRpcError as error:
            why = f"{error.code().name} {error.details()}"
        except wire.Malformed as malformed:
            why = str(malformed)
        if news.is_new(why):
            log.info("resolve failed", substation=doubt.substation_id, address=peer.address, why=why)
        return None

    # --- duplicates -----------------------------------------------------------------------------

    async def _end_duplicate(self, key: Key, session_id: str) -> None:
        """Ends one of two sessions of a key, until the index says that it ended or is the one to stay."""
        pause_s, news = _FIRST_PAUSE_S, News()
        try:
            while (duplicate := self._duplicate(key, session_id)) is not None:
                if await self._ask_to_end(duplicate, news):
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        finally:
            self._ending.discard(session_id)

    def _duplicate(self, key: Key, session_id: str) -> Duplicate | None:
        """That session as a duplicate, if it still is one; the one to stay may have changed."""
        return next((one for one in self._desk.duplicates([key]) if one.session_id == session_id), None)

    async def _ask_to_end(self, duplicate: Duplicate, news: News) -> bool:
        address = self._desk.view.address_of(duplicate.substation_id)
        if address is None or not (peer := self._peers[address]).ready():
            return False
        request = reports_pb2.EndDuplicateRequest(
            session_id=duplicate.session_id,
            survivor_session_id=duplicate.survivor_session_id,
            survivor_attempt_id=duplicate.survivor_attempt_id,
        )
        line = log.bind(
            request_id=duplicate.key.request_id,
            substation=duplicate.substation_id,
            address=address,
            session_id=duplicate.session_id,
            survivor=duplicate.survivor_session_id,
        )
        try:
            with peer.in_use(), tracing.calling(request, address):
                await peer.reports.EndDuplicate(request, timeout=_RESOLVE_TIMEOUT_S, metadata=tracing.metadata())
        except grpc.aio.AioRpcError as error:
            if news.is_new((error.code(), error.details())):
                line.info("duplicate not ended", code=error.code().name, details=error.details())
            return False
        except Exception as defect:
            if news.is_new(repr(defect)):
                line.exception("duplicate not ended; asked again")
            return False
        self._metrics.duplicates.inc()
        line.warning("duplicate ended")
        return True

    # --- life -----------------------------------------------------------------------------------

    async def forget_old(self) -> None:
        """Drops, again and again, what need not be remembered any longer."""
        while True:
            await asyncio.sleep(_FORGET_EVERY_S)
            try:
                self._desk.index.forget(self._clock.now_ms())
            except Exception:
                log.exception("what is old could not be forgotten")

    async def stop(self, grace_s: float) -> None:
        """Lets charges that are under way finish, also those whose client went away."""
        if self._flights:
            await asyncio.wait(list(self._flights.values()), timeout=grace_s)
        for task in [*self._flights.values(), *self._background]:
            task.cancel()
        await asyncio.gather(*self._flights.values(), *self._background, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (defect := task.exception()) is not None:
            log.error("background work ended with an exception", exc_info=defect)


def _unheard(flight: asyncio.Task[charging_pb2.ChargeResponse]) -> None:
    """A charge whose caller went away has ended: only a defect is news."""
    if flight.cancelled() or (error := flight.exception()) is None or isinstance(error, MeshError):
        return
    log.error("a charge that nobody waited for ended with an exception", exc_info=error)


def _replied(response: charging_pb2.ChargeResponse) -> Outcome:
    session = response.session
    try:
        load = wire.load_of(response.load)
    except wire.Malformed as malformed:
        log.warning("reply without a usable load", details=str(malformed))
        return Lost()
    return Replied(
        load=load,
        session_id=session.session_id,
        attempt_id=session.attempt_id,
        ended_at_ms=wire.ended_at_ms(session),
        repeated=response.repeated,
        reply=response,
        duplicate_of=session.duplicate_of,
    )


def _resolved(response: reports_pb2.ResolveChargeResponse, doubt: Doubt) -> Found | Fenced | None:
    load = wire.load_of(response.load)
    if load.substation_id != doubt.substation_id:
        return None  # another one answers at this address; its fence would prove nothing
    if response.WhichOneof("outcome") == "fence":
        return Fenced()
    session = response.session
    reply = charging_pb2.ChargeResponse(session=session, load=response.load)
    ended_at_ms = wire.ended_at_ms(session)
    return Found(load, session.session_id, session.attempt_id, ended_at_ms, reply, session.duplicate_of)
