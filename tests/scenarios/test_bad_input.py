"""What is wrong in a request is named alike over HTTP, by a balancer and by a substation, and changes nothing."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

from gridmesh.v1 import charging_pb2, load_pb2, operations_pb2, reports_pb2
from mesh.status import from_status
from tests.mesh_processes import Mesh, wait_for
from tests.scenarios.asking import CAR, TIMEOUT_S, Refusal, Server, new_key, post_car, problem, refusal

JSON = {"content-type": "application/json"}
MEGABYTE = "x" * 1_000_000
NAN, INFINITY = float("nan"), float("inf")
SERVERS = ("balancer", "a")
UNKNOWN_UUID = "0192f0c1-2a3b-7c4d-8e5f-0123456789ab"
NOBODY = f"a.{UNKNOWN_UUID}"
# A refusal repeats little of what it was sent.
LONGEST_MESSAGE = 1_000


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("mesh"), rated_kw=(100.0,)) as running:
        yield running.start()


State = tuple[int, int, float, float, int]


def state(mesh: Mesh) -> State:
    """What no bad request may change."""
    load = Server(mesh, "a").load()
    return (load.epoch, load.sequence, load.demand_kw, load.limit_power_kw, load.free_charge_points)


@pytest.fixture
def untouched(mesh: Mesh) -> Iterator[None]:
    """Nothing was admitted, set or restarted by the test."""
    if not mesh.serving("a"):
        mesh.restart("a")  # what killed it has failed for itself
        mesh.wait_ready("balancer")
    before = state(mesh)
    yield
    assert mesh.serving("a"), "the request ended the substation"
    assert state(mesh) == before
    assert Server(mesh, "a").sessions() == []


def refused(call: Callable[[], object]) -> Refusal:
    """The refusal of a gRPC call."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    said = refusal(caught.value)
    assert said.domain == "gridmesh"
    assert len(said.message) < LONGEST_MESSAGE
    return said


def refused_http(reply: httpx.Response) -> Refusal:
    """The refusal of an HTTP request."""
    assert len(reply.content) < 3 * LONGEST_MESSAGE
    return problem(reply)


def fields_named(said: Refusal) -> list[str]:
    assert said.reason == "INVALID_REQUEST", said
    assert said.status == 400 or said.code == "INVALID_ARGUMENT", said
    assert all(said.fields.values())
    return list(said.fields)


# --- charges -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """A car like CAR, but for `said`: `field` is to be named. `json_says` where JSON has words of its own."""

    field: str
    said: dict[str, Any]
    says: str
    json_says: str = ""

    @property
    def named(self) -> str:
        return f"{self.field}={str(next(iter(self.said.values())))[:12]}"


def wrong_numbers(name: str, most: str, more: float, optional: str) -> list[Wrong]:
    says = f"must be above 0 and at most {most}{optional}"
    finite = "must be a finite number"
    return [
        *(Wrong(name, {name: value}, says) for value in (0, -0.0, -1, -1e308, more, 1e308)),
        *(Wrong(name, {name: value}, says, finite) for value in (NAN, INFINITY, -INFINITY)),
    ]


PRINTABLE = "must be 1 to 128 printable ASCII characters"
WRONG_CHARGES = [
    *wrong_numbers("max_power_kw", "4000", 4000.001, ""),
    *wrong_numbers("energy_kwh", "1000", 1000.001, ", or absent"),
    *wrong_numbers("min_power_kw", "4000", 4000.001, ", or absent"),
    Wrong("min_power_kw", {"min_power_kw": 11.001}, "must not be above max_power_kw"),
    Wrong("phases", {"phases": 2}, "must be 1 or 3, or absent"),
    Wrong("phases", {"phases": 0}, "must be 1 or 3, or absent", "must be at least 1"),
    Wrong("phases", {"phases": 2**32 - 1}, "must be 1 or 3, or absent", "must be at most 3"),
    *(
        Wrong("departure_time", {"departure_time": at}, "must be in the future")
        for at in ("2020-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z")
    ),
    *(
        Wrong("departure_time", {"departure_time": at}, "must be within 30 days")
        for at in ("2199-01-01T00:00:00Z", "9999-12-31T23:59:59Z")
    ),
    *(
        Wrong("departure_in", {"departure_in": time}, "must be above 0 and at most 30 days")
        for time in ("0s", "-1s", "-0.000000001s", "2592001s", "315576000000s")
    ),
    *(
        Wrong("vehicle_id", {"vehicle_id": text}, PRINTABLE)
        for text in ("", "x" * 129, MEGABYTE, "EV\n1", "EV\x00", "EV\x7f", "Zoë", "車")
    ),
    *(
        Wrong("evse_id", {"evse_id": text}, "must be at most 128 printable ASCII characters")
        for text in ("x" * 129, MEGABYTE, "\t")
    ),
    *(
        Wrong("allowed_substation_ids[1]", {"allowed_substation_ids": ["a", text]}, "must be 1 to 40 of a-z, 0-9 and -")
        for text in ("", "A", "a b", "x" * 41, MEGABYTE)
    ),
    Wrong("allowed_substation_ids", {"allowed_substation_ids": ["a"] * 65}, "must be at most 64"),
]
TWO_WRONG = {"energy_kwh": -1, "phases": 2, "vehicle_id": ""}


