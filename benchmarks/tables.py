"""Makes the tables anew: `python -m benchmarks.tables`, or only some of them by name, as in `... a d`.

Figures go to benchmarks/results/ as JSON, from which `benchmarks.render` writes benchmarks/README.md and the plots.
Cells are independent of one another and run on all cores; all but table d, which is measured, come out the same
to the last digit in any order.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random

from benchmarks import acn_reference, bound, caltech, costs, faults, ingest, optimum, pooling, render, routing
from benchmarks.sim.month import Outcome
from benchmarks.sim.traces import acn, norway

RESULTS = Path(__file__).parent / "results"
MONTH = "2020-01"
SEEDS = range(1, 21)
# A hundred substations average over themselves.
ROUTING_SEEDS = {10: range(1, 6), 100: range(1, 2)}
# What a sceptic's rows compare: ours with what anyone would use instead.
RIVALS = (("ours", "ours"), ("least utilisation", "least laxity"))
DOUBTED_KW = (60,)

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell is, and the work that gives its figures."""

    label: Mapping[str, object]
    work: Callable[[], Figures]

    def record(self) -> dict[str, object]:
        return {**self.label, **self.work()}


# --- a: routing -------------------------------------------------------------------------------------


def _spread(rule: str, row: routing.Row) -> Figures:
    tally = routing.play(rule, row)
    return {"cv": tally.cv, "refused": tally.refused_percent, "herd": tally.herd}


def cells_a() -> Iterator[Cell]:
    """Rules by rows, for each seed."""
    for substations, period_s, balancers, ratings in itertools.product(
        ROUTING_SEEDS, (None, 1, 10, 60), (1, 4), routing.PLUGS
    ):
        for seed, rule in itertools.product(ROUTING_SEEDS[substations], routing.ALL):
            row = routing.Row(period_s, balancers, substations, ratings, seed)
            yield Cell({**asdict(row), "rule": rule}, partial(_spread, rule, row))


# --- b: pooling -------------------------------------------------------------------------------------


def _plain(total_kw: int, placement: str, sharing: str) -> Figures:
    return _figures(pooling.run(norway(MONTH), total_kw, placement, sharing))


def _figures(got: Outcome) -> Figures:
    return {"energy": got.energy, "full": got.full, "jain": got.jain, "refused": got.refused}


def _pooled(total_kw: int) -> Figures:
    return {"energy": optimum.percent(norway(MONTH), total_kw * 1000)}


def _placed(total_kw: int) -> Figures:
    return {"energy": bound.where_placed(norway(MONTH), total_kw, "ours", "ours")}


def cells_b() -> Iterator[Cell]:
    """Placements by sharings, for each total."""
    for total, placement, sharing in itertools.product(pooling.TOTALS_KW, pooling.PLACEMENTS, pooling.SHARINGS):
        label = {"total_kw": total, "placement": placement, "sharing": sharing}
        yield Cell(label, partial(_plain, total, placement, sharing))
    for total in pooling.TOTALS_KW:
        yield Cell({"total_kw": total, "placement": render.PLACED, "sharing": render.BOUND}, partial(_placed, total))
        yield Cell({"total_kw": total, "placement": render.POOLED, "sharing": render.OPTIMUM}, partial(_pooled, total))


def _doubted(doubt: str, total_kw: int, rival: tuple[str, str], seed: int) -> Figures:
    visits = norway(MONTH)
    told = pooling.DOUBTS[doubt](visits, Random(seed))
    return _figures(pooling.run(told, total_kw, *rival, seed=seed, as_rated=visits))


def _feeders(rival: tuple[str, str], seed: int) -> Figures:
    return _figures(pooling.run_feeders(norway(MONTH), *rival, seed=seed))


def cells_doubts() -> Iterator[Cell]:
    """What a sceptic asks, for each seed."""
    for doubt, total, rival, seed in itertools.product(pooling.DOUBTS, DOUBTED_KW, RIVALS, SEEDS):
        label = {"doubt": doubt, "total_kw": total, "rule": ", ".join(rival), "seed": seed}
        yield Cell(label, partial(_doubted, doubt, total, rival, seed))
    for rival, seed in itertools.product(RIVALS, SEEDS):
        label = {"doubt": render.FEEDERS, "total_kw": pooling.FEEDERS_KW, "rule": ", ".join(rival), "seed": seed}
        yield Cell(label, partial(_feeders, rival, seed))


