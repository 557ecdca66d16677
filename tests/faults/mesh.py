"""The mesh that is tried: three substations, two balancers, a gateway, and a relay on every link between balancer
and substation. Processes only; what is done to them is in `scenes`.
"""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy import parts
from deploy.parts import LOOPBACK, Part, Station
from gridmesh.v1 import operations_pb2, operations_pb2_grpc
from tests.faults.records import BALANCERS, GATEWAY, PLACES
from tests.faults.relay import Relay
from tests.mesh_processes import CHANNEL_OPTIONS, ROOT, eventually, free_port

READY_S = 30.0
STOP_S = 10.0
TIMEOUT_S = 3.0
# Clocks of different processes may be so far apart (the contract says 2 s).
SKEW_MS = 1_000


@dataclass(frozen=True)
class ClockedPart(Part):
    """A process whose wall clock is set by a file."""

    clock: Path = Path()

    @property
    def argv(self) -> tuple[str, ...]:
        return (sys.executable, "-m", "tests.faults.clocked", str(self.clock), self.module)


class Mesh:
    """Its parts by name: substations a, b, c; balancers x, y; gateway, which asks both."""

    def __init__(self, folder: Path, rng: Random, rated_kw: float, time_scale: int) -> None:
        self.folder = folder
        self._rng = rng
        self._stations = [Station(name, rated_kw, 300, time_scale, folder) for name in PLACES]
        self.parts: dict[str, Part] = {}
        self.links: dict[tuple[str, str], Relay] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._channels: dict[str, grpc.aio.Channel] = {}

    # --- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """All of it; returns when everybody is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        substations = [self._clocked(parts.substation(s, free_port(), free_port()), s.substation_id)
                       for s in self._stations]  # fmt: skip
        self.parts = {part.name: part for part in substations}
        for name in BALANCERS:
            self.parts[name] = await self._balancer(name)
        gateway = parts.gateway([self.parts[name] for name in BALANCERS], free_port(), free_port())
        self.parts[GATEWAY] = self._clocked(gateway.told(TIMEOUT_S=f"{TIMEOUT_S:g}"), GATEWAY)
        for stage in (PLACES, BALANCERS, (GATEWAY,)):
            for name in stage:
                self.spawn(name)
            await asyncio.gather(*(self.ready(name) for name in stage))

    def _clocked(self, part: Part, name: str) -> Part:
        clock = self.folder / f"{name}.clock"
        clock.write_text(str(self._rng.randint(-SKEW_MS, SKEW_MS)))
        return ClockedPart(name, part.module, part.port, part.metrics_port, part.own_settings, clock)

    async def _balancer(self, name: str) -> Part:
        for place in PLACES:
            relay = self.links[name, place] = Relay(LOOPBACK, self.parts[place].port)
            await relay.start()
        ways = [replace(self.parts[place], port=self.links[name, place].port) for place in PLACES]
        return self._clocked(parts.balancer(ways, free_port(), free_port()), name)

    async def stop(self) -> None:
        """SIGTERM to all that run, and SIGKILL to what is left."""
        for name, process in self._processes.items():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            if self.alive(name):
                process.terminate()
        for process in self._processes.values():
            try:
                await asyncio.to_thread(process.wait, STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for channel in self._channels.values():
            await channel.close()
        for relay in self.links.values():
            await relay.stop()

    def spawn(self, name: str) -> None:
        part = self.parts[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                part.argv,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **part.environ},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def alive(self, name: str) -> bool:
        process = self._processes.get(name)
        return process is not None and process.poll() is None

    def died(self) -> list[str]:
        """Parts that are not running."""
        return [name for name in self._processes if not self.alive(name)]

    async def ready(self, name: str) -> None:
        """A substation serves, a balancer has heard from somebody, a gateway can place."""
        condition = {"balancer": self._placeable, "gateway": self._gateway_ready}.get(self.parts[name].module)
        await eventually(lambda: condition(name) if condition else self.serves(name), READY_S, f"{name} is ready")

    async def serves(self, name: str) -> bool:
        stub: Any = health_pb2_grpc.HealthStub(self.channel(name))
        with suppress(grpc.aio.AioRpcError):
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False

    async def fresh(self, balancer: str) -> set[str]:
        """The substations that it has a fresh report of."""
        stub = operations_pb2_grpc.OperationsServiceStub(self.channel(balancer))
        with suppress(grpc.aio.AioRpcError):
            listed: Any = await stub.ListSubstations(operations_pb2.ListSubstationsRequest(), timeout=1)
            return {s.substation_id for s in listed.substations if s.state == operations_pb2.REPORT_STATE_FRESH}
        return set()

    async def _placeable(self, name: str) -> bool:
        return bool(await self.fresh(name))

    async def _gateway_ready(self, name: str) -> bool:
        async with httpx.AsyncClient(trust_env=False) as http:
            with suppress(httpx.TransportError):
                return (await http.get(f"http://{self.parts[name].address}/healthz")).is_success
        return False

    async def whole(self) -> None:
        """Waits until every balancer hears of every substation."""

        async def all_fresh() -> bool:
            return all([await self.fresh(name) == set(PLACES) for name in BALANCERS])

        await eventually(all_fresh, READY_S, "the mesh is whole")

    # --- pulling plugs -------------------------------------------------------------------------------

    def signal(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        """kill -9, and it is gone."""
        self._processes[name].kill()
        self._processes[name].wait()

    def let_files_grow(self, name: str, allowed: bool) -> None:
        """Not allowed: every write to a file fails, logs included, as on a full disk."""
        pid = self._processes[name].pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if allowed else 0, hard))

    def clock_ms(self, name: str) -> int:
        """How far its wall clock is off."""
        return int(self._clock(name).read_text())

    def set_clock(self, name: str, off_ms: int) -> None:
        """At once: its process reads the file at any moment."""
        clock = self._clock(name)
        new = clock.with_suffix(".new")
        new.write_text(str(off_ms))
        new.replace(clock)

    def _clock(self, name: str) -> Path:
        part = self.parts[name]
        assert isinstance(part, ClockedPart)
        return part.clock

    def kept_waiting_s(self, name: str = "") -> float:
        """How long that process (empty: this one) was ready to run and others had the processor; 0 if nobody says."""
        pid = self._processes[name].pid if name else os.getpid()
        try:
            _, waited_ns, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
        except (OSError, ValueError):
            return 0.0
        return int(waited_ns) / 1e9

    # --- talking to it -------------------------------------------------------------------------------

    def channel(self, name: str) -> grpc.aio.Channel:
        """To a part itself, past the relays."""
        if name not in self._channels:
            self._channels[name] = grpc.aio.insecure_channel(self.parts[name].address, options=CHANNEL_OPTIONS)
        return self._channels[name]

    def log_of(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")
