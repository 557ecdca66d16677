"""`python -m balancer`: puts the parts together, serves until told to stop, and stops in order."""

import asyncio
from random import Random

import grpc
import structlog

from balancer.changes import Changes
from balancer.desk import Desk
from balancer.discovery import name_of
from balancer.lookups import Lookups, resolve
from balancer.metrics import BalancerMetrics, DeskCollector
from balancer.peers import Peer, Peers
from balancer.router import Router
from balancer.servicers import ChargingServicer, Forwarder, OperationsServicer
from balancer.settings import BalancerSettings
from balancer.subscriptions import Subscription, Subscriptions
from gridmesh.v1 import charging_pb2_grpc, operations_pb2_grpc
from mesh import process, tracing
from mesh.admission import Admission
from mesh.clock import SystemClock
from mesh.metrics import GrpcServerMetrics, MetricsPage, new_registry
from mesh.server import start_server

log = structlog.get_logger()

SERVICES = ("gridmesh.v1.ChargingService", "gridmesh.v1.OperationsService")
# The first request after a start should not be refused for want of reports that are on their way.
FIRST_REPORTS_S = 1.0


async def serve(settings: BalancerSettings, stopping: asyncio.Event) -> None:
    """Serves until `stopping` is set."""
    clock, rng, registry, changes = SystemClock(), Random(), new_registry(), Changes()  # noqa: S311 - no secrets here
    tracing.start("balancer")
    metrics = BalancerMetrics(registry)
    page = MetricsPage(settings.host, settings.metrics_port, registry)
    fixed = [target for target in settings.substations if name_of(target) is None]
    names = [name for target in settings.substations if (name := name_of(target)) is not None]
    desk = Desk(fixed, settings.report_interval_ms, rng)
    registry.register(DeskCollector(desk, clock))
    peers = Peers(fixed, rng, settings.max_calls, together=settings.coalesce)
    admission = Admission(settings.max_calls, rng)
    router = Router(desk, peers, clock, rng, metrics)

    def subscribe(peer: Peer) -> Subscription:
        interval_ms = settings.report_interval_ms
        return Subscription(peer, desk, clock, rng, interval_ms, metrics, changes.changed, router.settled)

    def register(server: grpc.aio.Server) -> None:
        forwarder = Forwarder(desk, peers, clock, settings.default_timeout_s)
        charging = ChargingServicer(router, forwarder, desk, changes, admission)
        charging_pb2_grpc.add_ChargingServiceServicer_to_server(charging, server)
        operations = OperationsServicer(forwarder, desk, clock, changes)
        operations_pb2_grpc.add_OperationsServiceServicer_to_server(operations, server)

    subscriptions = Subscriptions(peers, subscribe)
    subscriptions.start()
    lookups = Lookups(names, resolve, desk, peers, subscriptions, clock, metrics)
    await lookups.look()
    await subscriptions.first_reports(FIRST_REPORTS_S)
    server = await start_server(
        settings.host, settings.port, GrpcServerMetrics(registry), SERVICES, register, admission
    )
    tasks = [asyncio.create_task(work) for work in (router.forget_old(), lookups.run())]
    log.info("serving", port=server.port, metrics_port=page.port, substations=list(settings.substations))

    await stopping.wait()
    log.info("stopping", grace_s=settings.grace_s)
    await server.leave()
    changes.close()
    await server.stop(settings.grace_s)
    await router.stop(settings.grace_s)
    for task in tasks:
        task.cancel()
    await subscriptions.stop()
    await peers.close()
    page.close()
    log.info("stopped")


if __name__ == "__main__":
    process.run(BalancerSettings, "BALANCER", serve)
