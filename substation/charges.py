"""How charges are asked of the engine and answered: one call, or a batch that is admitted in one pass.

All items of a batch that can be admitted wait for one commit and are told in one message; what is known at once, as a
refusal or a repeat of what is on disk, is told before. An item costs no task, no timer and no future of its own.
"""

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from random import Random
from typing import ParamSpec, TypeVar

import structlog
from msgspec import Struct

from gridmesh.v1 import charging_pb2, load_pb2
from mesh import ids, logs, requests, tracing
from mesh.admission import Admission
from mesh.batching import Outcomes, check_length, timeout_of
from mesh.clock import Clock, seconds
from mesh.errors import InternalError, MeshError, Unavailable
from mesh.model import ErrorReason
from mesh.status import to_status
from substation import wire
from substation.batch import Waiter
from substation.engine import Engine
from substation.gathering import Taken
from substation.load import Load, Report
from substation.metrics import SubstationMetrics
from substation.sessions import Session

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")


class Charges:
    """What both have in common. Nothing is decided here."""

    def __init__(self, engine: Engine, clock: Clock, rng: Random, metrics: SubstationMetrics) -> None:
        self.engine = engine
        self.clock = clock
        self._rng = rng
        self._metrics = metrics
        # What was said last, and of what.
        self._said: tuple[Report, load_pb2.LoadReport] | None = None

    async def charge(self, request: charging_pb2.ChargeRequest) -> charging_pb2.ChargeResponse:
        """The answer to a single call."""
        direct, response = not request.attempt_id, charging_pb2.ChargeResponse()
        try:
            taken = await self.engine.together(lambda now: self._admit(request, now, direct=direct))
            self.answer(taken, response, direct=direct)
        except MeshError as error:
            self.refused(request.request_id, error, direct=direct)
            raise
        response.load.CopyFrom(self.load())
        return response

    def take(self, request: charging_pb2.ChargeRequest, now: int, *, direct: bool) -> Taken:
        """Admits, or finds; to be answered once it is on disk. MeshError says why not, and is counted and logged."""
        try:
            return self._admit(request, now, direct=direct)
        except MeshError as error:
            self.refused(request.request_id, error, direct=direct)
            raise

    def _admit(self, request: charging_pb2.ChargeRequest, now: int, *, direct: bool) -> Taken:
        key = requests.key_of(request)
        if direct:
            request.attempt_id = ids.uuid7(now, self._rng)
        requests.check_not_after(request, now)
        if self.engine.knows(key):
            return self.engine.repeat(key, requests.body_of(request), request.attempt_id, now)
        return self.engine.admit(requests.parse_charge(request, key, now), now)

    def refused(self, request_id: str, error: MeshError, *, direct: bool) -> None:
        """Counts a refusal. A balancer, which names the attempt, says itself what it decided."""
        self._metrics.count_refused(error.reason)
        if direct:
            logs.refused(request_id, error)

    def load(self) -> load_pb2.LoadReport:
        """The load as it is now; not to be changed."""
        report = self.engine.report()
        if self._said is None or self._said[0] is not report:
            self._said = report, wire.load_report(report)
        return self._said[1]

    def answer(self, taken: Taken, response: charging_pb2.ChargeResponse, *, direct: bool) -> None:
        """Fills the response, but for the load. Unavailable where the disk did not take it."""
        session = self.engine.outcome(taken)
        if direct:
            event = "repeated" if taken.repeated else "placed"
            request_id = session.charge.key.request_id
            log.info(event, request_id=request_id, session_id=session.session_id, policy="direct")
        wire.show(session, self.engine.expected_end_ms(session), response.session)
        _place(session, self.engine.load, response.placement, repeated=taken.repeated)
        if taken.repeated:
            response.repeated = True


def _place(session: Session, load: Load, placement: charging_pb2.Placement, *, repeated: bool) -> None:
    placement.substation_id = wire.substation_id(session)
    placement.policy = "repeat" if repeated else "direct"
    placement.eligible = placement.tried = 1
    if load.limit_w and not repeated:
        after = load.demand_w / load.limit_w
        placement.score = placement.utilisation_after = after
        before = after - session.charge.max_w / load.limit_w
        if before > 0:
            placement.utilisation_before = before


