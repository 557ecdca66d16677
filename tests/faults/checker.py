"""Whether a run broke an invariant. Pure: all it knows is the log."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

from tests.faults import timeline
from tests.faults.records import NO_ROOM, Call, Kept, Log, Look
from tests.faults.timeline import LEASE_S

# A key may have two sessions for so long after everything is connected.
TOGETHER_S = 2.0
# A restarted substation shows its sessions within that time.
BACK_S = 2.0
# Numbers are shown as floats of whole watts and millijoules.
_EPS = 1e-6
# Registers are shown as of the last commit: a second, and the commit.
_SHOWN_S = 1.5
# Stopped for longer than a lease by so much, energy tells whether the lease was kept.
_TELLING_S = 2.0


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise: which, and what was seen."""

    kind: str
    what: str


LOST, UNANSWERED, WRONG = "lost", "unanswered", "wrong answer"
DOUBLE, DUPLICATE, BACKWARDS = "double", "duplicate without cause", "register went back"
OVER, LEASE, LEAKED = "over the limit", "drew without a lease", "leaked"
RETRIES, SLOW = "too many retries", "slow recovery"


def check(log: Log) -> list[Violation]:
    """All that is wrong; empty when nothing is."""
    return [
        *lost(log), *double_at_the_end(log), *double_while_connected(log), *backwards(log), *over(log),
        *leases(log), *leaked(log), *duplicates(log), *retries(log),
        *(Violation(UNANSWERED, key) for key in log.unanswered),
        *(Violation(WRONG, what) for what in log.wrong),
        *slow(log),
    ]  # fmt: skip


# --- never lost ----------------------------------------------------------------------------------------


def lost(log: Log) -> Iterator[Violation]:
    """Every session that a client was told of is in a ledger, under its key."""
    kept = {session.session_id: session for session in log.kept}
    for call in log.calls:
        if call.session_id:
            found = kept.get(call.session_id)
            if found is None:
                yield Violation(LOST, f"{call.session_id} of {call.key}, told at {call.heard:.2f}")
            elif found.key != call.key:
                yield Violation(LOST, f"{call.session_id} is of {found.key}, and was told to {call.key}")


def backwards(log: Log) -> Iterator[Violation]:
    """No register is below what was heard before it was asked for, nor what a ledger keeps below any."""
    shown: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for read in log.reads:
        shown[read.session_id].append((read.sent, read.heard, read.delivered_kwh))
    for look in log.looks:
        for seen in look.sessions:
            shown[seen.session_id].append((look.sent, look.heard, seen.delivered_kwh))
    end = _end(log)
    for session in log.kept:
        shown[session.session_id].append((end, end, session.delivered_kwh))
    for session_id, reads in shown.items():
        yield from _backwards(session_id, reads)


def _backwards(session_id: str, reads: list[tuple[float, float, float]]) -> Iterator[Violation]:
    by_heard, highest, known = sorted(reads, key=lambda read: read[1]), 0.0, 0
    for sent, _, delivered in sorted(reads):
        while known < len(by_heard) and by_heard[known][1] < sent:
            highest = max(highest, by_heard[known][2])
            known += 1
        if delivered < highest - _EPS:
            yield Violation(BACKWARDS, f"{session_id} from {highest:.6f} to {delivered:.6f} kWh at {sent:.2f}")


# --- never double --------------------------------------------------------------------------------------


def _calls_by_key(log: Log) -> dict[str, list[Call]]:
    calls: dict[str, list[Call]] = defaultdict(list)
    for call in log.calls:
        calls[call.key].append(call)
    return calls


def _one_mind(log: Log, calls: list[Call]) -> bool:
    """One balancer heard all calls of a key and lived through them: it knows all there is to know."""
    if not calls or len({call.balancer for call in calls}) > 1:
        return False
    since, until = min(call.sent for call in calls), max(call.heard for call in calls)
    died = [fault for fault in timeline.dead(log, calls[0].balancer) if fault.kind != "stop"]
    return not any(timeline.Span(fault.since, fault.until).overlaps(since, until) for fault in died)


