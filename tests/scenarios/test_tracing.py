"""Traces of real processes in a real receiver, and what their logs say of each decision."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import grpc
import httpx
import pytest

from gridmesh.v1 import reports_pb2
from tests.mesh_processes import Mesh, free_port, wait_for
from tests.scenarios.asking import CAR, Server, new_key, post_car
from tests.scenarios.receiver import Received, Receiver, listening

CHARGE = "gridmesh.v1.ChargingService/Charge"
COMMIT = "ledger commit"
# Nobody else is called so, in any part of any line.
PERSON = "WVWZZZ1KZ6W000001"
STATIONS = 1
JSON = {module: {"LOG_FORMAT": "json"} for module in ("gateway", "balancer", "substation")}

_traces = count(1)


class Traced:
    """A mesh whose spans go to a receiver in this process."""

    def __init__(self, mesh: Mesh, receiver: Receiver, port: int) -> None:
        self.mesh = mesh
        self.receiver = receiver
        self.port = port
        self.listening = ExitStack()

    def listen(self) -> None:
        self.listening.enter_context(listening(self.receiver, self.port))


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    port = free_port()
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "NO_PROXY": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        mesh = Mesh(tmp_path_factory.mktemp("mesh"), rated_kw=(100.0,) * STATIONS, settings=JSON)
        running = Traced(mesh, Receiver(), port)
        with running.listening, mesh:
            running.listen()
            mesh.start()
            yield running


def new_trace() -> tuple[str, str, dict[str, str]]:
    """Trace id and span id of a client, and the header that says them."""
    number = next(_traces)
    trace_id, span_id = f"{number:032x}", f"{number:016x}"
    return trace_id, span_id, {"traceparent": f"00-{trace_id}-{span_id}-01"}


def lines(mesh: Mesh, part: str, event: str, **said: object) -> list[dict[str, Any]]:
    """The log lines of that event that say this."""
    read = [json.loads(line) for line in mesh.log(part).splitlines() if line.startswith("{")]
    return [line for line in read if line["event"] == event and said.items() <= line.items()]


def steps(way: list[Received]) -> list[tuple[str, str, str]]:
    return [(span.service, span.kind, span.name) for span in way]


def test_a_post_is_one_tree_from_the_client_to_the_ledger(traced: Traced) -> None:
    trace_id, client, header = new_trace()
    key = new_key()
    reply = traced.mesh.http.post("/v1/charges", json=CAR, headers={"Idempotency-Key": key, **header})
    assert reply.status_code == 201
    placement = reply.json()["placement"]
    tree = traced.receiver.tree(trace_id, COMMIT)
    way = tree.way(*tree.named(COMMIT))
    assert steps(way) == [
        ("gateway", "server", "POST /v1/charges"),
        ("gateway", "client", CHARGE),
        ("balancer", "server", CHARGE),
        ("balancer", "client", CHARGE),
        ("substation", "server", CHARGE),
        ("substation", "internal", COMMIT),
    ]
    assert len(tree.spans) == len(way)
    assert way[0].parent_id == client
    http, asked, balancer, sent, substation, commit = way
    assert http.attributes == {
        "http.request.method": "POST", "http.route": "/v1/charges", "http.response.status_code": 201
    }  # fmt: skip
    host, port = traced.mesh.address("balancer").split(":")
    rpc = {
        "rpc.system": "grpc",
        "rpc.service": "gridmesh.v1.ChargingService",
        "rpc.method": "Charge",
        "rpc.grpc.status_code": 0,
    }
    assert asked.attributes == {**rpc, "server.address": host, "server.port": int(port)}
    assert sent.attributes.items() >= rpc.items()
    assert substation.attributes.items() >= rpc.items()
    assert substation.instance == placement["substation_id"]
    assert balancer.attributes["gridmesh.substation"] == placement["substation_id"]
    assert balancer.attributes["gridmesh.policy"] == placement["policy"]
    assert balancer.attributes["gridmesh.eligible"] == STATIONS
    assert balancer.attributes["gridmesh.request_id"] == key
    assert commit.attributes["gridmesh.commit.calls"] >= 1
    # One process, one clock: what is in a span is in its time.
    assert substation.began <= commit.began <= commit.ended <= substation.ended
    assert not any(span.failed for span in way)


def test_a_placement_is_one_line_with_its_request_and_its_trace(traced: Traced) -> None:
    trace_id, _, header = new_trace()
    key = new_key()
    reply = traced.mesh.http.post("/v1/charges", json=CAR, headers={"Idempotency-Key": key, **header}).json()
    (line,) = lines(traced.mesh, "balancer", "placed", request_id=key)
    assert line["trace_id"] == trace_id
    assert line["session_id"] == reply["session"]["session_id"]
    assert line["service"] == "balancer"
    assert {"substation", "policy", "score", "before", "after", "eligible", "tried"} <= line.keys()
    assert [part for part in ("gateway", *traced.mesh.substations) if key in traced.mesh.log(part)] == []


def test_a_repeat_is_a_line_of_its_own(traced: Traced) -> None:
    key = new_key()
    post_car(traced.mesh.http, key)
    trace_id, _, header = new_trace()
    repeat = traced.mesh.http.post("/v1/charges", json=CAR, headers={"Idempotency-Key": key, **header})
    assert repeat.status_code == 200
    (line,) = lines(traced.mesh, "balancer", "repeated", request_id=key)
    assert line["trace_id"] == trace_id


def test_a_refusal_says_who_did_not_take_it_and_is_no_error_of_a_server(traced: Traced) -> None:
    trace_id, _, header = new_trace()
    key = new_key()
    car = {**CAR, "max_power_kw": 11.0, "min_power_kw": 5.0}
    with cut_to(traced.mesh, 1.0):
        reply = traced.mesh.http.post("/v1/charges", json=car, headers={"Idempotency-Key": key, **header})
    assert (reply.status_code, reply.json()["reason"]) == (503, "FLOOR_ABOVE_LIMIT")
    (line,) = lines(traced.mesh, "balancer", "refused", request_id=key)
    assert (line["reason"], line["trace_id"]) == ("FLOOR_ABOVE_LIMIT", trace_id)
    assert line["retry_after_s"] > 0
    tree = traced.receiver.tree(trace_id, CHARGE, 2)
    http, asked, balancer = tree.way(next(span for span in tree.named(CHARGE) if span.service == "balancer"))[:3]
    assert (http.attributes["http.response.status_code"], http.failed) == (503, True)
    assert (asked.attributes["error.type"], asked.failed) == ("RESOURCE_EXHAUSTED", True)
    assert (balancer.attributes["error.type"], balancer.failed) == ("FLOOR_ABOVE_LIMIT", False)


def cut_to(mesh: Mesh, limit_kw: float, header: dict[str, str] | None = None) -> ExitStack:
    """Cuts the limits of all substations, until the end of the `with`."""
    lifted = ExitStack()
    for station in mesh.substations:
        path = f"/v1/substations/{station}/limits/so"
        lifted.callback(mesh.http.delete, path)
        mesh.http.put(path, json={"limit_kw": limit_kw}, headers=header).raise_for_status()
    # What is placed now is placed on what the balancer has heard of.
    wait_for(lambda: heard(mesh, limit_kw), 5, "the balancer knows the limit")
    return lifted


def heard(mesh: Mesh, limit_kw: float) -> bool:
    known = mesh.http.get("/v1/substations").json()["substations"]
    return all(each["report"]["limit_power_kw"] == limit_kw for each in known)


def test_a_cut_and_what_it_does_to_sessions_are_lines(traced: Traced) -> None:
    key = new_key()
    session = post_car(traced.mesh.http, key, allowed_substation_ids=["a"]).json()["session"]
    wait_for(lambda: granted(traced.mesh, session["session_id"]) > 0, 5, "it charges")
    trace_id, _, header = new_trace()
    with cut_to(traced.mesh, 0.0, header):
        (cut,) = lines(traced.mesh, "a", "limit cut", trace_id=trace_id)
        assert (cut["limit_w"], cut["source"], cut["substation"]) == (0, "SO", "a")
        assert cut["was_w"] > 0
        said = {"request_id": key, "session_id": session["session_id"]}
        suspended = {**said, "was": "CHARGING", "source": "SO"}
        wait_for(lambda: lines(traced.mesh, "a", "session suspended_evse", **suspended), 5, "it is suspended")
    wait_for(lambda: lines(traced.mesh, "a", "session charging", **said), 5, "it charges again")
    trace_id, _, header = new_trace()
    traced.mesh.http.post(f"/v1/charges/{session['session_id']}/stop", headers=header).raise_for_status()
    (end,) = lines(traced.mesh, "a", "session ended", **said)
    assert (end["reason"], end["trace_id"]) == ("REMOTE", trace_id)
    assert traced.receiver.tree(trace_id, COMMIT).named(COMMIT), "a stop ends in the ledger too"


def granted(mesh: Mesh, session_id: str) -> float:
    power: float = mesh.http.get(f"/v1/charges/{session_id}").json()["session"]["granted_power_kw"]
    return power


def test_a_substation_that_is_asked_directly_says_itself_what_it_decided(traced: Traced) -> None:
    station = Server(traced.mesh, "a")
    placed, refused = new_key(), new_key()
    station.charge(placed)
    with pytest.raises(grpc.RpcError):
        station.charge(refused, max_power_kw=-1.0)
    (line,) = lines(traced.mesh, "a", "placed", request_id=placed)
    assert line["policy"] == "direct"
    (line,) = lines(traced.mesh, "a", "refused", request_id=refused)
    assert line["reason"] == "INVALID_REQUEST"
    assert line["trace_id"], "a call of no trace begins one"


def test_a_duplicate_that_is_ended_is_a_warning_with_its_survivor(traced: Traced) -> None:
    station, key = Server(traced.mesh, "a"), new_key()
    session = station.charge(key).session
    trace_id, _, header = new_trace()
    asked = reports_pb2.EndDuplicateRequest(
        session_id=session.session_id,
        survivor_session_id=f"b.{session.session_id.split('.')[1]}",
        survivor_attempt_id="01ffffff-ffff-7fff-bfff-ffffffffffff",
    )
    station.reports.EndDuplicate(asked, timeout=5, metadata=tuple(header.items()))
    (line,) = lines(traced.mesh, "a", "duplicate ended", request_id=key)
    assert (line["level"], line["trace_id"]) == ("warning", trace_id)
    assert (line["session_id"], line["survivor"]) == (session.session_id, asked.survivor_session_id)


def test_each_item_of_a_batch_has_its_own_branch(traced: Traced) -> None:
    trace_id, _, header = new_trace()
    keys = [new_key() for _ in range(3)]
    batch = [{**CAR, "request_id": key} for key in keys]
    batch.append({**CAR, "request_id": new_key(), "max_power_kw": -1.0})
    reply = traced.mesh.http.post("/v1/charges:batch", json=batch, headers=header)
    assert [outcome["status"] for outcome in reply.json()] == [201, 201, 201, 400]
    tree = traced.receiver.tree(trace_id, COMMIT, 3)
    for commit in tree.named(COMMIT):
        *way, served, last = steps(tree.way(commit))
        assert way == [
            ("gateway", "server", "POST /v1/charges:batch"),
            ("gateway", "client", f"{CHARGE}Batch"),
            ("balancer", "server", f"{CHARGE}Batch"),
            ("balancer", "internal", "ChargeBatch item"),
            ("balancer", "client", CHARGE),
        ]
        # Those for one substation leave together, one alone as a call.
        assert served in {("substation", "internal", "ChargeBatch item"), ("substation", "server", CHARGE)}
        assert last == ("substation", "internal", COMMIT)
    of_balancer = [span for span in tree.named("ChargeBatch item") if span.service == "balancer"]
    items = {span.attributes["gridmesh.item"]: span for span in of_balancer}
    assert [items[number].attributes.get("gridmesh.request_id") for number in range(3)] == keys
    assert items[3].attributes["error.type"] == "INVALID_REQUEST"
    assert {line["trace_id"] for key in keys for line in lines(traced.mesh, "balancer", "placed", request_id=key)} == {
        trace_id
    }


def test_who_charges_is_in_no_log(traced: Traced) -> None:
    http = traced.mesh.http
    post_car(http, vehicle_id=PERSON)
    post_car(http, vehicle_id=PERSON, max_power_kw=-1.0)
    post_car(http, vehicle_id=PERSON, allowed_substation_ids=["nowhere"])
    key = new_key()
    post_car(http, key, vehicle_id=PERSON)
    assert post_car(http, key, vehicle_id=PERSON, energy_kwh=1.0).status_code == 422
    http.post("/v1/charges:batch", json=[{**CAR, "vehicle_id": PERSON}, {"vehicle_id": PERSON}, {PERSON: 1}])
    http.post("/v1/charges", json={**CAR, PERSON: "unknown"})
    http.post("/v1/charges", content=f'{{"vehicle_id": "{PERSON}"', headers={"content-type": "application/json"})
    http.get("/v1/charges", params={"vehicle_id": PERSON})
    assert lines(traced.mesh, "gateway", "refused"), "those were told of"
    assert [part for part in traced.mesh.logs() if PERSON in traced.mesh.log(part)] == []
    trace_id, _, header = new_trace()
    http.post("/v1/charges", json={**CAR, "vehicle_id": PERSON}, headers=header)
    traced.receiver.tree(trace_id, COMMIT)
    assert PERSON not in repr(traced.receiver.spans)


def test_a_dead_receiver_costs_two_lines_and_no_call(traced: Traced) -> None:
    before = len(lines(traced.mesh, "balancer", "spans are lost: their receiver does not take them"))
    traced.listening.close()
    try:
        for _ in range(3):
            assert traced.mesh.http.post("/v1/charges", json=CAR).status_code == 201
        lost = wait_for(
            lambda: lines(traced.mesh, "balancer", "spans are lost: their receiver does not take them")[before:],
            10,
            "the balancer says so",
        )
    finally:
        traced.listen()

    def taken_again() -> list[dict[str, Any]]:
        traced.mesh.http.post("/v1/charges", json=CAR).raise_for_status()
        return lines(traced.mesh, "balancer", "spans are taken again")[before:]

    (again,) = wait_for(taken_again, 10, "spans come again")
    assert again["lost"] >= 1
    assert len(lost) == 1


def test_without_an_endpoint_nothing_of_it_is_loaded_and_the_trace_is_still_known(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each process writes every module that it imports.
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    with Mesh(tmp_path_factory.mktemp("mesh"), rated_kw=(100.0,), settings=JSON) as mesh:
        mesh.start()
        trace_id, _, header = new_trace()
        assert mesh.http.post("/v1/charges", json=CAR, headers=header).status_code == 201
        not_one = {"traceparent": f"00-{'0' * 32}-{1:016x}-01"}
        assert mesh.http.post("/v1/charges", json=CAR, headers=not_one).status_code == 201
        session_id = httpx.get(f"{mesh.url}/v1/charges", trust_env=False).json()["sessions"][0]["session_id"]
        mesh.http.post(f"/v1/charges/{session_id}/stop", headers=header).raise_for_status()
        with_trace = [line.get("trace_id") for line in lines(mesh, "balancer", "placed")]
        (ended,) = lines(mesh, "a", "session ended")
    assert with_trace == [trace_id, None]
    assert ended["trace_id"] == trace_id, "it goes on to the substation"
    for part in ("gateway", "balancer", "a"):
        assert "mesh.tracing" in mesh.log(part)
        assert "opentelemetry" not in mesh.log(part)
