"""Whether one more car is admitted: never more plugs, nor floors that could not be met even in turns."""

from collections.abc import Callable

from msgspec import Struct

from mesh.charge import Charge
from mesh.errors import InvalidRequest, MeshError, Refused, Unavailable, Violation
from mesh.model import ErrorReason, NotAccepting

# With floors for more than ten times the limit a car would get a turn every tenth time: refuse.
WAITING_FACTOR = 10
_RETRY_LEAST_MS, _RETRY_MOST_MS, _RETRY_DEFAULT_MS = 1_000, 3_600_000, 30_000


class Room(Struct, frozen=True):
    """What a substation has for one more car. Times in wall milliseconds; None: not known."""

    substation_id: str
    accepting: NotAccepting
    charge_points: int
    taken: int
    # The highest floor of any session so far.
    highest_floor_w: int
    limit_w: int
    # Floors of those that want energy: a look at who changed, asked only where the highest for all would not do.
    floors_w: Callable[[], int]
    # Asked only where it is refused: the second costs a look at every session.
    limit_ends_ms: Callable[[], int | None]
    next_free_ms: Callable[[], int | None]


def check(charge: Charge, room: Room, now: int) -> None:
    """Returns when the car fits. Refused or Unavailable says why not, and when to try again."""
    if charge.allowed and room.substation_id not in charge.allowed:
        raise InvalidRequest(
            Violation("allowed_substation_ids", f"does not name this substation, {room.substation_id!r}")
        )
    if room.accepting:
        raise _not_accepting(room.accepting)
    if room.taken >= room.charge_points:
        message = f"all {room.charge_points} charge points are taken"
        raise Refused(ErrorReason.NO_CHARGE_POINT, message, _retry_ms(room.next_free_ms(), now))
    if charge.floor_w > room.limit_w:
        message = f"the car needs {charge.floor_w} W, the limit is {room.limit_w} W"
        raise Refused(ErrorReason.FLOOR_ABOVE_LIMIT, message, _retry_ms(room.limit_ends_ms(), now))
    most_w = WAITING_FACTOR * room.limit_w - charge.floor_w
    if room.taken * room.highest_floor_w > most_w and room.floors_w() > most_w:
        message = "too many cars wait for a turn"
        raise Refused(ErrorReason.TOO_MANY_WAITING, message, _retry_ms(room.next_free_ms(), now))


def _not_accepting(why: NotAccepting) -> MeshError:
    if why is NotAccepting.LEDGER:
        return Unavailable(ErrorReason.LEDGER_UNAVAILABLE, "the ledger cannot be written", _RETRY_DEFAULT_MS)
    return Refused(ErrorReason.NOT_ACCEPTING, f"not accepting: {why.name}", _RETRY_DEFAULT_MS)


def _retry_ms(at: int | None, now: int) -> int:
    """A delay until `at`, within bounds that neither hammer nor give up."""
    return _RETRY_DEFAULT_MS if at is None else max(_RETRY_LEAST_MS, min(at - now, _RETRY_MOST_MS))