def double_at_the_end(log: Log) -> Iterator[Violation]:
    """In all ledgers a key has one live session at most; where one balancer knew everything, one session at all."""
    calls = _calls_by_key(log)
    sessions: dict[str, list[Kept]] = defaultdict(list)
    for session in log.kept:
        sessions[session.key].append(session)
    for key, kept in sessions.items():
        live = [session.session_id for session in kept if session.live]
        if len(live) > 1:
            yield Violation(DOUBLE, f"{key} lives as {' and '.join(live)} at the end")
        elif len(kept) > 1 and _one_mind(log, calls.get(key, [])):
            yield Violation(DOUBLE, f"{key} was admitted as {' and '.join(s.session_id for s in kept)}")


def double_while_connected(log: Log) -> Iterator[Violation]:
    """Two seconds after everything is connected no key lives at two places."""
    for span in timeline.whole(log, _end(log)):
        quiet = [k for k in log.looks if k.sent >= span.since + TOGETHER_S and k.heard <= span.until]
        keys: dict[str, set[str]] = defaultdict(set)
        for look in quiet:
            for seen in look.sessions:
                keys[seen.key].add(seen.session_id)
        for key, ids in keys.items():
            if len(ids) > 1:
                yield Violation(DOUBLE, f"{key} lives as {' and '.join(sorted(ids))} after {span.since:.2f}")


def duplicates(log: Log) -> Iterator[Violation]:
    """A session is ended as a duplicate only for one that exists, and only where somebody could not know."""
    calls, ids = _calls_by_key(log), {session.session_id for session in log.kept}
    for session in log.kept:
        if session.duplicate_of:
            if session.duplicate_of not in ids:
                yield Violation(LOST, f"{session.session_id} was ended for {session.duplicate_of}, which is nowhere")
            if _one_mind(log, calls.get(session.key, [])):
                yield Violation(DUPLICATE, f"{session.session_id} of {session.key}")


# --- never over ----------------------------------------------------------------------------------------


def over(log: Log) -> Iterator[Violation]:
    """What is committed and drawn fits the limits that operators were told are in force; nobody may say otherwise."""
    obeying = {place: timeline.obeying(log, place) for place in {look.substation for look in log.looks}}

    def excused(place: str, at: float) -> bool:
        return any(span.since <= at <= span.until for span in obeying.get(place, ()))

    for report in log.reports:
        limit = timeline.limit_kw(log, report.substation, report.heard, report.heard)
        power = max(report.committed_kw, report.measured_kw)
        if power > limit + _EPS and not excused(report.substation, report.heard):
            yield Violation(OVER, f"{report.substation} committed {power:.3f} kW of {limit:g} at {report.heard:.2f}")
    for look in log.looks:
        limit = timeline.limit_kw(log, look.substation, look.sent, look.heard)
        power = sum(max(seen.granted_kw, seen.measured_kw) for seen in look.sessions)
        if power > limit + _EPS and not excused(look.substation, look.heard):
            yield Violation(OVER, f"{look.substation} holds {power:.3f} kW of {limit:g} at {look.heard:.2f}")
    for meter in log.meters:
        if meter.over_limit_s > 0:
            yield Violation(OVER, f"{meter.substation} counts {meter.over_limit_s:.3f} s at {meter.heard:.2f}")


def leases(log: Log) -> Iterator[Violation]:
    """While a substation is dead its cars draw for a lease at most: their registers say what they drew.

    Between the last look before and the first after, all sessions together cannot have taken more than the limit
    allows in the time it was alive and a lease.
    """
    final = {session.session_id: session.delivered_kwh for session in log.kept}
    for fault in log.faults:
        if not fault.dead or fault.part not in timeline_places(log):
            continue
        before, after = _around(log, fault.part, fault.since, fault.until)
        if before is None or after is None:
            continue
        dead_s = fault.until - fault.since if fault.kind != "clock" else 2 * LEASE_S
        if dead_s < LEASE_S + _TELLING_S:
            continue
        seconds = after.heard - before.sent - (fault.until - fault.since) + LEASE_S + _SHOWN_S
        limit = timeline.limit_kw(log, fault.part, before.sent, after.heard)
        most = limit * seconds * log.time_scale / 3600
        drew = _drawn(before, after, final)
        if drew > most:
            yield Violation(
                LEASE, f"{fault.part} at {fault.since:.2f}: {drew:.2f} kWh in {dead_s:.1f} s, {most:.2f} fit"
            )


