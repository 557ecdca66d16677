"""`gridmesh charge`, `sessions` and `stop`: what a driver, or an app for drivers, does."""

import secrets
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any

import click

from fleet import tables
from fleet.cli import Asked, Moment, Number, Text, command, rfc3339, say
from fleet.clock import utc_now
from fleet.gateway import Lost, Refusal, path_of
from fleet.screen import Meter, console, meter

Json = dict[str, Any]

# An answer that stays away is asked for again so long.
PATIENCE_S = 20.0
STATES = ("EV_CONNECTED", "CHARGING", "SUSPENDED_EV", "SUSPENDED_EVSE", "ENDED")
STOP_REASONS = ("REMOTE", "LOCAL", "EV_DISCONNECTED", "EMERGENCY_STOP", "OTHER")
# The gateway says what is out of range; here only what is no number.
_AMOUNT = Number()
_MISSING = "unreachable_substation_ids"


# --- charge ----------------------------------------------------------------------------------------


@command(
    "charge",
    "gridmesh charge EV-001 --energy 20",
    "gridmesh charge EV-001 --power 22 --energy 40 --departure 2h --watch",
    "gridmesh charge EV-001 --key order-4711 --wait --json",
)
@click.argument("vehicle", type=Text())
@click.option("--power", type=_AMOUNT, default=11.0, show_default=True, help="The most the car can take, in kW.")
@click.option("--energy", type=_AMOUNT, help="Energy wanted, in kWh.  [default: until full]")
@click.option("--departure", type=Moment(), help="When it leaves: 90m, 2h, or a time.  [default: when full]")
@click.option("--at", "substations", type=Text(), multiple=True, help="Only at this substation; may be repeated.")
@click.option("--key", type=Text(ascii_only=True), help="Idempotency key: a repeat with it is the same session.")
@click.option("--wait", is_flag=True, help="Return when the session has ended.")
@click.option("--watch", is_flag=True, help="Show its progress until it has ended.")
async def charge(  # noqa: PLR0917
    asked: Asked,
    vehicle: str,
    power: float,
    energy: float | None,
    departure: datetime | timedelta | None,
    substations: tuple[str, ...],
    key: str | None,
    wait: bool,
    watch: bool,
) -> None:
    """Charge VEHICLE at the least-loaded substation."""
    body: Json = {"vehicle_id": vehicle, "max_power_kw": power}
    if energy is not None:
        body["energy_kwh"] = energy
    if isinstance(departure, timedelta):
        body["departure_in"] = f"{departure.total_seconds():g}s"
    elif departure:
        body["departure_time"] = rfc3339(departure, utc_now())
    if substations:
        body["allowed_substation_ids"] = list(substations)
    reply = await asked.gateway.charge_one(key or f"cli-{secrets.token_hex(8)}", body, PATIENCE_S, _say_doubt)
    if watch or not asked.json:
        _show_reply(asked, reply)
    if watch or wait:
        reply["session"] = await _until_ended(asked, reply["session"], shown=watch)
    if asked.json and not watch:
        asked.show(reply)
    elif not asked.json and (watch or wait):
        print(_ended(reply["session"]))


def _say_doubt() -> None:
    say(f"not known yet whether the car was admitted; asking again, for {PATIENCE_S:g} s at most")


def _show_reply(asked: Asked, reply: Json) -> None:
    if asked.json:
        asked.show(reply, stream=True)
        return
    session, placement = reply["session"], reply["placement"]
    granted = f"{tables.words(session['state'])}, {session['granted_power_kw']:g} kW granted"
    print(f"{session['vehicle_id']} at {session['substation_id']}: {granted}")
    print(f"  session    {session['session_id']}")
    print(f"  placement  {_placement(placement)}")


def _placement(placement: Json) -> str:
    if placement["policy"] == "repeat":
        return "the key was known: its session"
    before, after = placement["utilisation_before"], placement["utilisation_after"]
    return f"{before:.0%} load before, {after:.0%} after; {placement['eligible']} eligible ({placement['policy']})"


def _ended(session: Json) -> str:
    return f"ended: {session['delivered_kwh']:.2f} kWh, {tables.why(session)}"


