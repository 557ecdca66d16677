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
    # When a charge point should become free, where none is and that is known.
    next_free_ms: int | None = None


# What an active session adds to the sums: demand, what is required of it whatever the time, floor, grant, what it could
# take now, what it overdraws, and why it has less than it could take.
ActivePart = tuple[int, int, int, int, int, int, LimitReason]
# What any session adds: committed and measured watts, and that.
Part = tuple[int, int, ActivePart | None]


@dataclass(slots=True)
class Sums:
    """What a report says of the sessions and time alone does not change, added up. Whole watts."""

    demand_w: int = 0
    # Without the cars of whom it changes with time.
    required_w: int = 0
    floor_w: int = 0
    committed_w: int = 0
    granted_w: int = 0
    measured_w: int = 0
    # What the cars could take now: less than the demand where some showed that they take less.
    wanted_w: int = 0
    overdraw_w: int = 0
    active: int = 0
    live: int = 0
    curtailed: list[int] = field(default_factory=lambda: [0] * len(LimitReason))

    def add(self, one: Part, times: int) -> None:
        """Counts a session in (1) or out (-1)."""
        committed_w, measured_w, active = one
        self.live += times
        self.committed_w += times * committed_w
        self.measured_w += times * measured_w
        if active is not None:
            self._add_active(active, times)

    def replace(self, before: Part, now: Part) -> None:
        """Counts one and the same session anew."""
        self.committed_w += now[0] - before[0]
        self.measured_w += now[1] - before[1]
        was, active = before[2], now[2]
        # A car draws more or less far more often than anything else about it changes.
        if active == was:
            return
        if was is not None and active is not None:
            self._replace_active(was, active)
        elif was is not None:
            self._add_active(was, -1)
        elif active is not None:
            self._add_active(active, 1)

    def _replace_active(self, was: ActivePart, active: ActivePart) -> None:
        """What it asked for does not change."""
        *_, was_granted_w, was_wanted_w, was_overdraw_w, was_reason = was
        *_, granted_w, wanted_w, overdraw_w, reason = active
        self.granted_w += granted_w - was_granted_w
        self.wanted_w += wanted_w - was_wanted_w
        self.overdraw_w += overdraw_w - was_overdraw_w
        self.curtailed[was_reason] -= 1
        self.curtailed[reason] += 1

    def _add_active(self, active: ActivePart, times: int) -> None:
        demand_w, required_w, floor_w, granted_w, wanted_w, overdraw_w, reason = active
        self.active += times
        self.demand_w += times * demand_w
        self.required_w += times * required_w
        self.floor_w += times * floor_w
        self.granted_w += times * granted_w
        self.wanted_w += times * wanted_w
        self.overdraw_w += times * overdraw_w
        self.curtailed[reason] += times


def part(session: Session) -> Part:
    """What a session adds to the sums."""
    if not session.active:
        return session.committed_w, session.measured_w, None
    charge = session.charge
    max_w = charge.max_w
    active = (
        max_w,
        0 if planned(session) else max_w,
        charge.floor_w,
        session.granted_w,
        max_w if session.draws_at_most_w is None else session.wanted_w,
        session.overdraw_w,
        session.limit_reason,
    )
    return session.committed_w, session.measured_w, active


def sums(live: Iterable[Session]) -> Sums:
    """The sums from nothing."""
    total = Sums()
    for session in live:
        total.add(part(session), 1)
    return total


def planned(session: Session) -> bool:
    """Whether it said how much it wants, and by when: what is required of it then changes with time."""
    return session.charge.energy_j is not None and session.charge.departure_ms is not None


def required_w(session: Session, now: int, scale: int) -> int:
    """The average power that brings its energy by its departure; its maximum where it gave no departure or amount."""
    target = session.target_mj
    if target is None or session.charge.departure_ms is None:
        return session.charge.max_w
    left_ms = max((session.charge.departure_ms - now) * scale, LEAST_LEFT_MS)
    return min(session.charge.max_w, (target - session.delivered_at(now, scale)) // left_ms)