def charge_request(said: dict[str, Any], request_id: str = "") -> charging_pb2.ChargeRequest:
    """What HTTP says in JSON, as the contract says it."""
    fields = {**CAR, **said}
    departure_time, departure_in = fields.pop("departure_time", None), fields.pop("departure_in", None)
    request = charging_pb2.ChargeRequest(request_id=request_id or new_key(), **fields)
    if departure_time is not None:
        request.departure_time.FromJsonString(departure_time)
    if departure_in is not None:
        request.departure_in.FromJsonString(departure_in)
    return request


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("wrong", WRONG_CHARGES, ids=lambda wrong: wrong.named)
@pytest.mark.usefixtures("untouched")
def test_grpc_names_the_wrong_field_of_a_charge(mesh: Mesh, name: str, wrong: Wrong) -> None:
    charging = Server(mesh, name).charging
    said = refused(lambda: charging.Charge(charge_request(wrong.said), timeout=TIMEOUT_S))
    assert fields_named(said) == [wrong.field]
    assert said.fields[wrong.field] == wrong.says
    assert wrong.field in said.message


@pytest.mark.parametrize("wrong", WRONG_CHARGES, ids=lambda wrong: wrong.named)
@pytest.mark.usefixtures("untouched")
def test_http_names_the_wrong_field_of_a_charge(mesh: Mesh, wrong: Wrong) -> None:
    # As Python writes it: NaN and Infinity as such.
    body = json.dumps({**CAR, **wrong.said})
    said = refused_http(mesh.http.post("/v1/charges", content=body, headers=JSON))
    assert fields_named(said) == [wrong.field]
    assert said.fields[wrong.field] == (wrong.json_says or wrong.says)
    assert wrong.field in said.message


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400])
@pytest.mark.parametrize("name", ["energy_kwh", "max_power_kw", "min_power_kw"])
@pytest.mark.usefixtures("untouched")
def test_http_names_a_number_beyond_all_range(mesh: Mesh, name: str, number: str) -> None:
    body = json.dumps({**CAR, name: "NUMBER"}).replace('"NUMBER"', number)
    said = refused_http(mesh.http.post("/v1/charges", content=body, headers=JSON))
    assert fields_named(said) == [name]


