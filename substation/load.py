"""A substation's load at one moment, summed over its sessions."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh.model import LimitReason, LimitSource, NotAccepting
from mesh.outlook import LEAST_LEFT_MS, Outlook
from substation.sessions import Session


@dataclass(frozen=True, slots=True)
class Load:
    """Whole watts. `sequence` grows with every change of commitments; the rest is as in the contract's LoadReport."""

    sequence: int
    admission_sequence: int
    rated_w: int
    limit_w: int
    limit_source: LimitSource
    demand_w: int
    required_w: int
    floor_w: int
    committed_w: int
    granted_w: int
    measured_w: int
    active_sessions: int
    charge_points: int
    free_charge_points: int
    not_accepting: NotAccepting
    over_limit_ms: int
    # Active sessions by why they are granted less than they can take, in the order of LimitReason.
    curtailed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A load with whose it is and when."""

    substation_id: str
    epoch: int
    time_scale: int
    generated_ms: int
    load: Load
    ahead: Outlook


@dataclass(slots=True)
class Sums:
    """What one pass over the live sessions adds up."""

    demand_w: int = 0
    floor_w: int = 0
    committed_w: int = 0
    granted_w: int = 0
    measured_w: int = 0
    active: int = 0
    live: int = 0
    curtailed: list[int] = field(default_factory=lambda: [0] * len(LimitReason))


def sums(live: Iterable[Session]) -> Sums:
    """Adds up what a report says of the sessions and time alone does not change."""
    total = Sums()
    for session in live:
        total.live += 1
        total.committed_w += session.committed_w
        total.measured_w += session.measured_w
        if session.active:
            total.active += 1
            total.demand_w += session.charge.max_w
            total.floor_w += session.charge.floor_w
            total.granted_w += session.granted_w
            total.curtailed[session.limit_reason] += 1
    return total


def required_w(session: Session, now: int, scale: int) -> int:
    """The average power that brings its energy by its departure; its maximum where it gave no departure or amount."""
    target = session.target_mj
    if target is None or session.charge.departure_ms is None:
        return session.charge.max_w
    left_ms = max((session.charge.departure_ms - now) * scale, LEAST_LEFT_MS)
    return min(session.charge.max_w, (target - session.delivered_at(now, scale)) // left_ms)
