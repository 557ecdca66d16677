"""What is compared: three equal substations behind our mesh, with and without coalescing, and behind Envoy; one alone.

Each arm has substations of its own, of the same program with the same settings, so that none pays for what another
is told.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import grpc

from benchmarks import bare_server, envoy_proxy, usage
from benchmarks.ledgers import Ledgers
from deploy.parts import LOOPBACK
from gridmesh.v1 import charging_pb2, charging_pb2_grpc
from substation.ledger import LEDGER
from tests.mesh_processes import READY_S, ROOT, Mesh, free_port, wait_for

OURS, UNCOALESCED, ENVOY = "ours", "ours, not coalesced", "Envoy"
NAMES = {"ours": OURS, "uncoalesced": UNCOALESCED, "envoy": ENVOY}
SUBSTATION, BARE = "substation", "bare server"
# Large enough that power is never short, so that each car has left within a tenth of a second.
RATED_KW = 8000.0
CHARGE_POINTS = 2000
TIME_SCALE = 240
POWER_KW, ENERGY_KWH = 11, 0.02
# Sessions of a cell have ended after this time at the latest.
SETTLE_S = 30.0
# Envoy writes no access log, so nobody writes a line per charge.
_SETTINGS = {name: {"LOG_LEVEL": "warning"} for name in ("substation", "balancer", "gateway")}
_SINGLY = {name: {"COALESCE": "no"} for name in ("balancer", "gateway")}


@dataclass
class Arm:
    """One of them, running. `http` and `grpc` take the charges."""

    name: str
    grpc: str
    pids: Mapping[str, tuple[int, ...]]
    ledgers: Ledgers
    http: tuple[str, int] = ("", 0)
    # How many requests it was ever sent, so that each has a number of its own.
    asked: int = 0

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by process; those of the substations together."""
        return {name: sum(map(usage.cpu_s, pids)) for name, pids in self.pids.items()}

    def rss_mb(self) -> dict[str, float]:
        """Resident memory in MB, by process; of the substations the mean."""
        return {name: sum(map(usage.rss_mb, pids)) / len(pids) for name, pids in self.pids.items()}

    def settle(self) -> None:
        """Waits until all sessions have ended, so that what they cost is counted where they began."""
        wait_for(lambda: self.ledgers.live() == 0, SETTLE_S, f"{self.name}: all sessions have ended")


@contextmanager
def running(name: str, folder: Path) -> Iterator[Arm]:
    """That arm, ready; its files go to the folder."""
    start = _envoy if name == ENVOY else _ours
    with start(name, folder) as arm:
        yield arm


def _mesh(folder: Path, substations: int = 3, more: Mapping[str, Mapping[str, str]] = MappingProxyType({})) -> Mesh:
    settings = {name: {**own, **more.get(name, {})} for name, own in _SETTINGS.items()}
    rated_kw = (RATED_KW,) * substations
    return Mesh(folder, rated_kw=rated_kw, charge_points=CHARGE_POINTS, time_scale=TIME_SCALE, settings=settings)


def _ledgers(mesh: Mesh) -> Ledgers:
    return Ledgers({name: mesh.data(name) for name in mesh.substations})


def _pids(mesh: Mesh) -> tuple[int, ...]:
    return tuple(mesh.pid(name) for name in mesh.substations)


@contextmanager
def _ours(name: str, folder: Path) -> Iterator[Arm]:
    with _mesh(folder, more=_SINGLY if name == UNCOALESCED else {}) as mesh:
        mesh.start()
        host, _, port = mesh.address("gateway").rpartition(":")
        pids = {"gateway": (mesh.pid("gateway"),), "balancer": (mesh.pid("balancer"),), "substations": _pids(mesh)}
        yield Arm(name, mesh.address("balancer"), pids, _ledgers(mesh), (host, int(port)))


@contextmanager
def _envoy(name: str, folder: Path) -> Iterator[Arm]:
    with _mesh(folder) as mesh:
        mesh.start(*mesh.substations)
        with envoy_proxy.running(folder, [mesh.address(one) for one in mesh.substations]) as proxy:
            pids = {"envoy": (proxy.pid,), "substations": _pids(mesh)}
            http = (LOOPBACK, proxy.json_port)
            yield Arm(name, f"{LOOPBACK}:{proxy.grpc_port}", pids, _ledgers(mesh), http)


# --- a substation alone -----------------------------------------------------------------------------


@contextmanager
def direct(folder: Path) -> Iterator[tuple[Arm, Arm]]:
    """A substation without a mesh, and a bare server that answers and writes as much."""
    with _mesh(folder, 1) as mesh:
        mesh.start("a")
        station = Arm(SUBSTATION, mesh.address("a"), {"substations": (mesh.pid("a"),)}, _ledgers(mesh))
        _take_sample(mesh, station, folder)
        with _bare(folder) as bare:
            yield station, bare


def _take_sample(mesh: Mesh, station: Arm, folder: Path) -> None:
    """Keeps one answer of the substation and its row."""
    sample = charging_pb2.ChargeRequest(
        request_id="sample", vehicle_id="EV-000000000000", max_power_kw=POWER_KW, energy_kwh=ENERGY_KWH
    )
    answer = charging_pb2_grpc.ChargingServiceStub(mesh.channel("a")).Charge(sample, timeout=READY_S)
    (folder / bare_server.ANSWER).write_bytes(answer.SerializeToString())
    station.settle()
    (folder / bare_server.ROW).write_bytes(station.ledgers.row(answer.session.session_id))
    station.ledgers.news()


@contextmanager
def _bare(folder: Path) -> Iterator[Arm]:
    port, ledger = free_port(), folder / "bare" / LEDGER
    ledger.parent.mkdir()
    told = {"--port": str(port), "--ledger": str(ledger), "--like": str(folder)}
    command = [sys.executable, "-m", "benchmarks.bare_server", *(word for pair in told.items() for word in pair)]
    process = subprocess.Popen(command, cwd=ROOT)  # noqa: S603
    try:
        with grpc.insecure_channel(f"{LOOPBACK}:{port}") as channel:
            grpc.channel_ready_future(channel).result(READY_S)
        yield Arm(BARE, f"{LOOPBACK}:{port}", {"bare server": (process.pid,)}, Ledgers({"a": ledger.parent}))
    finally:
        process.terminate()
        process.wait(10)
