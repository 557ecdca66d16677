"""Whether a run broke an invariant. Pure: all it knows is the log."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations

from tests.faults import power, timeline
from tests.faults.findings import (
    BACKWARDS,
    DOUBLE,
    DUPLICATE,
    LEAKED,
    LOST,
    RETRIES,
    SLOW,
    UNANSWERED,
    WRONG,
    Violation,
)
from tests.faults.records import BALANCERS, NO_ROOM, Call, Fault, Kept, Log, Span

# A key may have two sessions for so long after everything is connected.
TOGETHER_S = 2.0
# A restarted substation shows its sessions within that time.
BACK_S = 2.0
# Registers are shown as floats of whole millijoules.
_EPS = 1e-6


def check(log: Log) -> list[Violation]:
    """All that is wrong; empty when nothing is."""
    return [
        *lost(log), *double_at_the_end(log), *double_while_connected(log), *backwards(log), *power.over(log),
        *power.leases(log), *leaked(log), *duplicates(log), *retries(log),
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
    heard_of_it = {balancer for call in calls for balancer in call.balancers}
    if len(heard_of_it) != 1:
        return False
    since, until = min(call.sent for call in calls), max(call.heard for call in calls)
    died = [fault for fault in timeline.dead(log, heard_of_it.pop()) if fault.kind != "stop"]
    return not any(Span(fault.since, fault.until).overlaps(since, until) for fault in died)


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
    for span in log.whole:
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


# --- nothing is left, nobody waits -----------------------------------------------------------------------


def leaked(log: Log) -> Iterator[Violation]:
    """Nothing reserved and nothing in doubt when nobody asks any more."""
    for left in log.left:
        if not left.nothing:
            yield Violation(LEAKED, f"{left.balancer}: {left.reserved_w:.0f} W, {left.open_doubts} doubts")


def retries(log: Log) -> Iterator[Violation]:
    """A dead balancer costs a client one retry, where nothing else was wrong."""
    for key, calls in killed_balancer_calls(log):
        failed = [call for call in calls if failed_for_a_balancer(log, call)]
        if len(failed) > 1:
            yield Violation(RETRIES, f"{key} failed {len(failed)} times while only a balancer was dead")


def failed_for_a_balancer(log: Log, call: Call) -> bool:
    """Neither a session, nor no room, nor a doubt about a substation, which a balancer that lives tells of."""
    if call.session_id or call.reason in NO_ROOM:
        return False
    deaths = [death for balancer in call.balancers for death in timeline.dead(log, balancer)]
    died = any(Span(death.since, death.until).overlaps(call.sent, call.heard) for death in deaths)
    return died or call.reason != "OUTCOME_UNKNOWN"


def slow(log: Log) -> Iterator[Violation]:
    """A killed substation has its sessions back soon after its start. What a busy machine adds is not its fault."""
    for back in log.back:
        if back.after_s - back.waited_s > BACK_S:
            yield Violation(SLOW, f"{back.substation}: {back.after_s:.2f} s, {back.waited_s:.2f} of them kept waiting")


def killed_balancer_calls(log: Log) -> Iterable[tuple[str, list[Call]]]:
    """Of clients that know both balancers, those that asked while one was dead and nothing else was wrong."""
    kills = [fault for fault in log.faults if fault.kind == "kill" and fault.part in BALANCERS]
    others = [fault for fault in log.faults if fault not in kills and fault.kind != "limit cut"]
    for key, calls in _calls_by_key(log).items():
        calls.sort(key=lambda call: call.sent)
        since, until = calls[0].sent, calls[-1].heard
        both = len({call.door for call in calls}) > 1
        if both and _count(kills, since, until) == 1 and not _count(others, since - TOGETHER_S, until):
            yield key, calls


def _count(faults: list[Fault], since: float, until: float) -> int:
    return sum(fault.since <= until and since <= fault.until for fault in faults)


def _end(log: Log) -> float:
    heard = [entry.heard for entries in (log.calls, log.reads, log.looks) for entry in entries]
    return max(heard, default=0.0) + 1.0


def twice(log: Log) -> list[tuple[Kept, Kept]]:
    """Pairs of sessions of one key, for the summary."""
    sessions: dict[str, list[Kept]] = defaultdict(list)
    for session in log.kept:
        sessions[session.key].append(session)
    return [pair for kept in sessions.values() for pair in combinations(kept, 2)]
