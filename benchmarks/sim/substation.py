"""One substation as balancers meet it: its site, its reports, its admissions, and what it answers when asked."""

from collections.abc import Callable

from balancer.admissions import Duplicate, Entry
from balancer.attempt import Outcome, Refused
from balancer.desk import Doubt, Fenced, Found, Replied
from balancer.view import Load
from benchmarks.sim.loop import Loop
from benchmarks.sim.reports import Reports
from benchmarks.sim.site import Site
from mesh.charge import Charge, Key
from mesh.errors import MeshError
from substation.sessions import Session

# Called before the station is asked; may refuse.
Gate = Callable[[Site, Charge], None]


class Ear:
    """Somebody who follows the streams of a substation."""

    def report(self, load: Load) -> None:
        """A report is on its way."""

    def admissions(self, entries: list[Entry], sequence: int) -> None:
        """Entries of the stream of admissions are on their way; complete up to `sequence`."""

    def broke(self, life: int) -> None:
        """The substation's process died."""


class Substation:
    """`need_mj` says what the car of a key can take."""

    def __init__(
        self, loop: Loop, site: Site, need_mj: Callable[[Key], int], *, pushed: bool, gate: Gate | None = None
    ) -> None:
        self.site = site
        self._loop = loop
        self._need_mj = need_mj
        self._gate = gate
        self.reports = Reports(loop, site, self._send, pushed=pushed, ahead=True)
        self.ears: list[Ear] = []
        # The entries of this life, and those that leave with the next change.
        self._log: list[Entry] = []
        self._news: list[Entry] = []
        # Called with each session that was admitted, raised or ended.
        self.on_admission: Callable[[Session], None] = _ignore
        site.on_change = self._changed
        site.on_admission = self._note

    @property
    def name(self) -> str:
        return self.site.config.substation_id

    @property
    def life(self) -> int | None:
        """The epoch it is in; None while it is down."""
        return None if self.site.station is None else self.site.epoch

    # --- what it says -------------------------------------------------------------------------------

    def _send(self, load: Load) -> None:
        for ear in self.ears:
            ear.report(load)

    def _note(self, session: Session) -> None:
        self._news.append(self._entry(session))
        self.on_admission(session)

    def _entry(self, session: Session) -> Entry:
        return Entry(
            key=session.charge.key,
            session_id=session.session_id,
            substation_id=self.name,
            attempt_id=session.attempt_id,
            epoch=self.site.epoch,
            sequence=session.admission_sequence,
            ended_at_ms=session.ended_ms,
            stop_reason=session.stop_reason,
            duplicate_of=session.duplicate_of,
        )

    def _changed(self) -> None:
        news, self._news = sorted(self._news, key=lambda entry: entry.sequence), []
        if news:
            self._log += news
            for ear in self.ears:
                ear.admissions(news, news[-1].sequence)
        self.reports.changed()

    def admissions_after(self, position: tuple[int, int] | None) -> list[Entry] | None:
        """What came after a position; None when that is not of this life."""
        if position is None or position[0] != self.site.epoch:
            return None
        return [entry for entry in self._log if entry.sequence > position[1]]

    def snapshot(self) -> list[Entry]:
        """All sessions, also those that ended within 24 h."""
        return [self._entry(session) for session in self.site.up().sessions(include_ended=True)]

    @property
    def admission_sequence(self) -> int:
        """Up to where a snapshot made now is complete."""
        return self._log[-1].sequence if self._log else 0

    # --- what it is asked ---------------------------------------------------------------------------

    def charge(self, charge: Charge) -> Outcome:
        """Admits a car, or says why not."""
        try:
            if self._gate is not None:
                self._gate(self.site, charge)
            session, repeated = self.site.admit(charge, self._need_mj(charge.key))
        except MeshError as error:
            return Refused(error)
        name = session.session_id
        ended_ms, load = session.ended_ms, self.reports.load()
        return Replied(load, name, session.attempt_id, ended_ms, repeated, name, session.duplicate_of)

    def resolve(self, doubt: Doubt) -> Found | Fenced:
        """The session of a key, or a fence."""
        session = self.site.resolve(doubt.key, doubt.attempt_id)
        if session is None:
            return Fenced()
        name = session.session_id
        return Found(self.reports.load(), name, session.attempt_id, session.ended_ms, name, session.duplicate_of)

    def end_duplicate(self, duplicate: Duplicate) -> bool:
        """Ends a session, unless it was answered to a later attempt than the one that is to stay."""
        try:
            self.site.end_duplicate(duplicate.session_id, duplicate.survivor_session_id, duplicate.survivor_attempt_id)
        except MeshError:
            return False
        return True

    # --- its life -----------------------------------------------------------------------------------

    def crash(self, lease_ms: int) -> None:
        """The process dies, and those who are connected hear that their connections broke."""
        life = self.site.epoch
        self.site.crash(lease_ms)
        self._log.clear()
        for ear in list(self.ears):
            ear.broke(life)

    def crash_for(self, down_ms: int, lease_ms: int) -> None:
        """Crashes, and restarts after that time."""
        if self.life is not None:
            self.crash(lease_ms)
            self._loop.at(self._loop.now + down_ms, self.site.restart)


def _ignore(_: Session) -> None:
    """Nobody listens."""
