"""What operators see and do, and whether the gateway is ready."""

import pytest

from gridmesh.v1 import load_pb2, operations_pb2
from mesh.errors import NotFound, Unavailable
from mesh.model import ErrorReason
from tests.gateway.running import CAR, FakeBalancer, Gateway, a_substation, fails, gateway_before, hangs, served
from tests.gateway.test_bad_requests import a_problem


async def test_the_load_view_is_listed(gateway: Gateway) -> None:
    silent = operations_pb2.Substation(address="h:1", state=operations_pb2.REPORT_STATE_NEVER_REPORTED)
    gateway.fake.substations = [a_substation(reservations=2, reserved_kw=22), silent]
    assert (await gateway.http.get("/v1/substations")).json() == {
        "substations": [
            {
                "address": "127.0.0.1:50061",
                "state": "FRESH",
                "reserved_kw": 22.0,
                "reservations": 2,
                "ejected": False,
                "substation_id": "north",
                "report_age": "0.120s",
                "report": {"substation_id": "north", "rated_power_kw": 100.0, "demand_kw": 0.0, "accepting": True},
            },
            {"address": "h:1", "state": "NEVER_REPORTED", "reserved_kw": 0.0, "reservations": 0, "ejected": False},
        ]
    }


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ("ems", load_pb2.LIMIT_SOURCE_EMS),
        ("SO", load_pb2.LIMIT_SOURCE_SO),
        ("Cso", load_pb2.LIMIT_SOURCE_CSO),
        ("other", load_pb2.LIMIT_SOURCE_OTHER),
    ],
)
async def test_a_limit_is_set_and_cleared_for_its_source(gateway: Gateway, source: str, number: int) -> None:
    body = {
        "limit_kw": 0,
        "start_at": "2026-03-01T17:00:00Z",
        "end_at": "2026-03-01T19:00:00.5Z",
        "reason": "evening peak",
        "grid_critical": True,
    }
    path = f"/v1/substations/north/limits/{source}"
    reply = await gateway.http.put(path, json=body)
    assert reply.status_code == 200
    assert reply.json()["limits"] == [
        {
            **body,
            "source": source.upper(),
            "start_at": "2026-03-01T17:00:00.000Z",
            "end_at": "2026-03-01T19:00:00.500Z",
        }
    ]
    assert (await gateway.http.delete(path)).json() == {"load": {"substation_id": "north"}, "limits": []}
    asked = gateway.fake.calls
    assert [asked[0].limit.source, asked[1].source] == [number, number]
    assert asked[0].limit.HasField("limit_kw")


async def test_a_limit_needs_no_more_than_its_power(gateway: Gateway) -> None:
    await gateway.http.put("/v1/substations/north/limits/so", json={"limit_kw": 50})
    limit = gateway.fake.calls[0].limit
    assert limit == operations_pb2.Limit(source=load_pb2.LIMIT_SOURCE_SO, limit_kw=50)


async def test_a_substation_is_drained_and_undrained(gateway: Gateway) -> None:
    drained = (await gateway.http.post("/v1/substations/north/drain")).json()
    assert drained == {"load": {"substation_id": "north", "accepting": False, "not_accepting_reason": "DRAINING"}}
    assert (await gateway.http.post("/v1/substations/north/undrain")).json()["load"]["accepting"] is True
    assert [asked.substation_id for asked in gateway.fake.calls] == ["north", "north"]


@pytest.mark.parametrize("slash", ["%2F", "%2f"])
async def test_a_name_with_a_slash_in_it_leads_to_no_other_operation(gateway: Gateway, slash: str) -> None:
    a_problem(await gateway.http.post(f"/v1/substations/north{slash}drain"), 404, "PATH_NOT_FOUND")
    assert gateway.fake.calls == []


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("PUT", "/v1/substations/x/limits/cso", "SetLimit"),
        ("DELETE", "/v1/substations/x/limits/cso", "ClearLimit"),
        ("POST", "/v1/substations/x/drain", "Drain"),
        ("POST", "/v1/substations/x/undrain", "Undrain"),
    ],
)
async def test_an_unknown_substation_is_404(gateway: Gateway, method: str, path: str, name: str) -> None:
    gateway.fake.answers[name] = fails(NotFound(ErrorReason.SUBSTATION_NOT_FOUND, "no substation x"))
    body = {"limit_kw": 1} if method == "PUT" else None
    a_problem(await gateway.http.request(method, path, json=body), 404, "SUBSTATION_NOT_FOUND")


