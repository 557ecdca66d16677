"""What the metrics pages of the three services say, and that it agrees with what the mesh says."""

import math
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from gridmesh.v1 import charging_pb2, operations_pb2
from tests.mesh_processes import Mesh, wait_for
from tests.scenarios.asking import Server, post_car

SUBSTATIONS = ("a", "b")
ENERGY_KWH = 1.0

# The names of the design, as series.
OF_EVERY_SUBSTATION = {
    "substation_active_sessions",
    "substation_rated_watts",
    "substation_limit_watts",
    "substation_demand_watts",
    "substation_required_watts",
    "substation_committed_watts",
    "substation_granted_watts",
    "substation_measured_watts",
    "substation_over_limit_seconds_total",
    "substation_limit_compliance_seconds_count",
    "substation_energy_delivered_joules_total",
    "substation_time_scale",
    "substation_sessions_total",
    "substation_ledger_commit_seconds_count",
    "substation_ledger_damaged",
    "substation_not_accepting",
    "substation_orphaned_sessions",
    "substation_curtailed_sessions",
    "substation_info",
    "substation_ledger_bytes",
    "substation_disk_size_bytes",
    "substation_disk_free_bytes",
}
OF_THE_BALANCER = {
    "balancer_picks_total",
    "balancer_pick_seconds_count",
    "balancer_substation_state",
    "balancer_report_age_seconds",
    "balancer_reports_total",
    "balancer_reserved_watts",
    "balancer_tries_total",
    "balancer_duplicates_total",
    "balancer_lookups_total",
    "balancer_refusals_total",
    "balancer_ejections_total",
    "balancer_ejected",
    "balancer_open_doubts",
}
OF_EVERY_GRPC_SERVER = {"grpc_server_handled_total", "grpc_server_handling_seconds_count"}
OF_THE_GATEWAY = {"http_requests_total", "http_request_duration_seconds_count"}
EXPECTED = {
    "a": OF_EVERY_SUBSTATION | OF_EVERY_GRPC_SERVER,
    "b": OF_EVERY_SUBSTATION | OF_EVERY_GRPC_SERVER,
    "balancer": OF_THE_BALANCER | OF_EVERY_GRPC_SERVER,
    "gateway": OF_THE_GATEWAY,
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two substations with cars: some charge for long, one is full soon, one was stopped, one was refused."""
    with Mesh(tmp_path_factory.mktemp("mesh"), rated_kw=(50.0, 100.0), time_scale=600) as running:
        make_traffic(running.start())
        yield running


def make_traffic(mesh: Mesh) -> None:
    assert all(post_car(mesh.http).status_code == 201 for _ in range(12))
    stopped = post_car(mesh.http).json()["session"]["session_id"]
    assert mesh.http.post(f"/v1/charges/{stopped}/stop").status_code == 200
    assert post_car(mesh.http, energy_kwh=-1).status_code == 400
    full = post_car(mesh.http, energy_kwh=ENERGY_KWH).json()["session"]["session_id"]
    wait_for(lambda: ended(mesh, full), 20, "the small charge ends")


def ended(mesh: Mesh, session_id: str) -> bool:
    return Server(mesh, "balancer").session(session_id).state == charging_pb2.SESSION_STATE_ENDED


def families(mesh: Mesh, name: str) -> list[Metric]:
    page = httpx.get(mesh.metrics_url(name), timeout=5, trust_env=False)
    assert page.headers["content-type"].startswith("text/plain")
    return list(text_string_to_metric_families(page.raise_for_status().text))


@pytest.mark.parametrize("name", EXPECTED)
def test_each_page_has_the_metrics_of_its_service(mesh: Mesh, name: str) -> None:
    found = {sample.name for family in families(mesh, name) for sample in family.samples}
    assert EXPECTED[name] - found == set()


@pytest.mark.parametrize("name", EXPECTED)
def test_no_page_has_the_metrics_of_another_service(mesh: Mesh, name: str) -> None:
    prefixes = {"a": "substation_", "b": "substation_", "balancer": "balancer_", "gateway": "http_"}
    others = tuple(set(prefixes.values()) - {prefixes[name]})
    found = {sample.name for family in families(mesh, name) for sample in family.samples}
    assert [series for series in found if series.startswith(others)] == []


@pytest.mark.parametrize("name", EXPECTED)
def test_each_metric_says_what_it_is(mesh: Mesh, name: str) -> None:
    assert [family.name for family in families(mesh, name) if not family.documentation.strip()] == []
    assert [family.name for family in families(mesh, name) if family.type in {"unknown", "untyped"}] == []


# What their values come from is a list of ours: substations, reasons, states, routes, methods, buckets.
OURS = {"substation", "source", "reason", "outcome", "state", "result", "route", "method", "status", "slot", "le"}
OF_GRPC = {"grpc_service", "grpc_method", "grpc_code"}
OF_PYTHON = {"generation", "implementation", "major", "minor", "patchlevel", "version"}
LABELS = OURS | OF_GRPC | OF_PYTHON


@pytest.mark.parametrize("name", EXPECTED)
def test_labels_are_of_known_kinds_and_never_of_one_session_or_request(mesh: Mesh, name: str) -> None:
    samples = [sample for family in families(mesh, name) for sample in family.samples]
    assert {label for sample in samples for label in sample.labels} <= LABELS
    sessions = {session.session_id for session in Server(mesh, "balancer").sessions(include_ended=True)}
    values = {value for sample in samples for value in sample.labels.values()}
    assert not any(session in value for value in values for session in sessions)
    assert len(samples) < 1_000


@pytest.mark.parametrize("name", EXPECTED)
def test_no_value_is_missing_or_negative(mesh: Mesh, name: str) -> None:
    samples = [sample for family in families(mesh, name) for sample in family.samples]
    assert [sample for sample in samples if math.isnan(sample.value) or sample.value < 0] == []


def active(mesh: Mesh, name: str, substation_id: str = "") -> int:
    """Sessions of ListSessions that want energy."""
    return sum(
        session.state not in {charging_pb2.SESSION_STATE_EV_CONNECTED, charging_pb2.SESSION_STATE_ENDED}
        for session in Server(mesh, name).sessions(substation_id=substation_id)
    )


@pytest.mark.parametrize("name", SUBSTATIONS)
def test_active_sessions_are_what_list_sessions_says(mesh: Mesh, name: str) -> None:
    """A car that is full and still plugged in is listed, but not active."""
    leaves = Server(mesh, name).charge(energy_kwh=0.1, departure_in={"seconds": 3600}).session.session_id
    wait_for(lambda: is_full(mesh, leaves), 20, "the car is full")
    listed = active(mesh, name)
    assert listed > 0
    assert mesh.metric(name, "substation_active_sessions") == listed
    assert active(mesh, "balancer", name) == listed
    assert len(Server(mesh, name).sessions()) == listed + 1
    Server(mesh, name).stop(leaves)
    assert mesh.metric(name, "substation_active_sessions") == listed


def is_full(mesh: Mesh, session_id: str) -> bool:
    return Server(mesh, "balancer").session(session_id).state == charging_pb2.SESSION_STATE_EV_CONNECTED


@pytest.mark.parametrize("name", SUBSTATIONS)
def test_watts_are_those_of_the_load_report(mesh: Mesh, name: str) -> None:
    load = Server(mesh, name).load()
    assert mesh.metric(name, "substation_rated_watts") == load.rated_power_kw * 1000
    assert mesh.metric(name, "substation_limit_watts", source="RATED") == load.limit_power_kw * 1000
    assert mesh.metric(name, "substation_demand_watts") == load.demand_kw * 1000
    assert mesh.metric(name, "substation_time_scale") == load.time_scale == 600
    assert mesh.metric(name, "substation_over_limit_seconds_total") == 0
    assert 0 < mesh.metric(name, "substation_committed_watts") <= load.limit_power_kw * 1000


def test_a_limit_is_shown_by_its_source(mesh: Mesh) -> None:
    substation = Server(mesh, "a")
    substation.set_limit(40.0)
    try:
        assert mesh.metric("a", "substation_limit_watts", source="SO") == 40_000
        wait_for(lambda: mesh.metric("a", "substation_limit_compliance_seconds_count"), 10, "the cars obey")
    finally:
        substation.clear_limit()
    assert mesh.metric("a", "substation_limit_watts", source="RATED") == 50_000


def registers_kwh(mesh: Mesh, name: str) -> float:
    return sum(session.delivered_kwh for session in Server(mesh, name).sessions(include_ended=True))


@pytest.mark.parametrize("name", SUBSTATIONS)
def test_energy_is_the_sum_of_the_registers(mesh: Mesh, name: str) -> None:
    before = registers_kwh(mesh, name)
    counted = mesh.metric(name, "substation_energy_delivered_joules_total") / 3_600_000
    after = registers_kwh(mesh, name)
    # The sum of rounded numbers, while the registers run.
    assert 0 < before * 0.999 <= counted <= after * 1.001


def test_traffic_is_counted_where_it_went(mesh: Mesh) -> None:
    admitted = sum(mesh.metric(name, "substation_sessions_total", outcome="admitted") for name in SUBSTATIONS)
    # Those of the tests that ask a substation directly are not picked.
    assert mesh.metric("balancer", "balancer_picks_total") == 14 <= admitted
    ends = sum(mesh.metric(name, "substation_sessions_total", outcome="ended", reason="REMOTE") for name in SUBSTATIONS)
    assert ends >= 1
    full = {"outcome": "ended", "reason": "ENERGY_LIMIT_REACHED"}
    assert sum(mesh.metric(name, "substation_sessions_total", **full) for name in SUBSTATIONS) >= 1
    assert mesh.metric("balancer", "grpc_server_handled_total", grpc_method="Charge", grpc_code="OK") == 14
    assert mesh.metric("gateway", "http_requests_total", route="/v1/charges", method="POST", status="201") == 14
    refused = {"route": "/v1/charges", "method": "POST", "status": "400", "reason": "INVALID_REQUEST"}
    assert mesh.metric("gateway", "http_requests_total", **refused) == 1
    assert mesh.metric("balancer", "balancer_refusals_total", reason="INVALID_REQUEST") == 1
    assert mesh.metric("balancer", "balancer_refusals_total") == 1


def test_the_garbage_collector_looks_once_in_a_great_many_objects_and_not_as_often_as_pythons_own(mesh: Mesh) -> None:
    """What 1,000 wrong items are told is some ten thousand objects, alive together: fifteen looks, as Python is set."""
    before = mesh.metric("gateway", "python_gc_collections_total", generation="0")
    assert mesh.http.post("/v1/charges:batch", json=[{"wrong": 1}] * 1_000).status_code == 200
    assert mesh.metric("gateway", "python_gc_collections_total", generation="0") - before < 5


def test_the_balancer_shows_the_state_and_age_of_each_substation(mesh: Mesh) -> None:
    listed = Server(mesh, "balancer").operations.ListSubstations(operations_pb2.ListSubstationsRequest(), timeout=5)
    assert {each.state for each in listed.substations} == {operations_pb2.REPORT_STATE_FRESH}
    for name in SUBSTATIONS:
        assert mesh.metric("balancer", "balancer_substation_state", substation=name, state="fresh") == 1
        assert mesh.metric("balancer", "balancer_substation_state", substation=name) == 1
        assert mesh.metric("balancer", "balancer_report_age_seconds", substation=name) < 3


def test_an_address_is_told_apart_by_the_substations_id(mesh: Mesh) -> None:
    assert [mesh.metric(name, "substation_info", substation=name) for name in SUBSTATIONS] == [1, 1]


def test_the_ledgers_size_is_that_of_its_files(mesh: Mesh) -> None:
    for name in SUBSTATIONS:
        least = (mesh.data(name) / "ledger.db").stat().st_size
        assert least <= mesh.metric(name, "substation_ledger_bytes") < least + 64 * 2**20
        assert 0 < mesh.metric(name, "substation_disk_free_bytes") < mesh.metric(name, "substation_disk_size_bytes")


def test_sessions_that_get_less_than_they_can_take_are_counted_by_reason(mesh: Mesh) -> None:
    """A limit below what the floors need: some wait, and every one of them is told why."""
    substation = Server(mesh, "b")
    substation.set_limit(20.0)
    try:
        wait_for(lambda: mesh.metric("b", "substation_curtailed_sessions", reason="LIMIT_CUT"), 10, "the cut shows")
        told = [session.limit_reason for session in substation.sessions()]
        cut = charging_pb2.LIMIT_REASON_LIMIT_CUT
        assert mesh.metric("b", "substation_curtailed_sessions", reason="LIMIT_CUT") == told.count(cut)
    finally:
        substation.clear_limit()
