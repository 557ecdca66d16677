"""The ledger's tables, as the steps that lead to them. `PRAGMA user_version` says how many a file has taken.

A step that was released is never changed: what follows it is a new one.
"""

import sqlite3
from collections.abc import Sequence

STEPS: Sequence[str] = (
    """
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
    """,
    # Sessions whose keys are forgotten, all of one commit in one row: they had ended by then.
    """
    CREATE TABLE history (
        ended_by_ms INTEGER NOT NULL,
        bodies BLOB NOT NULL
    );
    CREATE INDEX history_ended_by ON history (ended_by_ms);
    """,
    # Every commit wrote two pages more for it. Who asks when sessions ended, at a start and once an hour, asks of all.
    """
    DROP INDEX sessions_ended;
    """,
)


def version(db: sqlite3.Connection) -> int:
    """How many steps the file has taken; 0 for a new one."""
    (taken,) = db.execute("PRAGMA user_version").fetchone()
    return int(taken)


def migrate(db: sqlite3.Connection, steps: Sequence[str] = STEPS) -> None:
    """Takes the steps that are missing, each in its own transaction. What was taken stays taken when one fails."""
    for number in range(version(db), len(steps)):
        db.executescript(f"BEGIN IMMEDIATE;{steps[number]}PRAGMA user_version={number + 1};COMMIT;")
