"""Where a server listens, and where it cannot."""

from random import Random
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from mesh.admission import Admission
from mesh.metrics import GrpcServerMetrics
from mesh.server import Server, start_server
from mesh.settings import StartupError


async def started(host: str) -> Server:
    metrics, admission = GrpcServerMetrics(CollectorRegistry()), Admission(1, Random(1))
    return await start_server(host, 0, metrics, (), lambda _: None, admission)


async def test_a_host_that_is_none_is_told_in_words() -> None:
    with pytest.raises(StartupError) as caught:
        await started("no-such-host.invalid")
    assert str(caught.value).startswith("cannot listen on no-such-host.invalid:0: ")
    assert "Unknown error" not in str(caught.value)


async def test_an_address_of_ipv6_is_served_or_where_a_machine_has_none_refused_in_words() -> None:
    try:
        server = await started("::1")
    except StartupError as refused:
        assert str(refused).startswith("cannot listen on ::1:0: ")  # noqa: PT017 - both are right, by the machine
        assert "Unknown error" not in str(refused)  # noqa: PT017
        return
    async with grpc.aio.insecure_channel(f"[::1]:{server.port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
    await server.stop(0)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_list_of_health_is_not_served_and_that_is_no_defect() -> None:
    server = await started("127.0.0.1")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call: Any = channel.unary_unary("/grpc.health.v1.Health/List")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=5)
    await server.stop(0)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