# --- c: one car park --------------------------------------------------------------------------------


def _ours_at_caltech(limit_kw: int, policy: str) -> Figures:
    return _figures(caltech.run(acn(), limit_kw, policy))


def _reference(limit_kw: int, name: str) -> Figures:
    energy, full = acn_reference.run(acn(), limit_kw, name)
    return {"energy": energy, "full": full}


def _best_at_caltech(limit_kw: int) -> Figures:
    return {"energy": optimum.percent(acn(), limit_kw * 1000)}


def cells_c() -> Iterator[Cell]:
    """Policies by limits."""
    for limit in caltech.LIMITS_KW:
        for name in caltech.OURS:
            yield Cell({"limit_kw": limit, "policy": name}, partial(_ours_at_caltech, limit, name))
        for name in acn_reference.ALGORITHMS:
            label = {"limit_kw": limit, "policy": f"{name} (acnportal 0.3.3)"}
            yield Cell(label, partial(_reference, limit, name))
        yield Cell({"limit_kw": limit, "policy": render.OPTIMUM}, partial(_best_at_caltech, limit))


# --- d: costs ---------------------------------------------------------------------------------------


def _costs(substations: int) -> Figures:
    row = costs.measure(substations)
    return {**row.picks, "reservation": row.reservation, "report": row.report}


def _ingest(rate: int, is_bare: bool) -> Figures:
    read, _ = ingest.play(ingest.STREAMS, rate, ingest.WARM_UP_S, ingest.MEASURED_S, is_bare=is_bare)
    ages = {} if is_bare else {"p50_ms": read.age_ms(0.5), "p99_ms": read.age_ms(0.99)}
    return {"cores": read.cpu_s / ingest.MEASURED_S, "per_second": read.reports / ingest.MEASURED_S, **ages}


def cells_d() -> Iterator[Cell]:
    """Picks and reports by number of substations, then streams."""
    for substations in costs.SIZES:
        yield Cell({"substations": substations}, partial(_costs, substations))
    for rate, is_bare in itertools.product(ingest.RATES, (False, True)):
        yield Cell({"rate": rate, "bare": int(is_bare)}, partial(_ingest, rate, is_bare))


# --- e: faults --------------------------------------------------------------------------------------


def _faulty(name: str, seed: int) -> Figures:
    visits = norway(faults.MONTH)
    part = faults.some_days(visits, faults.FIRST_DAY, faults.DAYS)
    return asdict(faults.run(part, faults.SCENARIOS[name], visits, seed))


def cells_e() -> Iterator[Cell]:
    """Scenarios, for each seed."""
    for name, seed in itertools.product(faults.SCENARIOS, faults.SEEDS):
        yield Cell({"scenario": name, "seed": seed}, partial(_faulty, name, seed))


# --- all --------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[], Iterator[Cell]]] = {
    # Measured, so first, while nothing else runs.
    "d": cells_d,
    "c": cells_c,
    "a": cells_a,
    "b": cells_b,
    "doubts": cells_doubts,
    "e": cells_e,
}
MEASURED = {"d"}


def make(name: str, pool: ProcessPoolExecutor) -> None:
    """Makes the figures of one table and writes them down."""
    cells = list(TABLES[name]())
    records = [cell.record() for cell in cells] if name in MEASURED else list(pool.map(Cell.record, cells))
    RESULTS.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(record) for record in records)
    (RESULTS / f"{name}.json").write_text(f"[\n{lines}\n]\n")


def main() -> None:
    """Makes one table after the other, and shows each when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="table", help=f"of {', '.join(TABLES)}; all when none is named")
    asked = parser.parse_args().tables
    if unknown := set(asked) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    with ProcessPoolExecutor() as pool:
        for name in [name for name in TABLES if name in asked or not asked]:
            make(name, pool)
            render.show(RESULTS)
            print(f"table {name} is written", flush=True)


if __name__ == "__main__":
    main()
