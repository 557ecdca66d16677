"""Pages of other origins: none may call unless an operator names theirs."""

from collections.abc import AsyncIterator

import pytest

from gateway.cors import Cors, origin
from tests.gateway.running import CAR, FakeBalancer, Gateway, gateway_before, served

APP = "https://app.example.com"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,idempotency-key"}


@pytest.fixture
async def opened() -> AsyncIterator[Gateway]:
    fake = FakeBalancer()
    async with served(fake) as port, gateway_before(port, fake, cors=Cors([APP])) as running:
        yield running


async def test_a_page_of_a_named_origin_may_ask_and_read(opened: Gateway) -> None:
    asked = await opened.http.options("/v1/charges", headers={"Origin": APP, **PREFLIGHT})
    assert (asked.status_code, asked.content) == (204, b"")
    assert asked.headers["access-control-allow-origin"] == APP
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert {"Idempotency-Key", "Prefer"} <= set(asked.headers["access-control-allow-headers"].split(", "))
    reply = await opened.post(CAR, Origin=APP)
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (201, APP)
    assert {"Location", "Idempotency-Key", "Retry-After"} <= set(
        reply.headers["access-control-expose-headers"].split(", ")
    )
    assert reply.headers["vary"] == "Origin"
    assert not opened.fake.calls[1:]


async def test_it_also_reads_problems_and_events(opened: Gateway) -> None:
    assert (await opened.post({}, Origin=APP)).headers["access-control-allow-origin"] == APP
    assert (await opened.http.get("/nowhere", headers={"Origin": APP})).headers["access-control-allow-origin"] == APP
    async with opened.http.stream("GET", "/v1/substations/events", headers={"Origin": APP}) as events:
        assert events.headers["access-control-allow-origin"] == APP


@pytest.mark.parametrize("said", ["https://other.example.com", f"{APP}.evil.example", "null", APP.upper()])
async def test_a_page_of_another_origin_may_not(opened: Gateway, said: str) -> None:
    asked = await opened.http.options("/v1/charges", headers={"Origin": said, **PREFLIGHT})
    assert asked.status_code == 405
    assert "access-control-allow-origin" not in asked.headers
    assert "access-control-allow-origin" not in (await opened.post(CAR, Origin=said)).headers


async def test_without_the_setting_nothing_is_said(gateway: Gateway) -> None:
    asked = await gateway.http.options("/v1/charges", headers={"Origin": APP, **PREFLIGHT})
    assert asked.status_code == 405
    reply = await gateway.post(CAR, Origin=APP)
    assert not {"access-control-allow-origin", "vary"} & set(reply.headers)


async def test_any_origin_is_said_as_such() -> None:
    fake = FakeBalancer()
    async with served(fake) as port, gateway_before(port, fake, cors=Cors(["*"])) as running:
        reply = await running.post(CAR, Origin=APP)
        assert reply.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("value", ["https://app.example.com", "http://localhost:3000", "http://[::1]:80", "*"])
def test_an_origin_is_taken(value: str) -> None:
    assert origin(value) is None


@pytest.mark.parametrize("value", ["app.example.com", "https://app.example.com/", "ftp://a", "https://", "null", "**"])
def test_what_is_no_origin_is_refused(value: str) -> None:
    assert origin(value)