async def test_a_limit_whose_outcome_is_not_known_is_told_in_words_that_fit_it(gateway: Gateway) -> None:
    gateway.fake.answers["SetLimit"] = fails(Unavailable(ErrorReason.OUTCOME_UNKNOWN, "repeat it", 1_000))
    reply = await gateway.http.put("/v1/substations/x/limits/so", json={"limit_kw": 1})
    assert "charge" not in a_problem(reply, 503, "OUTCOME_UNKNOWN")["title"]


async def test_it_is_healthy_and_ready_with_one_fresh_accepting_substation(gateway: Gateway) -> None:
    gateway.fake.substations = [a_substation(), a_substation(ejected=True)]
    assert (await gateway.http.get("/healthz")).json() == {"status": "ok"}
    assert (await gateway.http.get("/readyz")).json() == {"status": "ready", "substations": 2, "placeable": 1}


def _accepting(
    accepting: bool | None, reason: load_pb2.NotAcceptingReason.ValueType = load_pb2.NOT_ACCEPTING_REASON_UNSPECIFIED
) -> operations_pb2.Substation:
    substation = a_substation()
    substation.report.CopyFrom(load_pb2.LoadReport(accepting=accepting, not_accepting_reason=reason))
    return substation


@pytest.mark.parametrize(
    ("substations", "why"),
    [
        ([], "the balancer knows none"),
        ([a_substation(state=operations_pb2.REPORT_STATE_STALE)], "north: stale"),
        (
            [operations_pb2.Substation(address="h:1", state=operations_pb2.REPORT_STATE_NEVER_REPORTED)],
            "h:1: never reported",
        ),
        ([a_substation(ejected=True)], "north: left out after failures"),
        ([_accepting(False, load_pb2.NOT_ACCEPTING_REASON_DRAINING)], "north: not accepting (draining)"),
        ([_accepting(None)], "north: not accepting (no reason given)"),
    ],
)
async def test_it_is_not_ready_without_one_and_says_why(
    gateway: Gateway, substations: list[operations_pb2.Substation], why: str
) -> None:
    gateway.fake.substations = substations
    reply = await gateway.http.get("/readyz")
    assert why in a_problem(reply, 503, "NO_SUBSTATION")["detail"]
    assert (await gateway.http.get("/healthz")).status_code == 200


async def test_it_is_not_ready_while_the_balancer_does_not_answer() -> None:
    fake = FakeBalancer(answers={"ListSubstations": hangs})
    async with served(fake) as port, gateway_before(port, fake, timeout_s=0.1) as gateway:
        await gateway.connected()
        a_problem(await gateway.http.get("/readyz"), 504, "DEADLINE_EXCEEDED")


async def test_it_is_not_ready_while_it_stops(gateway: Gateway) -> None:
    await gateway.http.get("/healthz")  # a connection that is open already
    gateway.stopping.set()
    a_problem(await gateway.http.get("/readyz"), 503, "GATEWAY_STOPPING")


async def test_requests_are_counted_by_route_and_not_by_path(gateway: Gateway) -> None:
    await gateway.post(CAR)
    for name in ("a", "b"):
        await gateway.http.get(f"/v1/charges/{name}")
        await gateway.http.get(f"/{name}")
    await gateway.http.request("BREW", "/v1/charges")

    def count(route: str, method: str, status: int, reason: str = "") -> float | None:
        labels = {"route": route, "method": method, "status": str(status), "reason": reason}
        return gateway.registry.get_sample_value("http_requests_total", labels)

    assert count("/v1/charges", "POST", 201) == 1
    assert count("/v1/charges/{session_id}", "GET", 200) == 2
    assert count("unmatched", "GET", 404, "PATH_NOT_FOUND") == 2
    durations = {"route": "/v1/charges", "method": "POST"}
    assert gateway.registry.get_sample_value("http_request_duration_seconds_count", durations) == 1
