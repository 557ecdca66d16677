"""What was in order when, from a log: which limit was in force, who was dead, when cars obeyed."""

from collections.abc import Iterable

from tests.faults.records import Fault, Limit, Log, Span

# From the confirmation of a cut until cars have obeyed: 5 s of the contract, and the obedience time of 5 s of charging.
OBEY_S = 5.0
LEASE_S = 10.0
# What is seen may be so much older than when it is seen.
_LAG_S = 0.1


def dead(log: Log, part: str) -> list[Fault]:
    """When that process was killed or stopped."""
    return [fault for fault in log.faults if fault.dead and fault.part == part]


def limit_kw(log: Log, place: str, since: float, until: float) -> float:
    """The highest limit that may have been in force at any time of that span."""
    return min([log.rated_kw, *(_highest(limits, since, until) for limits in _by_source(log, place))])


def _by_source(log: Log, place: str) -> Iterable[list[Limit]]:
    there = sorted((limit for limit in log.limits if limit.substation == place), key=lambda limit: limit.sent)
    return [[limit for limit in there if limit.source == source] for source in {limit.source for limit in there}]


def _highest(limits: list[Limit], since: float, until: float) -> float:
    """Of one source. What was confirmed last before the span, and all that may have come since."""
    before: float | None = None
    maybe: list[float | None] = []
    for limit in limits:
        if limit.heard <= since:
            before = limit.limit_kw
        elif limit.sent <= until:
            maybe.append(limit.limit_kw)
    return max(float("inf") if kw is None else kw for kw in (before, *maybe))


def obeying(log: Log, place: str) -> list[Span]:
    """When committed power may be over the limit: cars have their time after a cut, more if nobody could tell them."""
    deaths = dead(log, place)
    spans = []
    for limit in log.limits:
        if limit.substation == place and limit.limit_kw is not None:
            until = limit.heard + OBEY_S + OBEY_S / log.time_scale + _LAG_S
            for death in deaths:
                if death.since <= until and limit.sent <= death.until:
                    until = max(until, death.until + LEASE_S + _LAG_S)
            spans.append(Span(limit.sent, until))
    return spans
