"""Charging over HTTP: what comes back, and what the balancer is told."""

import asyncio
import json

import pytest

from gridmesh.v1 import charging_pb2
from mesh.clock import SystemClock
from mesh.ids import is_uuid7
from tests.gateway.running import CAR, SESSION_ID, Context, Gateway, Message, a_session


async def test_a_charge_is_created_with_its_location_and_a_key(gateway: Gateway) -> None:
    reply = await gateway.post(CAR)
    assert reply.status_code == 201
    assert reply.headers["location"] == f"/v1/charges/{SESSION_ID}"
    assert is_uuid7(reply.headers["idempotency-key"])
    assert reply.headers["idempotency-key"] == gateway.fake.calls[0].request_id


async def test_the_reply_has_session_placement_and_load_with_zeros_and_without_nulls(gateway: Gateway) -> None:
    reply = (await gateway.post(CAR, Idempotency_Key="k")).json()
    assert reply["session"] == {
        "session_id": SESSION_ID,
        "substation_id": "north",
        "owner": "anonymous",
        "request_id": "k",
        "vehicle_id": "EV-001",
        "max_power_kw": 11.0,
        "phases": 3,
        "min_power_kw": 4.14,
        "departure_assumed": False,
        "state": "CHARGING",
        "granted_power_kw": 11.0,
        "measured_power_kw": 0.0,
        "delivered_kwh": 0.0,
        "attempt_id": "",
        "started_at": "2026-01-01T00:00:00.123Z",
    }
    assert reply["placement"] == {
        "substation_id": "north",
        "policy": "least_utilisation",
        "score": 0.0,
        "utilisation_before": 0.0,
        "utilisation_after": 0.0,
        "eligible": 3,
        "tried": 1,
    }
    assert reply["load"] == {"substation_id": "north", "epoch": 7, "sequence": 0, "demand_kw": 0.0}


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("k-1", "k-1"),
        ('"k-1"', "k-1"),
        (r'"a \"b\" \\"', 'a "b" \\'),
        # No strings of RFC 9651.
        ('""', '""'),
        ('"k', '"k'),
        ('"a"b"', '"a"b"'),
        (r'"\a"', r'"\a"'),
    ],
)
async def test_a_key_in_quotes_is_the_same_as_without(gateway: Gateway, said: str, key: str) -> None:
    reply = await gateway.post(CAR, Idempotency_Key=said)
    assert reply.headers["idempotency-key"] == key
    assert gateway.fake.calls[0].request_id == key


async def test_a_repeat_is_200_with_the_same_location(gateway: Gateway) -> None:
    async def repeated(request: Message, context: Context) -> charging_pb2.ChargeResponse:
        return charging_pb2.ChargeResponse(session=a_session(), repeated=True)

    gateway.fake.answers["Charge"] = repeated
    reply = await gateway.post(CAR, Idempotency_Key="r-1")
    assert (reply.status_code, reply.headers["location"]) == (200, f"/v1/charges/{SESSION_ID}")
    assert reply.headers["idempotency-key"] == "r-1"


async def test_the_first_hop_gives_the_attempt_its_owner_id_and_deadline(gateway: Gateway) -> None:
    before = SystemClock().now_ms()
    await gateway.post(CAR)
    asked = gateway.fake.calls[0]
    assert asked.owner == "anonymous"
    assert is_uuid7(asked.attempt_id)
    assert before + 7000 <= asked.not_after.ToMilliseconds() <= SystemClock().now_ms() + 7000
    assert gateway.fake.timeouts[0] == pytest.approx(5, abs=0.5)


