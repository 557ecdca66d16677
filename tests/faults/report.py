"""What a person reads after a run."""

from collections import Counter

from tests.faults import checker, findings
from tests.faults.findings import Violation
from tests.faults.records import BALANCERS, PLACES, Back, Log

_SHOWN = 20


def summary(log: Log, found: list[Violation]) -> str:
    """The counts, the worst recoveries, and the first violations of each kind."""
    told = {call.key for call in log.calls if call.session_id}
    lines = [
        f"seed {log.seed}: {len(log.faults)} faults, {log.requests} requests ({len(log.calls)} charges, "
        f"{len(told)} keys acknowledged), {len(log.kept)} sessions in the ledgers, {_batches(log)} batches",
        "faults: " + ", ".join(f"{kind} {number}" for kind, number in sorted(_kinds(log).items())),
        "answers: " + ", ".join(f"{reason} {number}" for reason, number in _reasons(log).most_common()),
        _recoveries(log),
        _verdict(log, found),
    ]
    for kind, number in Counter(violation.kind for violation in found).items():
        lines.append(f"{kind}: {number}")
        lines += [f"    {v.what}" for v in [v for v in found if v.kind == kind][:_SHOWN]]
    return "\n".join(lines)


def _batches(log: Log) -> int:
    """Calls of ChargeBatch at the substations, as far as they were seen before a life ended."""
    number, before = 0, Counter[str]()
    for meter in log.meters:
        # Fewer than before: it lives anew.
        number += meter.batches - (before[meter.substation] if meter.batches >= before[meter.substation] else 0)
        before[meter.substation] = meter.batches
    return number


def _kinds(log: Log) -> Counter[str]:
    return Counter(f"{fault.kind} of a {_what(fault.part)}" if fault.dead else fault.kind for fault in log.faults)


def _what(part: str) -> str:
    return "substation" if part in PLACES else "balancer" if part in BALANCERS else part


def _reasons(log: Log) -> Counter[str]:
    return Counter("told" if call.session_id else call.reason or "no answer" for call in log.calls)


def _recoveries(log: Log) -> str:
    worst = max(log.back, key=lambda back: back.after_s - back.waited_s, default=Back("", 0.0, 0.0))
    retries = [
        sum(checker.failed_for_a_balancer(log, call) for call in calls)
        for _, calls in checker.killed_balancer_calls(log)
    ]
    ended = sum(bool(session.duplicate_of) for session in log.kept)
    return (
        f"worst: sessions live again {worst.after_s:.2f} s after a killed substation's start, {worst.waited_s:.2f} "
        f"of them kept from a processor ({len(log.back)} starts); "
        f"everybody hears of everybody {max(log.whole_after, default=0.0):.2f} s after the last fault of a round; "
        f"{max(retries, default=0)} retries of a client while only a balancer was dead ({len(retries)} clients); "
        f"{len(checker.twice(log))} keys had two sessions, {ended} were ended as duplicates"
    )


def _verdict(log: Log, found: list[Violation]) -> str:
    kinds = Counter(violation.kind for violation in found)
    over_s = max((meter.over_limit_s for meter in log.meters), default=0.0)
    held = sum(not left.nothing for left in log.left)
    head = "FAILED" if found else "OK"
    return (
        f"{head}: {kinds[findings.LOST]} lost, {kinds[findings.DOUBLE]} double, {over_s:g} s over the limit, "
        f"{held} leaked reservations, {kinds[findings.BACKWARDS]} registers back"
    )
