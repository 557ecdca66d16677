"""`python -m gateway`: wires and runs the gateway. The only module here that wires."""

import asyncio
import tomllib
from pathlib import Path
from random import Random

import structlog

from gateway import app, server
from gateway.balancers import Balancers
from gateway.cors import Cors
from gateway.live import Live
from gateway.metrics import HttpMetrics
from gateway.routes import MAX_LARGE_BODIES, Api
from gateway.settings import GatewaySettings
from gateway.table import operations
from gateway.waiting import Waiting
from mesh import tracing
from mesh.admission import Admission, Bound
from mesh.clock import SystemClock
from mesh.metrics import MetricsPage, new_registry
from mesh.process import run

log = structlog.get_logger()


async def serve(settings: GatewaySettings, stopping: asyncio.Event) -> None:
    """Serves until `stopping`."""
    tracing.start("gateway")
    registry = new_registry()
    listener = server.bind(settings.host, settings.port)
    page = MetricsPage(settings.host, settings.metrics_port, registry)
    balancers = Balancers(settings.balancers, settings.timeout_s, together=settings.coalesce)
    # Attempts' and requests' ids are no secrets: a generator that asks the system for each would cost more.
    rng = Random()  # noqa: S311
    clock = SystemClock()
    most, metrics = settings.max_calls, HttpMetrics(registry)
    api = Api(
        balancers,
        clock,
        rng,
        stopping,
        settings.heartbeat_s,
        Admission(most, rng),
        Bound(most, "event streams"),
        Bound(MAX_LARGE_BODIES, "large bodies"),
        metrics.dropped.inc,
        Live(balancers, clock),
        Waiting(stopping),
    )
    table = operations(api, _version())
    cors = Cors(settings.cors_origins) if settings.cors_origins else None
    port = listener.getsockname()[1]
    log.info("listening", host=settings.host, port=port, metrics_port=page.port, balancers=list(settings.balancers))
    try:
        await server.serve(app.build(table, metrics, cors), listener, stopping, settings.grace_s, clock)
    finally:
        await balancers.close()
        page.close()
        log.info("stopped")


def _version() -> str:
    # In the checkout as in the image: it is installed in neither.
    project = Path(__file__).parents[1] / "pyproject.toml"
    return str(tomllib.loads(project.read_text("utf-8"))["project"]["version"])


if __name__ == "__main__":
    run(GatewaySettings, "GATEWAY", serve)
