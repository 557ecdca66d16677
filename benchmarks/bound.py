"""Upper bounds for cars that stay where they are placed: `python -m benchmarks.bound --total 60`.

`any placement`: the pooled optimum of `optimum.py`, which no placement with any sharing exceeds: one substation with
all the power, no floors, everything known beforehand.
`any sharing`: the cars are where a rule has placed them; what no sharing can exceed from there.
"""

import argparse
from collections.abc import Sequence

from benchmarks import pooling
from benchmarks.optimum import most_energy_j, percent
from benchmarks.sim.month import Month, Served
from benchmarks.sim.traces import Visit, by_site, norway


def most_where_placed_j(limits_w: dict[str, int], served: Sequence[Served]) -> float:
    """Joules that no sharing can exceed when the cars are where these were placed."""
    cars: dict[str, list[Visit]] = {}
    for one in served:
        if one.placed is not None:
            cars.setdefault(one.placed, []).append(one.visit)
    return sum(most_energy_j(own, limits_w[name]) for name, own in cars.items())


def where_placed(visits: Sequence[Visit], total_kw: int, placement: str, sharing: str) -> float:
    """Percent of what the visits ask for that no sharing can exceed when this pair has placed them."""
    configs = pooling.configs(by_site(visits), total_kw)
    how = pooling.SHARINGS[sharing]
    month = Month(configs, how.policy, pooling.PLACEMENTS[placement](pooling.SEED), pooling.SEED, gate=how.gate)
    limits_w = {config.substation_id: config.rated_w for config in configs}
    return 100 * most_where_placed_j(limits_w, month.play(visits)) / sum(visit.due_j for visit in visits)


def main() -> None:
    """Prints what no rule can exceed, in percent of what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--month", default="2020-01")
    parser.add_argument("--total", type=int, action="append", choices=pooling.TOTALS_KW, help="kW; may be given again")
    parser.add_argument("--placement", action="append", choices=list(pooling.PLACEMENTS))
    parser.add_argument("--sharing", default="ours", choices=list(pooling.SHARINGS), help="that it was placed with")
    asked = parser.parse_args()
    visits = norway(asked.month)
    for total in asked.total or (60, 75):
        print(f"{total} kW, any placement, any sharing: at most {percent(visits, total * 1000):.3f} %", flush=True)
        for name in asked.placement or ("ours",):
            most = where_placed(visits, total, name, asked.sharing)
            print(f"{total} kW, placed by {name}, any sharing: at most {most:.3f} %", flush=True)


if __name__ == "__main__":
    main()
