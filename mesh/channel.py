"""One long-lived gRPC channel per destination, with keepalive that also pings quiet streams."""

import grpc

# Of servers too. To find out how much a link can hold, grpc sends a ping whenever data comes: half of what reports cost
# an idle balancer. Our messages fit into the window as it is at first, and for a larger one it is made larger.
SMALL_MESSAGES = (("grpc.http2.bdp_probe", 0),)
_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Without this, pings stop after two without data and a half-open stream is never noticed.
    ("grpc.http2.max_pings_without_data", 0),
    # Reconnect soon after a restart: the default backs off to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    # This is how long one attempt may take: over a slow link, more than a moment.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A name is resolved anew as soon as that: what is started anew may be at another address.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    *SMALL_MESSAGES,
    # The mesh decides itself what may be repeated; grpc's transparent retries stay.
    ("grpc.enable_retries", 0),
    # Proxies from the environment are not for calls inside the mesh.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(target: str) -> grpc.aio.Channel:
    """A channel to host:port, of a name to one of its addresses. It connects when first used, and again by itself."""
    return grpc.aio.insecure_channel(target, options=_OPTIONS)
