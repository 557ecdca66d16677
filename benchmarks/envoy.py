"""Our mesh beside Envoy in front of the same substations: `make bench-envoy` makes the tables in benchmarks/README.md.

For a look at what a charge costs, with no table written and without Envoy:

    .venv/bin/python -m benchmarks.envoy --arms ours --concurrency 64 --seconds 5 --rounds 1

starts our mesh alone, asks it for 5 s with 64 in flight, and prints charges per second, latency, and CPU seconds per
10,000 charges of each process (from /proc, from the first request until the last session has ended), the client's
beside it. The arm with Envoy needs `make .venv-bench/.bench` and .venv-bench/bin/python.
"""

import argparse
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks import arms, ledgers, loads, usage
from benchmarks.arms import Arm
from benchmarks.loads import Asked, Load

CONCURRENCY = (1, 16, 64, 256)
ROUNDS = 5
SECONDS = 4.0
WARM_UP_S = 1.0

Record = dict[str, Any]


def measure(arm: Arm, load: Load, in_flight: int, for_s: float) -> Record:
    """One cell. WrongAnswerError, or AssertionError where the ledgers say otherwise than the replies."""
    before, client_before = arm.cpu_s(), usage.cpu_s(os.getpid())
    asked = load(arm, in_flight, for_s)
    client_s = usage.cpu_s(os.getpid()) - client_before
    arm.settle()
    used = {name: after - before[name] for name, after in arm.cpu_s().items()}
    rss = arm.rss_mb()
    charges, by_substation = len(asked.times) * asked.charges_per_call, arm.ledgers.news()
    kept = [one for sessions in by_substation.values() for one in sessions]
    check(asked, kept)
    return {
        "arm": arm.name,
        "in_flight": in_flight,
        "charges": charges,
        **_speed(asked),
        "cpu": {name: each * 10_000 / charges for name, each in (used | {"client": client_s}).items()},
        "rss_mb": rss,
        "live": ledgers.peak_live(kept),
        "cv": ledgers.spread(by_substation),
    }


def check(asked: Asked, kept: list[ledgers.Kept]) -> None:
    """Every charge was answered once, with a session of its own, and the ledgers hold these and no others."""
    told = list(asked.read())
    assert len(told) == len(asked.times) * asked.charges_per_call, "a charge was not answered"
    assert len({session for _, session in told}) == len(told), "two charges were told one session"
    assert sorted(told) == sorted((one.request_id, one.session_id) for one in kept), "the ledgers hold others"


def _speed(asked: Asked) -> Record:
    """Of what came while it was asked: what was still under way then is served with fewer in flight."""
    took = [one.came_s - one.sent_s for one in asked.times if one.came_s < asked.ends_s]
    percentiles = quantiles(took, n=100)
    return {
        "per_second": len(took) * asked.charges_per_call / (asked.ends_s - asked.began_s),
        "p50_ms": percentiles[49] * 1000,
        "p99_ms": percentiles[98] * 1000,
    }


def show(record: Record) -> str:
    """One line of a cell."""
    cpu = " + ".join(f"{name} {each:.2f}" for name, each in record["cpu"].items() if name != "client")
    total = sum(each for name, each in record["cpu"].items() if name != "client")
    return (
        f"{record['arm']:20} {record['in_flight']:4} in flight  {record['per_second']:7.0f}/s  "
        f"p50 {record['p50_ms']:6.1f} ms  p99 {record['p99_ms']:6.1f} ms  "
        f"CPU s per 10,000: {total:.2f} = {cpu}; client {record['cpu']['client']:.2f}  "
        f"live {record['live']}  CV {record['cv']:.3f}"
    )


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=arms.NAMES, default=list(arms.NAMES))
    parser.add_argument("--concurrency", nargs="+", type=int, default=CONCURRENCY, metavar="N", help="in flight")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of a cell ({SECONDS:g})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"each measures every cell once ({ROUNDS})")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stopping:
        running = [stopping.enter_context(arms.running(arms.NAMES[name], Path(folder) / name)) for name in told.arms]
        for arm in running:
            measure(arm, loads.http_single, 16, WARM_UP_S)
        for _ in range(told.rounds):
            for in_flight in told.concurrency:
                for arm in running:
                    print(show(measure(arm, loads.http_single, in_flight, told.seconds)), flush=True)


if __name__ == "__main__":
    main()
