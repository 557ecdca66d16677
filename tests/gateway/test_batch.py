"""Many charges in one request: one outcome each, in order, and nobody held back by a bad one."""

import json

import grpc
import httpx
import pytest
from google.rpc import code_pb2, status_pb2

from gridmesh.v1 import charging_pb2, load_pb2
from mesh.errors import PreconditionFailed, Refused, Unavailable
from mesh.ids import is_uuid7
from mesh.model import ErrorReason
from mesh.status import to_status
from tests.gateway.running import (
    CAR,
    Context,
    FakeBalancer,
    Gateway,
    Message,
    a_session,
    aborts,
    fails,
    gateway_before,
    hangs,
    served,
)
from tests.gateway.test_bad_requests import JSON, a_problem

Outcome = charging_pb2.ChargeBatchOutcome


async def post(gateway: Gateway, items: object) -> httpx.Response:
    return await gateway.http.post("/v1/charges:batch", json=items)


async def in_reverse(request: Message, context: Context) -> Message:
    """Admits each item, the last first, two per message."""
    fake = FakeBalancer()
    found = [Outcome(index=i, response=fake.admit(item.request)) for i, item in enumerate(request.items)][::-1]
    return [found[i : i + 2] for i in range(0, len(found), 2)]


async def test_outcomes_come_in_the_order_of_the_items(gateway: Gateway) -> None:
    gateway.fake.answers["ChargeBatch"] = in_reverse
    reply = await post(gateway, [{**CAR, "request_id": f"k-{i}"} for i in range(5)])
    assert reply.status_code == 200
    assert [(each["index"], each["status"]) for each in reply.json()] == [(i, 201) for i in range(5)]
    assert [each["charge"]["session"]["request_id"] for each in reply.json()] == [f"k-{i}" for i in range(5)]
    assert all("problem" not in each for each in reply.json())


async def test_each_outcome_has_the_load_of_its_substation_that_was_said_once_for_the_message(gateway: Gateway) -> None:
    def admitted(index: int, at: str) -> charging_pb2.ChargeBatchOutcome:
        return Outcome(index=index, response=charging_pb2.ChargeResponse(session=a_session(substation_id=at)))

    def said(*outcomes: charging_pb2.ChargeBatchOutcome, sequence: int) -> charging_pb2.ChargeBatchResponse:
        loads = [load_pb2.LoadReport(substation_id=each, epoch=7, sequence=sequence) for each in ("north", "south")]
        return charging_pb2.ChargeBatchResponse(outcomes=outcomes, loads=loads)

    async def two_messages(request: Message, context: Context) -> Message:
        first = said(admitted(2, "north"), admitted(0, "south"), admitted(1, "north"), sequence=1)
        return [first, said(admitted(3, "south"), sequence=2)]

    gateway.fake.answers["ChargeBatch"] = two_messages
    found = [each["charge"]["load"] for each in (await post(gateway, [CAR] * 4)).json()]
    expected = [("south", 1), ("north", 1), ("north", 1), ("south", 2)]
    assert found == [{"substation_id": at, "epoch": 7, "sequence": sequence} for at, sequence in expected]


async def test_an_item_without_a_key_is_given_one(gateway: Gateway) -> None:
    gateway.fake.answers["ChargeBatch"] = in_reverse
    first, second = (await post(gateway, [CAR, CAR])).json()
    assert is_uuid7(first["request_id"])
    assert first["request_id"] != second["request_id"]
    asked = gateway.fake.calls[0].items
    assert [item.request.request_id for item in asked] == [first["request_id"], second["request_id"]]
    assert asked[0].request.attempt_id != asked[1].request.attempt_id
    assert asked[0].request.owner == "anonymous"
    assert asked[0].request.HasField("not_after")


async def test_bad_items_are_not_sent_and_the_others_are(gateway: Gateway) -> None:
    gateway.fake.answers["ChargeBatch"] = in_reverse
    items = [{}, CAR, 1, {**CAR, "departure_in": "soon"}, {**CAR, "x": 1}, CAR]
    outcomes = (await post(gateway, items)).json()
    assert [each["status"] for each in outcomes] == [400, 201, 400, 400, 400, 201]
    assert [error["pointer"] for error in outcomes[0]["problem"]["errors"]] == ["#/0/vehicle_id", "#/0/max_power_kw"]
    assert outcomes[2]["problem"]["errors"][0]["pointer"] == "#/2"
    assert outcomes[3]["problem"]["errors"][0]["pointer"] == "#/3/departure_in"
    assert outcomes[4]["problem"]["errors"][0]["pointer"] == "#/4/x"
    assert len(gateway.fake.calls[0].items) == 2


