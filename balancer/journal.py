"""What an operator reads of the substations: one line per change, each with substation id and address.

Whoever may have changed something, or lets time pass, calls `look`; it writes nothing when nothing changed.
"""

import logging
from collections.abc import Hashable

import structlog

from balancer.attempt import Answer, Ask, Lost, Outcome, Refused, Step, Unreached
from balancer.desk import Desk, Doubt, Fenced, Found
from balancer.view import LoadView
from mesh import logs, tracing
from mesh.clock import seconds
from mesh.errors import MeshError
from mesh.model import ReportState

log = structlog.get_logger()


class News:
    """Tells a line that says something new from one that says what the last one said."""

    def __init__(self) -> None:
        self._last: Hashable = None

    def is_new(self, said: Hashable) -> bool:
        new, self._last = said != self._last, said
        return new


class ReportJournal:
    """How current the reports of one address are, and whose they are."""

    def __init__(self, view: LoadView, address: str) -> None:
        self._view = view
        self._address = address
        self._state = ReportState.NEVER_REPORTED
        self._heard_ms: int | None = None
        # (substation id, epoch) of the last report.
        self._life: tuple[str, int] | None = None

    def look(self, now: int, why: str) -> None:
        """`why` is what is known of the cause when reports are missing."""
        self._look_who_reports()
        known = self._view[self._address]
        state, before = self._view.state(known, now), self._state
        silent_since_ms, self._state = self._heard_ms, state
        self._heard_ms = known.received_ms
        if state is before:
            return
        line = log.bind(substation=known.substation_id, address=self._address, was=before.name.lower())
        if state is ReportState.FRESH:
            silent_s = {} if silent_since_ms is None else {"silent_s": _to_seconds(now - silent_since_ms)}
            line.info("substation fresh", **silent_s)
        elif known.received_ms is not None:
            age_s = _to_seconds(now - known.received_ms)
            line.warning(f"substation {state.name.lower()}", report_age_s=age_s, why=why)

    def _look_who_reports(self) -> None:
        load = self._view[self._address].load
        if load is None or self._life == (load.substation_id, load.epoch):
            return
        before, self._life = self._life, (load.substation_id, load.epoch)
        line = log.bind(substation=load.substation_id, address=self._address, epoch=load.epoch)
        if before is None:
            return  # that it is fresh says so
        if before[0] == load.substation_id:
            line.info("substation restarted")
        else:
            line.warning("another substation answers at this address", before=before[0])


class StreamJournal:
    """The ends of one stream and its returns. A try that ends as the last one did is no news."""

    def __init__(self, view: LoadView, address: str, what: str) -> None:
        self._view = view
        self._address = address
        self._what = what
        self._defects = News()
        self._down_since = 0.0
        # Why it is down; empty while it is up, and before the first try has ended.
        self.why = ""

    def heard(self) -> None:
        """A message came that could be used."""
        if self.why:
            self.why = ""
            self._line().info("stream came back", after_s=round(seconds() - self._down_since, 3))

    def ended(self, why: str) -> None:
        if not self.why:
            self._down_since = seconds()
        if why != self.why:
            self.why = why
            self._line().info("stream ended", why=why)

    def failed(self, defect: Exception) -> None:
        """An exception that nobody foresaw. Its stack is shown once."""
        if self._defects.is_new(repr(defect)):
            self._line().error("a message could not be processed; the stream is opened anew", exc_info=defect)

    def _line(self) -> structlog.typing.FilteringBoundLogger:
        bound: structlog.typing.FilteringBoundLogger = log.bind(
            substation=self._view[self._address].substation_id, address=self._address, stream=self._what
        )
        return bound


class EjectionJournal:
    """Who is left out because calls to it fail."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        # Address, and since when.
        self._out: dict[str, int] = {}

    def look(self, address: str, now: int) -> None:
        """After a call there has ended."""
        ejected = address in self._desk.ejections.out
        if ejected == (address in self._out):
            return
        line = log.bind(substation=self._desk.view[address].substation_id, address=address)
        if ejected:
            self._out[address] = now
            line.warning("substation ejected", probe_in_s=_to_seconds(self._desk.ejections.wait_ms(address, now)))
        else:
            line.info("substation back in", out_s=_to_seconds(now - self._out.pop(address)))


def tells_placed() -> bool:
    """Whether anybody hears of what went well. To be asked once: the logger takes a hundredth of a charge to say it."""
    return log.is_enabled_for(logging.INFO) or tracing.exporting()


def not_taken(step: Step, outcome: Outcome) -> tuple[str, ...]:
    """Who was asked and did not take it, and why. Nobody where that is the answer, or nobody was asked."""
    match step, outcome:
        case Ask(), Refused(error):
            why = error.reason.name
        case Ask(), Unreached() | Lost():
            why = type(outcome).__name__.upper()
        case _:
            return ()
    tracing.current.get().event("not taken", {"gridmesh.substation": step.substation_id, "gridmesh.reason": why})
    return (f"{step.substation_id} {why}",)


# What became of one charge: one line when it is known, and the same in its span. `not_at`: all that were `not_taken`.


def failed(request_id: str, error: MeshError, not_at: tuple[str, ...]) -> None:
    """It is known: nowhere."""
    logs.refused(request_id, error, **_others(not_at))


def placed(request_id: str, answer: Answer, not_at: tuple[str, ...]) -> None:
    """It is known where. For who `tells_placed`."""
    placement, session_id = answer.placement, answer.reply.response.session.session_id
    why: dict[str, tracing.Value] = {"substation": placement.substation_id, "policy": placement.policy}
    if not answer.repeated:
        why |= {
            "score": round(placement.score, 4),
            "before": round(placement.before, 4),
            "after": round(placement.after, 4),
            "eligible": placement.eligible,
            "tried": placement.tried,
        }
    event = "repeated" if answer.repeated else "placed"
    log.info(event, request_id=request_id, session_id=session_id, **why, **_others(not_at))
    if tracing.exporting():
        span = tracing.current.get()
        for name, value in {**why, "session_id": session_id, "request_id": request_id}.items():
            span.set(f"gridmesh.{name}", value)


def _others(not_at: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {"not_at": not_at} if not_at else {}


def doubt_opened(doubt: Doubt) -> None:
    """A substation was asked for a session, and what became of that is not known."""
    _of(doubt).warning("doubt opened")


def doubt_settled(doubt: Doubt, outcome: Found | Fenced, by: str, after_s: float) -> None:
    """It is known again, and nobody is kept from being asked."""
    what = {"outcome": "fenced"} if isinstance(outcome, Fenced) else {"outcome": "found", "session": outcome.session_id}
    _of(doubt).info("doubt settled", **what, by=by, after_s=round(after_s, 3))


def _of(doubt: Doubt) -> structlog.typing.FilteringBoundLogger:
    bound: structlog.typing.FilteringBoundLogger = log.bind(
        request_id=doubt.key.request_id,
        substation=doubt.substation_id,
        address=doubt.address,
        attempt=doubt.attempt_id,
    )
    return bound


def _to_seconds(ms: int) -> float:
    return round(ms / 1000, 1)