async def _until_ended(asked: Asked, session: Json, *, shown: bool) -> Json:
    """Follows it over every break of the stream."""
    with meter(
        session["vehicle_id"], session.get("energy_kwh", 0.0), counted=False, shown=shown and not asked.json
    ) as bar:
        async with aclosing(asked.gateway.follow(path_of("charges", session["session_id"], "events"))) as events:
            async for event in events:
                if isinstance(event, Lost):
                    say(f"{event.why}; asking again")
                elif event.name == "session":
                    session = event.data
                    _show_progress(bar, session)
                if shown and asked.json and not isinstance(event, Lost):
                    asked.show({"event": event.name, "data": event.data}, stream=True)
    return session


def _show_progress(bar: Meter, session: Json) -> None:
    reason = tables.why(session)
    note = (
        f"{session['delivered_kwh']:.2f} kWh  {session['measured_power_kw']:.1f} kW  {tables.words(session['state'])}"
    )
    bar.show(session["delivered_kwh"], note + (f", {reason}" if reason else ""))


# --- sessions, stop --------------------------------------------------------------------------------


@command(
    "sessions",
    "gridmesh sessions",
    "gridmesh sessions --at b --state SUSPENDED_EVSE",
    "gridmesh sessions --ended --all --json",
)
@click.option("--at", "substation", type=Text(), help="Only those at this substation.")
@click.option("--vehicle", type=Text(), help="Only those of this car.")
@click.option(
    "--state", "states", type=click.Choice(STATES, case_sensitive=False), multiple=True, help="May be repeated."
)
@click.option("--ended", is_flag=True, help="Also those that ended within 24 hours.")
@click.option("--page-size", type=Number(1, 1000, int), default=100, show_default=True, help="At most so many.")
@click.option("--page", type=Text(ascii_only=True), help="The page that the one before named.")
@click.option("--all", "every", is_flag=True, help="All pages.")
async def sessions(
    asked: Asked,
    substation: str | None,
    vehicle: str | None,
    states: tuple[str, ...],
    ended: bool,
    page_size: int,
    page: str | None,
    every: bool,
) -> None:
    """List sessions."""
    query: dict[str, Any] = {"page_size": page_size, "state": list(states)}
    given = {"substation_id": substation, "vehicle_id": vehicle, "page_token": page, "include_ended": ended or None}
    query.update((name, value) for name, value in given.items() if value)
    listed = await _page(asked, query)
    while every and "next_page_token" in listed:
        following = await _page(asked, {**query, "page_token": listed["next_page_token"]})
        listed = _joined(listed, following)
    if asked.json:
        asked.show(listed)
    else:
        _show_sessions(listed)


async def _page(asked: Asked, query: dict[str, Any]) -> Json:
    return await asked.gateway.call("GET", "/v1/charges", query=query)


def _joined(listed: Json, following: Json) -> Json:
    """Who is missing is said by the page where it would be: by one of them, and that is seldom the last."""
    both = {**following, "sessions": [*listed["sessions"], *following["sessions"]]}
    if missing := {*listed.get(_MISSING, ()), *following.get(_MISSING, ())}:
        both[_MISSING] = sorted(missing)
    return both


def _show_sessions(listed: Json) -> None:
    out = console()
    if listed["sessions"]:
        out.print(tables.sessions(listed["sessions"], out.width, utc_now()))
    else:
        print("no sessions")
    if missing := listed.get(_MISSING):
        say(f"those at {', '.join(missing)} are missing: not reachable")
    if token := listed.get("next_page_token"):
        say(f"there are more: --page {token}, or --all")


@command("stop", "gridmesh stop c.01a202d8-6b4d-79a3-af69-90677fc928b6")
@click.argument("session", type=Text())
@click.option(
    "--reason",
    type=click.Choice(STOP_REASONS, case_sensitive=False),
    default="REMOTE",
    show_default=True,
    help="What is written down.",
)
async def stop(asked: Asked, session: str, reason: str) -> None:
    """End SESSION; its power is free at once. A second stop changes nothing."""
    try:
        reply = await asked.gateway.call("POST", path_of("charges", session, "stop"), body={"reason": reason})
    except Refusal as refusal:
        if refusal.problem["reason"] != "SESSION_NOT_FOUND":
            raise
        raise refusal.with_hint("`gridmesh sessions` lists them") from None
    if asked.json:
        asked.show(reply)
    else:
        print(f"{reply['session']['vehicle_id']} {_ended(reply['session'])}")
