"""What the station says has happened, in order, for whoever does the I/O, and what the cars say to it.

Tuples, as many are made and soon let go.
"""

from typing import NamedTuple

from mesh.charge import Key
from substation.sessions import Offer, Session


class Admitted(NamedTuple):
    """A new session; to be kept before anybody hears of it."""

    session: Session


class Repeated(NamedTuple):
    """The key was known: this is its session. `raised`: its attempt id went up and is to be kept."""

    session: Session
    raised: bool


class Changed(NamedTuple):
    """The state, grant or reason of a live session changed."""

    session: Session


class Metered(NamedTuple):
    """Only what a session draws changed."""

    session: Session


class Ended(NamedTuple):
    """The session is over and its register final."""

    session: Session


class Offered(NamedTuple):
    """To be sent to the car. A raise is to be kept first, so that a restart knows the most a car may hold."""

    session_id: str
    offer: Offer


class Opened(NamedTuple):
    """The contactor of this session is to be opened at once."""

    session_id: str


class LimitsChanged(NamedTuple):
    """The set of operator limits changed, or one of them started or ended."""


class DrainChanged(NamedTuple):
    """Drain was set or lifted."""


class Fenced(NamedTuple):
    """Attempts at this key up to `attempt_id` are refused from now on."""

    key: Key
    attempt_id: str


class LimitComplied(NamedTuple):
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


class Confirmed(NamedTuple):
    """The car acts on this offer from now on."""

    session_id: str
    number: int


class Reading(NamedTuple):
    """The meter: power in watts, register in millijoules since plug-in."""

    session_id: str
    power_w: int
    register_mj: int


class Full(NamedTuple):
    """The car wants no more."""

    session_id: str


CarEvent = Confirmed | Reading | Full
