"""What is the same of a ChargeBatch wherever it is served."""

from typing import overload

from gridmesh.v1 import charging_pb2
from mesh.errors import InvalidRequest, Violation

MAX_ITEMS = 1_000


def check_length(request: charging_pb2.ChargeBatchRequest) -> None:
    """InvalidRequest for a batch that is too long."""
    if len(request.items) > MAX_ITEMS:
        raise InvalidRequest(Violation("items", f"must be at most {MAX_ITEMS}"))


@overload
def timeout_of(index: int, item: charging_pb2.ChargeBatchItem, left_s: float) -> float: ...


@overload
def timeout_of(index: int, item: charging_pb2.ChargeBatchItem, left_s: float | None) -> float | None: ...


def timeout_of(index: int, item: charging_pb2.ChargeBatchItem, left_s: float | None) -> float | None:
    """How long an item may take, in seconds, where its batch has `left_s`; None: any. InvalidRequest names the item."""
    if not item.HasField("timeout"):
        return left_s
    timeout_s: float = item.timeout.seconds + item.timeout.nanos / 1e9
    if timeout_s <= 0:
        raise InvalidRequest(Violation(f"items[{index}].timeout", "must be above 0, or absent"))
    return timeout_s if left_s is None else min(left_s, timeout_s)
