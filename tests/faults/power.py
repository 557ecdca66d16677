"""Whether a substation was over its limit in a run, by its own word and by what its sessions add up to. Pure."""

from collections.abc import Iterator

from tests.faults import timeline
from tests.faults.findings import LEASE, OVER, Violation
from tests.faults.records import PLACES, Fault, Log, Look, Report, Span
from tests.faults.timeline import LEASE_S

# Numbers are shown as floats of whole watts.
_EPS = 1e-6
# A report may be so old when it is heard.
_HEARD_S = 1.0
# Registers are shown as of the last commit: a second, and the commit.
_SHOWN_S = 1.5
# Dead for longer than a lease by so much, registers tell whether the lease was kept.
_TELLING_S = 2.0


def over(log: Log) -> Iterator[Violation]:
    """What is committed and drawn fits the limits that operators were told are in force, but while cars obey a cut."""
    obeying = {place: timeline.obeying(log, place) for place in PLACES}
    for report in log.reports:
        yield from _report_over(log, report, obeying[report.substation])
    for look in log.looks:
        yield from _look_over(log, look, obeying[look.substation])
    for meter in log.meters:
        if meter.over_limit_s > 0:
            yield Violation(OVER, f"{meter.substation} counts {meter.over_limit_s:.3f} s at {meter.heard:.2f}")


def _report_over(log: Log, report: Report, obeying: list[Span]) -> Iterator[Violation]:
    at, place = report.heard, report.substation
    told = timeline.limit_kw(log, place, at - _HEARD_S, at)
    if report.limit_kw > told + _EPS:
        yield Violation(OVER, f"{place} goes by {report.limit_kw:g} kW, not {told:g}, at {at:.2f}")
    limit, power = timeline.limit_kw(log, place, at, at), max(report.committed_kw, report.measured_kw)
    if power > limit + _EPS and not _within(obeying, at):
        yield Violation(OVER, f"{place} committed {power:.3f} kW of {limit:g} at {at:.2f}")


def _look_over(log: Log, look: Look, obeying: list[Span]) -> Iterator[Violation]:
    limit = timeline.limit_kw(log, look.substation, look.sent, look.heard)
    power = sum(max(seen.granted_kw, seen.measured_kw) for seen in look.sessions)
    if power > limit + _EPS and not _within(obeying, look.heard):
        yield Violation(OVER, f"{look.substation} holds {power:.3f} kW of {limit:g} at {look.heard:.2f}")


def _within(spans: list[Span], at: float) -> bool:
    return any(at in span for span in spans)


def leases(log: Log) -> Iterator[Violation]:
    """While a substation is dead its cars draw for a lease at most: their registers say what they drew.

    Between a look before and one after, all sessions together cannot have taken more than the limit
    allows in the time it was alive and a lease.
    """
    final = {session.session_id: session.delivered_kwh for session in log.kept}
    for fault in log.faults:
        if not fault.dead or fault.part not in PLACES or not _telling(fault):
            continue
        before, after = _around(log, fault)
        if before is None or after is None:
            continue
        alive_s = after.heard - before.sent - (fault.until - fault.since)
        limit = timeline.limit_kw(log, fault.part, before.sent, after.heard)
        most = limit * (alive_s + LEASE_S + _SHOWN_S) * log.time_scale / 3600
        if (drew := _drawn(before, after, final)) > most:
            yield Violation(LEASE, f"{fault.part} at {fault.since:.2f} drew {drew:.2f} kWh, {most:.2f} fit")


def _telling(fault: Fault) -> bool:
    """It was dead for longer than a lease, by the real clock or by its own."""
    return fault.kind == "clock" or fault.until - fault.since >= LEASE_S + _TELLING_S


def _around(log: Log, fault: Fault) -> tuple[Look | None, Look | None]:
    looks = [look for look in log.looks if look.substation == fault.part]
    before = [look for look in looks if look.heard <= fault.since]
    # Not the first one: it may show what the last commit before knew.
    after = [look for look in looks if look.sent >= fault.until + _SHOWN_S]
    return max(before, key=lambda k: k.heard, default=None), min(after, key=lambda k: k.sent, default=None)


def _drawn(before: Look, after: Look, final: dict[str, float]) -> float:
    """kWh of the sessions of both looks, and of those that ended between them."""
    now = {seen.session_id: seen.delivered_kwh for seen in after.sessions}
    return sum(
        now.get(seen.session_id, final.get(seen.session_id, seen.delivered_kwh)) - seen.delivered_kwh
        for seen in before.sessions
    )
