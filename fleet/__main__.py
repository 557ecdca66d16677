"""`python -m fleet rush-hour` and `python -m fleet replay`: cars that charge through a running gateway."""

import argparse
import asyncio
import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from fleet import replay, rush_hour, screen, trace
from fleet.gateway import GatewayError, open_gateway

EXIT_NOT_OK, EXIT_CANNOT, EXIT_INTERRUPTED = 1, 2, 130


def _number(low: float, high: float, kind: Callable[[str], float] = float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            words = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {words} from {low:g} to {high:g}")
        return value

    return parse


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day such as 2019-12-10") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fleet", description=__doc__)
    shared = argparse.ArgumentParser(add_help=False)
    url = os.environ.get("FLEET_URL", "http://localhost:8080")
    shared.add_argument("--url", default=url, help="the gateway (FLEET_URL; default: %(default)s)")
    shared.add_argument("--connections", type=_number(1, 10_000, int), default=64, help="at most (default: 64)")
    commands = parser.add_subparsers(dest="command", required=True)
    rush = commands.add_parser("rush-hour", parents=[shared], help="equal cars within a few seconds")
    rush.add_argument("--cars", type=_number(1, 100_000, int), default=30, help="how many (default: 30)")
    rush.add_argument("--seconds", type=_number(0, 3600), default=3.0, help="within; 0 is at once (default: 3)")
    rush.add_argument("--max-power-kw", type=_number(0.001, 4000), default=11.0, help="each (default: 11)")
    rush.add_argument("--energy-kwh", type=_number(0.001, 1000), default=20.0, help="each (default: 20)")
    rush.add_argument(
        "--watch-seconds", type=_number(0, 3600), default=rush_hour.WATCH_S, help="afterwards (default: %(default)g)"
    )
    day = commands.add_parser("replay", parents=[shared], help="a day of recorded sessions")
    day.add_argument("file", metavar="FILE", type=Path, help="a sessions file such as those in benchmarks/data")
    day.add_argument("--day", type=_day, required=True, help="which of its days, such as 2019-12-10")
    day.add_argument(
        "--tail-hours",
        type=_number(0, 240),
        default=replay.TAIL_HOURS,
        help="how long after midnight those who stay and are not full are waited for (default: 24)",
    )
    day.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


async def _rush_hour(args: argparse.Namespace) -> int:
    rush = rush_hour.Rush(secrets.token_hex(4), args.cars, args.seconds, args.max_power_kw, args.energy_kwh)
    async with open_gateway(args.url, args.connections) as gateway:
        result = await rush_hour.run(gateway, rush, args.watch_seconds)
    screen.print_rush_hour(result)
    return 0 if result.ok else EXIT_NOT_OK


async def _replay(args: argparse.Namespace) -> int:
    cars = trace.cars_of(str(args.file), _read(args.file), args.day)
    async with open_gateway(args.url, args.connections) as gateway:
        day = replay.Day(secrets.token_hex(4), args.day, cars, args.tail_hours)
        result = await replay.run(gateway, day)
    if args.json:
        print(json.dumps(result.as_json(), indent=2))
    else:
        screen.print_replay(result)
    return 0 if result.ok else EXIT_NOT_OK


def _read(file: Path) -> list[trace.Car]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return trace.read_cars(str(file), lines)
    except OSError as error:
        raise trace.TraceError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise trace.TraceError(f"{file}: is not a text file in UTF-8") from None


def main(argv: Sequence[str]) -> int:
    """0 when the mesh kept its promises, 1 when not, 2 with one line when there was nothing to see."""
    args = _parser().parse_args(argv)
    commands = {"rush-hour": _rush_hour, "replay": _replay}
    try:
        return asyncio.run(commands[args.command](args))
    except (GatewayError, trace.TraceError) as error:
        print(f"fleet: {error}", file=sys.stderr)
        return EXIT_CANNOT
    except KeyboardInterrupt:
        print("fleet: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
