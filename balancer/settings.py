"""What a balancer can be told, by flags or BALANCER_* in the environment."""

from dataclasses import dataclass

from balancer.discovery import name_of
from mesh.settings import ServiceSettings, StartupError, address, setting, within


@dataclass(frozen=True, kw_only=True)
class BalancerSettings(ServiceSettings):
    """Checked before anything starts; each error names its setting."""

    port: int = setting(50051, "gRPC port", within(0, 65535))
    metrics_port: int = setting(9102, "port of /metrics", within(0, 65535))
    substations: tuple[str, ...] = setting(
        (),
        "substations to balance over, separated by commas: host:port, or dns:host:port for every address of that name",
        lambda target: address(name_of(target) or target),
    )
    report_interval_ms: int = setting(
        1_000, "longest silence asked of a substation in ms; it is stale after three of them", within(100, 60_000)
    )
    coalesce: bool = setting(
        True, "charges that gather for a substation leave as one call; no: each by itself, to compare"
    )
    default_timeout_s: float = setting(10.0, "seconds that a call without a deadline may take", within(0.1, 600))

    def __post_init__(self) -> None:
        if not self.substations:
            raise StartupError("BALANCER_SUBSTATIONS must name at least one substation as host:port or dns:host:port")
        if len(set(self.substations)) < len(self.substations):
            raise StartupError("BALANCER_SUBSTATIONS names a substation twice")
