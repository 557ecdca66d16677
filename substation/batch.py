"""What gathers for the next commit of the ledger, and who waits for it."""

import asyncio
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from operator import attrgetter

from msgspec import Struct

from mesh import tracing
from mesh.charge import Key
from mesh.errors import MeshError
from substation import records
from substation.keys import REMEMBER_MS
from substation.ledger import Changes, SessionRow
from substation.sessions import Session, kept
from substation.station import Station


class Copies(Struct, frozen=True):
    """Sessions as of the moment of a commit: live ones that changed, and those whose rows it writes, as admitted."""

    live: list[Session]
    rows: list[Session]


class Waiter(Struct, frozen=True):
    """Somebody who waits for a commit: `done` when it is over, with its error if it failed."""

    batch: "Batch"
    done: asyncio.Future[None]

    def trace(self) -> None:
        """The commit, as a part of what waited for it: one serves all that had gathered."""
        batch = self.batch
        if tracing.exporting() and batch.ended_s:
            attributes: dict[str, tracing.Value] = {"db.system.name": "sqlite", "gridmesh.commit.calls": batch.calls}
            tracing.past("ledger commit", batch.began_s, batch.ended_s, attributes)


@dataclass(slots=True)
class Batch:
    """Session objects are the station's own: what is written is as they are when the commit begins."""

    sessions: dict[str, Session] = field(default_factory=dict)
    admitted: dict[str, Session] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    fences: dict[Key, str] = field(default_factory=dict)
    limits: bool = False
    draining: bool = False
    # Grants, registers or states of live sessions changed, so that there is something to write.
    live: bool = False
    # All live sessions are to be written, not only those that changed.
    checkpoint: bool = False
    # Live sessions that changed, once the commit has begun.
    changed: dict[str, Session] = field(default_factory=dict)
    forget: bool = False
    waiting: list[asyncio.Future[None]] = field(default_factory=list)
    # How many charges and other calls these are; the items of a batch of charges wait as one.
    calls: int = 0
    # When it was written, in monotonic seconds; 0 before that.
    began_s: float = 0.0
    ended_s: float = 0.0

    def __bool__(self) -> bool:
        if self.live or self.sessions or self.waiting:  # the usual
            return True
        return self.limits or self.draining or self.forget or bool(self.removed or self.fences)

    def admit(self, session: Session) -> None:
        self.admitted[session.session_id] = self.sessions[session.session_id] = session
        self.live = True

    def end(self, session: Session) -> None:
        self.sessions[session.session_id] = session
        self.ended.add(session.session_id)
        self.live = True

    def withdraw_admissions(self) -> Iterable[str]:
        """The commit failed: the rows of what it was to admit may be on disk all the same and are to be removed."""
        for session_id in self.admitted:
            self.sessions.pop(session_id, None)
            self.ended.discard(session_id)
            self.removed.add(session_id)
        return list(self.admitted)

    def take_back(self, failed: "Batch") -> None:
        """Adds what a failed commit was to write; what is newer here stays."""
        self.sessions = {**failed.sessions, **self.sessions}
        self.ended |= failed.ended
        self.removed |= failed.removed
        self.fences = {**failed.fences, **self.fences}
        self.limits |= failed.limits
        self.draining |= failed.draining
        self.live |= failed.live
        self.checkpoint |= failed.checkpoint
        self.changed = {**failed.changed, **self.changed}
        self.forget |= failed.forget
        # Also what came later of an admission that was withdrawn: it must not bring the row back.
        for session_id in self.removed:
            self.sessions.pop(session_id, None)
            self.ended.discard(session_id)

    @property
    def gone(self) -> set[str]:
        """Sessions that live no more, or never did."""
        return self.ended | self.removed

    def join(self, calls: int, done: asyncio.Future[None]) -> Waiter:
        """Sets `done`, for so many calls at once, when it is over."""
        self.waiting.append(done)
        self.calls += calls
        return Waiter(self, done)

    def resolve(self, error: MeshError | None) -> None:
        """Lets the callers go on."""
        for done in self.waiting:
            if done.done():
                continue
            if error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def copies(self, station: Station) -> Copies:
        """The sessions as they are."""
        # Those of a commit that failed may have ended since, or been withdrawn.
        self.changed = {name: session for name, session in self.changed.items() if station.lives(name)}
        for session in station.take_changed(everything=self.checkpoint):
            self.changed[session.session_id] = session
        live = {name: copy(session) for name, session in self.changed.items()}
        rows = [live.get(name) or kept(session) for name, session in self.sessions.items()]
        return Copies(list(live.values()), sorted(rows, key=attrgetter("admission_sequence")))

    def changes(self, station: Station, copies: Copies, live: records.LiveBody, now: int) -> Changes:
        """What the commit writes. `live` is what the commit before wrote of live sessions, or tried to."""
        changes = Changes(
            sessions=[SessionRow(s.session_id, s.ended_ms, records.session_body(s)) for s in copies.rows],
            removed=list(self.removed),
            fences=[(key, attempt_id, now) for key, attempt_id in self.fences.items()],
            forget_before_ms=now - REMEMBER_MS if self.forget else None,
        )
        live.drop(self.gone)
        live.put(copies.live)
        if self.gone or copies.live:
            changes.state["live"] = live.body()
        if self.limits:
            changes.state["limits"] = records.limits_body(station.limits())
        if self.draining:
            changes.state["draining"] = int(station.draining)
        return changes
