"""What is compared: three equal substations behind each of our mesh, our mesh without coalescing, and Envoy.

Each arm has substations of its own, of the same program with the same settings, so that none pays for what another
is told.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import envoy_proxy, usage
from benchmarks.ledgers import Ledgers
from deploy.parts import LOOPBACK
from tests.mesh_processes import Mesh, wait_for

OURS, UNCOALESCED, ENVOY = "ours", "ours, not coalesced", "Envoy"
NAMES = {"ours": OURS, "uncoalesced": UNCOALESCED, "envoy": ENVOY}
# Large enough that power is never short, so that each car has left after some tenths of a second.
RATED_KW = (3000.0, 3000.0, 3000.0)
CHARGE_POINTS = 2000
TIME_SCALE = 120
POWER_KW, ENERGY_KWH = 11, 0.02
# Sessions of a cell have ended after this time at the latest.
SETTLE_S = 30.0
# Envoy writes no access log, so nobody writes a line per charge.
_SETTINGS = {name: {"LOG_LEVEL": "warning"} for name in ("substation", "balancer", "gateway")}
_COALESCE = {
    OURS: {},
    UNCOALESCED: {"GATEWAY_COALESCE": "no", "BALANCER_COALESCE": "no"},
}


@dataclass
class Arm:
    """One of them, running. `http` and `grpc` take the charges."""

    name: str
    http: tuple[str, int]
    grpc: str
    pids: Mapping[str, tuple[int, ...]]
    ledgers: Ledgers
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

    def head(self) -> str:
        """How a request to its HTTP address begins, up to the path."""
        return f"POST {'/gridmesh.v1.ChargingService/Charge' if self.name == ENVOY else '/v1/charges'}"


@contextmanager
def running(name: str, folder: Path) -> Iterator[Arm]:
    """That arm, ready; its files go to the folder."""
    start = _envoy if name == ENVOY else _ours
    with start(name, folder) as arm:
        yield arm


def _mesh(folder: Path) -> Mesh:
    return Mesh(folder, rated_kw=RATED_KW, charge_points=CHARGE_POINTS, time_scale=TIME_SCALE, settings=_SETTINGS)


def _ledgers(mesh: Mesh) -> Ledgers:
    return Ledgers({name: mesh.data(name) for name in mesh.substations})


def _pids(mesh: Mesh) -> tuple[int, ...]:
    return tuple(mesh.pid(name) for name in mesh.substations)


@contextmanager
def _ours(name: str, folder: Path) -> Iterator[Arm]:
    with _mesh(folder) as mesh, _told(**_COALESCE[name]):
        mesh.start()
        host, _, port = mesh.address("gateway").rpartition(":")
        pids = {"gateway": (mesh.pid("gateway"),), "balancer": (mesh.pid("balancer"),), "substations": _pids(mesh)}
        yield Arm(name, (host, int(port)), mesh.address("balancer"), pids, _ledgers(mesh))


@contextmanager
def _envoy(name: str, folder: Path) -> Iterator[Arm]:
    with _mesh(folder) as mesh:
        mesh.start(*mesh.substations)
        with envoy_proxy.running(folder, [mesh.address(one) for one in mesh.substations]) as proxy:
            pids = {"envoy": (proxy.pid,), "substations": _pids(mesh)}
            yield Arm(name, (LOOPBACK, proxy.json_port), f"{LOOPBACK}:{proxy.grpc_port}", pids, _ledgers(mesh))


@contextmanager
def _told(**variables: str) -> Iterator[None]:
    """With these in the environment, which processes that are started inherit."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