def timeline_places(log: Log) -> set[str]:
    """Substations that were looked at."""
    return {look.substation for look in log.looks}


def _around(log: Log, place: str, since: float, until: float) -> tuple[Look | None, Look | None]:
    looks = [look for look in log.looks if look.substation == place]
    before = [look for look in looks if look.heard <= since]
    after = [look for look in looks if look.sent >= until]
    return max(before, key=lambda k: k.heard, default=None), min(after, key=lambda k: k.sent, default=None)


def _drawn(before: Look, after: Look, final: dict[str, float]) -> float:
    """kWh of the sessions of both looks, and of those that ended between them."""
    now = {seen.session_id: seen.delivered_kwh for seen in after.sessions}
    return sum(
        now.get(seen.session_id, final.get(seen.session_id, seen.delivered_kwh)) - seen.delivered_kwh
        for seen in before.sessions
    )


# --- nothing is left, nobody waits -----------------------------------------------------------------------


def leaked(log: Log) -> Iterator[Violation]:
    """Nothing reserved and nothing in doubt when nobody asks any more."""
    for left in log.left:
        if left.reserved_w or left.open_doubts:
            yield Violation(LEAKED, f"{left.balancer}: {left.reserved_w:.0f} W, {left.open_doubts} doubts")


def retries(log: Log) -> Iterator[Violation]:
    """A dead balancer costs a client one retry, where nothing else was wrong."""
    for key, calls in killed_balancer_calls(log):
        failed = [call for call in calls if not call.session_id and call.reason not in NO_ROOM]
        if len(failed) > 1:
            yield Violation(RETRIES, f"{key} failed {len(failed)} times while only a balancer was dead")


def slow(log: Log) -> Iterator[Violation]:
    """A killed substation has its sessions back soon after its start. What a busy machine adds is not its fault."""
    for back in log.back:
        if back.after_s - back.waited_s > BACK_S:
            yield Violation(SLOW, f"{back.substation}: {back.after_s:.2f} s, {back.waited_s:.2f} of them kept waiting")


def killed_balancer_calls(log: Log) -> Iterable[tuple[str, list[Call]]]:
    """Of clients that know both balancers, those that asked while one was dead and nothing else was wrong."""
    kills = [fault for fault in log.faults if fault.kind == "kill" and fault.part in {"x", "y"}]
    others = [fault for fault in log.faults if fault not in kills and fault.kind != "limit cut"]
    for key, calls in _calls_by_key(log).items():
        calls.sort(key=lambda call: call.sent)
        since, until = calls[0].sent, calls[-1].heard
        hit = [kill for kill in kills if timeline.Span(kill.since, kill.until).overlaps(since, until)]
        troubled = any(timeline.Span(fault.since, fault.until + TOGETHER_S).overlaps(since, until) for fault in others)
        both = len({call.balancer for call in calls}) > 1
        if len(hit) == 1 and both and not troubled:
            yield key, calls


def _end(log: Log) -> float:
    heard = [entry.heard for entries in (log.calls, log.reads, log.looks) for entry in entries]
    return max(heard, default=0.0) + 1.0


def twice(log: Log) -> list[tuple[Kept, Kept]]:
    """Pairs of sessions of one key, for the summary."""
    sessions: dict[str, list[Kept]] = defaultdict(list)
    for session in log.kept:
        sessions[session.key].append(session)
    return [pair for kept in sessions.values() for pair in combinations(kept, 2)]
