"""What is wrong in a request is named, whatever it is, and nothing is sent on."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mesh.errors import InvalidRequest, Violation
from tests.gateway.running import CAR, SESSION_ID, FakeBalancer, Gateway, fails, gateway_before, served

JSON = {"content-type": "application/json"}


def a_problem(reply: httpx.Response, status: int, reason: str) -> dict[str, Any]:
    assert reply.headers["content-type"] == "application/problem+json", reply.text
    body: dict[str, Any] = reply.json()
    assert (reply.status_code, body["status"], body["reason"]) == (status, status, reason), body
    assert body["type"] == f"urn:gridmesh:problem:{reason}"
    assert body["title"]
    assert body["detail"]
    return body


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        # types and unknown fields: the gateway sees these itself
        ('{"max_power_kw": 11}', "vehicle_id", "is required"),
        ('{"vehicle_id": "a"}', "max_power_kw", "is required"),
        ('{"vehicle_id": 1, "max_power_kw": 11}', "vehicle_id", "must be a string, not a whole number"),
        ('{"vehicle_id": null, "max_power_kw": 11}', "vehicle_id", "must be a string, not null"),
        ('{"vehicle_id": "a", "max_power_kw": "11"}', "max_power_kw", "must be a number, not a string"),
        ('{"vehicle_id": "a", "max_power_kw": true}', "max_power_kw", "must be a number, not true or false"),
        ('{"vehicle_id": "a", "max_power_kw": 11, "power": 1}', "power", "is not known here"),
        ('{"vehicle_id": "a", "max_power_kw": 11, "owner": "me"}', "owner", "is not known here"),
        ('{"vehicle_id": "a", "max_power_kw": 11, "phases": 3.5}', "phases", "must be a whole number, not a number"),
        ('{"vehicle_id": "a", "max_power_kw": 11, "phases": -1}', "phases", "must be at least 1"),
        ('{"vehicle_id": "a", "max_power_kw": 11, "phases": 99999999999999999999}', "phases", "must be at most 3"),
        ('{"vehicle_id": "a", "max_power_kw": 11, "departure_time": "soon"}', "departure_time", "a point in time"),
        (
            '{"vehicle_id": "a", "max_power_kw": 11, "departure_time": "2030-01-01T00:00:00"}',
            "departure_time",
            "with its zone",
        ),
        ('{"vehicle_id": "a", "max_power_kw": 11, "departure_in": "1h"}', "departure_in", "must be seconds"),
        ('{"vehicle_id": "a", "max_power_kw": 11, "departure_in": 5400}', "departure_in", "must be a string"),
        (
            '{"vehicle_id": "a", "max_power_kw": 11, "departure_in": "5s", "departure_time": "2030-01-01T00:00:00Z"}',
            "departure_in",
            "must not be given together with departure_time",
        ),
        (
            '{"vehicle_id": "a", "max_power_kw": 11, "allowed_substation_ids": ["b", 1]}',
            "allowed_substation_ids[1]",
            "must be a string",
        ),
        (
            '{"vehicle_id": "a", "max_power_kw": 11, "allowed_substation_ids": "b"}',
            "allowed_substation_ids",
            "an array",
        ),
        # not JSON, but close enough to say where
        ('{"vehicle_id": "a", "max_power_kw": NaN}', "max_power_kw", "must be a finite number"),
        ('{"vehicle_id": "a", "max_power_kw": Infinity}', "max_power_kw", "must be a finite number"),
        ('{"vehicle_id": "a", "max_power_kw": 11, "energy_kwh": -Infinity}', "energy_kwh", "must be a finite number"),
        ('{"vehicle_id": "a", "max_power_kw": 1e999}', "max_power_kw", "must be a finite number"),
        (f'{{"vehicle_id": "a", "max_power_kw": {"9" * 5000}}}', "max_power_kw", "must be a finite number"),
        ('{"vehicle_id": "\\ud800", "max_power_kw": 11}', "vehicle_id", "must be valid Unicode"),
        # values: the balancer's words
        ('{"vehicle_id": "a", "max_power_kw": 0}', "max_power_kw", "must be above 0 and at most 4000"),
        ('{"vehicle_id": "a", "max_power_kw": -1}', "max_power_kw", "must be above 0"),
        ('{"vehicle_id": "a", "max_power_kw": 1e308}', "max_power_kw", "at most 4000"),
        ('{"vehicle_id": "a", "max_power_kw": 11, "energy_kwh": 0}', "energy_kwh", "must be above 0"),
        ('{"vehicle_id": "a", "max_power_kw": 11, "phases": 2}', "phases", "must be 1 or 3"),
        ('{"vehicle_id": "a", "max_power_kw": 11, "min_power_kw": 12}', "min_power_kw", "not be above max_power_kw"),
        ('{"vehicle_id": "a", "max_power_kw": 11, "departure_in": "-5s"}', "departure_in", "must be above 0"),
        (
            '{"vehicle_id": "a", "max_power_kw": 11, "departure_time": "0001-01-01T00:00:00+14:00"}',
            "departure_time",
            "in the future",
        ),
        ('{"vehicle_id": "", "max_power_kw": 11}', "vehicle_id", "must be 1 to 128 printable"),
        ('{"vehicle_id": "a\\u0000", "max_power_kw": 11}', "vehicle_id", "must be 1 to 128 printable"),
        (f'{{"vehicle_id": "{"a" * 1_000_000}", "max_power_kw": 11}}', "vehicle_id", "must be 1 to 128 printable"),
        (
            '{"vehicle_id": "a", "max_power_kw": 11, "allowed_substation_ids": ["B"]}',
            "allowed_substation_ids[0]",
            "must be 1 to 40",
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else None,
)
async def test_a_wrong_field_is_named(gateway: Gateway, body: str, field: str, says: str) -> None:
    reply = await gateway.http.post("/v1/charges", content=body, headers=JSON)
    errors = a_problem(reply, 400, "INVALID_REQUEST")["errors"]
    assert [error["field"] for error in errors] == [field]
    assert says in errors[0]["detail"]
    assert errors[0]["pointer"] == "#/" + field.replace("[", "/").rstrip("]")
    assert len(reply.content) < 2000


async def test_all_wrong_fields_are_named_at_once(gateway: Gateway) -> None:
    reply = await gateway.post({"vehicle_id": 1, "energy_kwh": "x", "a/b": 1})
    errors = a_problem(reply, 400, "INVALID_REQUEST")["errors"]
    assert {error["pointer"] for error in errors} == {"#/vehicle_id", "#/max_power_kw", "#/energy_kwh", "#/a~1b"}
    assert not gateway.fake.calls


async def test_a_million_mistakes_are_answered_with_the_first_of_them(gateway: Gateway) -> None:
    for body in ("[" + "NaN," * 1_000_000 + "NaN]", "{" + ",".join(f'"{i}": 1' for i in range(100_000)) + "}"):
        reply = await gateway.http.post("/v1/charges", content=body, headers=JSON)
        assert len(a_problem(reply, 400, "INVALID_REQUEST")["errors"]) == 20


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body is empty"),
        (b"{", "line 1, column 2"),
        (b'{"vehicle_id": "a",}', "line 1, column"),
        (b'{"vehicle_id": "a"} {}', "Extra data at line 1, column 21"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"vehicle_id": "\xff", "max_power_kw": 1}', "not UTF-8"),
        (b"[" * 200_000, "nested too deep"),
        (b"\x00", "line 1, column 1"),
    ],
)
async def test_a_body_that_is_not_json_is_400_and_says_where(gateway: Gateway, body: bytes, says: str) -> None:
    for path in ("/v1/charges", "/v1/charges:batch"):
        reply = await gateway.http.post(path, content=body, headers=JSON)
        assert says in a_problem(reply, 400, "INVALID_JSON")["detail"]


@pytest.mark.parametrize("body", ["[]", "1", '"a"', "null", "true", "1.5"])
async def test_a_body_that_is_no_object_is_400(gateway: Gateway, body: str) -> None:
    reply = await gateway.http.post("/v1/charges", content=body, headers=JSON)
    assert "must be an object" in a_problem(reply, 400, "INVALID_REQUEST")["detail"]


async def test_a_deep_unknown_field_is_refused(gateway: Gateway) -> None:
    body = '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    reply = await gateway.http.post("/v1/charges", content=body, headers=JSON)
    assert reply.status_code == 400


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_another_content_type_is_415(gateway: Gateway, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    reply = await gateway.http.post("/v1/charges", content=b"{}", headers=headers)
    assert "application/json" in a_problem(reply, 415, "UNSUPPORTED_MEDIA_TYPE")["detail"]


async def test_a_charset_does_not_matter(gateway: Gateway) -> None:
    content = b'{"vehicle_id": "a", "max_power_kw": 11}'
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await gateway.http.post("/v1/charges", content=content, headers=headers)).status_code == 201


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_above_4_mib_is_413(gateway: Gateway, chunked: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * 1024 * 1024

    content = chunks() if chunked else b" " * 5 * 1024 * 1024
    reply = await gateway.http.post("/v1/charges", content=content, headers=JSON)
    a_problem(reply, 413, "BODY_TOO_LARGE")


async def test_a_body_that_the_mesh_cannot_carry_is_413(gateway: Gateway) -> None:
    body = '{"max_power_kw": 11, "vehicle_id": "' + "a" * (4 * 1024 * 1024 - 38) + '"}'
    reply = await gateway.http.post("/v1/charges", content=body, headers=JSON)
    a_problem(reply, 413, "BODY_TOO_LARGE")


async def test_a_body_that_never_ends_is_408() -> None:
    fake = FakeBalancer()
    async with served(fake) as port, gateway_before(port, fake, timeout_s=0.1) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(
            b"POST /v1/charges HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
        reply = (await asyncio.wait_for(reader.read(), 5)).decode()
        writer.close()
        await writer.wait_closed()
    assert reply.startswith("HTTP/1.1 408")
    assert "BODY_TOO_SLOW" in reply


@pytest.mark.parametrize("key", ["", "a" * 129, "é"])
async def test_a_bad_key_is_named_as_the_header(gateway: Gateway, key: str) -> None:
    reply = await gateway.http.post("/v1/charges", json=CAR, headers=[(b"Idempotency-Key", key.encode("latin-1"))])
    errors = a_problem(reply, 400, "INVALID_REQUEST")["errors"]
    assert errors == [{"field": "Idempotency-Key", "detail": "must be 1 to 128 printable ASCII characters"}]
    assert "idempotency-key" not in reply.headers


async def test_two_keys_are_refused(gateway: Gateway) -> None:
    reply = await gateway.http.post(
        "/v1/charges", json=CAR, headers=[("Idempotency-Key", "a"), ("idempotency-key", "b")]
    )
    assert a_problem(reply, 400, "INVALID_REQUEST")["errors"][0]["field"] == "Idempotency-Key"


async def test_a_key_is_echoed_on_errors_too(gateway: Gateway) -> None:
    reply = await gateway.post({}, Idempotency_Key="k-1")
    assert (reply.status_code, reply.headers["idempotency-key"]) == (400, "k-1")
    assert (await gateway.post({})).headers["idempotency-key"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("page_size=x", "page_size"),
        ("page_size=-1", "page_size"),
        ("page_size=1.5", "page_size"),
        ("page_size=", "page_size"),
        ("page_size=99999999999", "page_size"),
        ("page_size=%D9%A1", "page_size"),
        ("page_size=1&page_size=2", "page_size"),
        ("include_ended=1", "include_ended"),
        ("state=RUNNING", "state"),
        ("state=", "state"),
        ("pagesize=1", "pagesize"),
        ("vehicle_id=a&vehicle_id=b", "vehicle_id"),
    ],
)
async def test_a_wrong_query_parameter_is_named(gateway: Gateway, query: str, field: str) -> None:
    errors = a_problem(await gateway.http.get(f"/v1/charges?{query}"), 400, "INVALID_REQUEST")["errors"]
    assert [error["field"] for error in errors] == [field]
    assert "pointer" not in errors[0]
    assert not gateway.fake.calls


async def test_what_the_balancer_says_of_a_query_is_named_as_the_parameter(gateway: Gateway) -> None:
    violations = (Violation("states[0]", "no"), Violation("page_token", "is from another list"))
    gateway.fake.answers["ListSessions"] = fails(InvalidRequest(*violations))
    errors = a_problem(await gateway.http.get("/v1/charges"), 400, "INVALID_REQUEST")["errors"]
    assert errors == [
        {"field": "state[0]", "detail": "no"},
        {"field": "page_token", "detail": "is from another list"},
    ]


@pytest.mark.parametrize(
    ("path", "source_or_body", "field"),
    [
        ("/v1/substations/north/limits/grid", {"limit_kw": 1}, "source"),
        ("/v1/substations/north/limits/", {"limit_kw": 1}, None),
        ("/v1/substations/north/limits/cso", {}, "limit_kw"),
        ("/v1/substations/north/limits/cso", {"limit_kw": "1"}, "limit_kw"),
        ("/v1/substations/north/limits/cso", {"limit_kw": 1, "end_at": "tomorrow"}, "end_at"),
        ("/v1/substations/north/limits/cso", {"limit_kw": 1, "source": "CSO"}, "source"),
    ],
)
async def test_a_wrong_limit_is_named(gateway: Gateway, path: str, source_or_body: object, field: str | None) -> None:
    reply = await gateway.http.put(path, json=source_or_body)
    if field is None:
        a_problem(reply, 404, "PATH_NOT_FOUND")
    else:
        assert [error["field"] for error in a_problem(reply, 400, "INVALID_REQUEST")["errors"]] == [field]
    assert not gateway.fake.calls


@pytest.mark.parametrize("said", ["limit.limit_kw", "limit_kw"])
async def test_what_the_balancer_says_of_a_limit_is_named_as_the_body_has_it(gateway: Gateway, said: str) -> None:
    gateway.fake.answers["SetLimit"] = fails(InvalidRequest(Violation(said, "must be 0 or more")))
    reply = await gateway.http.put("/v1/substations/north/limits/cso", json={"limit_kw": -1})
    errors = a_problem(reply, 400, "INVALID_REQUEST")["errors"]
    assert errors == [{"field": "limit_kw", "detail": "must be 0 or more", "pointer": "#/limit_kw"}]


@pytest.mark.parametrize("body", ['{"reason": "DUPLICATE"}', '{"reason": "x"}', '{"why": "x"}', "[]", "{"])
async def test_a_wrong_stop_is_refused(gateway: Gateway, body: str) -> None:
    reply = await gateway.http.post(f"/v1/charges/{SESSION_ID}/stop", content=body, headers=JSON)
    assert reply.status_code == 400
    assert not gateway.fake.calls


@pytest.mark.parametrize(
    "path", ["/nope", "/v1", "/v1/charges/", "/v1/charges/a/b", "/v1/charges:batch/", "//", "/%00"]
)
async def test_an_unknown_path_is_a_404_problem(gateway: Gateway, path: str) -> None:
    a_problem(await gateway.http.get(f"http://127.0.0.1:{gateway.port}{path}"), 404, "PATH_NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/v1/charges", "GET, HEAD, POST"),
        ("GET", "/v1/charges:batch", "POST"),
        ("PATCH", f"/v1/charges/{SESSION_ID}", "GET, HEAD"),
        ("GET", "/v1/substations/north/limits/cso", "DELETE, PUT"),
        ("POST", "/v1/substations/events", "GET"),
        ("HEAD", "/v1/substations/events", "GET"),
        ("OPTIONS", "/healthz", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
    ],
)
async def test_another_method_is_405_and_says_which_it_takes(
    gateway: Gateway, method: str, path: str, allow: str
) -> None:
    reply = await gateway.http.request(method, path)
    assert (reply.status_code, reply.headers["allow"]) == (405, allow)
    if method != "HEAD":
        a_problem(reply, 405, "METHOD_NOT_ALLOWED")


async def test_bytes_that_are_no_http_get_a_problem_too(gateway: Gateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"\x16\x03\x01 hello\r\n\r\n")
    reply = (await asyncio.wait_for(reader.read(), 5)).decode()
    writer.close()
    await writer.wait_closed()
    assert reply.startswith("HTTP/1.1 400")
    assert "application/problem+json" in reply
