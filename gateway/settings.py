"""What the gateway can be told, from `GATEWAY_*` or flags."""

from dataclasses import dataclass

from mesh.settings import ServiceSettings, address, setting, within


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(ServiceSettings):
    """Where it listens, whom it asks, and how long it waits."""

    port: int = setting(8080, "port for HTTP; 0 takes a free one", within(0, 65535))
    metrics_port: int = setting(9101, "port for Prometheus; 0 takes a free one", within(0, 65535))
    balancer: str = setting("127.0.0.1:50051", "host:port of the balancer (a substation works as well)", address)
    timeout_s: float = setting(
        5.0, "seconds a call to the balancer may take; also for a client to send its body", within(0.05, 300)
    )
    heartbeat_s: float = setting(
        15.0,
        "seconds of silence after which an event stream sends a comment, so that proxies keep it",
        within(0.05, 60),
    )
