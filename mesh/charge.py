"""A valid charge request in whole watts, joules and milliseconds: what the pure modules decide on."""

from msgspec import Struct


# Each charge looks it up a dozen times, and many are kept for a day: it is 40 bytes, a named tuple would be 72.
class Key(Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """What makes two requests the same one."""

    owner: str
    request_id: str


class Charge(Struct, frozen=True):
    """One car that asks to charge, defaults filled in. `mesh.requests` makes it from the contract's message."""

    key: Key
    vehicle_id: str
    # None: until the car is full.
    energy_j: int | None
    max_w: int
    # The least it can charge with, 1..max_w.
    floor_w: int
    phases: int
    # Wall milliseconds; None: the car leaves when it is full.
    departure_ms: int | None
    allowed: frozenset[str]
    evse_id: str
    attempt_id: str
    # Digest of what the client said: the same key with another digest is another request.
    body: bytes
