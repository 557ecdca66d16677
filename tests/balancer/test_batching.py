"""A batch at a balancer: one late, bad or unlucky item holds back nobody."""

import asyncio
from contextvars import Context
from random import Random
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from balancer.batch import Batch
from balancer.flight import Done
from gridmesh.v1 import charging_pb2, load_pb2
from mesh.admission import Admission
from mesh.batching import MAX_ITEMS
from mesh.coalescing import Charged
from mesh.errors import InvalidRequest, MeshError, NotFound, Refused
from mesh.model import ErrorReason
from mesh.status import from_status


class Flown:
    """A charge under way, which nobody may wait for any more."""

    def __init__(self, vehicle: str, done: Done) -> None:
        self.vehicle = vehicle
        self.done = done
        self.abandoned = False

    def abandon(self) -> None:
        self.abandoned = True

    def land(self, load: load_pb2.LoadReport | None = None) -> None:
        """Admitted, with the vehicle as the session."""
        response = charging_pb2.ChargeResponse(session=charging_pb2.Session(session_id=self.vehicle))
        self.done(Charged(response, load or load_pb2.LoadReport(substation_id="a", sequence=1)))

    def land_with_its_load(self, load: load_pb2.LoadReport) -> None:
        """The same from one of an older version, which says it with each."""
        self.done(Charged(response := charging_pb2.ChargeResponse(load=load), response.load))


LATE = object()


class Charges:
    """Answers at once as it is told for a vehicle, and admits the others."""

    def __init__(self, **told: Exception | object) -> None:
        self._told = told
        self.timeouts: dict[str, float] = {}
        self.flown: dict[str, Flown] = {}

    def begin(self, request: charging_pb2.ChargeRequest, timeout_s: float, done: Done, context: Context) -> Flown:
        vehicle = request.vehicle_id
        self.timeouts[vehicle] = timeout_s
        flown = self.flown[vehicle] = Flown(vehicle, done)
        told = self._told.get(vehicle)
        if isinstance(told, Exception):
            done(told)
        elif told is not LATE:
            flown.land()
        return flown


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


def begun(
    request: charging_pb2.ChargeBatchRequest,
    charges: Any,  # noqa: ANN401 - in the place of a router
    left_s: float = 60.0,
    admission: Admission | None = None,
) -> Batch:
    return Batch(charges, admission or open_to(), request, left_s)


async def outcomes(
    request: charging_pb2.ChargeBatchRequest,
    charges: Charges,
    left_s: float = 60.0,
    admission: Admission | None = None,
) -> list[str | MeshError | None]:
    """By index: the session, or the error."""
    responses = begun(request, charges, left_s, admission).responses()
    found = [one async for response in responses for one in response.batch.outcomes]
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
    assert charges.timeouts == {"a": 60.0, "c": 2.0}


async def test_an_item_has_no_more_time_than_its_batch() -> None:
    charges = Charges()
    await outcomes(batch(a=None, b=Duration(seconds=2), c=Duration(seconds=60)), charges, left_s=5)
    assert charges.timeouts == {"a": 5, "b": 2.0, "c": 5}


async def test_a_defect_in_one_item_is_that_items_outcome() -> None:
    admission = open_to()
    found = await outcomes(
        batch(a=None, b=None, c=None),
        Charges(a=ZeroDivisionError(), b=NotFound(ErrorReason.SESSION_NOT_FOUND, "no session")),
        admission=admission,
    )
    assert admission.in_flight == 0
    assert [one.reason if isinstance(one, MeshError) else one for one in found] == [
        ErrorReason.INTERNAL,
        ErrorReason.SESSION_NOT_FOUND,
        "c",
    ]


async def test_a_late_item_holds_back_nobody_and_is_given_up_with_the_batch() -> None:
    charges, admission = Charges(a=LATE), open_to()
    stream = begun(batch(a=None, b=None), charges, admission=admission).responses()
    first = await anext(stream)
    assert [one.index for one in first.batch.outcomes] == [1]
    await stream.aclose()
    assert charges.flown["a"].abandoned
    assert not charges.flown["b"].abandoned
    charges.flown["a"].land()
    assert admission.in_flight == 0


async def test_items_beyond_what_can_be_served_are_refused_and_the_others_charged() -> None:
    charges, admission = Charges(a=LATE, b=LATE), open_to(2)
    stream = begun(batch(a=None, b=None, c=None), charges, admission=admission).responses()
    [refused] = (await anext(stream)).batch.outcomes
    error = from_status(refused.status)
    assert isinstance(error, Refused)
    assert (refused.index, error.reason, error.definite) == (2, ErrorReason.OVERLOADED, True)
    assert error.retry_after_ms is not None
    for vehicle in "ab":
        charges.flown[vehicle].land()
    assert {one.index for response in [r async for r in stream] for one in response.batch.outcomes} == {0, 1}
    assert admission.in_flight == 0


async def test_a_load_that_each_reply_says_is_said_once_all_the_same() -> None:
    charges = Charges(a=LATE, b=LATE)
    stream = begun(batch(a=None, b=None), charges).responses()
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    for flown in charges.flown.values():
        flown.land_with_its_load(load_pb2.LoadReport(substation_id="a", epoch=1, sequence=9))
    message = (await waiting).batch
    assert not any(one.response.HasField("load") for one in message.outcomes)
    assert [(load.substation_id, load.sequence) for load in message.loads] == [("a", 9)]
    assert [r async for r in stream] == []


async def test_what_is_known_together_is_one_message_with_each_substations_latest_load_once() -> None:
    charges = Charges(a=LATE, b=LATE, c=LATE, d=LATE)
    stream = begun(batch(a=None, b=None, c=None, d=None), charges).responses()
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    newer = load_pb2.LoadReport(substation_id="a", epoch=1, sequence=9)
    for vehicle, load in {
        "a": newer,
        "b": newer,
        "c": load_pb2.LoadReport(substation_id="a", epoch=1, sequence=8),
        "d": load_pb2.LoadReport(substation_id="b", epoch=1, sequence=1),
    }.items():
        charges.flown[vehicle].land(load)
    message = (await waiting).batch
    assert [one.index for one in message.outcomes] == [0, 1, 2, 3]
    assert not any(one.response.HasField("load") for one in message.outcomes)
    assert [(load.substation_id, load.sequence) for load in message.loads] == [("a", 9), ("b", 1)]
    assert [r async for r in stream] == []


async def test_a_batch_that_is_too_long_is_refused_as_a_whole() -> None:
    request = charging_pb2.ChargeBatchRequest(items=[charging_pb2.ChargeBatchItem()] * (MAX_ITEMS + 1))
    with pytest.raises(InvalidRequest):
        await outcomes(request, Charges())
