"""The gateway's metrics. Routes are templates, so that no path of a client becomes a label."""

from prometheus_client import CollectorRegistry, Counter

from mesh.metrics import LATENCY_BUCKETS
from mesh.tallies import Durations, Tally

UNMATCHED = "unmatched"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


class HttpMetrics:
    """Rate, errors and duration of HTTP requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Tally(
            "http_requests",
            "HTTP requests, by the status of the reply and the reason of a problem.",
            ("route", "method", "status", "reason"),
            registry,
        )
        self._duration = Durations(
            "http_request_duration_seconds",
            "Time until the reply begins, without what a client asked to wait.",
            ("route", "method"),
            LATENCY_BUCKETS,
            registry,
        )
        self.dropped = Counter(
            "http_event_streams_dropped", "Event streams ended because their client did not read.", registry=registry
        )

    def observe(self, route: str, method: str, status: int, reason: str, seconds: float) -> None:
        """Counts one request. `reason` is empty where the reply is no problem."""
        method = method if method in _METHODS else "OTHER"
        self._requests.counts[route, method, str(status), reason] += 1
        self._duration.observe((route, method), seconds)
