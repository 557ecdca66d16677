"""What a run has shown, as numbers, as JSON and as one line. No I/O."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet.replies import Load, Register
from fleet.trace import Car

# Registers count to the millijoule, files to the hundredth of a kWh.
SERVED_SHARE = 0.99
SETTLED_SHARE = 0.9999


def spread(values: Sequence[float]) -> float:
    """The largest minus the smallest."""
    return max(values) - min(values) if values else 0.0


# --- rush hour -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RushRow:
    """One substation after a rush hour. `load` is None when it says nothing any more."""

    substation_id: str
    sessions: int
    load: Load | None
    over_limit_s: float


@dataclass(frozen=True)
class RushHour:
    """What became of equal cars."""

    cars: int
    rows: tuple[RushRow, ...]
    refusals: Mapping[str, int]

    @property
    def admitted(self) -> int:
        return sum(row.sessions for row in self.rows)

    @property
    def over_limit_s(self) -> float:
        return sum(row.over_limit_s for row in self.rows)

    @property
    def sessions_spread(self) -> int:
        return int(spread([row.sessions for row in self.rows]))

    @property
    def utilisation_spread(self) -> float:
        return spread([row.load.utilisation for row in self.rows if row.load])

    @property
    def ok(self) -> bool:
        return self.admitted == self.cars and self.over_limit_s == 0 and all(row.load for row in self.rows)

    @property
    def verdict(self) -> str:
        """One line."""
        admitted = f"all {self.cars} cars admitted" if self.admitted == self.cars else self._missing
        silent = [row.substation_id for row in self.rows if not row.load]
        heard = f"; no report from {', '.join(silent)}" if silent else ""
        shares = "/".join(str(row.sessions) for row in self.rows)
        return f"{admitted}, {shares}, {self.over_limit_s:g} s over the limit{heard}"

    @property
    def _missing(self) -> str:
        return f"only {self.admitted} of {self.cars} cars admitted"

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "cars": self.cars,
            "admitted": self.admitted,
            "refusals": dict(self.refusals),
            "sessions_spread": self.sessions_spread,
            "utilisation_spread": round(self.utilisation_spread, 4),
            "over_limit_seconds": self.over_limit_s,
            "substations": [
                {
                    "substation_id": row.substation_id,
                    "sessions": row.sessions,
                    "utilisation": round(row.load.utilisation, 4) if row.load else None,
                    "committed_kw": row.load.committed_kw if row.load else None,
                    "limit_kw": row.load.limit_kw if row.load else None,
                    "over_limit_seconds": row.over_limit_s,
                }
                for row in self.rows
            ],
        }


def rush_hour(
    cars: int,
    placed: Mapping[str, int],
    refusals: Mapping[str, int],
    after: Mapping[str, Load],
    over_limit_s: Mapping[str, float],
) -> RushHour:
    """Puts together what was counted by substation and by reason."""
    names = sorted({*placed, *after, *over_limit_s})
    rows = (RushRow(name, placed.get(name, 0), after.get(name), over_limit_s.get(name, 0.0)) for name in names)
    return RushHour(cars, tuple(rows), refusals)


# --- replay --------------------------------------------------------------------------------------


@dataclass
class Stay:
    """One car's day as far as it is known."""

    car: Car
    session_id: str | None = None
    substation_id: str | None = None
    register: Register | None = None
    # The mesh told of a session that it does not know any more.
    lost: bool = False

    @property
    def delivered_kwh(self) -> float:
        return self.register.delivered_kwh if self.register else 0.0

    @property
    def served(self) -> bool:
        return self.delivered_kwh >= SERVED_SHARE * self.car.energy_kwh

    @property
    def settled(self) -> bool:
        """Nothing more will come of it."""
        if self.session_id is None or self.lost:
            return True
        full = self.delivered_kwh >= SETTLED_SHARE * self.car.energy_kwh
        return self.register is not None and (self.register.ended or full)


@dataclass(frozen=True)
class ReplayRow:
    """One substation, or all together: then `substation_id` is "all"."""

    substation_id: str
    cars: int
    served: int
    asked_kwh: float
    delivered_kwh: float
    peak_kw: float
    limit_kw: float
    over_limit_s: float


@dataclass(frozen=True)
class Peak:
    """The most that was seen committed, and the limit then."""

    committed_kw: float = 0.0
    limit_kw: float = 0.0


