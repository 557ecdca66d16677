"""`gridmesh rush-hour` and `gridmesh replay`: many cars that charge through a running gateway."""

import secrets
from datetime import date, datetime
from pathlib import Path

import click

from fleet import replay, rush_hour, screen, trace
from fleet.cli import EXIT_OK, EXIT_REFUSED, Asked, Number, command

_connections = click.option(
    "--connections", type=Number(1, 10_000, int), default=64, show_default=True, help="At most."
)


@command("rush-hour", "gridmesh rush-hour", "gridmesh rush-hour --cars 300 --seconds 0")
@_connections
@click.option("--cars", type=Number(1, 100_000, int), default=30, show_default=True, help="How many.")
@click.option("--seconds", type=Number(0, 3600), default=3.0, show_default=True, help="Within; 0 is at once.")
@click.option("--max-power-kw", type=Number(0.001, 4000), default=11.0, show_default=True, help="Of each.")
@click.option("--energy-kwh", type=Number(0.001, 1000), default=20.0, show_default=True, help="For each.")
@click.option(
    "--watch-seconds", type=Number(0, 3600), default=rush_hour.WATCH_S, show_default=True, help="How long afterwards."
)
async def rush_hour_of_cars(
    asked: Asked,
    connections: int,
    cars: int,
    seconds: float,
    max_power_kw: float,
    energy_kwh: float,
    watch_seconds: float,
) -> int:
    """Send equal cars within seconds, and show how they spread."""
    del connections
    rush = rush_hour.Rush(secrets.token_hex(4), cars, seconds, max_power_kw, energy_kwh)
    result = await rush_hour.run(asked.gateway, rush, watch_seconds)
    if asked.json:
        asked.show(result.as_json())
    else:
        screen.print_rush_hour(result)
    return EXIT_OK if result.ok else EXIT_REFUSED


class _Day(click.ParamType[date]):
    name = "day"

    def convert(self, value: str | date, param: click.Parameter | None, ctx: click.Context | None) -> date:
        try:
            return datetime.fromisoformat(f"{value}T00:00").date()
        except ValueError:
            self.fail(f"{value!r} is not a day such as 2019-12-10", param, ctx)


@command(
    "replay",
    "gridmesh replay benchmarks/data/norway12_2019-12_2020-01_normalised.csv --day 2019-12-10",
    "# at 288 times real time, five minutes for the day: gridmesh up --time-scale 288",
)
@_connections
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--day", type=_Day(), required=True, help="Which of its days, such as 2019-12-10.")
@click.option(
    "--tail-hours",
    type=Number(0, 240),
    default=replay.TAIL_HOURS,
    show_default=True,
    help="How long after midnight those who stay and are not full are waited for.",
)
async def replay_day(asked: Asked, connections: int, file: Path, day: date, tail_hours: float) -> int:
    """Play a day of recorded sessions from FILE, one like those in benchmarks/data."""
    del connections
    cars = trace.cars_of(str(file), _read(file), day)
    result = await replay.run(asked.gateway, replay.Day(secrets.token_hex(4), day, cars, tail_hours))
    if asked.json:
        asked.show(result.as_json())
    else:
        screen.print_replay(result)
    return EXIT_OK if result.ok else EXIT_REFUSED


def _read(file: Path) -> list[trace.Car]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return trace.read_cars(str(file), lines)
    except OSError as error:
        raise trace.TraceError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise trace.TraceError(f"{file}: is not a text file in UTF-8") from None
