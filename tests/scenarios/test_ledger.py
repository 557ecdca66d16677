"""The ledger of a running substation: its disk full, its file damaged, a copy made while it is written."""

import resource
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gridmesh.v1 import load_pb2
from mesh.process import EXIT_STARTUP
from tests.conftest import StartMesh
from tests.mesh_processes import Mesh, wait_for
from tests.scenarios.asking import Server, refusal

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are set by Linux only")


def let_files_grow(mesh: Mesh, name: str, allowed: bool) -> None:
    """Not allowed: every write to a file fails, logs included, as on a full disk."""
    _, hard = resource.prlimit(mesh.pid(name), resource.RLIMIT_FSIZE)
    resource.prlimit(mesh.pid(name), resource.RLIMIT_FSIZE, (hard if allowed else 0, hard))


def ledger_health(mesh: Mesh, name: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(mesh.channel(name))
    return int(stub.Check(health_pb2.HealthCheckRequest(service="ledger"), timeout=2).status)


def exit_code(mesh: Mesh, name: str) -> int:
    """Of a start that fails."""
    mesh.spawn(name)
    wait_for(lambda: not mesh.alive(name), 10, f"{name} gives up")
    return mesh.exit_code(name)


@linux
def test_a_full_disk_is_said_everywhere_live_sessions_go_on_and_it_recovers_by_itself(start_mesh: StartMesh) -> None:
    mesh = start_mesh("a", rated_kw=(100.0,))
    substation = Server(mesh, "a")
    live = substation.charge().session.session_id
    wait_for(lambda: substation.load().measured_kw > 0, 10, "the car draws")
    let_files_grow(mesh, "a", False)
    wait_for(lambda: not substation.load().accepting, 5, "the next commit fails")
    assert substation.load().not_accepting_reason == load_pb2.NOT_ACCEPTING_REASON_LEDGER
    assert mesh.metric("a", "substation_not_accepting", reason="LEDGER") == 1
    wait_for(lambda: ledger_health(mesh, "a") == health_pb2.HealthCheckResponse.NOT_SERVING, 2, "health says so")
    assert mesh.serving("a")
    with pytest.raises(grpc.RpcError) as caught:
        substation.charge()
    said = refusal(caught.value)
    assert (said.code, said.reason) == ("UNAVAILABLE", "LEDGER_UNAVAILABLE")
    assert said.retry_after_s
    assert (substation.load().measured_kw > 0, substation.session(live).granted_power_kw) == (True, 11)
    let_files_grow(mesh, "a", True)
    wait_for(lambda: substation.load().accepting, 10, "it recovers")
    wait_for(lambda: ledger_health(mesh, "a") == health_pb2.HealthCheckResponse.SERVING, 2, "health says so")
    assert mesh.metric("a", "substation_not_accepting") == 0
    substation.charge()


def copy(ledger: Path, to: Path) -> None:
    """As ARCHITECTURE.md tells operators to."""
    with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


def test_a_damaged_ledger_is_never_silently_replaced_and_a_copy_made_online_takes_its_place(
    start_mesh: StartMesh, tmp_path: Path
) -> None:
    mesh = start_mesh("a", rated_kw=(100.0,))
    substation, ledger = Server(mesh, "a"), mesh.data("a") / "ledger.db"
    sessions = {substation.charge().session.session_id for _ in range(20)}
    copy(ledger, tmp_path / "copy.db")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert {name for (name,) in db.execute("SELECT session_id FROM sessions")} == sessions
    substation.charge()  # a copy holds up nobody
    mesh.kill9("a")
    copy(ledger, tmp_path / "later.db")  # and moves into the main file what only the -wal held
    ledger.write_bytes(b"\0" * ledger.stat().st_size)

    assert exit_code(mesh, "a") == EXIT_STARTUP
    (aside,) = ledger.parent.glob("ledger.damaged-*.db")
    assert f"the ledger {ledger} was damaged and set aside as {aside}" in mesh.log_tail("a")
    assert exit_code(mesh, "a") == EXIT_STARTUP, "nobody has said how to go on"
    assert not ledger.exists()

    copy(tmp_path / "copy.db", ledger)
    assert exit_code(mesh, "a") == EXIT_STARTUP, "cars may still draw under leases that the copy does not know"
    # As if ten seconds had passed.
    aside.rename(aside.with_name("ledger.damaged-20200101T000000.000000Z.db"))
    mesh.start("a")
    assert {session.session_id for session in Server(mesh, "a").sessions()} == sessions
    assert mesh.metric("a", "substation_ledger_damaged") == 1
    assert Server(mesh, "a").load().accepting


def test_a_balancer_tells_of_a_ledger_that_is_older_than_what_was_told_from_it(
    start_mesh: StartMesh, tmp_path: Path
) -> None:
    mesh = start_mesh("a", "balancer", rated_kw=(100.0,))
    balancer, ledger = Server(mesh, "balancer"), mesh.data("a") / "ledger.db"
    kept = balancer.charge().session.session_id
    copy(ledger, tmp_path / "copy.db")
    lost = balancer.charge().session.session_id
    mesh.kill9("a")
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (mesh.data("a") / name).unlink(missing_ok=True)
    copy(tmp_path / "copy.db", ledger)
    mesh.start("a")
    wait_for(lambda: "substation lacks sessions that it had" in mesh.log("balancer"), 10, "the balancer says so")
    (line,) = [line for line in mesh.log("balancer").splitlines() if "lacks sessions" in line]
    assert "count=1" in line
    assert lost in line
    assert kept not in line


def test_without_a_copy_it_starts_drained_when_told_which_ledger_to_do_without(start_mesh: StartMesh) -> None:
    aside = "ledger.damaged-20200101T000000.000000Z.db"
    mesh = start_mesh("a", rated_kw=(100.0,), settings={"a": {"START_WITHOUT": aside}})
    epoch = Server(mesh, "a").load().epoch
    mesh.kill9("a")
    (mesh.data("a") / "ledger.db").rename(mesh.data("a") / aside)
    mesh.start("a")
    load = Server(mesh, "a").load()
    assert load.not_accepting_reason == load_pb2.NOT_ACCEPTING_REASON_DRAINING
    assert load.epoch > epoch
    assert mesh.metric("a", "substation_ledger_damaged") == 1
