"""The substation's memory on disk: SQLite in WAL mode with synchronous=FULL, one writer, many changes a commit.

A commit that returned is on the disk. One that failed may or may not be; the caller writes the truth
again with its next commit.

Three kinds of rows: one for each session that lives or ended within 24 h (written when it is admitted and when
it ends), one for what changes of all live sessions, and one of history for all sessions that a commit forgets.
The file does not grow without bound: freed pages are used again, so it is as large as its busiest day and the
history that is kept.
"""

import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mesh.charge import Key
from mesh.settings import StartupError
from substation import damage, records, schema
from substation.damage import DamagedError
from substation.keys import REMEMBER_MS
from substation.sessions import Session
from substation.station import Memory

LEDGER = "ledger.db"
# Sessions whose keys are forgotten are kept for so long, and for so many bytes, whichever is less.
HISTORY_MS = 30 * 24 * 3_600_000
HISTORY_BYTES = 64_000_000
# The -wal file shrinks back to this after a burst; it is emptied every 1000 pages (4 MB).
_WAL_BYTES = 16_000_000
_TRIM_HISTORY = """
DELETE FROM history WHERE ended_by_ms <= ? OR rowid IN (
    SELECT rowid FROM (
        SELECT rowid, sum(length(bodies)) OVER (ORDER BY ended_by_ms DESC, rowid DESC) AS bytes FROM history
    ) WHERE bytes > ?
)
"""


def live_sessions(path: Path) -> float:
    """How many sessions live in a ledger that nobody has open, which is not changed. sqlite3.Error.

    Infinite where a damaged one was set aside and nothing is in its place.
    """
    if not path.exists():
        return math.inf if damage.files(path) else 0
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        (count,) = db.execute("SELECT count(*) FROM sessions WHERE ended_ms IS NULL").fetchone()
        return int(count)


class LedgerError(Exception):
    """A commit failed; what it held may or may not be on the disk."""


class SessionRow(msgspec.Struct, frozen=True):
    """One session as it is to be kept."""

    session_id: str
    ended_ms: int | None
    body: bytes


@dataclass(slots=True)
class Changes:
    """What one commit writes. `live` is the changing part of all live sessions, replaced whole."""

    sessions: list[SessionRow] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    fences: list[tuple[Key, str, int]] = field(default_factory=list)
    state: dict[str, bytes | int | str] = field(default_factory=dict)
    forget_before_ms: int | None = None


class Ledger:
    """One open ledger file. `commit` may be called from one thread at a time."""

    def __init__(self, path: Path) -> None:
        """DamagedError when the file cannot be read, StartupError when it cannot be used; both leave it as it is."""
        self.path = path
        try:
            damage.check(path)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
            schema.migrate(self._db)
        except sqlite3.Error as error:
            raise StartupError(f"cannot open the ledger {path}: {error}") from None

    def substation_id(self, wanted: str) -> str:
        """The id kept here; on first use `wanted`, which is then kept.

        Where a damaged ledger was set aside, the first use is a start without it: drained (see `damage`).
        """
        kept = self._state("substation_id")
        if kept is None:
            drained = bool(damage.files(self.path))
            self.commit(Changes(state={"substation_id": wanted, "draining": int(drained)}))
            return wanted
        return str(kept)

    def next_epoch(self, now: int) -> int:
        """A number larger than at every start before, on disk."""
        with self._reading():
            epoch = max(int(self._state("epoch") or 0) + 1, now)
        self.commit(Changes(state={"epoch": epoch}))
        return epoch

    def recall(self, now: int) -> Memory:
        """All that a station starts with: live sessions, and keys and fences of the last 24 h. DamagedError."""
        with self._reading():
            return self._recall(now - REMEMBER_MS)

    def _recall(self, since: int) -> Memory:
        rows = self._db.execute("SELECT body FROM sessions WHERE ended_ms IS NULL OR ended_ms > ?", (since,))
        live, limits = self._blob("live"), self._blob("limits")
        fences = self._db.execute("SELECT * FROM fences WHERE at_ms > ?", (since,))
        return Memory(
            sessions=records.read_sessions((body for (body,) in rows), live),
            limits=records.read_limits(limits) if limits else (),
            draining=bool(self._state("draining")),
            fences=[(Key(owner, request), attempt, at) for owner, request, attempt, at in fences],
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """What is in the file but cannot be read is damage, also where SQLite sees nothing wrong."""
        try:
            yield
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            raise DamagedError(f"a row cannot be read: {error}") from error
        except sqlite3.Error as error:
            if damage.is_damage(error):
                raise DamagedError(str(error)) from error
            raise

    def commit(self, changes: Changes) -> None:
        """Writes all of it in one transaction. LedgerError when it failed."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._write(changes)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise LedgerError(str(error)) from error

    def _write(self, changes: Changes) -> None:
        put: Sequence[tuple[str, list[tuple[object, ...]]]] = (
            ("DELETE FROM sessions WHERE session_id = ?", [(name,) for name in changes.removed]),
            (
                "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)",
                # As bytearrays: for bytes sqlite3 looks for an adapter each time, which takes longer than a copy.
                [(r.session_id, r.ended_ms, bytearray(r.body)) for r in changes.sessions],
            ),
            (
                "INSERT OR REPLACE INTO fences VALUES (?, ?, ?, ?)",
                [(key.owner, key.request_id, attempt, at) for key, attempt, at in changes.fences],
            ),
            ("INSERT OR REPLACE INTO state VALUES (?, ?)", list(changes.state.items())),
        )
        for statement, rows in put:
            if rows:
                self._db.executemany(statement, rows)
        if changes.forget_before_ms is not None:
            self._forget(changes.forget_before_ms)

    def _forget(self, before_ms: int) -> None:
        """Moves sessions that ended until then to the history, and drops fences and history that are too old."""
        rows = self._db.execute("SELECT body FROM sessions WHERE ended_ms <= ? ORDER BY ended_ms", (before_ms,))
        if bodies := [body for (body,) in rows]:
            self._db.execute("INSERT INTO history VALUES (?, ?)", (before_ms, records.history_body(bodies)))
            self._db.execute("DELETE FROM sessions WHERE ended_ms <= ?", (before_ms,))
        self._db.execute("DELETE FROM fences WHERE at_ms <= ?", (before_ms,))
        self._db.execute(_TRIM_HISTORY, (before_ms - HISTORY_MS, HISTORY_BYTES))

    def history(self) -> Iterator[Session]:
        """Sessions whose keys are forgotten, those that ended first before the others."""
        for (bodies,) in self._db.execute("SELECT bodies FROM history ORDER BY ended_by_ms, rowid"):
            yield from records.read_sessions(records.read_history(bodies), None)

    def _roll_back(self) -> None:
        try:
            self._db.execute("ROLLBACK")
        except sqlite3.Error:
            return  # the failure itself ended the transaction

    def _state(self, name: str) -> bytes | int | str | None:
        row = self._db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        value: bytes | int | str | None = row[0] if row else None
        return value

    def _blob(self, name: str) -> bytes | None:
        value = self._state(name)
        if value is not None and not isinstance(value, bytes):
            raise DamagedError(f"{name} is {type(value).__name__}")
        return value

    def close(self) -> None:
        self._db.close()
