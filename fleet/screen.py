"""What a person sees: progress on standard error, results on standard output."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from fleet.results import Replay, ReplayRow, RushHour

# Without a terminal, so many lines from start to end.
PLAIN_STEPS = 10
PIPED_WIDTH = 120


class Meter(Protocol):
    """Shows how far a run is."""

    def show(self, done: float, note: str = "") -> None: ...


class _Bar:
    def __init__(self, progress: Progress, words: str, total: float) -> None:
        self._progress = progress
        self._task = progress.add_task(words, total=total or None, note="")

    def show(self, done: float, note: str = "") -> None:
        self._progress.update(self._task, completed=done, note=note)


class _Lines:
    """Plain lines for logs and pipes."""

    def __init__(self, words: str, total: float) -> None:
        self._words = words
        self._total = total
        self._shown = -1

    def show(self, done: float, note: str = "") -> None:
        step = int(PLAIN_STEPS * done / self._total) if self._total else PLAIN_STEPS
        if step > self._shown:
            self._shown = step
            print(f"{self._words}: {done / (self._total or 1):.0%} {note}".rstrip(), file=sys.stderr, flush=True)


class _Nothing:
    def show(self, done: float, note: str = "") -> None: ...


@contextmanager
def meter(words: str, total: float, *, counted: bool, shown: bool = True) -> Iterator[Meter]:
    """A progress bar, or lines when nobody watches; `counted` shows "12/30" beside it. A total of 0 is not known."""
    errors = Console(stderr=True)
    if not shown or not errors.is_terminal:
        yield _Lines(words, total) if shown else _Nothing()
        return
    count = (MofNCompleteColumn(),) if counted else ()
    columns = (TextColumn("{task.description}"), BarColumn(24), *count, TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=errors) as progress:
        yield _Bar(progress, words, total)


def console() -> Console:
    """Where results go. Piped output is not cut at 80 columns."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _print(table: Table, refusals: Mapping[str, int], lines: list[str]) -> None:
    out = console()
    out.print()
    out.print(table)
    out.print()
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(refusals.items())) or "none"
    out.print(f"refusals: {reasons}", soft_wrap=True)
    for line in lines:
        out.print(line, soft_wrap=True)


def print_rush_hour(result: RushHour) -> None:
    """A table, the refusals, the spread, and one line that says whether it went well."""
    table = _table("substation", "sessions placed", "utilisation after", "committed kW", "limit kW", "over limit s")
    for row in result.rows:
        load = row.load
        numbers = (
            (f"{load.utilisation:.1%}", f"{load.committed_kw:.1f}", f"{load.limit_kw:g}") if load else ("?", "?", "?")
        )
        table.add_row(row.substation_id, str(row.sessions), *numbers, f"{row.over_limit_s:g}")
    spread = (
        f"spread (fullest - emptiest): {result.sessions_spread} sessions, "
        f"{100 * result.utilisation_spread:.1f} points of utilisation"
    )
    _print(table, result.refusals, [spread, ("OK: " if result.ok else "NOT OK: ") + result.verdict])


def print_replay(result: Replay) -> None:
    """A table, the refusals, and one line with the sums."""
    table = _table(
        "substation", "cars", "fully served", "asked kWh", "delivered kWh", "%", "peak kW", "limit kW", "over limit s"
    )
    for row in (*result.rows, result.total):
        table.add_row(*_replay_cells(row))
    _print(table, result.refusals, [("OK: " if result.ok else "NOT OK: ") + result.verdict])


def _replay_cells(row: ReplayRow) -> tuple[str, ...]:
    share = f"{row.delivered_kwh / row.asked_kwh:.1%}" if row.asked_kwh else "-"
    return (
        row.substation_id,
        str(row.cars),
        str(row.served),
        f"{row.asked_kwh:.1f}",
        f"{row.delivered_kwh:.1f}",
        share,
        f"{row.peak_kw:.1f}",
        f"{row.limit_kw:g}",
        f"{row.over_limit_s:g}",
    )