async def test_every_field_reaches_the_balancer(gateway: Gateway) -> None:
    body = {
        **CAR,
        "phases": 3,
        "min_power_kw": 5,
        "departure_in": "5400.5s",
        "allowed_substation_ids": ["north", "south"],
        "evse_id": "A-12",
    }
    await gateway.post(body)
    asked = gateway.fake.calls[0]
    assert (asked.vehicle_id, asked.energy_kwh, asked.max_power_kw) == ("EV-001", 20, 11)
    assert (asked.phases, asked.min_power_kw, asked.evse_id) == (3, 5, "A-12")
    assert (asked.departure_in.seconds, asked.departure_in.nanos) == (5400, 500_000_000)
    assert list(asked.allowed_substation_ids) == ["north", "south"]


async def test_what_is_absent_or_null_stays_absent(gateway: Gateway) -> None:
    absent = ("energy_kwh", "phases", "min_power_kw", "departure_time", "departure_in")
    await gateway.post({"vehicle_id": "a", "max_power_kw": 3.7})
    await gateway.post({"vehicle_id": "a", "max_power_kw": 3.7, **dict.fromkeys(absent)})
    for asked in gateway.fake.calls:
        assert not any(asked.HasField(name) for name in absent)


async def test_a_departure_time_keeps_its_zone(gateway: Gateway) -> None:
    await gateway.post({**CAR, "departure_time": "2020-01-01T02:00:00.25+02:00"})
    assert gateway.fake.calls[0].departure_time.ToMilliseconds() == 1_577_836_800_250


async def test_a_session_is_read_by_its_id(gateway: Gateway) -> None:
    reply = await gateway.http.get(f"/v1/charges/{SESSION_ID}")
    assert reply.status_code == 200
    assert reply.json()["session"]["session_id"] == SESSION_ID
    assert gateway.fake.calls[0].session_id == SESSION_ID


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", charging_pb2.STOP_REASON_UNSPECIFIED),
        (b"{}", charging_pb2.STOP_REASON_UNSPECIFIED),
        (b'{"reason": "EV_DISCONNECTED"}', charging_pb2.STOP_REASON_EV_DISCONNECTED),
    ],
)
async def test_a_stop_takes_a_reason_or_no_body(gateway: Gateway, content: bytes, reason: int) -> None:
    headers = {"content-type": "application/json"} if content else {}
    reply = await gateway.http.post(f"/v1/charges/{SESSION_ID}/stop", content=content, headers=headers)
    assert reply.status_code == 200
    assert reply.json()["session"]["state"] == "ENDED"
    assert gateway.fake.calls[0].reason == reason


async def test_the_list_passes_every_filter_on(gateway: Gateway) -> None:
    query = "page_size=5&page_token=t&include_ended=true&state=ENDED&state=CHARGING&vehicle_id=v&substation_id=s"
    reply = await gateway.http.get(f"/v1/charges?{query}")
    assert [each["session_id"] for each in reply.json()["sessions"]] == [SESSION_ID]
    assert "next_page_token" not in reply.json()
    assert gateway.fake.calls[0] == charging_pb2.ListSessionsRequest(
        page_size=5,
        page_token="t",
        include_ended=True,
        states=[charging_pb2.SESSION_STATE_ENDED, charging_pb2.SESSION_STATE_CHARGING],
        vehicle_id="v",
        substation_id="s",
    )


async def test_the_list_says_what_follows_and_what_is_missing(gateway: Gateway) -> None:
    async def page(request: Message, context: Context) -> charging_pb2.ListSessionsResponse:
        return charging_pb2.ListSessionsResponse(next_page_token="t2", unreachable_substation_ids=["b"])

    gateway.fake.answers["ListSessions"] = page
    reply = await gateway.http.get("/v1/charges")
    assert reply.json() == {"sessions": [], "next_page_token": "t2", "unreachable_substation_ids": ["b"]}


async def test_many_charges_at_once_each_get_their_own_session(gateway: Gateway) -> None:
    keys = [f"k-{number}" for number in range(200)]
    replies = await asyncio.gather(*(gateway.post(CAR, Idempotency_Key=key) for key in keys))
    assert [json.loads(reply.content)["session"]["request_id"] for reply in replies] == keys
