"""`gridmesh watch`: the mesh in the terminal, live, until Ctrl-C."""

import asyncio
import sys
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fleet import tables
from fleet.cli import Asked, Number, command
from fleet.clock import utc_now
from fleet.gateway import GatewayError, Lost
from fleet.screen import console

Json = dict[str, Any]

# Substations are told of each second: after three, what is shown is old.
OLD_S = 3.0
SESSIONS_EVERY_S = 1.0
PAGE_SIZE = 100
# Ages are drawn anew so often; without a terminal, so often a line.
DRAW_EVERY_S, LINE_EVERY_S = 0.5, 1.0
# Lines of the screen that are no session: headings, the totals, the blank ones between.
_AROUND = 8


@dataclass
class View:
    """What is known, and since when. Times are the loop's seconds."""

    url: str
    substations: list[Json] = field(default_factory=list)
    # One page of them; None until it is there.
    sessions: Json | None = None
    heard_s: float | None = None
    lost: Lost | None = None
    sessions_lost: str = ""

    def heard(self, substations: list[Json], now_s: float) -> None:
        self.substations, self.heard_s, self.lost = substations, now_s, None

    def age_s(self, now_s: float) -> float:
        """How long ago the substations were last heard of."""
        return 0.0 if self.heard_s is None else now_s - self.heard_s

    def status(self, now_s: float) -> tuple[str, str]:
        """How current this is, in words, and their style."""
        age = self.age_s(now_s)
        if self.lost:
            old = f"; this is {tables.span(age)} old" if self.substations else ""
            return f"STREAM LOST{old}; trying again", "bold red"
        if self.heard_s is None:
            return "connecting", "yellow"
        if age > OLD_S:
            return f"NO NEWS; this is {tables.span(age)} old", "bold yellow"
        return "live", "green"


def draw(view: View, now_s: float, width: int, height: int) -> Group:
    """The whole screen."""
    age, (status, style) = view.age_s(now_s), view.status(now_s)
    old = bool(view.lost) or age > OLD_S
    dimmed = "dim" if old else ""
    head = Table.grid(expand=True)
    head.add_column(no_wrap=True)
    head.add_column(justify="right", no_wrap=True)
    head.add_row(Text.assemble(("Gridmesh", "bold"), f"  {view.url}"), Text.assemble(("● ", style), (status, style)))
    grid = tables.substations(view.substations, width, age)
    grid.style = dimmed
    parts: list[Any] = [head, Text(), grid, Text(tables.totals(view.substations), "dim"), Text()]
    if view.lost:
        parts.append(Text(view.lost.why, "red"))
    return Group(*parts, *_sessions(view, width, height - _AROUND - len(view.substations), dimmed))


def _sessions(view: View, width: int, room: int, style: str) -> list[Any]:
    if view.sessions_lost and not view.lost:
        return [Text(f"sessions: {view.sessions_lost}", "red")]
    if view.sessions is None:
        return []
    missing = view.sessions.get("unreachable_substation_ids", [])
    unseen = [Text(f"sessions at {', '.join(missing)} cannot be seen: not reachable", "yellow")] if missing else []
    known = view.sessions["sessions"]
    if not known:
        return unseen or [Text("no sessions", "dim")]
    shown = known[: max(1, room - len(unseen))]
    listed = tables.sessions(shown, width, utc_now())
    listed.style = style
    all_cars = sum((each.get("report") or {}).get("active_sessions", 0) for each in view.substations)
    more = 0 if missing else max(all_cars, len(known)) - len(shown)
    return [listed, *unseen, *([Text(f"and {more} more: gridmesh sessions --all", "dim")] if more > 0 else [])]


@command("watch", "gridmesh watch", "gridmesh watch --seconds 10 --json")
@click.option("--seconds", type=Number(0.1, 1e9), help="Stop after so long.  [default: at Ctrl-C]")
async def watch(asked: Asked, seconds: float | None) -> None:
    """Show substations and sessions live, until Ctrl-C. Says when the stream is lost and what is shown is old."""
    view = View(asked.gateway.url)
    with suppress(TimeoutError, asyncio.CancelledError):  # Ctrl-C is how one stops watching
        async with asyncio.timeout(seconds):
            # No gateway at all is an error; one that is lost later is shown.
            await asked.gateway.call("GET", "/healthz")
            if asked.json:
                await _follow(asked, view, lambda event: asked.show(event, stream=True))
            elif sys.stdout.isatty():
                await _on_screen(asked, view)
            else:
                await _in_lines(asked, view)


async def _follow(asked: Asked, view: View, tell: Callable[[Json], None]) -> None:
    """Keeps the view true, and tells of each event. Returns only by being cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_follow_substations(asked, view, tell))
        group.create_task(_poll_sessions(asked, view, tell))


async def _follow_substations(asked: Asked, view: View, tell: Callable[[Json], None]) -> None:
    loop = asyncio.get_running_loop()
    async with aclosing(asked.gateway.follow("/v1/substations/events")) as events:
        async for event in events:
            if isinstance(event, Lost):
                view.lost = event
                tell({"event": "lost", "data": {"detail": event.why, "retry_s": event.retry_s}})
            else:
                view.heard(event.data["substations"], loop.time())
                tell({"event": event.name, "data": event.data})


async def _poll_sessions(asked: Asked, view: View, tell: Callable[[Json], None]) -> None:
    """There is no stream of all sessions."""
    while True:
        if not view.lost:
            try:
                listed = await asked.gateway.call("GET", "/v1/charges", query={"page_size": PAGE_SIZE})
            except GatewayError as error:
                view.sessions_lost = str(error)
            else:
                view.sessions, view.sessions_lost = listed, ""
                tell({"event": "sessions", "data": listed})
        await asyncio.sleep(SESSIONS_EVERY_S)


async def _on_screen(asked: Asked, view: View) -> None:
    loop, out = asyncio.get_running_loop(), console()
    with Live(console=out, screen=True, auto_refresh=False) as live:

        def show() -> None:
            live.update(draw(view, loop.time(), out.width, out.height), refresh=True)

        async with asyncio.TaskGroup() as group:
            group.create_task(_follow(asked, view, lambda _: show()))
            while True:
                show()
                await asyncio.sleep(DRAW_EVERY_S)


async def _in_lines(asked: Asked, view: View) -> None:
    """For logs and pipes."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        group.create_task(_follow(asked, view, lambda _: None))
        while True:
            if view.heard_s is not None or view.lost:
                status, _ = view.status(loop.time())
                line = ", ".join(_in_short(each) for each in tables.in_order(view.substations))
                print(f"{utc_now():%H:%M:%SZ}  {status}: {line}", flush=True)
            await asyncio.sleep(LINE_EVERY_S if view.heard_s is not None else DRAW_EVERY_S)


def _in_short(substation: Json) -> str:
    report, found = substation.get("report") or {}, tables.conditions(substation)
    kw = f"{report.get('committed_kw', 0):.1f}/{report.get('limit_power_kw', 0):g} kW"
    load = f"{tables.name_of(substation)} {kw} {report.get('active_sessions', 0)} cars"
    return load + "".join(f" {tables.words(each)}" for each in found)
