"""The gateway's metrics. Routes are templates, so that no path of a client becomes a label."""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram

from mesh.metrics import LATENCY_BUCKETS

UNMATCHED = "unmatched"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


class HttpMetrics:
    """Rate, errors and duration of HTTP requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "http_requests",
            "HTTP requests, by the status of the reply and the reason of a problem.",
            ("route", "method", "status", "reason"),
            registry=registry,
        )
        self.duration = Histogram(
            "http_request_duration_seconds",
            "Time until the reply begins, without what a client asked to wait.",
            ("route", "method"),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )

        # Finding a child by its labels costs more than to count with it.
        self._request = cache(self.requests.labels)
        self._duration = cache(self.duration.labels)
        self.dropped = Counter(
            "http_event_streams_dropped", "Event streams ended because their client did not read.", registry=registry
        )

    def observe(self, route: str, method: str, status: int, reason: str, seconds: float) -> None:
        """Counts one request. `reason` is empty where the reply is no problem."""
        method = method if method in _METHODS else "OTHER"
        self._request(route, method, status, reason).inc()
        self._duration(route, method).observe(seconds)
