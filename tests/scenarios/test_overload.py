"""More cars than can be served at once, and watchers that stop reading: what is let in is served, the rest hears so."""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from gridmesh.v1 import operations_pb2, operations_pb2_grpc
from mesh.clock import seconds
from mesh.errors import Refused
from mesh.model import ErrorReason
from mesh.status import from_rpc_error
from tests.mesh_processes import Mesh, eventually
from tests.scenarios.asking import CAR, Server, new_key, post_car
from tests.scenarios.connection import Connection

# What the gateway lets in at once, and how many clients call without a pause: several times what is served.
MOST = 16
CLIENTS = 64
LOAD_S = 3.0
# Nothing is kept for a reader that stopped: a gateway with 10 MB of events for one would show it.
MOST_GROWTH_BYTES = 30_000_000
# Patience, farewell, and what a slow machine takes until all windows are full.
DROPPED_WITHIN_S = 30.0
# A stopped reader is noticed when the windows are full: here they are small and do not grow.
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1_024), ("grpc.enable_http_proxy", 0))
SMALL_BUFFER = 4_096


@dataclass
class Load:
    """What the clients were told."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    # Keys of which nobody knows whether they were admitted.
    doubtful: set[str] = field(default_factory=set)
    # Reason and whether it said when to come back.
    refused: Counter[tuple[str, bool]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def charged(self, key: str, status: int, headers: dict[str, str], body: Any) -> str | None:  # noqa: ANN401
        """Notes one answer. The session, where there is one."""
        if status == 201:
            self.acknowledged[key] = body["session"]["session_id"]
            return self.acknowledged[key]
        if status in {503, 504} and body["reason"] == "OUTCOME_UNKNOWN":
            self.doubtful.add(key)
        elif status == 503:
            self.refused[body["reason"], "retry-after" in headers] += 1
        else:
            self.wrong.append(f"{status} {body}")
        return None


class Client(Connection):
    """One that comes again as soon as it is answered."""

    async def charge_and_stop(self, load: Load) -> None:
        """A car that leaves at once, so that there is room for the next one. StopSession is never refused."""
        key = new_key()
        session_id = load.charged(key, *await self.post("/v1/charges", dict(CAR), key))
        if session_id is not None:
            status, _, body = await self.post(f"/v1/charges/{session_id}/stop")
            if status != 200:
                load.wrong.append(f"stop: {status} {body}")


@asynccontextmanager
async def clients(mesh: Mesh, count: int, load: Load) -> AsyncIterator[None]:
    """So many of them, for as long as the block lasts; after it all have been answered."""
    over = asyncio.Event()

    async def run() -> None:
        with closing(await Client.to(mesh.address("gateway"))) as client:
            while not over.is_set():
                await client.charge_and_stop(load)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(run())
        try:
            yield
        finally:
            over.set()


def resident_bytes(mesh: Mesh, name: str) -> int:
    pages = Path(f"/proc/{mesh.pid(name)}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One whose gateway lets in few at once."""
    with Mesh(tmp_path_factory.mktemp("mesh"), settings={"gateway": {"MAX_CALLS": str(MOST)}}) as running:
        yield running.start()


async def test_an_overloaded_mesh_serves_what_it_lets_in_and_tells_the_others_when_to_come_back(mesh: Mesh) -> None:
    parts = ("gateway", "balancer", "a")
    calm = Load()
    async with clients(mesh, MOST // 2, calm):
        await eventually(_true(lambda: len(calm.acknowledged) > 50), 30, "warm")
    assert not calm.refused
    before = {name: resident_bytes(mesh, name) for name in parts}

    load, limits = Load(), 0
    async with clients(mesh, CLIENTS, load), mesh.async_http() as operator:
        end = seconds() + LOAD_S
        while seconds() < end or not (load.refused and len(load.acknowledged) > 50):
            for method, path, body in (
                ("PUT", "/v1/substations/a/limits/so", {"limit_kw": 90}),
                ("DELETE", "/v1/substations/a/limits/so", None),
                ("POST", "/v1/substations/b/drain", None),
                ("POST", "/v1/substations/b/undrain", None),
                ("GET", "/healthz", None),
            ):
                reply = await operator.request(method, path, json=body)
                assert reply.status_code == 200, reply.text
                limits += 1
            assert seconds() < end + 30

    assert limits >= 5
    assert not load.wrong
    assert set(load.refused) == {("OVERLOADED", True)}
    for name in parts:
        assert resident_bytes(mesh, name) - before[name] < MOST_GROWTH_BYTES, name
    # What was refused was not done, and what was let in was not in vain.
    assert len(load.doubtful) <= len(load.acknowledged) / 100
    admitted = {s.request_id for s in Server(mesh, "balancer").sessions(include_ended=True)}
    acknowledged = calm.acknowledged.keys() | load.acknowledged.keys()
    assert acknowledged <= admitted <= acknowledged | load.doubtful | calm.doubtful
    # And then it is over.
    for _ in range(MOST):
        assert post_car(mesh.http).status_code == 201


async def test_readers_that_stop_are_dropped_and_the_others_go_on(mesh: Mesh) -> None:
    host, _, port = mesh.address("gateway").rpartition(":")
    with socket.socket() as stopped:
        stopped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        stopped.connect((host, int(port)))
        stopped.sendall(b"GET /v1/substations/events HTTP/1.1\r\nhost: mesh\r\n\r\n")
        async with grpc.aio.insecure_channel(mesh.address("balancer"), options=SMALL_WINDOW) as channel:
            stub: Any = operations_pb2_grpc.OperationsServiceStub(channel)
            unread = stub.WatchSubstations(operations_pb2.WatchSubstationsRequest())
            await unread.read()
            # Cars come and go: there is news all the time.
            async with clients(mesh, 2, Load()):
                for name in ("gateway", "balancer"):
                    await eventually(_true(lambda name=name: "reader is too slow" in mesh.log(name)), DROPPED_WITHIN_S)
                with mesh.http.stream("GET", "/v1/substations/events") as going_on:
                    assert next(going_on.iter_lines()) == "event: substations"
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await _read_to_the_end(unread)
        error = from_rpc_error(failed.value)
        assert isinstance(error, Refused)
        assert error.reason is ErrorReason.READER_TOO_SLOW
        stopped.settimeout(10)
        _read_until_told_or_cut_off(stopped)


async def _read_to_the_end(call: Any) -> None:  # noqa: ANN401 - a call's type is private to grpcio
    while await call.read() is not grpc.aio.EOF:
        pass


def _read_until_told_or_cut_off(connection: socket.socket) -> None:
    """Reads on, what was in the windows: it ends with the last event, if that came in time, or with the connection."""
    read = b""
    try:
        while b"READER_TOO_SLOW" not in read and (more := connection.recv(65_536)):
            read += more
    except ConnectionResetError:
        return


def _true(condition: Any) -> Any:  # noqa: ANN401
    async def ask() -> bool:
        return bool(condition())

    return ask
