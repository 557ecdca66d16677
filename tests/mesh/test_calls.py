# ruff: noqa: N802 - the contract names its methods
"""What a server does when it is asked too much, too late, or by somebody who does not read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any, TypeAlias

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from gridmesh.v1 import charging_pb2, charging_pb2_grpc, operations_pb2, operations_pb2_grpc
from mesh.admission import Admission
from mesh.clock import seconds
from mesh.errors import Refused
from mesh.interceptors import Context
from mesh.metrics import GrpcServerMetrics
from mesh.model import ErrorReason
from mesh.server import start_server
from mesh.status import from_rpc_error
from tests.gateway.running import FakeBalancer, register

PATIENCE_S = 0.3
# A stopped reader is noticed when the windows are full: here they do not grow.
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
# Any message of the contract, and grpcio's calls, whose types say no more.
Message: TypeAlias = Any
CHARGE = charging_pb2.ChargeRequest(request_id="r", vehicle_id="v")


class Servicer(FakeBalancer):
    """Charges when it is told to; its sessions always have news."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        self.charged = 0
        # Until when the first charge holds up all others.
        self.stall_until = 0.0
        self.sent = 0
        # Between two news of a session.
        self.pause_s = 0.001

    async def Charge(self, request: Message, context: Context) -> charging_pb2.ChargeResponse:
        self.charged += 1
        self.begun.set()
        while self.stall_until > seconds():
            pass  # the whole process stands still
        await self.go.wait()
        return charging_pb2.ChargeResponse()

    async def WatchSession(
        self, request: Message, context: Context
    ) -> AsyncIterator[charging_pb2.WatchSessionResponse]:
        news = charging_pb2.WatchSessionResponse(session=charging_pb2.Session(vehicle_id="v" * 20_000))
        try:
            while True:
                yield news
                self.sent += 1
                await asyncio.sleep(self.pause_s)
        finally:
            self.left.set()


class Client:
    """All stubs of one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.charging: Any = charging_pb2_grpc.ChargingServiceStub(channel)
        self.operations: Any = operations_pb2_grpc.OperationsServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)


@asynccontextmanager
async def served(servicer: Servicer, most: int = 1_000) -> AsyncIterator[Client]:
    metrics, admission = GrpcServerMetrics(CollectorRegistry()), Admission(most, Random(1))
    server = await start_server(
        "127.0.0.1", 0, metrics, (), lambda onto: register(servicer, onto), admission, PATIENCE_S
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=SMALL_WINDOW) as channel:
            yield Client(channel)
    finally:
        await server.stop(0)


async def refusal(call: Message) -> Refused:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = from_rpc_error(failed.value)
    assert isinstance(error, Refused)
    assert error.definite
    return error


async def test_beyond_the_bound_a_charge_is_refused_with_a_reason_and_a_delay_and_operators_get_through() -> None:
    servicer = Servicer()
    async with asyncio.timeout(20), served(servicer, most=1) as client:
        first = client.charging.Charge(CHARGE, timeout=10)
        await servicer.begun.wait()
        for call in (client.charging.Charge, client.charging.Charge):
            error = await refusal(call(CHARGE, timeout=10))
            assert error.reason is ErrorReason.OVERLOADED
            assert error.retry_after_ms is not None
            assert 100 <= error.retry_after_ms <= 10_000
        await client.operations.SetLimit(operations_pb2.SetLimitRequest(), timeout=10)
        await client.charging.StopSession(charging_pb2.StopSessionRequest(), timeout=10)
        await client.health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        servicer.go.set()
        await first
        await client.charging.Charge(CHARGE, timeout=10)
        assert servicer.charged == 2


async def test_a_call_whose_deadline_passed_while_it_waited_is_not_handled() -> None:
    servicer = Servicer()
    servicer.go.set()
    async with asyncio.timeout(20), served(servicer) as client:
        await client.charging.Charge(CHARGE, timeout=10)
        servicer.stall_until = seconds() + 0.5
        calls = [asyncio.ensure_future(_code(client.charging.Charge(CHARGE, timeout=0.2))) for _ in range(50)]
        codes = [await call for call in calls]
        assert grpc.StatusCode.DEADLINE_EXCEEDED in codes
        await client.charging.Charge(CHARGE, timeout=10)
        assert servicer.charged < 52


async def _code(call: Message) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_reader_that_stops_is_dropped_with_a_reason_while_others_go_on() -> None:
    servicer = Servicer()
    asked = charging_pb2.WatchSessionRequest(session_id="x")
    async with asyncio.timeout(30), served(servicer) as client:
        stopped = client.charging.WatchSession(asked)
        await stopped.read()
        # Its news stay with grpc and its windows, and then it is over.
        await servicer.left.wait()
        assert servicer.sent * 20_000 < 1_000_000
        other = client.charging.WatchSession(asked)
        for _ in range(100):
            assert await other.read() is not grpc.aio.EOF
        other.cancel()
        error = await refusal(_read_to_the_end(stopped))
        assert error.reason is ErrorReason.READER_TOO_SLOW


@pytest.mark.parametrize("pause_s", [0.001, 1.5 * PATIENCE_S])
async def test_a_reader_that_reads_is_not_dropped_however_long_it_lasts_or_is_quiet(pause_s: float) -> None:
    servicer = Servicer()
    servicer.pause_s = pause_s
    async with asyncio.timeout(30), served(servicer) as client:
        watched = client.charging.WatchSession(charging_pb2.WatchSessionRequest(session_id="x"))
        until = seconds() + 4 * PATIENCE_S
        while seconds() < until:
            assert await watched.read() is not grpc.aio.EOF
        assert servicer.sent > 1
        assert not servicer.left.is_set()
        watched.cancel()


async def test_a_reader_that_goes_while_it_is_written_to_is_no_failure_of_the_handler() -> None:
    servicer = Servicer()
    with capture_logs() as lines:
        async with asyncio.timeout(30), served(servicer) as client:
            for _ in range(10):
                servicer.left.clear()
                watched = client.charging.WatchSession(charging_pb2.WatchSessionRequest(session_id="x"))
                await watched.read()
                await _stands(servicer)
                watched.cancel()
                await servicer.left.wait()
    assert [line for line in lines if line["log_level"] == "error"] == []


async def _stands(servicer: Servicer) -> None:
    """Until no news could be written for a while: the windows are full."""
    sent = -1
    while sent != servicer.sent:
        sent = servicer.sent
        await asyncio.sleep(0.03)


async def _read_to_the_end(call: Message) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_no_more_streams_than_the_bound_are_open() -> None:
    servicer = Servicer()
    asked = charging_pb2.WatchSessionRequest(session_id="x")
    async with asyncio.timeout(20), served(servicer, most=1) as client:
        first = client.charging.WatchSession(asked)
        await first.read()
        assert (await refusal(client.charging.WatchSession(asked).read())).reason is ErrorReason.OVERLOADED
        first.cancel()
        await servicer.left.wait()
        await client.charging.WatchSession(asked).read()
