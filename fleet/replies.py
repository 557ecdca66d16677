"""What the gateway's replies mean to a car. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NO_ANSWER = "NO_ANSWER"
OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
# Where a refusal does not say when to come back.
RETRY_S = 1.0


@dataclass(frozen=True)
class Admitted:
    """It has a session."""

    session_id: str
    substation_id: str


@dataclass(frozen=True)
class Refused:
    """Certainly not admitted; asking again later makes sense."""

    reason: str
    retry_after_s: float


@dataclass(frozen=True)
class Rejected:
    """Certainly not admitted, and never will be: the request is wrong."""

    reason: str
    detail: str


@dataclass(frozen=True)
class InDoubt:
    """Nobody knows whether it was admitted: the same request with the same key finds out."""

    reason: str
    retry_after_s: float = RETRY_S


Reply = Admitted | Refused | Rejected | InDoubt


def read_reply(status: int, headers: Mapping[str, str], body: Any) -> Reply:  # noqa: ANN401 - JSON
    """The reply to POST /v1/charges; `body` is its JSON, None when it is none."""
    body = body if isinstance(body, dict) else {}
    if status in {200, 201} and "session" in body:
        session = body["session"]
        return Admitted(session["session_id"], session["substation_id"])
    reason = str(body.get("reason", f"HTTP_{status}"))
    if status in {429, 503} and reason != OUTCOME_UNKNOWN and "reason" in body:
        return Refused(reason, _retry_after(headers))
    # 409: this attempt was given up for lost; the next one at the same key is not.
    if 400 <= status < 500 and status != 409:
        return Rejected(reason, str(body.get("detail", "")))
    return InDoubt(reason, _retry_after(headers))


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    return float(text) if text.isdecimal() else RETRY_S


@dataclass(frozen=True)
class Load:
    """What the mesh says of one substation. None: not reported."""

    substation_id: str
    epoch: int
    limit_kw: float
    demand_kw: float
    committed_kw: float
    active_sessions: int
    time_scale: float
    over_limit_s: float

    @property
    def utilisation(self) -> float:
        """Demand over limit; may exceed 1."""
        return self.demand_kw / self.limit_kw if self.limit_kw else 0.0


def read_loads(body: Any) -> dict[str, Load]:  # noqa: ANN401 - JSON
    """GET /v1/substations: those that have reported, by id. KeyError and the like when it is no such reply."""
    loads = {}
    for substation in body["substations"]:
        if report := substation.get("report"):
            loads[report["substation_id"]] = Load(
                substation_id=report["substation_id"],
                epoch=report["epoch"],
                limit_kw=report["limit_power_kw"],
                demand_kw=report["demand_kw"],
                committed_kw=report["committed_kw"],
                active_sessions=report["active_sessions"],
                time_scale=report["time_scale"],
                over_limit_s=report["over_limit_seconds"],
            )
    return loads


@dataclass(frozen=True)
class Register:
    """What a session has come to."""

    delivered_kwh: float
    ended: bool
    duplicate_of: str | None


def read_register(body: Any) -> Register:  # noqa: ANN401 - JSON
    """GET /v1/charges/{id}."""
    session = body["session"]
    return Register(session["delivered_kwh"], session["state"] == "ENDED", session.get("duplicate_of"))


class OverLimit:
    """Seconds over the limit since it was made. A substation counts from its own start: a new epoch begins at 0."""

    def __init__(self, loads: Mapping[str, Load]) -> None:
        self._last = dict(loads)
        self.seconds: dict[str, float] = dict.fromkeys(loads, 0.0)

    def update(self, loads: Mapping[str, Load]) -> None:
        for name, load in loads.items():
            last = self._last.get(name)
            since = last.over_limit_s if last is not None and last.epoch == load.epoch else 0.0
            self.seconds[name] = self.seconds.get(name, 0.0) + load.over_limit_s - since
            self._last[name] = load