class _Branch:
    """The part of a trace that is one item's: for its log lines, and its span where spans are made."""

    def __init__(self, index: int, traceparent: str) -> None:
        self._span = tracing.NOTHING
        self._context = copy_context()
        self._context.run(self._begin, index, traceparent)

    def _begin(self, index: int, traceparent: str) -> None:
        if traceparent:
            tracing.came_with(traceparent)
        self._span = tracing.span("ChargeBatch item", attributes={"gridmesh.item": index})
        self._span.__enter__()

    def run(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Does something for the item."""
        return self._context.run(do, *args, **kwargs)

    def end(self, error: BaseException | None) -> None:
        self._context.run(self._span.__exit__, type(error) if error else None, error, None)


def _branch(index: int, traceparent: str) -> _Branch | None:
    """None for an item that belongs to the batch's trace, or to none: it needs no context of its own."""
    return _Branch(index, traceparent) if traceparent or tracing.exporting() else None


def _run(branch: _Branch | None, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Does something for an item. What is done for each of them is called without this where there is no branch."""
    return do(*args, **kwargs) if branch is None else branch.run(do, *args, **kwargs)


class _Item(Struct):
    """One that waits for the commit."""

    index: int
    request: charging_pb2.ChargeRequest
    direct: bool
    taken: Taken
    # By when it is to be answered, in monotonic seconds; None: whenever.
    until_s: float | None
    branch: _Branch | None


class ChargeBatch:
    """One call of ChargeBatch. `left_s` is its caller's time; None: any."""

    def __init__(self, charges: Charges, admission: Admission, left_s: float | None) -> None:
        self._charges = charges
        self._admission = admission
        self._left_s = left_s
        self._began_s = seconds()
        self._waiting: list[_Item] = []

    async def messages(self, request: charging_pb2.ChargeBatchRequest) -> Outcomes:
        """The outcomes; those that become known together are one message. InvalidRequest for one that is too long."""
        check_length(request)
        commit: Waiter | None = None
        try:
            said, now = charging_pb2.StreamChargesResponse(), self._charges.clock.now_ms()
            known = said.batch
            for index, item in enumerate(request.items):
                self._take(index, item, known, now)
            if self._waiting:
                commit = self._charges.engine.join(len(self._waiting))
            if known.outcomes:
                self._add_load(known)
                yield said
            while commit is not None and self._waiting:
                await asyncio.wait({commit.done}, timeout=self._until_due_s())
                said = charging_pb2.StreamChargesResponse()
                known = said.batch
                if commit.done.done():
                    self._written(commit, known)
                else:
                    self._late(known)
                if known.outcomes:
                    self._add_load(known)
                    yield said
        finally:
            # Who has gone hears no more; what was admitted stands.
            if commit is not None:
                commit.done.cancel()
            for one in self._waiting:
                self._leave(one.branch, asyncio.CancelledError())

    # --- in --------------------------------------------------------------------------------------------

    def _take(
        self, index: int, item: charging_pb2.ChargeBatchItem, known: charging_pb2.ChargeBatchResponse, now: int
    ) -> None:
        """Admits an item, or finds it. What is known at once is said in `known`, else it waits."""
        branch = _branch(index, item.traceparent)
        try:
            timeout_s = timeout_of(index, item, self._left_s)
            self._admission.enter(timeout_s)
        except MeshError as error:
            _run(branch, logs.refused, item.request.request_id, error)
            if branch is not None:
                branch.end(error)
            known.outcomes.add(index=index, status=to_status(error))
            return
        request = item.request
        direct = not request.attempt_id
        try:
            take = self._charges.take
            if branch is None:
                taken = take(request, now, direct=direct)
            else:
                taken = branch.run(take, request, now, direct=direct)
        except Exception as error:
            self._ended(branch, error, known.outcomes.add(index=index))
            return
        until_s = None if timeout_s is None else self._began_s + timeout_s
        one = _Item(index, request, direct, taken, until_s, branch)
        if taken.kept:
            self._answer(one, known)
        else:
            self._waiting.append(one)

    def _until_due_s(self) -> float | None:
        """How long the first of those that wait has, in seconds."""
        until_s = min((item.until_s for item in self._waiting if item.until_s is not None), default=None)
        return None if until_s is None else max(0.0, until_s - seconds())

    # --- out -------------------------------------------------------------------------------------------

    def _written(self, commit: Waiter, known: charging_pb2.ChargeBatchResponse) -> None:
        """The commit is over, one way or the other."""
        items, self._waiting = self._waiting, []
        if tracing.exporting():
            for item in items:
                _run(item.branch, commit.trace)
        error = commit.done.exception()
        for item in items:
            if error is None:
                self._answer(item, known)
            else:
                self._lost(item, error, known.outcomes.add(index=item.index))

    def _late(self, known: charging_pb2.ChargeBatchResponse) -> None:
        """Those whose time is over: they stand, and their repeats will tell."""
        now_s = seconds()
        late = [item for item in self._waiting if item.until_s is not None and item.until_s <= now_s]
        self._waiting = [item for item in self._waiting if item.until_s is None or item.until_s > now_s]
        error = Unavailable(ErrorReason.OUTCOME_UNKNOWN, "the item's timeout passed; repeat it", 1_000)
        for item in late:
            self._ended(item.branch, error, known.outcomes.add(index=item.index))

    def _answer(self, item: _Item, known: charging_pb2.ChargeBatchResponse) -> None:
        outcome = known.outcomes.add()
        outcome.index = item.index
        try:
            answer = self._charges.answer
            if item.branch is None:
                answer(item.taken, outcome.response, direct=item.direct)
            else:
                item.branch.run(answer, item.taken, outcome.response, direct=item.direct)
        except Exception as error:
            self._lost(item, error, outcome)
        else:
            self._leave(item.branch, None)

    def _lost(self, item: _Item, error: BaseException, outcome: charging_pb2.ChargeBatchOutcome) -> None:
        if isinstance(error, MeshError):
            _run(item.branch, self._charges.refused, item.request.request_id, error, direct=item.direct)
        self._ended(item.branch, error, outcome)

    def _ended(self, branch: _Branch | None, error: BaseException, outcome: charging_pb2.ChargeBatchOutcome) -> None:
        if not isinstance(error, MeshError):
            log.error("item failed", index=outcome.index, exc_info=error)
            error = InternalError()
        self._leave(branch, error)
        # Instead of what there was of a response.
        outcome.status.CopyFrom(to_status(error))

    def _leave(self, branch: _Branch | None, error: BaseException | None) -> None:
        served = error is None or (isinstance(error, MeshError) and error.definite)
        self._admission.leave(seconds(), served=served)
        if branch is not None:
            branch.end(error)

    def _add_load(self, known: charging_pb2.ChargeBatchResponse) -> None:
        if any(outcome.HasField("response") for outcome in known.outcomes):
            known.loads.append(self._charges.load())
