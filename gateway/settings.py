"""What the gateway can be told, from `GATEWAY_*` or flags."""

from dataclasses import dataclass

from gateway.cors import origin
from mesh.settings import ServiceSettings, StartupError, address, setting, within


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(ServiceSettings):
    """Where it listens, whom it asks, and how long it waits."""

    port: int = setting(8080, "port for HTTP; 0 takes a free one", within(0, 65535))
    metrics_port: int = setting(9101, "port for Prometheus; 0 takes a free one", within(0, 65535))
    balancers: tuple[str, ...] = setting(
        ("127.0.0.1:50051",), "balancers to ask, host:port separated by commas (a substation works as well)", address
    )
    timeout_s: float = setting(
        5.0, "seconds a call to the balancer may take; also for a client to send its body", within(0.05, 300)
    )
    coalesce: bool = setting(
        True, "charges that gather for a balancer leave as one call; no: each by itself, to compare"
    )
    heartbeat_s: float = setting(
        15.0,
        "seconds of silence after which an event stream sends a comment, so that proxies keep it",
        within(0.05, 60),
    )
    cors_origins: tuple[str, ...] = setting(
        (), "origins whose pages may call it from a browser, separated by commas, or * for any; empty: none", origin
    )

    def __post_init__(self) -> None:
        if not self.balancers:
            raise StartupError("GATEWAY_BALANCERS must name at least one balancer as host:port")
        if len(set(self.balancers)) < len(self.balancers):
            raise StartupError("GATEWAY_BALANCERS names a balancer twice")
