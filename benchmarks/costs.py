"""Table d: what one pick and one report cost, at any number of substations. `python -m benchmarks.costs`.

CPU time of this process, the least of several rounds: what else runs on the machine only adds to it. A pick is
what `Picker.pick` does; the reservation that follows it is a column of its own, with what ends it. A report is
decoded from its bytes and applied to the view. The cost of following a thousand streams is `benchmarks.ingest`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from random import Random

from msgspec.structs import replace

from balancer import wire
from balancer.desk import Desk
from balancer.pick import Pick
from balancer.view import Load
from gridmesh.v1 import load_pb2
from mesh.charge import Charge, Key
from mesh.model import LimitSource
from mesh.outlook import Need, outlook

SIZES = (10, 100, 1_000, 10_000)
ROUNDS = 30
# As many calls as take some milliseconds.
CALLS = 500
NOW = 1_800_000_000_000
HOUR_MS = 3_600_000
INTERVAL_MS = 1_000
KINDS = {
    "power only": {},
    "energy": {"energy_j": 20 * 3_600_000},
    "energy and departure": {"energy_j": 20 * 3_600_000, "departure_ms": NOW + 4 * HOUR_MS},
}


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds of CPU at so many substations: a pick by kind of request, a reservation, a report."""

    substations: int
    picks: dict[str, float]
    reservation: float
    report: float


def least_us(call: Callable[[], object], calls: int = CALLS) -> float:
    """Microseconds of CPU for one call, in the best of several rounds."""
    rounds = []
    for _ in range(ROUNDS):
        begun = time.process_time_ns()
        for _ in range(calls):
            call()
        rounds.append((time.process_time_ns() - begun) / calls / 1000)
    return min(rounds)


def measure(substations: int) -> Costs:
    """All of one row."""
    rng = Random(substations)
    desk = Desk([f"s{i}:1" for i in range(substations)], INTERVAL_MS, rng)
    loads = [a_load(f"s{i}", rng) for i in range(substations)]
    for one in loads:
        # Decoded, for numbers of the kind that come over the wire.
        desk.reported(f"{one.substation_id}:1", wire.load_of(wire.report_of(one)), NOW)
    cars = {name: replace(a_car(), **asked) for name, asked in KINDS.items()}
    picks = {name: least_us(lambda car=car: desk.picker.pick(car, NOW)) for name, car in cars.items()}  # type: ignore[misc]
    return Costs(substations, picks, _reservation_us(desk, cars["energy and departure"]), _report_us(desk, loads))


def _reservation_us(desk: Desk, car: Charge) -> float:
    pick = desk.picker.pick(car, NOW)
    assert isinstance(pick, Pick)
    return least_us(lambda: desk.view.release(desk.view.reserve(pick.address, car.key, car.max_w, NOW, pick.need)))


def _report_us(desk: Desk, loads: list[Load]) -> float:
    """Reports that bring news, of one substation after the other."""
    news = _news(loads)

    def take() -> None:
        address, body = next(news)
        desk.reported(address, wire.load_of(load_pb2.LoadReport.FromString(body)), NOW)

    # Made before they are measured, all of them.
    return least_us(take)


def _news(loads: list[Load]) -> Iterator[tuple[str, bytes]]:
    count = ROUNDS * CALLS
    several = zip(range(count), cycle(loads), strict=False)
    return iter(
        [
            (f"{one.substation_id}:1", wire.report_of(replace(one, sequence=2 + number)).SerializeToString())
            for number, one in several
        ]
    )


def a_car() -> Charge:
    """11 kW."""
    return Charge(
        key=Key("bench", "1"),
        vehicle_id="car",
        energy_j=None,
        max_w=11_000,
        floor_w=4_140,
        phases=3,
        departure_ms=None,
        allowed=frozenset(),
        evse_id="",
        attempt_id="",
        body=b"",
    )


def a_load(name: str, rng: Random) -> Load:
    """A substation of 100 kW with a few cars."""
    needs = [
        Need(rng.randrange(5, 40) * HOUR_MS * 1000, rng.randrange(1, 12) * HOUR_MS, 11_000)
        for _ in range(rng.randrange(3, 9))
    ]
    return Load(
        substation_id=name,
        epoch=NOW,
        sequence=1,
        admission_sequence=len(needs),
        generated_at_ms=NOW,
        rated_w=100_000,
        limit_w=100_000,
        limit_source=LimitSource.UNSPECIFIED,
        demand_w=sum(need.max_w for need in needs),
        required_w=sum(min(need.max_w, need.need_mj // need.left_ms) for need in needs),
        floor_w=4_140 * len(needs),
        committed_w=60_000,
        granted_w=60_000,
        measured_w=58_000,
        active_sessions=len(needs),
        charge_points=120,
        free_charge_points=120 - len(needs),
        accepting=True,
        ahead=outlook(needs),
    )


def table() -> list[Costs]:
    """All rows."""
    return [measure(size) for size in SIZES]


def main() -> None:
    """Prints the table."""
    print("| substations | " + " | ".join(f"pick: {kind}" for kind in KINDS) + " | reserve and release | report |")
    print("|" + " --- |" * (len(KINDS) + 3))
    for row in table():
        cells = [f"{us:.1f}" for us in (*row.picks.values(), row.reservation, row.report)]
        print(f"| {row.substations:,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
