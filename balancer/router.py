"""Where charges and what they leave open are dealt with: flights by key, doubts to be resolved, duplicates to be ended.

One flight per key: a second call with a key that is under way here waits for the first and is then
sent to where that went. A flight outlives its caller, so that a client that goes away does not
cancel what was sent; a doubt is resolved in a task of its own, so that it outlives its call.
"""

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
import structlog

from balancer import wire
from balancer.admissions import Duplicate
from balancer.attempt import Answer, Ask, Attempt, Late, Outcome, Step
from balancer.desk import Desk, Doubt, Fenced, Found, Settled
from balancer.flight import Done, Flight
from balancer.journal import EjectionJournal, News, doubt_opened, doubt_settled, tells_placed
from balancer.metrics import BalancerMetrics
from balancer.peers import Peers
from gridmesh.v1 import charging_pb2, reports_pb2
from mesh import logs, tracing
from mesh.charge import Charge, Key
from mesh.clock import Clock, seconds
from mesh.coalescing import Charged
from mesh.errors import MeshError
from mesh.ids import uuid7
from mesh.requests import CLOCK_TOLERANCE_MS, key_of, parse_charge

log = structlog.get_logger()

# Of a call's time, what is kept to get the answer back to the caller before its own timer ends.
_MARGIN = 0.1
_MARGIN_MOST_S = 0.1
# One ResolveCharge or EndDuplicate, and the pauses between them.
_RESOLVE_TIMEOUT_S = 2.0
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
_FORGET_EVERY_S = 60.0


def in_time_s(timeout_s: float) -> float:
    """Until when there must be an answer, of a caller who waits for so long."""
    return timeout_s - min(_MARGIN * timeout_s, _MARGIN_MOST_S)


@dataclass(frozen=True, slots=True)
class _Open:
    """A doubt that is being settled. `since` is monotonic seconds."""

    future: asyncio.Future[Found | Fenced]
    since: float


