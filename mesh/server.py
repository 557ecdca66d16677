"""One gRPC server of the mesh: health, reflection, keepalive, and a stop that finishes what is in flight."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mesh.admission import Admission
from mesh.channel import SMALL_MESSAGES
from mesh.interceptors import PATIENCE_S, Calls
from mesh.metrics import GrpcServerMetrics
from mesh.settings import StartupError

# Health service name that answers while the process turns its event loop, also when it takes no calls.
LIVENESS = "liveness"

# Long enough for those who watch its health to hear it before their streams end.
_LEAVING_S = 0.05

_OPTIONS = (
    # Two servers on one port would share its calls silently.
    ("grpc.so_reuseport", 0),
    *SMALL_MESSAGES,
    # A client whose process stands still, or whose machine is gone, holds its streams no longer than 15 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Clients ping quiet streams (mesh.channel): allow it.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


def _check_free(host: str, port: int) -> None:
    """Binds and lets go: grpc would say what is wrong in lines of its own, which name files of its own."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        raise StartupError(f"cannot listen on {host}:{port}: {_why(error)}") from None


def _why(error: OSError) -> str:
    """Without the address, which Python adds. A name that is none has a number that `os` has no words for."""
    return str(error.strerror).partition(" (while")[0]


class _Health(health.aio.HealthServicer):
    """Ends the streams of those that watch it, which else would be waited for as long as a stop may take.

    The package announces a List that it has not: called, it would be a defect of ours, with a stack trace in the log.
    """

    def __init__(self) -> None:
        super().__init__()
        self.over = asyncio.Event()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802, ANN401 - as the package has it
        watching = asyncio.ensure_future(super().Watch(request, context))
        over = asyncio.ensure_future(self.over.wait())
        try:
            await asyncio.wait({watching, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            over.cancel()

    async def List(self, request: Any, context: Any) -> None:  # noqa: N802, ANN401 - as the package has it
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask Check for one service; reflection lists them")


class Server:
    """A started server. `port` is the real one when 0 was asked for."""

    def __init__(self, server: grpc.aio.Server, servicer: _Health, port: int, admission: Admission) -> None:
        self._server = server
        self._admission = admission
        self._health = servicer
        self.port = port

    async def show(self, service: str, serving: bool) -> None:
        """What health says of one service name, beside those that are SERVING until the stop."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(service, status)

    async def leave(self) -> None:
        """The first step of a stop: health says NOT_SERVING, so that callers look elsewhere."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(_LEAVING_S)

    async def stop(self, grace_seconds: float) -> None:
        """The second: what has arrived is answered, then new calls are refused and the others may finish."""
        self._health.over.set()
        self._admission.leaving.set()
        await asyncio.sleep(min(_LEAVING_S, grace_seconds))
        await self._server.stop(grace_seconds)


async def start_server(
    host: str,
    port: int,
    metrics: GrpcServerMetrics,
    services: Sequence[str],
    register: Callable[[grpc.aio.Server], None],
    admission: Admission,
    patience_s: float = PATIENCE_S,
) -> Server:
    """Starts a server with `services` (full names) that `register` adds. StartupError when the port is taken."""
    _check_free(host, port)
    server = grpc.aio.server(options=_OPTIONS)
    wrapping = Calls(metrics, admission, patience_s).of(server)
    register(wrapping)
    servicer = _Health()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, wrapping)
    reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), wrapping)
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError:
        raise StartupError(f"cannot listen on {host}:{port}: taken in the meantime") from None
    await server.start()
    for service in ("", LIVENESS, *services):
        await servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    return Server(server, servicer, bound, admission)
