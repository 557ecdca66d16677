"""What the station says has happened, in order, for whoever does the I/O, and what the cars say to it.

Structs, as many are made and soon let go: a NamedTuple takes three times as long to make.
"""

from msgspec import Struct

from mesh.charge import Key
from substation.sessions import Offer, Session


class Admitted(Struct, frozen=True):
    """A new session; to be kept before anybody hears of it."""

    session: Session


class Repeated(Struct, frozen=True):
    """The key was known: this is its session. `raised`: its attempt id went up and is to be kept."""

    session: Session
    raised: bool


class Changed(Struct, frozen=True):
    """The state, grant or reason of a live session changed."""

    session: Session


class Metered(Struct, frozen=True):
    """Only what a session draws changed."""

    session: Session


class Ended(Struct, frozen=True):
    """The session is over and its register final."""

    session: Session


class Offered(Struct, frozen=True):
    """To be sent to the car. A raise is to be kept first, so that a restart knows the most a car may hold."""

    session_id: str
    offer: Offer


class Opened(Struct, frozen=True):
    """The contactor of this session is to be opened at once."""

    session_id: str


class LimitsChanged(Struct, frozen=True):
    """The set of operator limits changed, or one of them started or ended."""


class DrainChanged(Struct, frozen=True):
    """Drain was set or lifted."""


class Fenced(Struct, frozen=True):
    """Attempts at this key up to `attempt_id` are refused from now on."""

    key: Key
    attempt_id: str


class LimitComplied(Struct, frozen=True):
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


# --- what the cars say ------------------------------------------------------------------------------


class Confirmed(Struct, frozen=True):
    """The car acts on this offer from now on."""

    session_id: str
    number: int


class Reading(Struct, frozen=True):
    """The meter: power in watts, register in millijoules since plug-in."""

    session_id: str
    power_w: int
    register_mj: int


class Full(Struct, frozen=True):
    """The car wants no more."""

    session_id: str


CarEvent = Confirmed | Reading | Full
