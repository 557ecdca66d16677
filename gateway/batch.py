"""Many charges in one call: each item is read, sent and answered for itself."""

from collections.abc import Callable
from typing import TypeAlias

import grpc

from gateway import problems, translate
from gateway.balancers import Balancers
from gateway.problems import Naming, ProblemError
from gateway.schemas import BatchItem, BatchOutcome, Problem
from gridmesh.v1 import charging_pb2, load_pb2
from mesh import tracing
from mesh.coalescing import Charged
from mesh.errors import MeshError
from mesh.status import from_status

# What an item asks, and what its outcome will be.
Apart: TypeAlias = tuple[charging_pb2.ChargeRequest, BatchOutcome]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Batch:
    """The items of one call. After `run`, `outcomes` has one for each, in their order."""

    def __init__(self) -> None:
        self.outcomes: list[BatchOutcome] = []
        # What is sent, and which outcome each of its items will be.
        self._asked = charging_pb2.ChargeBatchRequest()
        self._sent: list[BatchOutcome] = []

    def add(self, item: BatchItem | ProblemError, new_id: Callable[[], str], not_after_ms: int) -> None:
        """Takes one item. A bad one has its outcome at once."""
        index = len(self.outcomes)
        outcome = BatchOutcome(index, 0)
        self.outcomes.append(outcome)
        if isinstance(item, ProblemError):
            _fail_here(outcome, item.problem)
            return
        outcome.request_id = request_id = new_id() if item.request_id is None else item.request_id
        try:
            translate.charge_request(item, request_id, new_id(), not_after_ms, self._asked.items.add().request)
        except MeshError as error:
            del self._asked.items[-1]
            _fail_here(outcome, problems.of_mesh(error, Naming(f"#/{index}")))
            return
        self._sent.append(outcome)

    def apart(self, which: Callable[[charging_pb2.ChargeRequest], object]) -> list[Apart]:
        """Takes these out of what `run` sends; `has_session` or `has_none` is to be told of each."""
        asked, outcomes = self._asked.items, self._sent
        self._asked, self._sent = charging_pb2.ChargeBatchRequest(), []
        apart = []
        for item, outcome in zip(asked, outcomes, strict=True):
            if which(item.request):
                apart.append((item.request, outcome))
            else:
                self._asked.items.append(item)
                self._sent.append(outcome)
        return apart

    async def run(self, balancers: Balancers) -> None:
        """Sends the good ones and waits for their outcomes. Those that never come are unknown."""
        if not self._sent:
            return
        broken = problems.problem(503, "STREAM_BROKEN", "the balancer gave no outcome")
        balancer = await balancers.chosen()
        try:
            with tracing.calling(self._asked, balancer.target):
                call = balancer.charging.ChargeBatch(
                    self._asked, timeout=balancers.timeout_s, metadata=tracing.metadata()
                )
                async for response in call:
                    loads = {load.substation_id: load for load in response.loads}
                    for came in response.outcomes:
                        self._take(came, loads)
        except grpc.aio.AioRpcError as error:
            broken = problems.of_call(error, Naming("#"))
        for outcome in self._sent:
            if not outcome.status:
                _fail_here(outcome, problems.if_sent(broken, outcome.request_id or ""))

    def _take(self, came: charging_pb2.ChargeBatchOutcome, loads: dict[str, load_pb2.LoadReport]) -> None:
        outcome = self._sent[came.index]
        if came.HasField("response"):
            response = came.response
            load = loads.get(response.session.substation_id) or response.load
            has_session(outcome, Charged(response, load))
            return
        error = from_status(came.status)
        if error is not None:
            _fail(outcome, problems.of_mesh(error, Naming(f"#/{outcome.index}")))
            return
        code = _CODES.get(came.status.code, grpc.StatusCode.UNKNOWN)
        problem = problems.if_sent(problems.of_status(code, came.status.message), outcome.request_id or "")
        _fail_here(outcome, problem)


def has_session(outcome: BatchOutcome, charged: Charged) -> None:
    """An item that has its session."""
    outcome.status = 200 if charged.response.repeated else 201
    outcome.charge = translate.charge_reply(charged.response, charged.load)


def has_none(outcome: BatchOutcome, error: ProblemError) -> None:
    """An item that was taken apart and has none."""
    (_fail if error.told else _fail_here)(outcome, error.problem)


def _fail_here(outcome: BatchOutcome, problem: Problem) -> None:
    """What nobody behind the gateway knows of, or said: it has no line there."""
    problems.log_charge(outcome.request_id or "", problem)
    _fail(outcome, problem)


def _fail(outcome: BatchOutcome, problem: Problem) -> None:
    outcome.status = problem.status
    outcome.problem = problem
