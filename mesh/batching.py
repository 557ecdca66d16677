"""A batch of charges: each item with its own time and its own outcome, told as they come."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import overload

import structlog

from gridmesh.v1 import charging_pb2
from mesh import logs, tracing
from mesh.admission import Admission
from mesh.errors import InternalError, InvalidRequest, MeshError, Violation
from mesh.status import to_status

log = structlog.get_logger()

MAX_ITEMS = 1_000

# Admits one item within so many seconds, or None for as long as it takes.
ChargeItem = Callable[[charging_pb2.ChargeBatchItem, float | None], Awaitable[charging_pb2.ChargeResponse]]


async def charge_all(
    request: charging_pb2.ChargeBatchRequest, left_s: float | None, charge: ChargeItem, admission: Admission
) -> AsyncGenerator[charging_pb2.ChargeBatchResponse, None]:
    """The outcomes, grouped as they come. `left_s` is the time of the whole batch; None: no end.

    An item that is wrong, late, too many or meets a defect has that as its outcome and holds back nobody.
    """
    if len(request.items) > MAX_ITEMS:
        raise InvalidRequest(Violation("items", f"must be at most {MAX_ITEMS}"))
    pending = {
        asyncio.create_task(_outcome(index, item, left_s, charge, admission), name=f"item {index}")
        for index, item in enumerate(request.items)
    }
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            yield charging_pb2.ChargeBatchResponse(outcomes=[task.result() for task in done])
    finally:
        for task in pending:
            task.cancel()


async def _outcome(
    index: int,
    item: charging_pb2.ChargeBatchItem,
    left_s: float | None,
    charge: ChargeItem,
    admission: Admission,
) -> charging_pb2.ChargeBatchOutcome:
    if item.traceparent:  # else it belongs to the batch's
        tracing.came_with(item.traceparent)
    admitted = False
    try:
        with tracing.span("ChargeBatch item", attributes={"gridmesh.item": index}):
            timeout_s = item_timeout_s(index, item, left_s)
            with admission.admitted(timeout_s):
                admitted = True
                response = await charge(item, timeout_s)
    except MeshError as error:
        if not admitted:
            logs.refused(item.request.request_id, error)
        return charging_pb2.ChargeBatchOutcome(index=index, status=to_status(error))
    except Exception:
        log.exception("item failed", index=index)
        return charging_pb2.ChargeBatchOutcome(index=index, status=to_status(InternalError()))
    return charging_pb2.ChargeBatchOutcome(index=index, response=response)


@overload
def item_timeout_s(index: int, item: charging_pb2.ChargeBatchItem, left_s: float) -> float: ...


@overload
def item_timeout_s(index: int, item: charging_pb2.ChargeBatchItem, left_s: float | None) -> float | None: ...


def item_timeout_s(index: int, item: charging_pb2.ChargeBatchItem, left_s: float | None) -> float | None:
    """How long an item may take, of a batch that may take `left_s`; None: as long as it takes. InvalidRequest."""
    if not item.HasField("timeout"):
        return left_s
    timeout_s: float = item.timeout.seconds + item.timeout.nanos / 1e9
    if timeout_s <= 0:
        raise InvalidRequest(Violation(f"items[{index}].timeout", "must be above 0, or absent"))
    return timeout_s if left_s is None else min(left_s, timeout_s)
