"""A batch: one late, bad or unlucky item holds back nobody."""

import asyncio
from random import Random

import pytest
from google.protobuf.duration_pb2 import Duration

from gridmesh.v1 import charging_pb2
from mesh.admission import Admission
from mesh.batching import MAX_ITEMS, charge_all
from mesh.errors import InvalidRequest, MeshError, NotFound, Refused
from mesh.model import ErrorReason
from mesh.status import from_status


class Charges:
    """Answers with the vehicle as the session, as it is told for some vehicles."""

    def __init__(self, **told: BaseException | asyncio.Event) -> None:
        self._told = told
        self.timeouts: dict[str, float | None] = {}

    async def charge(self, item: charging_pb2.ChargeBatchItem, timeout_s: float | None) -> charging_pb2.ChargeResponse:
        vehicle = item.request.vehicle_id
        self.timeouts[vehicle] = timeout_s
        told = self._told.get(vehicle)
        if isinstance(told, asyncio.Event):
            await told.wait()
        elif told is not None:
            raise told
        return charging_pb2.ChargeResponse(session=charging_pb2.Session(session_id=vehicle))


def batch(**timeouts: Duration | None) -> charging_pb2.ChargeBatchRequest:
    """Items by vehicle."""
    return charging_pb2.ChargeBatchRequest(
        items=[
            charging_pb2.ChargeBatchItem(request=charging_pb2.ChargeRequest(vehicle_id=vehicle), timeout=timeout)
            for vehicle, timeout in timeouts.items()
        ]
    )


def open_to(calls: int = MAX_ITEMS) -> Admission:
    return Admission(calls, Random(1))


async def outcomes(
    request: charging_pb2.ChargeBatchRequest,
    charges: Charges,
    left_s: float | None = None,
    admission: Admission | None = None,
) -> list[str | MeshError | None]:
    """By index: the session, or the error."""
    responses = charge_all(request, left_s, charges.charge, admission or open_to())
    found = [one async for response in responses for one in response.outcomes]
    return [
        one.response.session.session_id if one.HasField("response") else from_status(one.status)
        for one in sorted(found, key=lambda one: one.index)
    ]


@pytest.mark.parametrize("wrong", [Duration(), Duration(seconds=-1), Duration(nanos=-1)])
async def test_a_timeout_of_nothing_is_wrong_for_its_item_only(wrong: Duration) -> None:
    charges = Charges()
    first, second, third = await outcomes(batch(a=None, b=wrong, c=Duration(seconds=2)), charges)
    assert (first, third) == ("a", "c")
    assert isinstance(second, InvalidRequest)
    assert [one.field for one in second.violations] == ["items[1].timeout"]
    assert charges.timeouts == {"a": None, "c": 2.0}


async def test_an_item_has_no_more_time_than_its_batch() -> None:
    charges = Charges()
    await outcomes(batch(a=None, b=Duration(seconds=2), c=Duration(seconds=60)), charges, left_s=5)
    assert charges.timeouts == {"a": 5, "b": 2.0, "c": 5}


async def test_a_defect_in_one_item_is_that_items_outcome() -> None:
    found = await outcomes(
        batch(a=None, b=None, c=None),
        Charges(a=ZeroDivisionError(), b=NotFound(ErrorReason.SESSION_NOT_FOUND, "no session")),
    )
    assert [one.reason if isinstance(one, MeshError) else one for one in found] == [
        ErrorReason.INTERNAL,
        ErrorReason.SESSION_NOT_FOUND,
        "c",
    ]


async def test_a_late_item_holds_back_nobody_and_ends_with_the_batch() -> None:
    late = asyncio.Event()
    stream = charge_all(batch(a=None, b=None), None, Charges(a=late).charge, open_to())
    first = await anext(stream)
    assert [one.index for one in first.outcomes] == [1]
    await stream.aclose()
    [item] = [task for task in asyncio.all_tasks() if task.get_name() == "item 0"]
    await asyncio.wait({item})
    assert item.cancelled()


async def test_items_beyond_what_can_be_served_are_refused_and_the_others_charged() -> None:
    late = asyncio.Event()
    stream = charge_all(batch(a=None, b=None, c=None), None, Charges(a=late, b=late).charge, open_to(2))
    [refused] = (await anext(stream)).outcomes
    error = from_status(refused.status)
    assert isinstance(error, Refused)
    assert (refused.index, error.reason, error.definite) == (2, ErrorReason.OVERLOADED, True)
    assert error.retry_after_ms is not None
    late.set()
    assert {one.index for response in [r async for r in stream] for one in response.outcomes} == {0, 1}


async def test_a_batch_that_is_too_long_is_refused_as_a_whole() -> None:
    request = charging_pb2.ChargeBatchRequest(items=[charging_pb2.ChargeBatchItem()] * (MAX_ITEMS + 1))
    with pytest.raises(InvalidRequest):
        await outcomes(request, Charges())
