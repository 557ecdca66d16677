"""SIGTERM: health says so first, streams end with a word to come again, and what is under way is answered."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gridmesh.v1 import (
    charging_pb2,
    charging_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
)
from tests.mesh_processes import Mesh, eventually, wait_for
from tests.scenarios.asking import CAR, Server, new_key, refusal

IN_FLIGHT = 50
# CANCELLED is grpcio's, for what had arrived and was not begun.
NOT_TAKEN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}
SERVED = {"a": ("reports", "admissions", "session"), "balancer": ("view", "session")}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("mesh"), rated_kw=(10_000.0,), charge_points=1_000) as running:
        yield running.start("a", "balancer")


@pytest.fixture
def mesh(running: Mesh) -> Mesh:
    if dead := [name for name in ("a", "balancer") if not running.alive(name)]:
        running.start(*dead)
    running.wait_ready("balancer")
    wait_for(lambda: admits(running), 10, "cars are admitted")
    return running


def admits(mesh: Mesh) -> bool:
    try:
        return bool(Server(mesh, "balancer").charge())
    except grpc.RpcError:
        return False


def streams(channel: grpc.aio.Channel, session_id: str) -> dict[str, Any]:
    """Every kind of stream there is, opened."""
    reports = reports_pb2_grpc.LoadReportServiceStub(channel)
    session = charging_pb2.WatchSessionRequest(session_id=session_id)
    return {
        "reports": lambda: reports.StreamLoadReports(reports_pb2.StreamLoadReportsRequest()),
        "admissions": lambda: reports.StreamAdmissions(reports_pb2.StreamAdmissionsRequest()),
        "view": lambda: operations_pb2_grpc.OperationsServiceStub(channel).WatchSubstations(
            operations_pb2.WatchSubstationsRequest()
        ),
        "session": lambda: charging_pb2_grpc.ChargingServiceStub(channel).WatchSession(session),
    }


class Seen:
    """What a client saw, in the order in which it came."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.refusals: dict[str, grpc.aio.AioRpcError] = {}

    async def read(self, name: str, call: Any, begun: asyncio.Event) -> None:  # noqa: ANN401
        try:
            async for _ in call:
                begun.set()
        except grpc.aio.AioRpcError as error:
            self.order.append(name)
            self.refusals[name] = error

    async def watch_health(self, channel: grpc.aio.Channel, begun: asyncio.Event) -> None:
        """To the end, which must not be that of the time that a stop may take: that would be an error here."""
        stub: Any = health_pb2_grpc.HealthStub(channel)
        async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
            begun.set()
            if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                self.order.append("health")


@asynccontextmanager
async def listening(channel: grpc.aio.Channel, name: str, session_id: str) -> AsyncIterator[Seen]:
    """Reads every stream that this part serves; ends when all have ended."""
    seen = Seen()
    opened = streams(channel, session_id)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        begun = {kind: asyncio.Event() for kind in (*SERVED[name], "health")}
        for kind in SERVED[name]:
            group.create_task(seen.read(kind, opened[kind](), begun[kind]))
        group.create_task(seen.watch_health(channel, begun["health"]))
        for event in begun.values():
            await event.wait()
        yield seen


@pytest.mark.parametrize("name", ["a", "balancer"])
async def test_health_says_it_first_and_then_every_stream_says_to_come_again(mesh: Mesh, name: str) -> None:
    session_id = Server(mesh, name).charge().session.session_id
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(mesh.aio_channel(name))
        async with listening(channel, name, session_id) as seen:
            mesh.signal(name, signal.SIGTERM)
    await eventually(partial(ended, mesh, name), 10, "the process ends")
    assert seen.order[0] == "health", seen.order
    assert set(seen.order) == {"health", *SERVED[name]}
    for kind, error in seen.refusals.items():
        said = refusal(error)
        assert (said.code, said.domain) == ("UNAVAILABLE", "gridmesh"), kind
        assert said.retry_after_s is not None, kind
        assert "again" in said.message or "reconnect" in said.message, kind


@pytest.mark.parametrize("name", ["a", "balancer"])
async def test_what_is_under_way_is_answered(mesh: Mesh, name: str) -> None:
    async with mesh.aio_channel(name) as channel:
        stub: charging_pb2_grpc.ChargingServiceAsyncStub = charging_pb2_grpc.ChargingServiceStub(channel)

        async def charge(key: str) -> str:
            """The session, or empty when the call was not taken any more."""
            request = charging_pb2.ChargeRequest(request_id=key, **CAR)
            try:
                return (await stub.Charge(request, timeout=10)).session.session_id
            except grpc.aio.AioRpcError as error:
                return "" if error.code() in NOT_TAKEN else f"{error.code()} {error.details()}"

        await eventually(lambda: charge(new_key()), 5, "cars are admitted")
        keys = [new_key() for _ in range(IN_FLIGHT)]
        calls = [asyncio.create_task(charge(key)) for key in keys]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        mesh.signal(name, signal.SIGTERM)
        told = dict(zip(keys, await asyncio.gather(*calls), strict=True))
    await eventually(partial(ended, mesh, name), 10, "the process ends")
    assert mesh.exit_code(name) == 0
    mesh.start(name)
    kept = {session.request_id: session.session_id for session in Server(mesh, "a").sessions()}
    assert {key: session for key, session in told.items() if session} == {key: kept[key] for key in keys if key in kept}


async def ended(mesh: Mesh, name: str) -> bool:
    return not mesh.alive(name)


@pytest.mark.parametrize("name", ["a", "balancer"])
async def test_a_stream_of_batches_hears_of_a_stop_and_what_was_sent_on_it_is_answered(mesh: Mesh, name: str) -> None:
    asked = charging_pb2.StreamChargesRequest(number=7)
    asked.batch.items.add(request=charging_pb2.ChargeRequest(request_id=new_key(), **CAR)).timeout.seconds = 5
    async with mesh.aio_channel(name) as channel, asyncio.timeout(10):
        call: Any = charging_pb2_grpc.ChargingServiceStub(channel).StreamCharges()
        await call.write(asked)
        assert (await call.read()).batch.outcomes[0].response.session.session_id
        mesh.signal(name, signal.SIGTERM)
        assert (await call.read()).leaving
        asked.batch.items[0].request.request_id, asked.number = new_key(), 8
        await call.write(asked)
        assert (await call.read()).number == 8, "a batch that was sent before the half-close is answered"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
    await eventually(partial(ended, mesh, name), 10, "the process ends")
    assert mesh.exit_code(name) == 0
