"""A substation's load at one moment, summed over its sessions."""

from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import Struct

from mesh.model import LimitReason, LimitSource, NotAccepting
from mesh.outlook import LEAST_LEFT_MS, Outlook
from substation.sessions import Session


class Load(Struct, frozen=True):
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
    # Why those active sessions are granted less than they can take who are.
    curtailed: tuple[LimitReason, ...]


class Report(Struct, frozen=True):
    """A load with whose it is and when."""

    substation_id: str
    epoch: int
    time_scale: int
    generated_ms: int
    load: Load
    ahead: Outlook
    # When a charge point should become free, where none is and that is known.
    next_free_ms: int | None = None


# What a session adds to the sums, in their order but for the first.
Part = tuple[int, int, int, int, int, int, int, int, int]
NOTHING: Part = (0, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(slots=True)
class Sums:
    """What a report says of the sessions and time alone does not change, added up. Whole watts."""

    live: int = 0
    committed_w: int = 0
    measured_w: int = 0
    granted_w: int = 0
    # What the cars could take now: less than the demand where some showed that they take less.
    wanted_w: int = 0
    overdraw_w: int = 0
    active: int = 0
    demand_w: int = 0
    # Without the cars of whom it changes with time.
    required_w: int = 0
    floor_w: int = 0

    def replace(self, before: Part, now: Part) -> None:
        """Counts a session anew: one that comes from NOTHING, or goes to it."""
        self.committed_w += now[0] - before[0]
        self.measured_w += now[1] - before[1]
        self.granted_w += now[2] - before[2]
        # The rest changes seldom while a session lives.
        if now[3:] == before[3:]:
            return
        self.wanted_w += now[3] - before[3]
        self.overdraw_w += now[4] - before[4]
        self.active += now[5] - before[5]
        self.demand_w += now[6] - before[6]
        self.required_w += now[7] - before[7]
        self.floor_w += now[8] - before[8]


def part(session: Session) -> Part:
    """What a session adds to the sums."""
    if not session.active:
        return session.committed_w, session.measured_w, 0, 0, 0, 0, 0, 0, 0
    charge = session.charge
    max_w = charge.max_w
    return (
        session.committed_w,
        session.measured_w,
        session.granted_w,
        max_w if session.draws_at_most_w is None else session.wanted_w,
        session.overdraw_w,
        1,
        max_w,
        0 if planned(session) else max_w,
        charge.floor_w,
    )


def sums(live: Iterable[Session]) -> Sums:
    """The sums from nothing."""
    total = Sums()
    for session in live:
        total.live += 1
        total.replace(NOTHING, part(session))
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
