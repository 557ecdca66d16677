"""The command line. As `python -m fleet` without `up`, for where only the client's side is, as in the container."""

import sys
from collections.abc import Sequence

import click

from fleet import charging, cli, examination, operating, runs, watching
from fleet.examination import CannotStart


def commands(cannot_start: CannotStart | None = None) -> list[click.Command]:
    """All of the gateway's client."""
    return [
        charging.charge,
        charging.sessions,
        charging.stop,
        watching.watch,
        operating.substations,
        operating.limit,
        operating.drain,
        operating.undrain,
        examination.make(cannot_start),
        runs.rush_hour_of_cars,
        runs.replay_day,
    ]


def main(argv: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    return cli.main(commands(), argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
