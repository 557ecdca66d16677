"""The tables of `benchmarks.envoy` from its records: medians over the rounds, with the least and the most."""

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.markdown import Record, ordered, table, where

# What stands before the substations, by process; Envoy does the work of both of ours.
_PROCESSES = ("gateway", "balancer", "envoy", "bare server", "substations")
_TITLES = {
    "http": "One charge a request, HTTP with JSON:",
    "grpc": "One charge a call, gRPC, to the balancer and to Envoy as a plain proxy:",
    "batch": "A hundred charges a call, through our mesh:",
    "direct": "A substation asked directly, beside a bare server with the same commit:",
}
# Whom each table compares with whom.
_RATIOS = {"http": "Envoy", "grpc": "Envoy", "direct": "bare server"}

Figure = Callable[[Record], float]


def show(records: list[Record]) -> str:
    """All tables that there are records for."""
    parts = [_about(one) for one in where(records, table="about")]
    for name, title in _TITLES.items():
        if own := where(records, table=name):
            parts += [title, _cells(own)]
            parts += [_ratios(own, _RATIOS[name])] if name in _RATIOS and where(own, arm=_RATIOS[name]) else []
            parts += [_of_batches(own)] if name == "batch" else []
    if own := where(records, table="idle"):
        parts += ["Nobody asks, ten substations:", _idle(own)]
    return "\n\n".join(parts)


def _about(one: Record) -> str:
    return (
        f"Envoy {one['envoy']}, Python {one['python']}, {one['cores']} cores, {one['rounds']} rounds of "
        f"{one['seconds']:g} s a cell."
    )


def _cells(records: Sequence[Record]) -> str:
    used = [name for name in _PROCESSES if any(name in record["cpu"] for record in records)]
    head = ["load", "in flight", "", "charges/s", "p50 ms", "p99 ms", "CPU", *used]
    rows = []
    for key in ordered(records, "load", "in_flight", "arm"):
        own = where(records, **dict(zip(("load", "in_flight", "arm"), key, strict=True)))
        speed = (_range(own, lambda one: one["per_second"], ",.0f"), *(_range_of(own, name) for name in _LATENCIES))
        cpu = [_range(own, _all), *(_cpu_of(own, name) for name in used)]
        rows.append([*key, *speed, *cpu, *_beside(own)])
    return table([*head, "client", "RSS MB", "live", "CV"], rows)


_LATENCIES = ("p50_ms", "p99_ms")


def _range_of(records: Sequence[Record], name: str) -> str:
    return _range(records, lambda one: one[name], ".1f")


def _range(records: Sequence[Record], figure: Figure, form: str = ".2f") -> str:
    """Median (least to most)."""
    values = [figure(record) for record in records]
    least, most = (f"{each:{form}}" for each in (min(values), max(values)))
    return f"{median(values):{form}} ({least} to {most})"


def _cpu_of(records: Sequence[Record], name: str) -> str:
    return f"{median(record['cpu'][name] for record in records):.2f}" if name in records[0]["cpu"] else ""


def _beside(records: Sequence[Record]) -> list[str]:
    rss = " + ".join(f"{median(record['rss_mb'][name] for record in records):.0f}" for name in records[0]["rss_mb"])
    client = f"{median(record['client_cpu'] for record in records):.2f}"
    return [client, rss, str(max(record["live"] for record in records)), _range(records, lambda one: one["cv"])]


def _all(record: Record) -> float:
    return float(sum(record["cpu"].values()))


def _before(record: Record) -> float:
    return _all(record) - float(record["cpu"].get("substations", 0))


def _ratios(records: Sequence[Record], other: str) -> str:
    """Of each round, to the other's cell in the same round."""
    head = ["load", "in flight", "", f"charges/s to those of {other}", f"CPU to that of {other}"]
    figures: list[Figure] = [lambda one: float(one["per_second"]), _all]
    if other == "Envoy":
        head.append("without the substations'")
        figures.append(_before)
    rows = []
    for load, in_flight, arm in ordered(records, "load", "in_flight", "arm"):
        if arm != other:
            mine = where(records, load=load, in_flight=in_flight, arm=arm)
            theirs = where(records, load=load, in_flight=in_flight, arm=other)
            rows.append([load, in_flight, arm, *(_ratio(mine, theirs, figure) for figure in figures)])
    return table(head, rows)


def _of_batches(records: Sequence[Record]) -> str:
    """Of each round, to single charges by the same protocol in the same round."""
    rows = []
    for load, arm in ordered(records, "load", "arm"):
        kind, _, protocol = load.partition(", ")
        batches = [one for one in records if one["load"].endswith(protocol) and one["load"] != load]
        if kind == "one charge" and batches:
            singles = where(records, load=load, arm=arm)
            cells = (_ratio(batches, singles, figure) for figure in (lambda one: float(one["per_second"]), _all))
            rows.append([batches[0]["load"], f"{load}, {arm}", *cells])
    return table(["load", "beside", "charges/s to those", "CPU to that"], rows)


def _ratio(mine: Sequence[Record], theirs: Sequence[Record], figure: Figure) -> str:
    """Median, and those of the rounds."""
    ratios = [figure(one) / figure(other) for one, other in zip(mine, theirs, strict=True)]
    return f"{median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"


def _idle(records: Sequence[Record]) -> str:
    rows = (
        [one["process"], f"{one['cores'] * 100:.2f}", f"{one['rss_mb']:.0f}", f"{one['ready_s']:.2f}"]
        for one in records
    )
    return table(["each", "% of a core", "RSS MB", "ready after s"], rows)
