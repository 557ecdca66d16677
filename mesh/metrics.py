"""Metrics that every gRPC server has, and how a process shows its metrics.

A process has one registry, made in its `__main__`; each metric is declared once, in the metrics module
of the package that owns it.
"""

import socket
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from mesh.settings import StartupError

# From a loopback hop to a call that waits for its deadline.
LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def new_registry() -> CollectorRegistry:
    """A registry with what Prometheus' own libraries say of a process: CPU, memory, sockets, garbage collection."""
    # When a series began is in the process' start time; as series of their own they double the page.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class GrpcServerMetrics:
    """Rate, errors and duration of every RPC that this process serves."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("grpc_service", "grpc_method")
        self.handled = Counter(
            "grpc_server_handled",
            "RPCs that ended, by status code and the reason of an error of ours.",
            (*labels, "grpc_code", "reason"),
            registry=registry,
        )
        self.handling = Histogram(
            "grpc_server_handling_seconds",
            "Duration of unary calls; a stream lasts as long as it is watched.",
            labels,
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        # By what they are observed with: to look up labels costs more than to count.
        self._handled: dict[tuple[str, str, str], Counter] = {}
        self._handling: dict[str, Histogram] = {}

    def observe(self, method: str, code: str, reason: str, seconds: float | None) -> None:
        """Counts one RPC that ended; `method` is `/package.Service/Method`, `reason` that of an error of ours."""
        handled = self._handled.get((method, code, reason))
        if handled is None:
            handled = self._handled[method, code, reason] = self.handled.labels(*_names(method), code, reason)
        handled.inc()
        if seconds is not None:
            handling = self._handling.get(method)
            if handling is None:
                handling = self._handling[method] = self.handling.labels(*_names(method))
            handling.observe(seconds)


def _names(method: str) -> tuple[str, str]:
    service, _, name = method.lstrip("/").partition("/")
    return service, name


class MetricsPage:
    """Serves /metrics of a registry until closed. StartupError when the port is taken."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        try:
            self._server: WSGIServer
            self._thread: Thread
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except (OSError, socket.gaierror) as error:
            raise StartupError(f"cannot listen on {host}:{port} for metrics: {error.strerror}") from None
        self.port = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