class Router:
    """Places charges. `peers` are the substations, `desk` is what is known of them."""

    def __init__(self, desk: Desk, peers: Peers, clock: Clock, rng: Random, metrics: BalancerMetrics) -> None:
        self._desk = desk
        self.peers = peers
        self._clock = clock
        self._rng = rng
        self._metrics = metrics
        self._flights: dict[Key, Flight] = {}
        self._settling: dict[Doubt, _Open] = {}
        self._ending: set[str] = set()
        self.tells_placed = tells_placed()
        self._ejections = EjectionJournal(desk)
        self._background: set[asyncio.Task[None]] = set()

    # --- charges --------------------------------------------------------------------------------

    async def charge(self, request: charging_pb2.ChargeRequest, timeout_s: float) -> charging_pb2.ChargeResponse:
        """Admits one session within that time, or raises a MeshError."""
        future: asyncio.Future[Charged | Exception] = asyncio.get_running_loop().create_future()

        def done(came: Charged | Exception) -> None:
            if not future.done():
                future.set_result(came)

        context = tracing.branch()
        if context is None:
            flight = self.begin(request, timeout_s, done, None)
        else:
            flight = context.run(self.begin, request, timeout_s, done, context)
        try:
            came = await future
        except asyncio.CancelledError:
            if flight is not None:
                flight.abandon()
            raise
        if isinstance(came, Exception):
            raise came
        if not came.response.HasField("load"):
            came.response.load.CopyFrom(came.load)
        return came.response

    def begin(
        self, request: charging_pb2.ChargeRequest, timeout_s: float, done: Done, context: Context | None
    ) -> Flight | None:
        """The charge is under way; None where its key is no key. `done` hears its outcome.

        `context` is that in which this is called, and what comes later is done; None: it is part of no trace.
        """
        until_s = seconds() + in_time_s(timeout_s)
        try:
            key = key_of(request)
        except MeshError as error:
            logs.refused(request.request_id, error)
            self.refused(error)
            done(error)
            return None
        attempt_id = request.attempt_id
        if not (attempt_id and request.HasField("not_after")):
            request = self._with_attempt(request, timeout_s)
            attempt_id = request.attempt_id

        def parse(now: int) -> Charge:
            return parse_charge(request, key, now, with_body=False)  # substations compare

        attempt = Attempt(self._desk, key, attempt_id, parse)
        flight = Flight(self, attempt, request, until_s, done, context)
        flight.begin()
        return flight

    def _with_attempt(self, request: charging_pb2.ChargeRequest, timeout_s: float) -> charging_pb2.ChargeRequest:
        """The first hop names the attempt and says until when somebody waits for it."""
        arrived_ms, named = self._clock.now_ms(), charging_pb2.ChargeRequest()
        named.CopyFrom(request)
        if not named.attempt_id:
            named.attempt_id = uuid7(arrived_ms, self._rng)
        if not named.HasField("not_after"):
            named.not_after.FromMilliseconds(arrived_ms + round(timeout_s * 1000) + CLOCK_TOLERANCE_MS)
        return named

    # --- for its flights ------------------------------------------------------------------------

    def flight(self, key: Key) -> Flight | None:
        """The one that is under way with that key."""
        return self._flights.get(key)

    def take_off(self, flight: Flight) -> bool:
        """Whether no other one with its key is under way; then it is."""
        return self._flights.setdefault(flight.attempt.key, flight) is flight

    def landed(self, flight: Flight) -> None:
        """It is over. One that never took off leaves the other with its key as it is."""
        if self._flights.get(flight.attempt.key) is flight:
            del self._flights[flight.attempt.key]

    def first(self, attempt: Attempt) -> Step:
        """The first step."""
        started = seconds()
        step = attempt.begin(self._clock.now_ms())
        if isinstance(step, Ask):
            self._metrics.decided(seconds() - started)
        return step

    def after(self, attempt: Attempt, step: Step, outcome: Outcome) -> Step:
        """The step after that one."""
        started, now = seconds(), self._clock.now_ms()
        following = attempt.after(outcome, now)
        if isinstance(following, Ask):
            self._metrics.decided(seconds() - started)
        self._metrics.tried(type(outcome))
        if isinstance(step, Ask):
            self._ejections.look(step.address, now)
        return following

    def interrupted(self, attempt: Attempt) -> None:
        """It goes on no longer: what it sent is in doubt, which is settled all the same."""
        if (doubt := attempt.interrupted(self._clock.now_ms())) is not None:
            self._settle(doubt)
            self._ejections.look(doubt.address, self._clock.now_ms())

    async def resolve(self, doubt: Doubt, within_s: float) -> Outcome:
        """What became of a doubt; Late when that is not known in time."""
        future = self._settle(doubt)
        done, _ = await asyncio.wait({future}, timeout=max(0.0, within_s))
        return future.result() if done else Late()

    def reply(self, answer: Answer) -> Charged:
        """What the client hears."""
        charged: Charged = answer.reply
        wire.set_placement(charged.response.placement, answer.placement)
        if answer.repeated:
            charged.response.repeated = True  # else it says that it is not
        else:
            self._metrics.picked(answer.placement.substation_id)
        return charged

    def refused(self, error: MeshError) -> None:
        """Counts a charge that was answered with an error."""
        self._metrics.refused(error.reason)

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
        peer = self.peers[self._desk.view.address_of(doubt.substation_id) or doubt.address]
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
        if address is None or not (peer := self.peers[address]).ready():
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
        flights = list(self._flights.values())
        await asyncio.gather(*(flight.landed(grace_s) for flight in flights))
        for flight in self._flights.values():
            flight.cancel()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (defect := task.exception()) is not None:
            log.error("background work ended with an exception", exc_info=defect)


def _resolved(response: reports_pb2.ResolveChargeResponse, doubt: Doubt) -> Found | Fenced | None:
    load = wire.load_of(response.load)
    if load.substation_id != doubt.substation_id:
        return None  # another one answers at this address; its fence would prove nothing
    if response.WhichOneof("outcome") == "fence":
        return Fenced()
    session = response.session
    reply = Charged(charging_pb2.ChargeResponse(session=session), response.load)
    ended_at_ms = wire.ended_at_ms(session)
    return Found(load, session.session_id, session.attempt_id, ended_at_ms, reply, session.duplicate_of)