async def test_each_refusal_is_its_items_own_problem(gateway: Gateway) -> None:
    refused = to_status(Refused(ErrorReason.NO_CHARGE_POINT, "no plug", 1500))
    reused = to_status(PreconditionFailed(ErrorReason.KEY_REUSED, "another car"))
    strange = status_pb2.Status(code=code_pb2.UNAVAILABLE)

    async def some(request: Message, context: Context) -> Message:
        repeat = charging_pb2.ChargeResponse(repeated=True)
        statuses = [Outcome(index=i, status=status) for i, status in enumerate([refused, reused, strange])]
        return [[*statuses, Outcome(index=3, response=repeat)]]

    gateway.fake.answers["ChargeBatch"] = some
    outcomes = (await post(gateway, [CAR, CAR, {**CAR, "request_id": "k"}, CAR])).json()
    assert [each["status"] for each in outcomes] == [503, 422, 503, 200]
    assert outcomes[0]["problem"]["retry_after_s"] == 2
    assert [each["problem"]["reason"] for each in outcomes[:3]] == ["NO_CHARGE_POINT", "KEY_REUSED", "OUTCOME_UNKNOWN"]
    assert "Idempotency-Key, k," in outcomes[2]["problem"]["detail"]


@pytest.mark.parametrize(
    ("ends_with", "reason"),
    [
        (None, "OUTCOME_UNKNOWN"),
        (ZeroDivisionError(), "OUTCOME_UNKNOWN"),
        (Unavailable(ErrorReason.NO_SUBSTATION, "nobody", 1000), "NO_SUBSTATION"),
    ],
)
async def test_items_without_an_outcome_say_what_is_known(
    gateway: Gateway, ends_with: Exception | None, reason: str
) -> None:
    async def first_only(request: Message, context: Context) -> Message:
        first = [Outcome(index=0, response=FakeBalancer().admit(request.items[0].request))]
        return [first, *([ends_with] if ends_with else [])]

    gateway.fake.answers["ChargeBatch"] = first_only
    outcomes = (await post(gateway, [CAR, CAR])).json()
    assert [each["status"] for each in outcomes] == [201, 503]
    assert outcomes[1]["problem"]["reason"] == reason


async def test_a_batch_that_is_late_has_504_for_each_that_is_not_known() -> None:
    fake = FakeBalancer(answers={"ChargeBatch": hangs})
    async with served(fake) as port, gateway_before(port, fake, timeout_s=0.2) as gateway:
        await gateway.connected()
        outcomes = (await post(gateway, [CAR])).json()
    assert [(each["status"], each["problem"]["reason"]) for each in outcomes] == [(504, "OUTCOME_UNKNOWN")]


async def test_an_empty_batch_is_an_empty_reply(gateway: Gateway) -> None:
    assert (await post(gateway, [])).json() == []
    assert not gateway.fake.calls


async def test_a_thousand_items_are_taken_and_one_more_is_not(gateway: Gateway) -> None:
    gateway.fake.answers["ChargeBatch"] = in_reverse
    assert len((await post(gateway, [CAR] * 1000)).json()) == 1000
    body = a_problem(await post(gateway, [CAR] * 1001), 400, "INVALID_REQUEST")
    assert "at most 1,000 items, not 1,001" in body["detail"]


@pytest.mark.parametrize("body", ["{}", "1", '"a"', "null"])
async def test_what_is_no_array_is_400(gateway: Gateway, body: str) -> None:
    reply = await gateway.http.post("/v1/charges:batch", content=body, headers=JSON)
    assert "must be an array" in a_problem(reply, 400, "INVALID_REQUEST")["detail"]


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
async def test_an_infinite_number_is_named_with_its_item(gateway: Gateway, number: str) -> None:
    gateway.fake.answers["ChargeBatch"] = in_reverse
    body = f'[{json.dumps(CAR)}, {{"vehicle_id": "a", "max_power_kw": {number}}}]'
    reply = await gateway.http.post("/v1/charges:batch", content=body, headers=JSON)
    found = reply.json()
    problem = found if reply.status_code == 400 else found[1]["problem"]
    assert problem["errors"][0]["pointer"] == "#/1/max_power_kw"


async def test_a_batch_that_the_balancer_refuses_says_so_for_each(gateway: Gateway) -> None:
    for answer, reason in (
        (aborts(grpc.StatusCode.UNIMPLEMENTED), "UNIMPLEMENTED"),
        (fails(Unavailable(ErrorReason.NO_SUBSTATION, "nobody")), "NO_SUBSTATION"),
    ):
        gateway.fake.answers["ChargeBatch"] = answer
        assert {each["problem"]["reason"] for each in (await post(gateway, [CAR, CAR])).json()} == {reason}
