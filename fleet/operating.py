"""`gridmesh substations`, `limit`, `drain` and `undrain`: what an operator does."""

from datetime import datetime, timedelta
from typing import Any

import click

from fleet import tables
from fleet.cli import Asked, Moment, Number, Text, command, examples, group, rfc3339
from fleet.clock import utc_now
from fleet.gateway import path_of
from fleet.screen import console

Json = dict[str, Any]

SOURCES = ("ems", "so", "cso", "other")

_substation = click.argument("substation", type=Text())
_source = click.option(
    "--source",
    type=click.Choice(SOURCES, case_sensitive=False),
    default="cso",
    show_default=True,
    help="Whose limit: energy management, system operator, charging station operator, other.",
)


@command("substations", "gridmesh substations", "gridmesh substations --json | jq '.substations[].state'")
async def substations(asked: Asked) -> None:
    """Show every substation: power against its limit, cars, plugs, and how old the report is."""
    listed = await asked.gateway.call("GET", "/v1/substations")
    if asked.json:
        asked.show(listed)
        return
    out = console()
    out.print(tables.substations(listed["substations"], out.width))
    out.print(tables.totals(listed["substations"]), style="dim")


@command("set", "gridmesh limit set a 50", "gridmesh limit set a 30 --source so --until 2h --reason 'evening peak'")
@_substation
@click.argument("kilowatts", type=Number(0))
@_source
@click.option("--from", "start", type=Moment(), help="90m, 2h, or a time.  [default: at once]")
@click.option("--until", "end", type=Moment(), help="90m, 2h, or a time.  [default: until cleared]")
@click.option("--reason", type=Text(), help="For people.")
@click.option("--grid-critical", is_flag=True, help="The grid is in danger.")
async def set_limit(
    asked: Asked,
    substation: str,
    kilowatts: float,
    source: str,
    start: datetime | timedelta | None,
    end: datetime | timedelta | None,
    reason: str | None,
    grid_critical: bool,
) -> None:
    """Limit SUBSTATION to KILOWATTS. One limit per source; the lowest active one counts."""
    now = utc_now()
    body: Json = {"limit_kw": kilowatts, "grid_critical": grid_critical}
    body.update((name, rfc3339(at, now)) for name, at in (("start_at", start), ("end_at", end)) if at is not None)
    if reason:
        body["reason"] = reason
    path = path_of("substations", substation, "limits", source.lower())
    _show_limits(asked, await asked.gateway.call("PUT", path, body=body))


@command("clear", "gridmesh limit clear a", "gridmesh limit clear a --source so")
@_substation
@_source
async def clear_limit(asked: Asked, substation: str, source: str) -> None:
    """Remove one source's limit from SUBSTATION."""
    path = path_of("substations", substation, "limits", source.lower())
    _show_limits(asked, await asked.gateway.call("DELETE", path))


limit = group(
    "limit",
    "Set or clear a limit on a substation's power.",
    [set_limit, clear_limit],
    examples("gridmesh limit set a 50", "gridmesh limit clear a"),
)


def _show_limits(asked: Asked, reply: Json) -> None:
    if asked.json:
        asked.show(reply)
        return
    load = reply["load"]
    by = f", by {load['limit_source']}" if "limit_source" in load else ""
    print(f"{load['substation_id']}: {load['limit_power_kw']:g} of {load['rated_power_kw']:g} kW{by}")
    for each in reply["limits"]:
        print(f"  {each['source']}: {_limit(each)}")


def _limit(each: Json) -> str:
    until = f" until {each['end_at']}" if "end_at" in each else ""
    reason = f" ({each['reason']})" if "reason" in each else ""
    critical = ", grid critical" if each["grid_critical"] else ""
    return f"{each['limit_kw']:g} kW from {each['start_at']}{until}{critical}{reason}"


@command("drain", "gridmesh drain b")
@_substation
async def drain(asked: Asked, substation: str) -> None:
    """Admit nothing more at SUBSTATION, also after a restart. Live sessions go on."""
    await _set_drain(asked, substation, "drain")


@command("undrain", "gridmesh undrain b")
@_substation
async def undrain(asked: Asked, substation: str) -> None:
    """Admit at SUBSTATION again."""
    await _set_drain(asked, substation, "undrain")


async def _set_drain(asked: Asked, substation: str, operation: str) -> None:
    reply = await asked.gateway.call("POST", path_of("substations", substation, operation))
    if asked.json:
        asked.show(reply)
        return
    load = reply["load"]
    accepting = (
        "takes new cars" if load["accepting"] else f"takes no new cars ({tables.words(load['not_accepting_reason'])})"
    )
    print(f"{load['substation_id']}: {accepting}; {load['active_sessions']} charging")
