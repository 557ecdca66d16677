"""Real sessions as requests: who comes when, to which site, and what for."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path

from mesh.units import joules, watts

DATA = Path(__file__).parents[1] / "data"
NORWAY = DATA / "norway12_2019-12_2020-01_normalised.csv"
ACN = DATA / "acn_caltech_2019-03_sessions.csv"
# IEC 61851: 6 A at 230 V, on one phase up to 7.4 kW and on three above.
FLOOR_1_W, FLOOR_3_W, ONE_PHASE_W = 1_380, 4_140, 7_400


@dataclass(frozen=True, slots=True)
class Visit:
    """One car's real stay. Times in milliseconds, energy in joules, power in watts.

    What it takes may differ from what its driver says; None: the driver says nothing of the departure.
    """

    name: str
    site: str
    arrives_ms: int
    leaves_ms: int
    energy_j: int
    max_w: int
    says_leaves_ms: int | None
    says_energy_j: int

    @property
    def floor_w(self) -> int:
        return min(self.max_w, FLOOR_1_W if self.max_w <= ONE_PHASE_W else FLOOR_3_W)

    @property
    def due_j(self) -> int:
        """What full service brings it: what it asked for, or less if it takes less."""
        return min(self.energy_j, self.says_energy_j)


def _visit(name: str, site: str, stay: tuple[datetime, datetime], kwh: str, kw: str) -> Visit:
    arrives_ms, leaves_ms = (round(time.timestamp() * 1000) for time in stay)
    energy_j, max_w = joules(float(kwh)), watts(float(kw))
    return Visit(name, site, arrives_ms, leaves_ms, energy_j, max_w, leaves_ms, energy_j)


def norway(month: str) -> list[Visit]:
    """Sessions that begin in `month`, as 2019-12, in the order of arrival. Local time is taken as UTC."""
    visits = []
    with NORWAY.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["plug_in_local"].startswith(month):
                times = [datetime.fromisoformat(row[name]) for name in ("plug_in_local", "plug_out_local")]
                stay = times[0].replace(tzinfo=UTC), times[1].replace(tzinfo=UTC)
                visits.append(_visit(row["session_id"], row["site_id"], stay, row["energy_kwh"], row["max_power_kw"]))
    return sorted(visits, key=lambda visit: (visit.arrives_ms, visit.name))


def acn() -> list[Visit]:
    """The 954 sessions of March 2019, one site, in the order of arrival."""
    with ACN.open(newline="") as file:
        visits = [
            _visit(
                row["session_id"],
                "CALTECH",
                (datetime.fromisoformat(row["arrival_utc"]), datetime.fromisoformat(row["departure_utc"])),
                row["requested_energy_kwh"],
                row["max_power_kw"],
            )
            for row in csv.DictReader(file)
        ]
    return sorted(visits, key=lambda visit: (visit.arrives_ms, visit.name))


def by_site(visits: Iterable[Visit]) -> dict[str, list[Visit]]:
    """The visits of each site, sites in the order of their names."""
    sites: dict[str, list[Visit]] = {}
    for visit in visits:
        sites.setdefault(visit.site, []).append(visit)
    return dict(sorted(sites.items()))


def uncontrolled_peak_w(visits: Iterable[Visit]) -> int:
    """The most that these cars would draw together if each charged at full power from its arrival."""
    edges: list[tuple[int, int]] = []
    for visit in visits:
        edges += [
            (visit.arrives_ms, visit.max_w),
            (visit.arrives_ms + visit.energy_j * 1000 // visit.max_w, -visit.max_w),
        ]
    return max(accumulate(step for _, step in sorted(edges)))


def most_at_once(visits: Iterable[Visit]) -> int:
    """The most of these cars that are plugged in at the same time."""
    edges = [(time, step) for visit in visits for time, step in ((visit.arrives_ms, 1), (visit.leaves_ms, -1))]
    return max(accumulate(step for _, step in sorted(edges)))


def ratings_w(sites: dict[str, list[Visit]], total_w: int) -> dict[str, int]:
    """Shares of `total_w` in proportion to each site's own uncontrolled peak, in whole watts."""
    peaks = {name: uncontrolled_peak_w(visits) for name, visits in sites.items()}
    whole = sum(peaks.values())
    return {name: total_w * peak // whole for name, peak in peaks.items()}
