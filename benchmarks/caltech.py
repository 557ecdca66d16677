"""Table c: one car park, the month of ACN-Sim's published comparison. `python -m benchmarks.caltech`.

Our policies run in the production station, with its floors; first come, round robin, earliest deadline and
least laxity are also acnportal's own, at its five-minute steps and with no floors.
"""

import argparse
from collections.abc import Callable, Sequence

from benchmarks.sim.month import LEASE_MS, Month, Outcome, outcome
from benchmarks.sim.placements import Home
from benchmarks.sim.traces import Visit, acn, most_at_once
from substation.completion import Completion
from substation.sharing import EqualShare, SharingPolicy
from substation.station import StationConfig
from substation.urgency import EarliestDeadline, LeastLaxity

LIMITS_KW = (10, 15, 20, 25, 30, 40, 50, 60, 70)
OURS: dict[str, Callable[[], SharingPolicy]] = {
    "equal share": EqualShare,
    "earliest deadline": EarliestDeadline,
    "least laxity": LeastLaxity,
    "ours": Completion,
}


def run(visits: Sequence[Visit], limit_kw: int, policy: str, seed: int = 1) -> Outcome:
    """One cell: all visits at one site under `limit_kw`."""
    config = StationConfig("caltech", limit_kw * 1000, most_at_once(visits), lease_ms=LEASE_MS)
    month = Month([config], OURS[policy], Home(), seed)
    month.play(visits)
    return outcome(month)


def main() -> None:
    """Prints the cells that are asked for; without arguments the whole table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, action="append", choices=LIMITS_KW, help="kW; may be given again")
    parser.add_argument("--policy", action="append", choices=list(OURS))
    parser.add_argument("--reference", action="store_true", help="acnportal's, and the offline optimum")
    asked = parser.parse_args()
    visits = acn()
    for limit in asked.limit or LIMITS_KW:
        for policy in asked.policy or OURS:
            got = run(visits, limit, policy)
            print(f"{limit} kW, {policy:<20} {got.energy:7.3f} {got.full:7.3f} {got.jain:7.4f}", flush=True)
        if asked.reference:
            _show_references(visits, limit)


def _show_references(visits: Sequence[Visit], limit_kw: int) -> None:
    # Needs the benchmarks' own packages; the rest of the table does not.
    from benchmarks import acn_reference, optimum  # noqa: PLC0415

    for name in acn_reference.ALGORITHMS:
        energy, full = acn_reference.run(visits, limit_kw, name)
        print(f"{limit_kw} kW, acnportal {name:<10} {energy:7.3f} {full:7.3f}", flush=True)
    print(f"{limit_kw} kW, offline optimum     {optimum.percent(visits, limit_kw * 1000):7.3f}", flush=True)


if __name__ == "__main__":
    main()
