"""What the balancer's tests are made of."""

from random import Random
from typing import Any

from msgspec.structs import replace

from balancer.admissions import Entry
from balancer.desk import Desk, Replied
from balancer.view import Load
from mesh.charge import Charge, Key
from mesh.ids import session_id, uuid7
from mesh.model import LimitSource

NOW = 1_800_000_000_000
INTERVAL = 1_000


def load(substation_id: str = "a", **changed: Any) -> Load:  # noqa: ANN401
    """An idle 100 kW substation with 120 charge points, with these fields changed."""
    idle = Load(
        substation_id=substation_id,
        epoch=NOW,
        sequence=1,
        admission_sequence=0,
        generated_at_ms=NOW,
        rated_w=100_000,
        limit_w=100_000,
        limit_source=LimitSource.UNSPECIFIED,
        demand_w=0,
        required_w=0,
        floor_w=0,
        committed_w=0,
        granted_w=0,
        measured_w=0,
        active_sessions=0,
        charge_points=120,
        free_charge_points=120,
        accepting=True,
    )
    return replace(idle, **changed)


def key(number: int = 0) -> Key:
    return Key("anonymous", f"request-{number}")


def charge(number: int = 0, **changed: Any) -> Charge:  # noqa: ANN401
    """An 11 kW car, with these fields changed."""
    car = Charge(
        key=key(number),
        vehicle_id=f"EV-{number}",
        energy_j=None,
        max_w=11_000,
        floor_w=4_140,
        phases=3,
        departure_ms=None,
        allowed=frozenset(),
        evse_id="",
        attempt_id=attempt_id(number),
        body=b"",
    )
    return replace(car, **changed)


def attempt_id(number: int = 0) -> str:
    """Later numbers are later attempts."""
    return uuid7(NOW + number, Random(number))


def session(substation_id: str = "a", number: int = 0) -> str:
    return session_id(substation_id, uuid7(NOW, Random(number)))


def entry(number: int = 0, substation_id: str = "a", sequence: int = 1, **changed: Any) -> Entry:  # noqa: ANN401
    """A live session of that key, with these fields changed."""
    live = Entry(
        key=key(number),
        session_id=session(substation_id, number),
        substation_id=substation_id,
        attempt_id=attempt_id(number),
        epoch=NOW,
        sequence=sequence,
    )
    return replace(live, **changed)


def desk_of(*loads: Load, seed: int = 1) -> Desk:
    """A desk that has just heard these; the substation `a` is at address `a:1`."""
    desk = Desk([address(one.substation_id) for one in loads], INTERVAL, Random(seed))
    for one in loads:
        desk.reported(address(one.substation_id), one, NOW)
    return desk


def address(substation_id: str) -> str:
    return f"{substation_id}:1"


def replied(after: Load, number: int = 0, **changed: Any) -> Replied:  # noqa: ANN401
    """The reply to that car, with the load after its commit."""
    reply = Replied(
        load=after,
        session_id=session(after.substation_id, number),
        attempt_id=attempt_id(number),
        ended_at_ms=None,
        repeated=False,
        reply=f"reply {number}",
    )
    return replace(reply, **changed)
