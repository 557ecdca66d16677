"""Many charges in one call: each item is read, sent and answered for itself."""

from collections.abc import Callable

import grpc
import msgspec

from gateway import problems, translate
from gateway.balancers import Balancers
from gateway.bodies import Reader
from gateway.problems import Naming, ProblemError
from gateway.schemas import BatchItem, BatchOutcome, Problem
from gridmesh.v1 import charging_pb2, load_pb2
from mesh import tracing
from mesh.errors import MeshError
from mesh.status import from_status

_ITEM = Reader(BatchItem)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Batch:
    """The items of one call. After `run`, `outcomes` has one for each, in their order."""

    def __init__(self) -> None:
        self.outcomes: list[BatchOutcome] = []
        # What is sent, and which outcome each will be.
        self._sent: list[charging_pb2.ChargeRequest] = []
        self._positions: list[int] = []

    def add(self, index: int, item: msgspec.Raw, new_id: Callable[[], str], not_after_ms: int) -> None:
        """Reads one item. A bad one has its outcome at once."""
        outcome = BatchOutcome(index, 0)
        self.outcomes.append(outcome)
        try:
            body = _ITEM.decode(item, f"#/{index}")
            outcome.request_id = new_id() if body.request_id is None else body.request_id
            self._sent.append(translate.charge_request(body, outcome.request_id, new_id(), not_after_ms))
            self._positions.append(index)
        except ProblemError as error:
            _fail_here(outcome, error.problem)
        except MeshError as error:
            _fail_here(outcome, problems.of_mesh(error, Naming(f"#/{index}")))

    async def run(self, balancers: Balancers) -> None:
        """Sends the good ones and waits for their outcomes. Those that never come are unknown."""
        if not self._sent:
            return
        broken = problems.problem(503, "STREAM_BROKEN", "the balancer gave no outcome")
        balancer = await balancers.chosen()
        asked = charging_pb2.ChargeBatchRequest(
            items=[charging_pb2.ChargeBatchItem(request=request) for request in self._sent]
        )
        try:
            with tracing.calling(asked, balancer.target):
                call = balancer.charging.ChargeBatch(asked, timeout=balancers.timeout_s, metadata=tracing.metadata())
                async for response in call:
                    loads = {load.substation_id: load for load in response.loads}
                    for came in response.outcomes:
                        self._take(came, loads)
        except grpc.aio.AioRpcError as error:
            broken = problems.of_call(error, Naming("#"))
        for request, position in zip(self._sent, self._positions, strict=True):
            outcome = self.outcomes[position]
            if not outcome.status:
                _fail_here(outcome, problems.if_sent(broken, request.request_id))

    def _take(self, came: charging_pb2.ChargeBatchOutcome, loads: dict[str, load_pb2.LoadReport]) -> None:
        position = self._positions[came.index]
        outcome = self.outcomes[position]
        if came.HasField("response"):
            outcome.status = 200 if came.response.repeated else 201
            load = loads.get(came.response.session.substation_id) or came.response.load
            outcome.charge = translate.charge_reply(came.response, load)
            return
        error = from_status(came.status)
        if error is not None:
            _fail(outcome, problems.of_mesh(error, Naming(f"#/{position}")))
            return
        code = _CODES.get(came.status.code, grpc.StatusCode.UNKNOWN)
        request_id = self._sent[came.index].request_id
        _fail_here(outcome, problems.if_sent(problems.of_status(code, came.status.message), request_id))


def _fail_here(outcome: BatchOutcome, problem: Problem) -> None:
    """What nobody behind the gateway knows of, or said: it has no line there."""
    problems.log_charge(outcome.request_id or "", problem)
    _fail(outcome, problem)


def _fail(outcome: BatchOutcome, problem: Problem) -> None:
    outcome.status = problem.status
    outcome.problem = problem
