"""Clients that connect, listen, and go away without a word: nothing of them stays in any process.

RECONNECTS=10000 in the environment connects as often instead of 240 times.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.parts import LOOPBACK
from gridmesh.v1 import charging_pb2, charging_pb2_grpc, operations_pb2, operations_pb2_grpc, reports_pb2
from gridmesh.v1.reports_pb2_grpc import LoadReportServiceStub
from tests.mesh_processes import Mesh, wait_for
from tests.scenarios.asking import Server

RECONNECTS = int(os.environ.get("RECONNECTS", "240"))
WARM_UP = RECONNECTS // 4
AT_ONCE = 8
PARTS = ("a", "balancer", "gateway")
# Of what a process had after the warm-up.
FLAT = 1.05
# Else gRPC gives each new channel the old one's connection.
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("mesh"), rated_kw=(100.0,)) as running:
        Server(running.start(), "balancer").charge("watched")
        yield running


def sockets(mesh: Mesh, name: str) -> int:
    """How many files the process has open."""
    return len(os.listdir(f"/proc/{mesh.pid(name)}/fd"))


def resident_kb(mesh: Mesh, name: str) -> int:
    """The memory that the process uses."""
    status = Path(f"/proc/{mesh.pid(name)}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


@asynccontextmanager
async def channel(mesh: Mesh, name: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(mesh.address(name), options=OWN_CONNECTION) as opened:
        yield opened


async def reads_one(call: Any) -> None:  # noqa: ANN401 - any stream of the contract
    """One message, and then nobody reads on."""
    assert await call.read() is not grpc.aio.EOF


async def reports_are_left(mesh: Mesh, session_id: str) -> None:
    async with channel(mesh, "a") as to:
        await reads_one(LoadReportServiceStub(to).StreamLoadReports(reports_pb2.StreamLoadReportsRequest()))


async def admissions_are_left(mesh: Mesh, session_id: str) -> None:
    async with channel(mesh, "a") as to:
        await reads_one(LoadReportServiceStub(to).StreamAdmissions(reports_pb2.StreamAdmissionsRequest()))


async def the_view_is_left(mesh: Mesh, session_id: str) -> None:
    async with channel(mesh, "balancer") as to:
        stub = operations_pb2_grpc.OperationsServiceStub(to)
        await reads_one(stub.WatchSubstations(operations_pb2.WatchSubstationsRequest()))


async def a_session_is_left(mesh: Mesh, session_id: str) -> None:
    async with channel(mesh, "balancer") as to:
        stub = charging_pb2_grpc.ChargingServiceStub(to)
        await reads_one(stub.WatchSession(charging_pb2.WatchSessionRequest(session_id=session_id)))


async def events_are_left(mesh: Mesh, session_id: str) -> None:
    await _get(mesh, f"/v1/charges/{session_id}/events", b"event: session")


async def a_page_is_left(mesh: Mesh, session_id: str) -> None:
    await _get(mesh, "/v1/substations", b"200 OK")


async def _get(mesh: Mesh, path: str, until: bytes) -> None:
    host, port = mesh.address("gateway").split(":")
    assert host == LOOPBACK
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
    await reader.readuntil(until)
    writer.transport.abort()  # a reset, not a farewell


KINDS = (reports_are_left, admissions_are_left, the_view_is_left, a_session_is_left, events_are_left, a_page_is_left)


async def reconnect(mesh: Mesh, session_id: str, times: int) -> None:
    kinds = islice(cycle(KINDS), times)

    async def client() -> None:
        for kind in kinds:
            async with asyncio.timeout(20):
                await kind(mesh, session_id)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(client())


async def test_reconnects_leave_nothing_behind(mesh: Mesh) -> None:
    (session,) = Server(mesh, "balancer").sessions()
    await reconnect(mesh, session.session_id, WARM_UP)
    wait_for(lambda: mesh.serving("a") and mesh.serving("balancer"), 5)
    before = {name: (sockets(mesh, name), resident_kb(mesh, name)) for name in PARTS}
    await reconnect(mesh, session.session_id, RECONNECTS - WARM_UP)
    after = {name: (sockets(mesh, name), resident_kb(mesh, name)) for name in PARTS}
    print(f"(sockets, kB) after {WARM_UP}: {before}; after {RECONNECTS}: {after}")  # noqa: T201
    for name in PARTS:
        wait_for(lambda name=name: sockets(mesh, name) <= before[name][0] * FLAT, 5, f"{name} closes its sockets")  # type: ignore[misc]
        assert resident_kb(mesh, name) <= before[name][1] * FLAT, name
