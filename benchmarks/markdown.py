"""Records as tables in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]


def row(cells: Iterable[object]) -> str:
    """One line."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table(head: Sequence[object], rows: Iterable[Iterable[object]]) -> str:
    """Head and rows."""
    return "\n".join([row(head), row("---" for _ in head), *(row(cells) for cells in rows)])


def ordered(records: Iterable[Record], *names: str) -> list[tuple[Any, ...]]:
    """The distinct values of these fields, in order of appearance."""
    return list(dict.fromkeys(tuple(record.get(name) for name in names) for record in records))


def where(records: Iterable[Record], **values: object) -> list[Record]:
    """The records with these values."""
    return [record for record in records if all(record.get(name) == value for name, value in values.items())]
