"""Shows the figures of benchmarks/results/: tables in benchmarks/README.md between its marks, and the two plots.

`python -m benchmarks.render` after figures were changed by hand of `benchmarks.tables`.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks import envoy_tables, routing
from benchmarks.markdown import Record, ordered, table, where

HERE = Path(__file__).parent
PLACED, BOUND = "as ours has placed them", "offline optimum"
POOLED, OPTIMUM = "one pooled substation", "offline optimum"
FEEDERS = "TRO_R, three feeders"
# For the plots: what a reader compares, and how it is drawn.
ENERGY_LINES = (
    ("home site", "equal share"),
    ("random", "least laxity"),
    ("least kW", "least laxity"),
    ("least utilisation", "least laxity"),
    ("ours", "ours"),
    (POOLED, OPTIMUM),
)
SPREAD_LINES = ("random", "two choices", "weighted round robin", "least kW", "own placements", "ours")
# Reports that are pushed leave 20 ms after a change.
PUSHED_S = 0.02


def _mean(records: Sequence[Record], name: str) -> float:
    return fmean(record[name] for record in records)


def _range(values: Sequence[float]) -> str:
    return f"{fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


# --- tables -----------------------------------------------------------------------------------------


def table_a(records: list[Record]) -> str:
    """One table for each number of substations: CV / refused % / herd, the lowest honest CV in bold."""
    parts = []
    for (substations,) in ordered(records, "substations"):
        own = where(records, substations=substations)
        rules = [rule for (rule,) in ordered(own, "rule")]
        rows = [_spread_row(own, rules, *key) for key in ordered(own, "period_s", "balancers", "ratings")]
        head = ["reports", "balancers", "ratings", *rules]
        parts.append(f"{substations} substations:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def _spread_row(
    records: list[Record], rules: Sequence[str], period_s: int | None, balancers: int, ratings: str
) -> list[str]:
    own = where(records, period_s=period_s, balancers=balancers, ratings=ratings)
    by_rule = {rule: where(own, rule=rule) for rule in rules}
    best = min(_mean(by_rule[rule], "cv") for rule in rules if rule != routing.OMNISCIENT)
    cells = []
    for got in by_rule.values():
        cv, herd = _mean(got, "cv"), max(record["herd"] for record in got)
        shown = f"**{cv:.4f}**" if cv == best else f"{cv:.4f}"
        cells.append(f"{shown} / {_mean(got, 'refused'):.1f} / {herd}")
    return ["pushed" if period_s is None else f"every {period_s} s", str(balancers), ratings, *cells]


def table_b(records: list[Record]) -> str:
    """Placements and sharings by totals."""
    totals = [total for (total,) in ordered(records, "total_kw")]
    rows = []
    for placement, sharing in ordered(records, "placement", "sharing"):
        own = [where(records, placement=placement, sharing=sharing, total_kw=total)[0] for total in totals]
        rows.append([placement, sharing, *map(_pooling_cell, own)])
    return table(["placement", "sharing", *(f"{total} kW" for total in totals)], rows)


def _pooling_cell(record: Record) -> str:
    if "full" not in record:
        return f"{record['energy']:.2f}"
    return f"{record['energy']:.2f} / {record['full']:.2f} / {record['jain']:.4f} / {record['refused']}"


def table_doubts(records: list[Record]) -> str:
    """Mean and range over the seeds."""
    rows = []
    for doubt, total, rule in ordered(records, "doubt", "total_kw", "rule"):
        own = where(records, doubt=doubt, total_kw=total, rule=rule)
        rows.append([doubt, total, rule, *(_range([one[name] for one in own]) for name in ("energy", "full"))])
    return table(["doubt", "kW", "placement, sharing", "energy %", "fully served %"], rows)


def table_c(records: list[Record]) -> str:
    """Policies by limits: energy / fully served."""
    limits = [limit for (limit,) in ordered(records, "limit_kw")]
    rows = []
    for (policy,) in ordered(records, "policy"):
        own = [where(records, policy=policy, limit_kw=limit)[0] for limit in limits]
        cells = (f"{one['energy']:.2f}" + (f" / {one['full']:.2f}" if "full" in one else "") for one in own)
        rows.append([policy, *cells])
    return table(["policy", *(f"{limit} kW" for limit in limits)], rows)


def table_d(records: list[Record]) -> str:
    """Microseconds of CPU by number of substations; then streams."""
    sizes = [record for record in records if "substations" in record]
    kinds = [name for name in sizes[0] if name != "substations"]
    picks = table(
        ["substations", *kinds],
        ([f"{one['substations']:,}", *(f"{one[kind]:.1f}" for kind in kinds)] for one in sizes),
    )
    streams = table(
        ["1,000 streams", "cores", "reports applied a second", "age of the view, p50 / p99 ms"],
        (_stream_row(record) for record in records if "rate" in record),
    )
    return f"{picks}\n\n{streams}"


def _stream_row(record: Record) -> list[str]:
    what = f"{record['rate']} a second each" + (", read and thrown away" if record["bare"] else "")
    ages = "" if record["bare"] else f"{record['p50_ms']} / {record['p99_ms']}"
    return [what, f"{record['cores']:.2f}", f"{record['per_second']:,.0f}", ages]


def table_e(records: list[Record]) -> str:
    """Scenarios: means of energy and cars fully served, sums of what was counted."""
    counts = [name for name in records[0] if name not in ("scenario", "seed", "energy", "full")]
    rows = []
    for (scenario,) in ordered(records, "scenario"):
        own = where(records, scenario=scenario)
        means = [f"{_mean(own, name):.2f}" for name in ("energy", "full")]
        rows.append([scenario, *means, *(sum(one[name] for one in own) for name in counts)])
    return table(["scenario", "energy %", "fully served %", *(name.replace("_", " ") for name in counts)], rows)


TABLES = {
    "a": table_a,
    "b": table_b,
    "doubts": table_doubts,
    "c": table_c,
    "d": table_d,
    "e": table_e,
    "envoy": envoy_tables.show,
}


def put(text: str, mark: str, shown: str) -> str:
    """The text with this table between its marks."""
    found = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", re.DOTALL)
    return found.sub(lambda m: f"{m[1]}{shown}\n{m[2]}", text)


# --- plots ------------------------------------------------------------------------------------------


def plot_energy(records: list[Record], path: Path) -> None:
    """Energy delivered against the total limit."""
    totals = [total for (total,) in ordered(records, "total_kw")]
    lines = {
        f"{placement}, {sharing}": [
            where(records, placement=placement, sharing=sharing, total_kw=total)[0]["energy"] for total in totals
        ]
        for placement, sharing in ENERGY_LINES
    }
    _plot(path, totals, lines, "limit of all ten sites, kW (average demand 53 kW)", "energy delivered, %", log=False)


def plot_spread(records: list[Record], path: Path) -> None:
    """Spread of utilisation against the age of reports."""
    own = where(records, substations=10, balancers=4, ratings="unequal")
    ages = [period for (period,) in ordered(own, "period_s")]
    lines = {
        rule: [_mean(where(own, rule=rule, period_s=age), "cv") for age in ages]
        for rule in (*SPREAD_LINES, routing.OMNISCIENT)
    }
    times = [PUSHED_S if age is None else age for age in ages]
    _plot(path, times, lines, "seconds between reports (0.02: pushed on change)", "CV of utilisation", log=True)


def _plot(
    path: Path, x: Sequence[float], lines: dict[str, list[float]], x_label: str, y_label: str, *, log: bool
) -> None:
    # Needed for plots only, and slow to load.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = path.name
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, values in lines.items():
        is_ours = name.startswith("ours")
        style = "--" if name.endswith((OPTIMUM, routing.OMNISCIENT)) else "-"
        axes.plot(x, values, style, marker="o", markersize=4, linewidth=3 if is_ours else 1.3, label=name)
    if log:
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.minorticks_off()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, metadata={"Date": None})


PLOTS = {"b": (plot_energy, "energy.svg"), "a": (plot_spread, "spread.svg")}


def show(results: Path, names: Iterable[str] = tuple(TABLES)) -> None:
    """Writes those of these tables that there are figures for."""
    readme = HERE / "README.md"
    for name in names:
        path = results / f"{name}.json"
        if not path.exists():
            continue
        records = json.loads(path.read_text())
        readme.write_text(put(readme.read_text(), f"table {name}", TABLES[name](records)))
        if name in PLOTS:
            draw, file = PLOTS[name]
            draw(records, results / file)


if __name__ == "__main__":
    show(HERE / "results")
