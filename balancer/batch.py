"""The items of one ChargeBatch: each is a flight of its own, and what is known together is told together."""

import asyncio
from contextvars import Context, copy_context

import structlog

from balancer.flight import Flight
from balancer.router import Router
from gridmesh.v1 import charging_pb2, load_pb2
from mesh import logs, tracing
from mesh.admission import Admission
from mesh.batching import Outcomes, check_length, timeout_of
from mesh.clock import seconds
from mesh.coalescing import Charged
from mesh.errors import InternalError, MeshError
from mesh.status import to_status

log = structlog.get_logger()


class Batch:
    """One call. `left_s` is the time of all of it. InvalidRequest where there are too many items."""

    def __init__(
        self, router: Router, admission: Admission, request: charging_pb2.ChargeBatchRequest, left_s: float
    ) -> None:
        check_length(request)
        self._router = router
        self._admission = admission
        self._flights: dict[int, Flight | None] = dict.fromkeys(range(len(request.items)))
        self._said = charging_pb2.StreamChargesResponse()
        self._known = self._said.batch
        # The last load that was put into it: the same object comes with many.
        self._load: load_pb2.LoadReport | None = None
        self._news = asyncio.Event()
        traced = tracing.branch() is not None
        for index, item in enumerate(request.items):
            if traced or item.traceparent:
                context = copy_context()
                context.run(self._begin_traced, index, item, left_s, context)
            else:
                self._begin(index, item, left_s, None, None)

    async def responses(self) -> Outcomes:
        """The outcomes as they come. Whoever stops reading has left."""
        try:
            while self._flights or self._known.outcomes:
                await self._news.wait()
                self._news.clear()
                said, self._said, self._load = self._said, charging_pb2.StreamChargesResponse(), None
                self._known = self._said.batch
                yield said
        finally:
            for flight in self._flights.values():
                if flight is not None:
                    flight.abandon()

    def _begin_traced(self, index: int, item: charging_pb2.ChargeBatchItem, left_s: float, context: Context) -> None:
        if item.traceparent:  # else it belongs to the batch's
            tracing.came_with(item.traceparent)
        self._begin(index, item, left_s, context, _span(index) if tracing.exporting() else None)

    def _begin(
        self,
        index: int,
        item: charging_pb2.ChargeBatchItem,
        left_s: float,
        context: Context | None,
        span: tracing.Span | None,
    ) -> None:
        try:
            timeout_s = timeout_of(index, item, left_s)
            self._admission.enter(timeout_s)
        except MeshError as error:
            logs.refused(item.request.request_id, error)
            self._fail(index, error)
            if span is not None:
                tracing.end(span, error)
            return

        def done(came: Charged | Exception) -> None:
            if isinstance(came, Charged):
                self._admission.leave(seconds(), served=True)
                self._tell(index, came)
            else:
                self._admission.leave(seconds(), served=isinstance(came, MeshError) and came.definite)
                self._fail(index, came)
            if span is not None:
                tracing.end(span, None if isinstance(came, Charged) else came)

        flight = self._router.begin(item.request, timeout_s, done, context)
        if index in self._flights:
            self._flights[index] = flight

    def _tell(self, index: int, came: Charged) -> None:
        outcome = self._known.outcomes.add()
        outcome.index = index
        response = outcome.response
        response.CopyFrom(came.response)
        if came.load is not self._load:
            # Only where each reply has a load of its own it is said in the reply.
            response.ClearField("load")
            self._load = came.load
            self._keep(came.load)
        self._flights.pop(index, None)
        self._news.set()

    def _keep(self, load: load_pb2.LoadReport) -> None:
        """One load per substation, the latest: replies of two commits may be told together."""
        for known in self._known.loads:
            if known.substation_id == load.substation_id:
                if (known.epoch, known.sequence) < (load.epoch, load.sequence):
                    known.CopyFrom(load)
                return
        self._known.loads.add().CopyFrom(load)

    def _fail(self, index: int, error: Exception) -> None:
        if not isinstance(error, MeshError):
            log.error("item failed", index=index, exc_info=error)
            error = InternalError()
        self._known.outcomes.add(index=index, status=to_status(error))
        self._flights.pop(index, None)
        self._news.set()


def _span(index: int) -> tracing.Span:
    span = tracing.span("ChargeBatch item", attributes={"gridmesh.item": index})
    span.__enter__()
    return span