@dataclass(frozen=True)
class Replay:
    """What a day has come to."""

    day: str
    time_scale: float
    rows: tuple[ReplayRow, ...]
    total: ReplayRow
    not_admitted: int
    unsettled: int
    lost: int
    refusals: Mapping[str, int] = field(default_factory=Counter)

    @property
    def delivered_share(self) -> float:
        return self.total.delivered_kwh / self.total.asked_kwh

    @property
    def served_share(self) -> float:
        return self.total.served / self.total.cars

    @property
    def ok(self) -> bool:
        """Whether the mesh kept what it promises; how much it could deliver is another matter."""
        return self.total.over_limit_s == 0 and self.lost == 0

    @property
    def verdict(self) -> str:
        """One line."""
        line = (
            f"{self.total.delivered_kwh:.1f} of {self.total.asked_kwh:.1f} kWh delivered ({self.delivered_share:.1%}), "
            f"{self.total.served} of {self.total.cars} cars fully served ({self.served_share:.1%}), "
            f"{self.total.over_limit_s:g} s over the limit"
        )
        for count, words in (
            (self.not_admitted, "never admitted"),
            (self.unsettled, "still charging"),
            (self.lost, "lost by the mesh"),
        ):
            line += f", {count} {words}" if count else ""
        return line

    def as_json(self) -> dict[str, Any]:
        return {
            "day": self.day,
            "time_scale": self.time_scale,
            "cars": self.total.cars,
            "asked_kwh": round(self.total.asked_kwh, 3),
            "delivered_kwh": round(self.total.delivered_kwh, 3),
            "delivered_share": round(self.delivered_share, 4),
            "fully_served": self.total.served,
            "fully_served_share": round(self.served_share, 4),
            "not_admitted": self.not_admitted,
            "still_charging": self.unsettled,
            "lost": self.lost,
            "refusals": dict(self.refusals),
            "over_limit_seconds": self.total.over_limit_s,
            "substations": [
                {
                    "substation_id": row.substation_id,
                    "cars": row.cars,
                    "fully_served": row.served,
                    "asked_kwh": round(row.asked_kwh, 3),
                    "delivered_kwh": round(row.delivered_kwh, 3),
                    "peak_committed_kw": row.peak_kw,
                    "limit_kw": row.limit_kw,
                    "over_limit_seconds": row.over_limit_s,
                }
                for row in self.rows
            ],
        }


def replay(
    day: str,
    time_scale: float,
    stays: Sequence[Stay],
    refusals: Mapping[str, int],
    peaks: Mapping[str, Peak],
    over_limit_s: Mapping[str, float],
) -> Replay:
    """Puts together what each car got and what each substation showed."""
    names = sorted({*over_limit_s, *(stay.substation_id for stay in stays if stay.substation_id)})
    rows = tuple(
        _row(name, [s for s in stays if s.substation_id == name], peaks.get(name, Peak()), over_limit_s.get(name, 0.0))
        for name in names
    )
    every = Peak(sum(row.peak_kw for row in rows), sum(row.limit_kw for row in rows))
    return Replay(
        day=day,
        time_scale=time_scale,
        rows=rows,
        total=_row("all", stays, peaks.get("all", every), sum(row.over_limit_s for row in rows)),
        not_admitted=sum(stay.session_id is None for stay in stays),
        unsettled=sum(not stay.settled for stay in stays),
        lost=sum(stay.lost for stay in stays),
        refusals=refusals,
    )


def _row(name: str, stays: Sequence[Stay], peak: Peak, over_limit_s: float) -> ReplayRow:
    return ReplayRow(
        substation_id=name,
        cars=len(stays),
        served=sum(stay.served for stay in stays),
        asked_kwh=sum(stay.car.energy_kwh for stay in stays),
        delivered_kwh=sum(stay.delivered_kwh for stay in stays),
        peak_kw=peak.committed_kw,
        limit_kw=peak.limit_kw,
        over_limit_s=over_limit_s,
    )


def peaks_of(peaks: Mapping[str, Peak], loads: Mapping[str, Load]) -> dict[str, Peak]:
    """The peaks with one more look at the loads; "all" is the peak of the sum."""
    now = {name: Peak(load.committed_kw, load.limit_kw) for name, load in loads.items()}
    now["all"] = Peak(sum(p.committed_kw for p in now.values()), sum(p.limit_kw for p in now.values()))
    return {
        name: max(peaks.get(name, Peak()), now.get(name, Peak()), key=lambda peak: peak.committed_kw)
        for name in {*peaks, *now}
    }
