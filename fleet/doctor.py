"""What is wrong with a mesh as far as its gateway shows, and what to do about it. No I/O."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from fleet.tables import age_s, conditions, in_order, name_of, span

Json = dict[str, Any]

# What the mesh takes for one time (ARCHITECTURE.md, Clocks).
CLOCKS_WITHIN_S = 2.0


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WRONG = "wrong"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One line: about whom, what was found, and what to do."""

    level: Level
    subject: str
    words: str
    remedy: str = ""


CERTIFICATES = Finding(
    Level.NOTE, "certificates", "there is no TLS yet", "keep all of it on loopback or in a network that you trust"
)


def unreachable(why: str, port_open: bool | None, cannot_start: str | None, *, local: bool) -> Finding:
    """No gateway. `cannot_start`: what would keep one from being started here; empty when nothing would."""
    if port_open:
        remedy = "something listens there; is it a gateway that hangs, or another program?"
    elif cannot_start:
        remedy = f"`gridmesh up` could not start one: {cannot_start}"
    elif local:
        remedy = "the port is closed: start one with `gridmesh up`, or name another with --url"
    else:
        remedy = "the port is closed from here: is it running, and is the address right?"
    return Finding(Level.WRONG, "gateway", why, remedy)


def readiness(problem: Json | None, ready: Json) -> Finding:
    """Whether charges can be placed: `problem` is why not."""
    if problem:
        return Finding(
            Level.WRONG,
            "ready",
            f"{problem.get('title')}: {problem.get('detail')}",
            _READY.get(str(problem.get("reason")), ""),
        )
    return Finding(Level.OK, "ready", f"{ready['placeable']} of {ready['substations']} substations take cars")


_READY = {
    "BALANCER_UNREACHABLE": "is the balancer running, and does GATEWAY_BALANCERS name it?",
    "DEADLINE_EXCEEDED": "the balancer hangs or has too much to do: look at its log",
    "NO_SUBSTATION": "see the substations below",
    "GATEWAY_STOPPING": "wait for its restart",
}


def clocks(now: datetime, date: str) -> Finding:
    """`now` is this machine's at the middle of the request, `date` the gateway's header, which has whole seconds."""
    try:
        ahead = (now - parsedate_to_datetime(date)).total_seconds() - 0.5
    except ValueError:
        return Finding(Level.NOTE, "clocks", "the gateway does not say its time")
    if abs(ahead) <= CLOCKS_WITHIN_S:
        return Finding(Level.OK, "clocks", f"this machine and the gateway agree within {CLOCKS_WITHIN_S:g} s")
    # The gateway goes on from the time of its start; that its machine's clock was set since, it does not notice.
    todo = "set both by NTP, and restart what was started before that: departures and limits come at the wrong time"
    off = f"this machine is {span(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the gateway"
    return Finding(Level.WRONG, "clocks", off, todo)


def substation(listed: Json, port_open: bool | None) -> list[Finding]:
    """One line for each thing that is wrong with it, or one that says it is sound."""
    name, report = name_of(listed), listed.get("report") or {}
    wrong = [
        Finding(Level.WRONG, name, *_what(each, listed, port_open)) for each in conditions(listed) if each in _WORDS
    ]
    if over := report.get("over_limit_seconds"):
        what = f"was over its limit for {span(over)} since its start"
        wrong.append(Finding(Level.WRONG, name, what, "this must not be: look for `limit cut` and errors in its log"))
    return wrong or [Finding(Level.OK, name, _sound(listed, report))]


def _sound(listed: Json, report: Json) -> str:
    cut = f" by {report['limit_source']}" if "limit_source" in report else ""
    load = f"{report.get('committed_kw', 0):.1f} of {report.get('limit_power_kw', 0):g} kW{cut}"
    cars, free = report.get("active_sessions", 0), report.get("free_charge_points", 0)
    inside = f"{cars} {'car' if cars == 1 else 'cars'}, {free} {'plug' if free == 1 else 'plugs'} free"
    return f"{load}, {inside}, heard {span(age_s(listed) or 0.0)} ago"


_WORDS = {
    "STALE": "its report is {age} old: it hangs or is cut off",
    "GONE": "nothing heard for {age}",
    "NEVER_REPORTED": "has never reported",
    "EJECTED": "is left out for a while after failures",
    "LEDGER": "its ledger cannot be written: no new cars",
    "DRAINING": "is drained: no new cars",
    "SHUTTING_DOWN": "shuts down: no new cars",
    "NOT_ACCEPTING": "takes no new cars",
    "UNKNOWN": "its state is not known",
}
_REMEDIES = {
    "LEDGER": "is its disk full, read-only or broken? See its log",
    "DRAINING": "`gridmesh undrain {name}` when that is over",
    "SHUTTING_DOWN": "wait for its restart",
    "EJECTED": "it is let in again by itself; its log says what fails",
    "NOT_ACCEPTING": "see its log",
}
# To restart one that has another's id would take that id over, and with it what is known of its sessions.
_UNHEARD = "its process hangs, or is no substation, or is followed at another address, as the balancer's log then says"


def _what(condition: str, listed: Json, port_open: bool | None) -> tuple[str, str]:
    fields = {"age": span(age_s(listed) or 0.0), "name": name_of(listed)}
    remedy = _REMEDIES.get(condition) or _silent(listed["address"], port_open)
    if port_open and condition == "NEVER_REPORTED":
        remedy = f"port {listed['address']} is open: {_UNHEARD}"
    return _WORDS[condition].format(**fields), remedy.format(**fields)


def _silent(address: str, port_open: bool | None) -> str:
    """What to do about one that says nothing; its port was tried where it is on this machine."""
    if port_open is None:
        return f"is its process at {address} running, and can the balancer reach it?"
    if port_open:
        return f"port {address} is open: its process hangs or is stopped; `kill -CONT` or restart it"
    return f"port {address} is closed: its process is not running; start it"


def sessions(unreachable: Collection[str]) -> Finding:
    """Whether all live sessions can be seen; `unreachable` are the substations whose sessions cannot."""
    if unreachable:
        what = f"those at {', '.join(sorted(unreachable))} are served by nobody who can be asked"
        return Finding(
            Level.WRONG, "sessions", what, "start that substation again with its data folder: it goes on with them"
        )
    return Finding(Level.OK, "sessions", "every session is at a substation that answers")


def examine(substations: Sequence[Json], ports: Mapping[str, bool]) -> Iterator[Finding]:
    """All substations; `ports` says which of the addresses that were tried are open."""
    if not substations:
        yield Finding(Level.WRONG, "substations", "the balancer knows none", "name them in BALANCER_SUBSTATIONS")
    for each in in_order(substations):
        yield from substation(each, ports.get(each["address"]))
