"""The helper that starts real meshes, tried on one substation."""

import signal

import pytest

from gridmesh.v1 import charging_pb2, charging_pb2_grpc
from tests.conftest import StartMesh
from tests.mesh_processes import EndedEarly, wait_for


def test_a_part_that_is_killed_comes_back_on_its_address_with_its_ledger(start_mesh: StartMesh) -> None:
    mesh = start_mesh("a", time_scale=1)
    stub = charging_pb2_grpc.ChargingServiceStub(mesh.channel("a"))
    asked = charging_pb2.ChargeRequest(request_id="r1", vehicle_id="EV-1", max_power_kw=11)
    before = stub.Charge(asked, timeout=5).session.session_id
    assert mesh.metric("a", "substation_active_sessions") == 1

    mesh.kill9("a")
    assert not mesh.alive("a")
    mesh.restart("a")

    stub = charging_pb2_grpc.ChargingServiceStub(mesh.channel("a"))
    assert stub.Charge(asked, timeout=5).session.session_id == before
    assert mesh.stop() == {"a": 0}
    assert "substation serves" in mesh.log_tail("a")


def test_a_part_that_cannot_start_says_so_at_once(start_mesh: StartMesh) -> None:
    with pytest.raises(EndedEarly, match="a ended with 2 instead of becoming ready") as ended:
        start_mesh("a", settings={"a": {"TIME_SCALE": "fast"}})
    assert any("SUBSTATION_TIME_SCALE='fast' is not a whole number" in note for note in ended.value.__notes__)


def test_a_part_that_ignores_sigterm_is_killed_in_the_end(
    start_mesh: StartMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.mesh_processes.STOP_S", 0.2)
    mesh = start_mesh("a")
    mesh.signal("a", signal.SIGSTOP)
    assert mesh.stop("a") == {"a": -9}


def test_waiting_has_a_bound() -> None:
    with pytest.raises(AssertionError, match=r"not within 0.05 s: the impossible"):
        wait_for(lambda: False, 0.05, "the impossible")
