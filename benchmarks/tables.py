"""Writes tables b and c into benchmarks/README.md, between its marks. `python -m benchmarks.tables`.

Cells are independent of one another and run on all cores; the result is the same in any order.
"""

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from random import Random

from benchmarks import acn_reference, caltech, optimum, pooling
from benchmarks.sim.month import Outcome
from benchmarks.sim.traces import acn, norway

README = Path(__file__).parent / "README.md"
MONTH = "2020-01"
SEEDS = range(1, 21)
# What a sceptic's rows compare: ours with what anyone would use instead.
RIVALS = (("ours", "ours"), ("least utilisation", "least laxity"))
DOUBTED_KW = (60, 75)


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    return "\n".join([_row(head), _row("---" for _ in head), *(_row(row) for row in rows)])


def _cell(got: Outcome) -> str:
    return f"{got.energy:.2f} / {got.full:.2f} / {got.jain:.4f} / {got.refused}"


def _pooled(total_kw: int) -> float:
    return optimum.percent(norway(MONTH), total_kw * 1000)


def _plain(total_kw: int, placement: str, sharing: str) -> Outcome:
    return pooling.run(norway(MONTH), total_kw, placement, sharing)


def _doubted(doubt: str, total_kw: int, rival: tuple[str, str], seed: int) -> Outcome:
    visits = norway(MONTH)
    return pooling.run(pooling.DOUBTS[doubt](visits, Random(seed)), total_kw, *rival, seed=seed, as_rated=visits)


def _feeders(rival: tuple[str, str]) -> Outcome:
    return pooling.run_feeders(norway(MONTH), *rival)


def _ours_at_caltech(limit_kw: int, policy: str) -> Outcome:
    return caltech.run(acn(), limit_kw, policy)


def _reference(limit_kw: int, name: str) -> tuple[float, float]:
    return acn_reference.run(acn(), limit_kw, name)


def _best_at_caltech(limit_kw: int) -> float:
    return optimum.percent(acn(), limit_kw * 1000)


def table_b(pool: Executor) -> str:
    """Placements by sharings, for each total."""
    pairs = [(placement, sharing) for placement in pooling.PLACEMENTS for sharing in pooling.SHARINGS]
    cells = {(p, s, kw): pool.submit(_plain, kw, p, s) for p, s in pairs for kw in pooling.TOTALS_KW}
    best = [pool.submit(_pooled, kw) for kw in pooling.TOTALS_KW]
    rows = [[p, s, *(_cell(cells[p, s, kw].result()) for kw in pooling.TOTALS_KW)] for p, s in pairs]
    rows.append(["one pooled substation", "offline optimum", *(f"{one.result():.2f}" for one in best)])
    return _table(["placement", "sharing", *(f"{kw} kW" for kw in pooling.TOTALS_KW)], rows)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table_doubts(pool: Executor) -> str:
    """What a sceptic asks: mean and range of the seeds."""
    cells: dict[tuple[str, int, tuple[str, str]], list[Future[Outcome]]] = {
        (doubt, kw, rival): [pool.submit(_doubted, doubt, kw, rival, seed) for seed in SEEDS]
        for doubt in pooling.DOUBTS
        for kw in DOUBTED_KW
        for rival in RIVALS
    }
    rows = []
    for (doubt, kw, rival), futures in cells.items():
        got = [future.result() for future in futures]
        rows.append([doubt, kw, ", ".join(rival), _spread([g.energy for g in got]), _spread([g.full for g in got])])
    for rival in RIVALS:
        one = pool.submit(_feeders, rival).result()
        rows.append(
            ["TRO_R, three feeders", pooling.FEEDERS_KW, ", ".join(rival), f"{one.energy:.2f}", f"{one.full:.2f}"]
        )
    return _table(["doubt", "kW", "placement, sharing", "energy %", "fully served %"], rows)


def table_c(pool: Executor) -> str:
    """Policies by limits."""
    limits = caltech.LIMITS_KW
    ours = {(name, kw): pool.submit(_ours_at_caltech, kw, name) for name in caltech.OURS for kw in limits}
    theirs = {(name, kw): pool.submit(_reference, kw, name) for name in acn_reference.ALGORITHMS for kw in limits}
    best = [pool.submit(_best_at_caltech, kw) for kw in limits]
    rows = [[f"{name} (production)", *(_two(ours[name, kw].result()) for kw in limits)] for name in caltech.OURS]
    for name in acn_reference.ALGORITHMS:
        got = [theirs[name, kw].result() for kw in limits]
        rows.append([f"{name} (acnportal 0.3.3)", *(f"{energy:.2f} / {full:.2f}" for energy, full in got)])
    rows.append(["offline optimum", *(f"{one.result():.2f}" for one in best)])
    return _table(["policy", *(f"{kw} kW" for kw in limits)], rows)


def _two(got: Outcome) -> str:
    return f"{got.energy:.2f} / {got.full:.2f}"


def put(text: str, mark: str, table: str) -> str:
    """The text with this table between its marks."""
    found = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", re.DOTALL)
    return found.sub(lambda m: f"{m[1]}{table}\n{m[2]}", text)


def main() -> None:
    """Makes one table after the other, and writes each when it is done."""
    tables: dict[str, Callable[[Executor], str]] = {"table c": table_c, "table b": table_b, "doubts": table_doubts}
    with ProcessPoolExecutor() as pool:
        for mark, make in tables.items():
            README.write_text(put(README.read_text(), mark, make(pool)))
            print(f"{mark} is written")


if __name__ == "__main__":
    main()
