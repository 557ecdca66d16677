"""Upper bounds for cars that stay where they are placed: `python -m benchmarks.bound --total 60`.

Both are linear programs that know every car beforehand. `any placement`: each car may be split over the sites, a
share x of it with x of what it asks for and of its power, which at a site is at most the site's limit; in slots
of an hour, of which it has the time that it is there. Left out are that a car is whole, floors, plugs and not
knowing who comes later. No placement with any sharing brings more, and every one of these makes the truth lower.
`any sharing`: the cars are where a rule has placed them; what no sharing can exceed from there.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from benchmarks import pooling
from benchmarks.optimum import most_energy_j
from benchmarks.sim.month import Month, Served
from benchmarks.sim.traces import Visit, by_site, norway

SLOT_MS = 3_600_000


def presence_ms(visit: Visit, slot_ms: int) -> dict[int, int]:
    """Milliseconds of its stay in each slot."""
    slots = range(visit.arrives_ms // slot_ms, -(-visit.leaves_ms // slot_ms))
    return {k: min(visit.leaves_ms, (k + 1) * slot_ms) - max(visit.arrives_ms, k * slot_ms) for k in slots}


def most_pinned_j(visits: Sequence[Visit], limits_w: Sequence[int], slot_ms: int = SLOT_MS) -> float:
    """Joules that no schedule can exceed in which each car charges at one of the sites with these limits."""
    stays = [presence_ms(visit, slot_ms) for visit in visits]
    sites = len(limits_w)
    car = np.repeat(np.arange(len(visits)), [len(stay) for stay in stays])
    slot = np.array([k for stay in stays for k in stay])
    slot -= slot.min()
    seconds = np.array([ms / 1000 for stay in stays for ms in stay.values()])
    max_w = np.array([visit.max_w for visit in visits], dtype=float)
    due_j = np.array([visit.due_j for visit in visits], dtype=float)
    # Variables: the share of each car at each site, then megajoules of each car, slot and site.
    pieces, slots = len(car), int(slot.max()) + 1
    energy = len(visits) * sites + np.arange(pieces * sites)
    site = np.tile(np.arange(sites), pieces)
    piece_car, piece_slot = np.repeat(car, sites), np.repeat(slot, sites)
    share = piece_car * sites + site
    power_mj = np.minimum(max_w[piece_car], np.array(limits_w, dtype=float)[site]) * np.repeat(seconds, sites) / 1e6
    own = np.arange(len(visits) * sites)
    # Rows: power of a piece, energy of a car at a site, limit of a site in a slot, one car in all.
    first = np.cumsum([0, len(energy), len(own), slots * sites])
    entries = [
        (first[0] + np.arange(len(energy)), energy, np.ones(len(energy))),
        (first[0] + np.arange(len(energy)), share, -power_mj),
        (first[1] + share, energy, np.ones(len(energy))),
        (first[1] + own, own, -np.repeat(due_j, sites) / 1e6),
        (first[2] + piece_slot * sites + site, energy, np.ones(len(energy))),
        (first[3] + own // sites, own, np.ones(len(own))),
    ]
    rows, columns, values = (np.concatenate([entry[n] for entry in entries]) for n in range(3))
    slot_mj = np.tile(np.array(limits_w, dtype=float) * slot_ms / 1e9, slots)
    most = np.concatenate([np.zeros(len(energy) + len(own)), slot_mj, np.ones(len(visits))])
    worth = np.concatenate([np.zeros(len(own)), np.ones(len(energy))])
    matrix = coo_matrix((values, (rows, columns)), shape=(len(most), len(worth))).tocsr()
    solved = linprog(-worth, A_ub=matrix, b_ub=most, method="highs-ipm", options={"presolve": True})
    if solved.status != 0:
        raise RuntimeError(solved.message)
    # What the multipliers prove holds whatever the tolerance: no share is over 1, no energy over its power.
    prices = np.maximum(0, -solved.ineqlin.marginals)
    left = np.maximum(0, worth - matrix.T @ prices)
    return float(prices @ most + left @ np.concatenate([np.ones(len(own)), power_mj])) * 1e6


def most_where_placed_j(limits_w: dict[str, int], served: Sequence[Served]) -> float:
    """Joules that no sharing can exceed when the cars are where these were placed."""
    cars: dict[str, list[Visit]] = {}
    for one in served:
        if one.placed is not None:
            cars.setdefault(one.placed, []).append(one.visit)
    return sum(most_energy_j(own, limits_w[name]) for name, own in cars.items())


def main() -> None:
    """Prints what no rule can exceed, in percent of what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--month", default="2020-01")
    parser.add_argument("--total", type=int, action="append", choices=pooling.TOTALS_KW, help="kW; may be given again")
    parser.add_argument("--placement", action="append", choices=list(pooling.PLACEMENTS), help="instead: any sharing")
    parser.add_argument("--sharing", default="ours", choices=list(pooling.SHARINGS), help="that it was placed with")
    asked = parser.parse_args()
    visits = norway(asked.month)
    due_j = sum(visit.due_j for visit in visits)
    for total in asked.total or (60, 75):
        configs = pooling.configs(by_site(visits), total)
        if not asked.placement:
            most = most_pinned_j(visits, [config.rated_w for config in configs])
            print(f"{total} kW, any placement, any sharing: at most {100 * most / due_j:.3f} %", flush=True)
        for name in asked.placement or ():
            how = pooling.SHARINGS[asked.sharing]
            placement = pooling.PLACEMENTS[name](pooling.SEED)
            month = Month(configs, how.policy, placement, pooling.SEED, gate=how.gate)
            limits_w = {config.substation_id: config.rated_w for config in configs}
            most = most_where_placed_j(limits_w, month.play(visits))
            print(f"{total} kW, {name}, any sharing: at most {100 * most / due_j:.3f} %", flush=True)


if __name__ == "__main__":
    main()
