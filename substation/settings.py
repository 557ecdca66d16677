"""The substation's settings, from SUBSTATION_* or flags."""

from dataclasses import dataclass

from mesh.ids import SUBSTATION_ID
from mesh.settings import ServiceSettings, one_of, setting, within
from substation.completion import Completion
from substation.sharing import EqualShare, SharingPolicy
from substation.urgency import EarliestDeadline, LeastLaxity

# How power is shared, by the name that the setting takes.
SHARING: dict[str, type[SharingPolicy]] = {
    policy.name: policy for policy in (EqualShare, LeastLaxity, EarliestDeadline, Completion)
}


def _substation_id(value: str) -> str | None:
    return None if not value or SUBSTATION_ID.fullmatch(value) else "must be 1 to 40 of a-z, 0-9 and -"


@dataclass(frozen=True, kw_only=True)
class SubstationSettings(ServiceSettings):
    """What a substation can be told."""

    port: int = setting(50061, "port for gRPC; 0 takes any free one", within(0, 65535))
    metrics_port: int = setting(9111, "port for /metrics; 0 takes any free one", within(0, 65535))
    data: str = setting("data", "folder for the ledgers; each substation claims a folder in it")
    id: str = setting("", "this substation's id; empty: made on first start and kept in the ledger", _substation_id)
    rated_kw: float = setting(100.0, "rated power in kW: no limit is ever above it", within(0, 1_000_000))
    charge_points: int = setting(120, "how many cars can be plugged in", within(1, 10_000))
    sharing: str = setting(
        EqualShare.name,
        "how power is shared: equal_share, or by urgency where cars say when they leave: "
        "least_laxity, earliest_deadline, completion",
        one_of(*SHARING),
    )
    time_scale: int = setting(1, "seconds of charging that pass in one second; 1 on a real site", within(1, 3600))
    start_without: str = setting(
        "", "name of a damaged ledger that was set aside: start drained without what it held, when there is no backup"
    )
