"""The substation's memory on disk: SQLite in WAL mode with synchronous=FULL, one writer, many changes a commit.

A commit that returned is on the disk. One that failed may or may not be; the caller writes the truth
again with its next commit.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mesh.charge import Key
from mesh.settings import StartupError
from substation import records
from substation.keys import REMEMBER_MS
from substation.station import Memory

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE sessions (
    session_id TEXT PRIMARY KEY,
    ended_ms INTEGER,
    body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX sessions_ended ON sessions (ended_ms);
CREATE TABLE fences (
    owner TEXT NOT NULL,
    request_id TEXT NOT NULL,
    attempt_id TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (owner, request_id)
) WITHOUT ROWID;
CREATE TABLE state (
    name TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;
"""


class LedgerError(Exception):
    """A commit failed; what it held may or may not be on the disk."""


@dataclass(frozen=True, slots=True)
class SessionRow:
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
        self.path = path
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._migrate()
        except sqlite3.Error as error:
            raise StartupError(f"cannot open the ledger {path}: {error}") from None

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
        elif version != SCHEMA_VERSION:
            raise StartupError(f"the ledger has schema {version}, this program knows {SCHEMA_VERSION}")

    def substation_id(self, wanted: str) -> str:
        """The id kept here; on first use `wanted`, which is then kept. StartupError when they differ."""
        kept = self._state("substation_id")
        if kept is None:
            self.commit(Changes(state={"substation_id": wanted}))
            return wanted
        return str(kept)

    def next_epoch(self, now: int) -> int:
        """A number larger than at every start before, on disk."""
        epoch = max(int(self._state("epoch") or 0) + 1, now)
        self.commit(Changes(state={"epoch": epoch}))
        return epoch

    def recall(self, now: int) -> Memory:
        """All that a station starts with: live sessions, and keys and fences of the last 24 h."""
        since = now - REMEMBER_MS
        rows = self._db.execute("SELECT body FROM sessions WHERE ended_ms IS NULL OR ended_ms > ?", (since,))
        live = self._state("live")
        limits = self._state("limits")
        fences = self._db.execute("SELECT * FROM fences WHERE at_ms > ?", (since,))
        return Memory(
            sessions=records.read_sessions((body for (body,) in rows), live if isinstance(live, bytes) else None),
            limits=records.read_limits(limits) if isinstance(limits, bytes) else (),
            draining=bool(self._state("draining")),
            fences=[(Key(owner, request), attempt, at) for owner, request, attempt, at in fences],
        )

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
                [(r.session_id, r.ended_ms, r.body) for r in changes.sessions],
            ),
            (
                "INSERT OR REPLACE INTO fences VALUES (?, ?, ?, ?)",
                [(*key, attempt, at) for key, attempt, at in changes.fences],
            ),
            ("INSERT OR REPLACE INTO state VALUES (?, ?)", list(changes.state.items())),
        )
        for statement, rows in put:
            if rows:
                self._db.executemany(statement, rows)
        if changes.forget_before_ms is not None:
            self._db.execute("DELETE FROM sessions WHERE ended_ms <= ?", (changes.forget_before_ms,))
            self._db.execute("DELETE FROM fences WHERE at_ms <= ?", (changes.forget_before_ms,))

    def _roll_back(self) -> None:
        try:
            self._db.execute("ROLLBACK")
        except sqlite3.Error:
            return  # the failure itself ended the transaction

    def _state(self, name: str) -> bytes | int | str | None:
        row = self._db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        value: bytes | int | str | None = row[0] if row else None
        return value

    def close(self) -> None:
        self._db.close()
