"""What the mesh's JSON looks like in a terminal: tables of substations and sessions. No I/O."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

Json = dict[str, Any]

# Narrower than this, only what matters most.
WIDE = 110
DRAWN, COMMITTED, FREE, LIMIT = "█", "▒", "·", "│"
_SICK = {"GONE", "NEVER_REPORTED", "LEDGER"}


def table(*columns: str, left: Iterable[int] = (0,)) -> Table:
    """An empty table without lines; the columns in `left` hold words, the others numbers. The last gives way."""
    made, left = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim"), set(left)
    for i, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if i in left else "right"
        made.add_column(column, justify=justify, no_wrap=i < len(columns) - 1)
    return made


def words(name: str) -> str:
    """A word of the contract in small letters: SUSPENDED_EVSE, suspended EVSE."""
    return " ".join(word if word in {"EV", "EVSE", "EMS", "SO", "CSO"} else word.lower() for word in name.split("_"))


def span(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


# --- substations -----------------------------------------------------------------------------------


def name_of(substation: Json) -> str:
    """Its id, or where it should be while it never reported."""
    return str(substation.get("substation_id") or substation["address"])


def in_order(listed: Iterable[Json]) -> list[Json]:
    """By name: the gateway lists them as they came, and a line should stay where it is."""
    return sorted(listed, key=name_of)


def age_s(substation: Json) -> float | None:
    """How old its last report is; None when there is none."""
    age = substation.get("report_age")
    return float(age.rstrip("s")) if age else None


def conditions(substation: Json) -> list[str]:
    """What is not as usual, in words of the contract, the worst first."""
    report, found = substation.get("report") or {}, []
    if substation.get("state") != "FRESH":
        found.append(substation.get("state") or "UNKNOWN")
    if substation["ejected"]:
        found.append("EJECTED")
    if report and not report.get("accepting"):
        found.append(report.get("not_accepting_reason") or "NOT_ACCEPTING")
    if report.get("limit_source"):
        found.append(f"CUT_BY_{report['limit_source']}")
    return found


def bar(report: Json, width: int) -> Text:
    """What is drawn, committed beyond that, and free up to the limit, which is marked where it is below the rating."""
    rated = _kw(report, "rated_power_kw") or 1.0
    limit = _kw(report, "limit_power_kw")
    cells = [
        round(width * min(1.0, kw / rated)) for kw in (_kw(report, "measured_kw"), _kw(report, "committed_kw"), limit)
    ]
    drawn, committed, free = cells[0], max(cells[0], cells[1]), cells[2]
    text = Text(DRAWN * drawn, "cyan")
    text.append(COMMITTED * (committed - drawn), "cyan dim")
    text.append(FREE * (free - committed), "dim")
    if free < width:
        text.append(LIMIT, "yellow")
    text.append(" " * (width - len(text)))
    return text


def _kw(report: Json, name: str) -> float:
    return float(report.get(name, 0.0))


def substations(listed: Sequence[Json], width: int, older_s: float = 0.0) -> Table:
    """One line each. `older_s`: how long ago the listing was made."""
    made = table("substation", "power", "kW of limit", "cars", "plugs free", "report", "state", left=(0, 1, 6))
    bar_width = min(40, max(8, width - 64))
    for each in in_order(listed):
        made.add_row(*_substation(each, bar_width, older_s))
    return made


def _substation(each: Json, bar_width: int, older_s: float) -> list[str | Text]:
    age = age_s(each)
    report_age = "never" if age is None else span(age + older_s)
    return [name_of(each), *_load(each.get("report"), bar_width), report_age, _condition(each)]


def _load(report: Json | None, bar_width: int) -> list[str | Text]:
    if not report:  # silence is not idleness
        return ["", "?", "?", "?"]
    power = f"{_kw(report, 'committed_kw'):.1f} / {_kw(report, 'limit_power_kw'):g}"
    cars, plugs = (str(report.get(name, "?")) for name in ("active_sessions", "free_charge_points"))
    return [bar(report, bar_width), power, cars, plugs]


def _condition(substation: Json) -> Text:
    found = conditions(substation)
    style = "green" if not found else "bold red" if _SICK & set(found) else "yellow"
    return _giving_way(", ".join(map(words, found)) or "fresh", style)


def _giving_way(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def totals(listed: Sequence[Json]) -> str:
    """All together, in one line."""
    reports = [each["report"] for each in listed if each.get("report")]
    committed, limit = (sum(_kw(report, name) for report in reports) for name in ("committed_kw", "limit_power_kw"))
    cars = sum(report.get("active_sessions", 0) for report in reports)
    silent = len(listed) - len(reports)
    line = f"{committed:.0f} of {limit:g} kW committed, {cars} {'car' if cars == 1 else 'cars'}"
    return line + (f", {silent} never reported" if silent else "")


# --- sessions --------------------------------------------------------------------------------------


def sessions(listed: Sequence[Json], width: int, now: datetime) -> Table:
    """One line each; where there is room, also the energy, until when, and why it is as it is."""
    wide = width >= WIDE
    more = ("kWh", "until", "why") if wide else ()
    made = table("session", "vehicle", "state", "kW", "done", *more, left=(0, 1, 2, 7))
    for each in listed:
        vehicle = _cut(each["vehicle_id"], 12 if wide else 8)
        cells = [each["session_id"], vehicle, _state(each), f"{each['measured_power_kw']:.1f}", _done(each)]
        made.add_row(*cells, *(_more(each, now) if wide else ()))
    return made


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _more(session: Json, now: datetime) -> list[str | Text]:
    asked = f" / {session['energy_kwh']:g}" if "energy_kwh" in session else ""
    return [f"{session['delivered_kwh']:.1f}{asked}", _until(session, now), _giving_way(why(session))]


def _state(session: Json) -> Text:
    state = session.get("state", "UNKNOWN")
    style = {"CHARGING": "cyan", "SUSPENDED_EVSE": "yellow", "ENDED": "dim"}.get(state, "")
    return Text(words(state), style)


def _done(session: Json) -> str:
    """The part of the energy that it asked for, or the energy of one that wants to be full."""
    if "energy_kwh" in session:
        return f"{session['delivered_kwh'] / session['energy_kwh']:.0%}"
    return f"{session['delivered_kwh']:.0f} kWh"


def _until(session: Json, now: datetime) -> str:
    end = session.get("ended_at") or session.get("departure_time") or session.get("expected_end_at")
    if not end:
        return ""
    left = (datetime.fromisoformat(end) - now).total_seconds()
    return f"in {span(left)}" if left > 0 else f"{span(-left)} ago"


def why(session: Json) -> str:
    """Why it ended, or why it is granted less than it could take; whose limit, where that is why."""
    if "stop_reason" in session:
        return words(session["stop_reason"])
    source = f" by {session['limit_source']}" if "limit_source" in session else ""
    return words(session.get("limit_reason", "")) + source
