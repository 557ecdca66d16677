"""Recorded charging sessions: reads a file into cars, and a day's cars into a schedule. No I/O."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta


class TraceError(Exception):
    """The file cannot be played. One line that names the file and, where there is one, line and column."""


@dataclass(frozen=True)
class Car:
    """One recorded session."""

    session_id: str
    vehicle_id: str
    arrival: datetime
    departure: datetime
    energy_kwh: float
    max_power_kw: float


@dataclass(frozen=True)
class Arrival:
    """A car of the day that is played: wall seconds from the start of the replay."""

    car: Car
    arrives_s: float
    leaves_s: float


@dataclass(frozen=True)
class _Columns:
    """How one source names what a car is."""

    vehicle: str
    arrival: str
    departure: str
    energy: str
    session: str = "session_id"
    power: str = "max_power_kw"

    def names(self) -> tuple[str, ...]:
        return (self.session, self.vehicle, self.arrival, self.departure, self.energy, self.power)


NORWAY = _Columns("user_id", "plug_in_local", "plug_out_local", "energy_kwh")
ACN = _Columns("session_id", "arrival_utc", "departure_utc", "requested_energy_kwh")


def read_cars(file: str, lines: Iterable[str]) -> list[Car]:
    """Every session of the file, in its order. `file` is its name, for errors."""
    reader = csv.DictReader(lines, strict=True)
    try:
        columns = _columns_of(file, reader.fieldnames or ())
        cars = [_car(_Row(file, reader.line_num, row), columns) for row in reader]
    except csv.Error as error:
        raise TraceError(f"{file}: line {reader.reader.line_num}: {error}") from None
    seen: set[str] = set()
    for car in cars:
        if car.session_id in seen:
            raise TraceError(f"{file}: session_id {car.session_id} is there twice")
        seen.add(car.session_id)
    return cars


def _columns_of(file: str, header: Iterable[str]) -> _Columns:
    header = set(header)
    for columns in (NORWAY, ACN):
        if columns.arrival in header:
            if missing := [name for name in columns.names() if name not in header]:
                raise TraceError(f"{file}: line 1: column {missing[0]} is missing")
            return columns
    raise TraceError(f"{file}: line 1: column {NORWAY.arrival} (or {ACN.arrival}) is missing")


@dataclass(frozen=True)
class _Row:
    """One line of the file, which knows where it stands."""

    file: str
    line: int
    values: Mapping[str, str | None]

    def error(self, column: str, wrong: str) -> TraceError:
        return TraceError(f"{self.file}: line {self.line}: column {column}: {wrong}")

    def text(self, column: str) -> str:
        value = self.values.get(column)
        if not value:
            raise self.error(column, "is empty")
        return value

    def number(self, column: str) -> float:
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise self.error(column, f"{text!r} is not a number above 0")
        return value

    def moment(self, column: str) -> datetime:
        text = self.text(column)
        try:
            # Local time or UTC: what counts is the clock on the wall of that place.
            return datetime.fromisoformat(text).replace(tzinfo=None)
        except ValueError:
            raise self.error(column, f"{text!r} is not a time such as 2019-12-10T08:30:00") from None


def _car(row: _Row, columns: _Columns) -> Car:
    car = Car(
        session_id=row.text(columns.session),
        vehicle_id=row.text(columns.vehicle),
        arrival=row.moment(columns.arrival),
        departure=row.moment(columns.departure),
        energy_kwh=row.number(columns.energy),
        max_power_kw=row.number(columns.power),
    )
    if car.departure <= car.arrival:
        raise row.error(columns.departure, f"is not after {columns.arrival}")
    return car


def cars_of(file: str, cars: Iterable[Car], day: date) -> list[Car]:
    """Those that plug in on that day, in order of arrival."""
    cars = list(cars)
    found = sorted((car for car in cars if car.arrival.date() == day), key=lambda car: (car.arrival, car.session_id))
    if not found:
        days = sorted({car.arrival.date() for car in cars})
        known = f"its days are {days[0]} to {days[-1]}" if days else "it has no sessions"
        raise TraceError(f"{file}: no car plugs in on {day}; {known}")
    return found


def schedule(cars: Iterable[Car], day: date, scale: float) -> Iterator[Arrival]:
    """When each comes and goes, if `scale` seconds of that day pass in one."""
    midnight = datetime.combine(day, time())
    for car in cars:
        yield Arrival(
            car,
            arrives_s=(car.arrival - midnight).total_seconds() / scale,
            leaves_s=(car.departure - midnight).total_seconds() / scale,
        )


def clock_at(day: date, scale: float, wall_s: float) -> datetime:
    """What the clock of the replayed day says, so many seconds after the start."""
    return datetime.combine(day, time()) + timedelta(seconds=wall_s * scale)
