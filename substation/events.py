"""What the station says has happened, in order, for whoever does the I/O."""

from dataclasses import dataclass

from mesh.charge import Key
from substation.sessions import Offer, Session


@dataclass(frozen=True, slots=True)
class Admitted:
    """A new session; to be kept before anybody hears of it."""

    session: Session


@dataclass(frozen=True, slots=True)
class Repeated:
    """The key was known: this is its session. `raised`: its attempt id went up and is to be kept."""

    session: Session
    raised: bool


@dataclass(frozen=True, slots=True)
class Changed:
    """The state, grant or reason of a live session changed."""

    session: Session


@dataclass(frozen=True, slots=True)
class Metered:
    """Only what a session draws changed."""

    session: Session


@dataclass(frozen=True, slots=True)
class Ended:
    """The session is over and its register final."""

    session: Session


@dataclass(frozen=True, slots=True)
class Offered:
    """To be sent to the car. A raise is to be kept first, so that a restart knows the most a car may hold."""

    session_id: str
    offer: Offer


@dataclass(frozen=True, slots=True)
class Opened:
    """The contactor of this session is to be opened at once."""

    session_id: str


@dataclass(frozen=True, slots=True)
class LimitsChanged:
    """The set of operator limits changed, or one of them started or ended."""


@dataclass(frozen=True, slots=True)
class DrainChanged:
    """Drain was set or lifted."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """Attempts at this key up to `attempt_id` are refused from now on."""

    key: Key
    attempt_id: str


@dataclass(frozen=True, slots=True)
class LimitComplied:
    """Committed power is back under a limit that was cut, `took_ms` after the cut."""

    took_ms: int


Event = (
    Admitted
    | Repeated
    | Changed
    | Metered
    | Ended
    | Offered
    | Opened
    | LimitsChanged
    | DrainChanged
    | Fenced
    | LimitComplied
)
