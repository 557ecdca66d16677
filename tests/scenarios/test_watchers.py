"""Many who watch one gateway while cars come: every event to each of them, once and in order.

`WATCHERS=500 pytest -s tests/scenarios/test_watchers.py` is the promise in full, with its lag: it wants a machine
that does nothing else.
"""

import asyncio
import os
import re
import resource
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from deploy.parts import LOOPBACK
from mesh.clock import SystemClock, seconds
from tests.conftest import StartMesh
from tests.mesh_processes import Mesh, eventually

WATCHERS = int(os.environ.get("WATCHERS", "50"))
IN_FULL = WATCHERS >= 500
CHARGES, RATE, AT_ONCE = (3_000, 100.0, 32) if IN_FULL else (200, 50.0, 8)
P99_MS = 250
# What a gateway may grow by: connections and what each may have unsent, not a queue for each of them.
MOST_GROWN_KIB = 64 * 1024
EVENT = re.compile(rb'id: \w+-(\d+)\nevent: placed\ndata: \{"at":"([^"]+)"')

clock = SystemClock()


@lru_cache(4096)
def ms_of(at: bytes) -> float:
    return datetime.fromisoformat(at.decode()).timestamp() * 1000


@dataclass
class Seen:
    """What all watchers heard together."""

    lags_ms: Counter[int] = field(default_factory=Counter)

    def percentile(self, part: float) -> int:
        left = part * self.lags_ms.total()
        for lag, count in sorted(self.lags_ms.items()):
            left -= count
            if left <= 0:
                return lag
        raise AssertionError("nothing was heard")


class Watcher(asyncio.Protocol):
    """One connection. HTTP/1.0, so that the body comes without chunks."""

    def __init__(self, seen: Seen) -> None:
        self.numbers: list[int] = []
        self.began = asyncio.Event()
        self.over = False
        self.other = b""
        self._seen = seen
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"GET /v1/events HTTP/1.0\r\nhost: x\r\n\r\n")
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        now = clock.now_ms()
        whole, _, self._rest = (self._rest + data).rpartition(b"\n\n")
        if b"event: substations" in whole:
            self.began.set()
        if b"event: gap" in whole or b"event: error" in whole:
            self.other += whole
        for number, at in EVENT.findall(whole):
            self.numbers.append(int(number))
            self._seen.lags_ms[max(0, round(now - ms_of(at)))] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = True


async def charge_all(mesh: Mesh) -> float:
    """So many cars at that rate, which leave soon. How long it took."""
    began, coming = seconds(), iter(range(CHARGES))

    async def some() -> None:
        for number in coming:
            await asyncio.sleep(began + number / RATE - seconds())
            car = {"vehicle_id": f"EV-{number}", "energy_kwh": 0.05, "max_power_kw": 22}
            assert (await http.post("/v1/charges", json=car)).status_code == 201

    async with mesh.async_http() as http, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some())
    return seconds() - began


def cpu_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def rss_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


async def watch(port: int, seen: Seen) -> Watcher:
    _, watcher = await asyncio.get_running_loop().create_connection(lambda: Watcher(seen), LOOPBACK, port)
    await asyncio.wait_for(watcher.began.wait(), 30)
    return watcher


async def test_every_watcher_hears_every_placement_once_and_in_order(start_mesh: StartMesh) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    mesh = start_mesh(rated_kw=(5_000.0,) * 3, charge_points=2_000)
    port, before = int(mesh.address("gateway").rpartition(":")[2]), rss_kib(mesh.pid("gateway"))
    seen = Seen()
    watchers = [await watch(port, seen) for _ in range(WATCHERS)]
    stopped = await watch(port, Seen())
    stopped.transport.pause_reading()
    used = [cpu_s(pid) for pid in (mesh.pid("gateway"), os.getpid())]
    took = await charge_all(mesh)
    used = [cpu_s(pid) - one for pid, one in zip((mesh.pid("gateway"), os.getpid()), used, strict=True)]

    async def all_heard() -> bool:
        return all(len(each.numbers) >= CHARGES for each in watchers)

    await eventually(all_heard, 30, "every watcher has every event")
    for each in watchers:
        assert each.numbers == list(range(1, CHARGES + 1))
        assert not each.other
    grown = rss_kib(mesh.pid("gateway")) - before
    print(  # noqa: T201 - for who asks for it
        f"\n{WATCHERS} watchers, {CHARGES / took:.0f} placements/s: lag p50 {seen.percentile(0.5)} ms, "
        f"p99 {seen.percentile(0.99)} ms, most {max(seen.lags_ms)} ms; the gateway grew by {grown / 1024:.1f} MiB, "
        f"and used {used[0] / took:.2f} of a core, this process {used[1] / took:.2f}; "
        f"dropped {mesh.metric('gateway', 'http_event_streams_dropped_total'):.0f}"
    )
    assert grown < MOST_GROWN_KIB
    if IN_FULL:
        assert seen.percentile(0.99) < P99_MS
        assert mesh.metric("gateway", "http_event_streams_dropped_total") == 1, "only the one that stopped"
    for each in (*watchers, stopped):
        each.transport.abort()