@pytest.mark.usefixtures("untouched")
def test_all_wrong_fields_are_named_at_once_by_all_three(mesh: Mesh) -> None:
    said = [refused_http(mesh.http.post("/v1/charges", json={**CAR, **TWO_WRONG}))]
    for name in SERVERS:
        charging = Server(mesh, name).charging
        said.append(refused(lambda stub=charging: stub.Charge(charge_request(TWO_WRONG))))  # type: ignore[misc]
    assert [sorted(fields_named(each)) for each in said] == [sorted(TWO_WRONG)] * 3
    assert said[0].fields == said[1].fields == said[2].fields


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize(
    ("wrong_field", "change"),
    [
        ("departure_time", {"departure_time": Timestamp(seconds=2**62)}),
        ("departure_time", {"departure_time": Timestamp(seconds=-(2**62), nanos=-(2**31))}),
        ("departure_in", {"departure_in": Duration(seconds=2**62)}),
        ("departure_in", {"departure_in": Duration(seconds=-(2**62), nanos=2**31 - 1)}),
        ("owner", {"owner": MEGABYTE}),
        ("owner", {"owner": "\x00"}),
        ("attempt_id", {"attempt_id": "first"}),
        ("attempt_id", {"attempt_id": MEGABYTE}),
        ("request_id", {"request_id": ""}),
        ("request_id", {"request_id": "x" * 129}),
        ("request_id", {"request_id": MEGABYTE}),
        ("request_id", {"request_id": "a\r\nb"}),
        ("request_id", {"request_id": "ключ"}),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.usefixtures("untouched")
def test_grpc_names_what_only_grpc_can_say_wrongly(
    mesh: Mesh, name: str, wrong_field: str, change: dict[str, Any]
) -> None:
    request = charging_pb2.ChargeRequest(**{"request_id": new_key(), **CAR, **change})
    said = refused(lambda: Server(mesh, name).charging.Charge(request, timeout=TIMEOUT_S))
    assert fields_named(said) == [wrong_field]


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.usefixtures("untouched")
def test_grpc_names_the_power_when_it_is_missing(mesh: Mesh, name: str) -> None:
    request = charging_pb2.ChargeRequest(request_id=new_key(), vehicle_id="EV-001")
    said = refused(lambda: Server(mesh, name).charging.Charge(request, timeout=TIMEOUT_S))
    assert fields_named(said) == ["max_power_kw"]


@pytest.mark.usefixtures("untouched")
def test_an_attempt_that_nobody_waits_for_is_not_admitted(mesh: Mesh) -> None:
    request = charging_pb2.ChargeRequest(request_id=new_key(), **CAR, not_after=Timestamp(seconds=-(2**62)))
    for name in SERVERS:
        charging = Server(mesh, name).charging
        said = refused(lambda stub=charging: stub.Charge(request, timeout=TIMEOUT_S))  # type: ignore[misc]
        assert (said.code, said.reason) == ("DEADLINE_EXCEEDED", "ATTEMPT_EXPIRED")


@pytest.mark.parametrize("key", ["", "x" * 129, b"a\xffb", b"Zo\xc3\xab", "x" * 10_000])
@pytest.mark.usefixtures("untouched")
def test_http_names_the_header_of_a_bad_key(mesh: Mesh, key: str | bytes) -> None:
    value = key if isinstance(key, bytes) else key.encode()
    reply = mesh.http.post("/v1/charges", json=dict(CAR), headers={b"Idempotency-Key": value})
    said = refused_http(reply)
    assert fields_named(said) == ["Idempotency-Key"]
    assert said.fields["Idempotency-Key"] == PRINTABLE


@pytest.mark.usefixtures("untouched")
def test_a_key_of_a_megabyte_is_the_clients_fault_also_over_http(mesh: Mesh) -> None:
    with httpx.Client(base_url=mesh.url, trust_env=False) as http:
        said = refused_http(http.post("/v1/charges", json=dict(CAR), headers={"Idempotency-Key": MEGABYTE}))
    assert 400 <= said.status < 500
    assert mesh.http.get("/readyz").status_code == 200


# --- what only JSON can get wrong ------------------------------------------------------------------------

WRONG_TYPES: list[tuple[str, object, str]] = [
    ("vehicle_id", 1, "must be a string, not a whole number"),
    ("vehicle_id", None, "must be a string, not null"),
    ("max_power_kw", "11", "must be a number, not a string"),
    ("max_power_kw", True, "must be a number, not true or false"),
    ("energy_kwh", [], "must be a number, not an array"),
    ("phases", 1.5, "must be a whole number, not a number"),
    ("departure_time", 1_900_000_000, "must be a"),
    ("departure_time", "tomorrow", "must be a point in time"),
    ("departure_in", 60, "must be a string, not a whole number"),
    ("departure_in", "1h", "must be seconds"),
    ("allowed_substation_ids", "a", "must be an array, not a string"),
    ("evse_id", {}, "must be a string, not an object"),
    # unknown fields, some of them the mesh's own
    ("colour", "red", "is not known here"),
    ("owner", "me", "is not known here"),
    ("attempt_id", UNKNOWN_UUID, "is not known here"),
    ("request_id", "1", "is not known here"),
]


@pytest.mark.parametrize(("name", "value", "says"), WRONG_TYPES, ids=lambda value: str(value)[:20])
@pytest.mark.usefixtures("untouched")
def test_http_names_wrong_types_and_unknown_fields(mesh: Mesh, name: str, value: object, says: str) -> None:
    said = refused_http(mesh.http.post("/v1/charges", json={**CAR, name: value}))
    assert fields_named(said) == [name]
    assert says in said.fields[name]


@pytest.mark.parametrize("name", ["vehicle_id", "max_power_kw"])
@pytest.mark.usefixtures("untouched")
def test_http_names_what_is_missing(mesh: Mesh, name: str) -> None:
    body = {key: value for key, value in CAR.items() if key != name}
    said = refused_http(mesh.http.post("/v1/charges", json=body))
    assert said.fields == {name: "is required"}


@pytest.mark.parametrize("body", ["", "{", '{"vehicle_id": "a",}', "{} {}", "\x00", "[" * 100_000])
@pytest.mark.parametrize("path", ["/v1/charges", "/v1/substations/a/limits/so"])
@pytest.mark.usefixtures("untouched")
def test_what_is_not_json_is_said_to_be_not_json(mesh: Mesh, path: str, body: str) -> None:
    method = "PUT" if "limits" in path else "POST"
    said = refused_http(mesh.http.request(method, path, content=body, headers=JSON))
    assert (said.status, said.reason) == (400, "INVALID_JSON")
    assert "the body" in said.message


@pytest.mark.parametrize("body", ["[]", "1", '"a"', "null", "true"])
@pytest.mark.usefixtures("untouched")
def test_what_is_no_object_is_said_to_be_none(mesh: Mesh, body: str) -> None:
    said = refused_http(mesh.http.post("/v1/charges", content=body, headers=JSON))
    assert fields_named(said) == ["body"]
    assert "must be an object" in said.message


# --- sessions that nobody knows -------------------------------------------------------------------------

UNKNOWN = [NOBODY, f"zz.{UNKNOWN_UUID}", "a.1", "a", ".", "EV-001", "x" * 200]
# Over gRPC also what no path can hold.
UNKNOWN_GRPC = [*UNKNOWN, "", "\x00", "ä.ö", "a/b", MEGABYTE]


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("method", ["get", "stop", "watch"])
@pytest.mark.parametrize("session_id", UNKNOWN_GRPC, ids=lambda text: repr(text[:12]))
@pytest.mark.usefixtures("untouched")
def test_grpc_does_not_find_an_unknown_session(mesh: Mesh, name: str, method: str, session_id: str) -> None:
    server = Server(mesh, name)

    def ask() -> object:
        if method == "watch":
            with server.watch(session_id) as sessions:
                return list(sessions)
        return getattr(server, {"get": "session", "stop": "stop"}[method])(session_id)

    said = refused(ask)
    assert (said.code, said.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")
    assert "no session" in said.message


@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("POST", "/stop"), ("GET", "/events")])
@pytest.mark.parametrize("session_id", [each for each in UNKNOWN if each != "."], ids=lambda text: text[:12])
@pytest.mark.usefixtures("untouched")
def test_http_does_not_find_an_unknown_session(mesh: Mesh, method: str, tail: str, session_id: str) -> None:
    said = refused_http(mesh.http.request(method, f"/v1/charges/{session_id}{tail}"))
    assert (said.status, said.reason) == (404, "SESSION_NOT_FOUND")
    assert "no session" in said.message


@pytest.mark.parametrize("reason", ["DUPLICATE", "ENERGY_LIMIT_REACHED", "SOC_LIMIT_REACHED", "OVERCURRENT_FAULT"])
def test_only_a_callers_reason_stops_a_session(mesh: Mesh, reason: str) -> None:
    session_id = Server(mesh, "a").charge().session.session_id
    number = charging_pb2.StopReason.Value(f"STOP_REASON_{reason}")
    asked = charging_pb2.StopSessionRequest(session_id=session_id, reason=number)
    for name in SERVERS:
        charging = Server(mesh, name).charging
        said = refused(lambda stub=charging: stub.StopSession(asked, timeout=TIMEOUT_S))  # type: ignore[misc]
        assert fields_named(said) == ["reason"]
    over_http = refused_http(mesh.http.post(f"/v1/charges/{session_id}/stop", json={"reason": reason}))
    assert fields_named(over_http) == ["reason"]
    assert Server(mesh, "a").session(session_id).state != charging_pb2.SESSION_STATE_ENDED
    Server(mesh, "a").stop(session_id)


# --- the same again -------------------------------------------------------------------------------------


def test_a_second_stop_gives_the_same_answer(mesh: Mesh) -> None:
    session_id = post_car(mesh.http).json()["session"]["session_id"]
    first, again = (mesh.http.post(f"/v1/charges/{session_id}/stop", json={"reason": "LOCAL"}) for _ in range(2))
    assert first.json() == again.json()
    assert first.json()["session"]["stop_reason"] == "LOCAL"
    stopped = [Server(mesh, name).stop(session_id) for name in SERVERS]
    assert stopped[0] == stopped[1]
    assert stopped[0].stop_reason == charging_pb2.STOP_REASON_LOCAL


def test_a_key_is_for_one_car_only(mesh: Mesh) -> None:
    key = new_key()
    first = post_car(mesh.http, key)
    session_id = first.json()["session"]["session_id"]
    said = refused_http(post_car(mesh.http, key, vehicle_id="EV-002"))
    assert (said.status, said.reason) == (422, "KEY_REUSED")
    for name in SERVERS:
        charging = Server(mesh, name)
        over_grpc = refused(lambda server=charging: server.charge(key, energy_kwh=1.0))  # type: ignore[misc]
        assert (over_grpc.code, over_grpc.reason) == ("FAILED_PRECONDITION", "KEY_REUSED")
    assert [session.session_id for session in Server(mesh, "a").sessions()] == [session_id]
    again = post_car(mesh.http, key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["session"]["session_id"] == session_id
    # A known key is recognised before the rest is looked at.
    invalid = refused_http(post_car(mesh.http, key, energy_kwh=-1))
    assert (invalid.status, invalid.reason) == (422, "KEY_REUSED")
    Server(mesh, "a").stop(session_id)


def test_a_substation_that_nobody_has_takes_no_car(mesh: Mesh) -> None:
    before = state(mesh)
    over_http = refused_http(post_car(mesh.http, allowed_substation_ids=["nowhere"]))
    over_grpc = refused(lambda: Server(mesh, "balancer").charge(allowed_substation_ids=["nowhere"]))
    directly = refused(lambda: Server(mesh, "a").charge(allowed_substation_ids=["nowhere"]))
    assert over_http.reason == over_grpc.reason
    assert over_http.status in {400, 503}
    assert fields_named(directly) == ["allowed_substation_ids"]
    assert state(mesh) == before


# --- limits, drains, lists --------------------------------------------------------------------------------


@dataclass(frozen=True)
class WrongLimit:
    """A limit of 50 kW but for `said`, with the field to be named."""

    field: str
    said: dict[str, Any]
    json_says: str = ""


RANGE = "must be from 0 to 1000000"
FINITE = "must be a finite number"
AFTER = "must be in the future and after the start"
WRONG_LIMITS = [
    *(WrongLimit("limit_kw", {"limit_kw": kw}, RANGE) for kw in (-1, -1e-9, 1_000_001, 1e308)),
    *(WrongLimit("limit_kw", {"limit_kw": kw}, FINITE) for kw in (NAN, INFINITY, -INFINITY)),
    WrongLimit("limit_kw", {"limit_kw": None}),
    WrongLimit("end_at", {"end_at": "2020-01-01T00:00:00Z"}, AFTER),
    WrongLimit("end_at", {"start_at": "2099-01-02T00:00:00Z", "end_at": "2099-01-01T00:00:00Z"}, AFTER),
    WrongLimit("end_at", {"start_at": "2099-01-01T00:00:00Z", "end_at": "2099-01-01T00:00:00Z"}, AFTER),
    WrongLimit("reason", {"reason": "x" * 257}, "must be at most 256 characters"),
    WrongLimit("reason", {"reason": MEGABYTE}, "must be at most 256 characters"),
]


def limit_request(said: dict[str, Any]) -> operations_pb2.SetLimitRequest:
    fields = {"limit_kw": 50, **said}
    times = {name: fields.pop(name) for name in ("start_at", "end_at") if name in fields}
    request = operations_pb2.SetLimitRequest(
        substation_id="a", limit=operations_pb2.Limit(source=load_pb2.LIMIT_SOURCE_SO, **fields)
    )
    for name, text in times.items():
        getattr(request.limit, name).FromJsonString(text)
    return request


@pytest.mark.parametrize("wrong", WRONG_LIMITS, ids=lambda wrong: f"{wrong.field}={str(wrong.said)[:40]}")
@pytest.mark.usefixtures("untouched")
def test_all_three_name_the_wrong_field_of_a_limit(mesh: Mesh, wrong: WrongLimit) -> None:
    body = json.dumps({"limit_kw": 50, **wrong.said})
    over_http = refused_http(mesh.http.put("/v1/substations/a/limits/so", content=body, headers=JSON))
    assert fields_named(over_http) == [wrong.field]
    assert wrong.json_says in over_http.fields[wrong.field]
    for name in SERVERS:
        set_limit = Server(mesh, name).operations.SetLimit
        said = refused(lambda rpc=set_limit: rpc(limit_request(wrong.said), timeout=TIMEOUT_S))  # type: ignore[misc]
        assert fields_named(said) == [f"limit.{wrong.field}"]


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("wrong_field", ["start_at", "end_at"])
@pytest.mark.parametrize("seconds", [2**62, -(2**62), 253_402_300_800])  # the last is the year 10000
@pytest.mark.usefixtures("untouched")
def test_grpc_names_a_limits_time_that_no_calendar_has(mesh: Mesh, name: str, wrong_field: str, seconds: int) -> None:
    request = limit_request({})
    getattr(request.limit, wrong_field).seconds = seconds
    said = refused(lambda: Server(mesh, name).operations.SetLimit(request, timeout=TIMEOUT_S))
    assert fields_named(said) == [f"limit.{wrong_field}"]


@pytest.mark.parametrize("source", [0, 5, 99, -1])
@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.usefixtures("untouched")
def test_grpc_names_a_source_that_is_none(mesh: Mesh, name: str, source: Any) -> None:  # noqa: ANN401
    operations = Server(mesh, name).operations
    limit = operations_pb2.Limit(source=source, limit_kw=50)
    set_it = operations_pb2.SetLimitRequest(substation_id="a", limit=limit)
    clear_it = operations_pb2.ClearLimitRequest(substation_id="a", source=source)
    assert fields_named(refused(lambda: operations.SetLimit(set_it, timeout=TIMEOUT_S))) == ["limit.source"]
    assert fields_named(refused(lambda: operations.ClearLimit(clear_it, timeout=TIMEOUT_S))) == ["source"]


@pytest.mark.parametrize("source", ["tso", "0", "unspecified", "x" * 200])
@pytest.mark.usefixtures("untouched")
def test_http_names_a_source_that_is_none(mesh: Mesh, source: str) -> None:
    path = f"/v1/substations/a/limits/{source}"
    for reply in (mesh.http.put(path, json={"limit_kw": 50}), mesh.http.delete(path)):
        assert fields_named(refused_http(reply)) == ["source"]


@pytest.mark.parametrize("substation_id", ["nowhere", "A", "b", MEGABYTE], ids=lambda text: text[:12])
@pytest.mark.usefixtures("untouched")
def test_grpc_does_not_find_an_unknown_substation(mesh: Mesh, substation_id: str) -> None:
    limit = operations_pb2.Limit(source=load_pb2.LIMIT_SOURCE_SO, limit_kw=50)
    for name in SERVERS:
        operations = Server(mesh, name).operations
        calls: list[Callable[[], object]] = [
            lambda ops=operations: ops.SetLimit(  # type: ignore[misc]
                operations_pb2.SetLimitRequest(substation_id=substation_id, limit=limit), timeout=TIMEOUT_S
            ),
            lambda ops=operations: ops.ClearLimit(  # type: ignore[misc]
                operations_pb2.ClearLimitRequest(substation_id=substation_id, source=load_pb2.LIMIT_SOURCE_SO),
                timeout=TIMEOUT_S,
            ),
            lambda ops=operations: ops.Drain(  # type: ignore[misc]
                operations_pb2.DrainRequest(substation_id=substation_id), timeout=TIMEOUT_S
            ),
            lambda ops=operations: ops.Undrain(  # type: ignore[misc]
                operations_pb2.UndrainRequest(substation_id=substation_id), timeout=TIMEOUT_S
            ),
        ]
        for call in calls:
            said = refused(call)
            assert (said.code, said.reason) == ("NOT_FOUND", "SUBSTATION_NOT_FOUND")


@pytest.mark.usefixtures("untouched")
def test_a_balancer_must_be_told_which_substation(mesh: Mesh) -> None:
    operations = Server(mesh, "balancer").operations
    said = refused(lambda: operations.Drain(operations_pb2.DrainRequest(), timeout=TIMEOUT_S))
    assert fields_named(said) == ["substation_id"]


@pytest.mark.parametrize("substation_id", ["nowhere", "A", "x" * 200])
@pytest.mark.usefixtures("untouched")
def test_http_does_not_find_an_unknown_substation(mesh: Mesh, substation_id: str) -> None:
    base = f"/v1/substations/{substation_id}"
    replies = [
        mesh.http.put(f"{base}/limits/so", json={"limit_kw": 50}),
        mesh.http.delete(f"{base}/limits/so"),
        mesh.http.post(f"{base}/drain"),
        mesh.http.post(f"{base}/undrain"),
    ]
    for reply in replies:
        said = refused_http(reply)
        assert (said.status, said.reason) == (404, "SUBSTATION_NOT_FOUND")


@pytest.mark.parametrize(
    ("wrong_field", "asked"),
    [
        ("page_size", {"page_size": 1001}),
        ("page_size", {"page_size": 2**32 - 1}),
        ("page_token", {"page_token": "!"}),
        ("page_token", {"page_token": "//79"}),
        ("page_token", {"page_token": "x" * 5000}),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.usefixtures("untouched")
def test_all_three_name_the_wrong_field_of_a_listing(mesh: Mesh, wrong_field: str, asked: dict[str, Any]) -> None:
    assert fields_named(refused_http(mesh.http.get("/v1/charges", params=asked))) == [wrong_field]
    for name in SERVERS:
        charging = Server(mesh, name).charging
        request = charging_pb2.ListSessionsRequest(**asked)
        said = refused(lambda stub=charging, r=request: stub.ListSessions(r, timeout=TIMEOUT_S))  # type: ignore[misc]
        assert fields_named(said) == [wrong_field]


@pytest.mark.parametrize("interval", [Duration(), Duration(seconds=-1), Duration(seconds=61), Duration(seconds=2**62)])
@pytest.mark.usefixtures("untouched")
def test_reports_come_neither_too_often_nor_too_seldom(mesh: Mesh, interval: Duration) -> None:
    reports: Any = Server(mesh, "a").reports
    request = reports_pb2.StreamLoadReportsRequest(interval=interval)
    said = refused(lambda: next(reports.StreamLoadReports(request, timeout=TIMEOUT_S)))
    assert fields_named(said) == ["interval"]


# --- batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVERS)
def test_bad_items_of_a_batch_hold_back_nobody(mesh: Mesh, name: str) -> None:
    bad = [charge_request(wrong.said) for wrong in WRONG_CHARGES if len(str(wrong.said)) < 1000]
    items = [charging_pb2.ChargeBatchItem(request=request) for request in (*bad, charge_request({}))]
    stream: Any = Server(mesh, name).charging.ChargeBatch(charging_pb2.ChargeBatchRequest(items=items), timeout=10)
    outcomes = {outcome.index: outcome for message in stream for outcome in message.outcomes}
    good = outcomes.pop(len(bad)).response.session
    assert good.substation_id == "a"
    assert sorted(outcomes) == list(range(len(bad)))
    assert {outcome.status.code for outcome in outcomes.values()} == {code_pb2.Code.Value("INVALID_ARGUMENT")}
    assert all(from_status(outcome.status) for outcome in outcomes.values())
    assert [session.session_id for session in Server(mesh, "a").sessions()] == [good.session_id]
    Server(mesh, "a").stop(good.session_id)


def test_bad_items_of_a_batch_over_http_are_named_each_for_itself(mesh: Mesh) -> None:
    bodies = [{**CAR, "energy_kwh": -1}, {**CAR, "colour": "red"}, dict(CAR), 1]
    reply = mesh.http.post("/v1/charges:batch", json=bodies)
    assert reply.status_code == 200, reply.text
    outcomes = {outcome["index"]: outcome for outcome in reply.json()}
    assert [outcomes[index].get("problem", {}).get("status") for index in range(4)] == [400, 400, None, 400]
    good = Server(mesh, "a").sessions()
    assert len(good) == 1
    Server(mesh, "a").stop(good[0].session_id)
    wait_for(lambda: not Server(mesh, "a").load().demand_kw, 2, "the stopped car's power is free")


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.usefixtures("untouched")
async def test_bytes_that_are_no_message_end_a_stream_of_batches(mesh: Mesh, server: str) -> None:
    async with mesh.aio_channel(server) as channel, asyncio.timeout(TIMEOUT_S):
        call: Any = channel.stream_stream("/gridmesh.v1.ChargingService/StreamCharges")()
        await call.write(b"\xff\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError, match="request: is no StreamChargesRequest") as ended:
            await call.read()
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
