"""What happens to the ledger's file over its years: new schemas, damage, growth."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mesh.model import StopReason
from mesh.settings import StartupError
from substation import damage, records, schema
from substation import ledger as ledgers
from substation.damage import DamagedError
from substation.keys import REMEMBER_MS
from substation.ledger import HISTORY_MS, Changes, Ledger, SessionRow
from substation.sessions import Session
from tests.substation.rig import NOW, Rig, a_charge

LEASE_MS, HOUR_MS = 10_000, 3_600_000


def an_ended_session(request_id: str = "1") -> Session:
    rig = Rig()
    session = rig.charge(a_charge(request_id))
    rig.do(rig.station.stop(session.session_id, StopReason.LOCAL, rig.now))
    return session


def row(session: Session) -> SessionRow:
    return SessionRow(session.session_id, session.ended_ms, records.session_body(session))


def a_ledger(folder: Path, sessions: int = 1) -> Path:
    """A closed one with ended sessions."""
    path, body = folder / "ledger.db", records.session_body(an_ended_session())
    ledger = Ledger(path)
    ledger.substation_id("a")
    ledger.commit(Changes(sessions=[SessionRow(f"a.{number:09}", NOW, body) for number in range(sessions)]))
    ledger.close()
    return path


def statement(path: Path, *sql: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for each in sql:
            db.execute(each)


# --- schema ----------------------------------------------------------------------------------------------


def test_a_ledger_of_the_first_schema_is_carried_forward_with_all_it_holds(tmp_path: Path) -> None:
    path, session = tmp_path / "ledger.db", an_ended_session()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        schema.migrate(db, schema.STEPS[:1])
        db.execute(
            "INSERT INTO sessions VALUES (?, ?, ?)",
            tuple(getattr(row(session), n) for n in SessionRow.__struct_fields__),
        )
    ledger = Ledger(path)
    assert schema.version(ledger._db) == len(schema.STEPS)
    assert [found.session_id for found in ledger.recall(NOW).sessions] == [session.session_id]


def test_a_step_that_fails_leaves_the_ledger_as_the_step_before_it_did(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as db:
        with pytest.raises(sqlite3.OperationalError):
            schema.migrate(db, ("CREATE TABLE one (x);", "CREATE TABLE two (x); CREATE TABLE one (x);"))
        db.rollback()
        assert schema.version(db) == 1
        assert db.execute("SELECT name FROM sqlite_schema").fetchall() == [("one",)]
        schema.migrate(db, ("CREATE TABLE one (x);", "CREATE TABLE two (x);"))
        assert schema.version(db) == 2


def test_a_ledger_of_a_later_schema_is_not_touched(tmp_path: Path) -> None:
    path = a_ledger(tmp_path)
    statement(path, "PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(StartupError, match="schema 99"):
        Ledger(path)
    assert path.read_bytes() == before


# --- damage ----------------------------------------------------------------------------------------------


def no_database(path: Path) -> None:
    path.write_bytes(b"this is not a database, " * 1000)


def malformed_page(path: Path) -> None:
    """Not the first page: SQLite would open it and find out only when it gets there."""
    with path.open("r+b") as file:
        file.seek(-3 * 4096, 2)
        file.write(b"\xff" * 4096)


def cut_short(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def unreadable_row(path: Path) -> None:
    statement(path, "UPDATE sessions SET body = x'c1ff', ended_ms = NULL")


def unreadable_limits(path: Path) -> None:
    """A source that nobody knows."""
    statement(path, "INSERT INTO state VALUES ('limits', x'9196630000c0a0c2')")


def limits_of_another_type(path: Path) -> None:
    statement(path, "INSERT INTO state VALUES ('limits', 7)")


SPOILERS = [no_database, malformed_page, cut_short, unreadable_row, unreadable_limits, limits_of_another_type]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_damage_is_found_on_start_and_the_file_set_aside_whole(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = a_ledger(tmp_path, 500)
    spoil(path)
    spoiled = path.read_bytes()
    with pytest.raises(DamagedError):  # noqa: PT012 - where depends on what is damaged
        ledger = Ledger(path)
        try:
            ledger.recall(NOW)
        finally:
            ledger.close()
    aside = damage.set_aside(path, NOW)
    assert aside.name.startswith("ledger.damaged-2")
    assert aside.read_bytes() == spoiled
    assert (path.exists(), damage.files(path)) == (False, [aside])


def test_what_was_not_yet_moved_into_the_main_file_goes_with_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.substation_id("a")
    aside = damage.set_aside(ledger.path, NOW)
    assert {file.name for file in tmp_path.iterdir()} == {aside.name + side for side in ("", "-wal", "-shm")}
    with closing(sqlite3.connect(aside)) as db:
        assert db.execute("SELECT value FROM state WHERE name = 'substation_id'").fetchone() == ("a",)
    ledger.close()


def test_a_kill_between_the_renames_leaves_no_wal_for_the_next_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    aside = damage.set_aside(a_ledger(tmp_path), NOW)
    path.with_name("ledger.db-wal").write_bytes(b"of the old one")
    with pytest.raises(StartupError):
        damage.check_told(path, "", LEASE_MS, NOW)
    assert aside.with_name(f"{aside.name}-wal").read_bytes() == b"of the old one"


def test_a_substation_starts_without_its_ledger_only_when_told_and_when_forgotten_leases_are_over(
    tmp_path: Path,
) -> None:
    path = a_ledger(tmp_path)
    damage.check_told(path, "", LEASE_MS, NOW)
    aside = damage.set_aside(path, NOW)
    for told in ("", "ledger.damaged-some-other.db"):
        with pytest.raises(StartupError, match=f"set aside as {aside}"):
            damage.check_told(path, told, LEASE_MS, NOW + LEASE_MS)
    with pytest.raises(StartupError, match="start again in 1 s"):
        damage.check_told(path, aside.name, LEASE_MS, NOW + LEASE_MS - 1)
    damage.check_told(path, aside.name, LEASE_MS, NOW + LEASE_MS)
    # A backup that was put in its place needs no word, but the cars need their time all the same.
    a_ledger(tmp_path)
    with pytest.raises(StartupError, match="leases"):
        damage.check_told(path, "", LEASE_MS, NOW)
    damage.check_told(path, "", LEASE_MS, NOW + LEASE_MS)


def test_a_start_without_the_ledger_is_drained_also_when_killed_before_its_first_commit(tmp_path: Path) -> None:
    damage.set_aside(a_ledger(tmp_path), NOW)
    Ledger(tmp_path / "ledger.db").close()
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.substation_id("a")
    assert ledger.recall(NOW).draining
    assert ledger.next_epoch(NOW) == NOW


def test_a_file_that_cannot_be_opened_is_not_damage(tmp_path: Path) -> None:
    path = a_ledger(tmp_path)
    statement(path, "PRAGMA journal_mode = DELETE")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite3, "connect", lambda *a, real=sqlite3.connect, **k: real(*a, **{**k, "timeout": 0}))
            with pytest.raises(StartupError, match="locked"):
                Ledger(path)
    assert damage.files(path) == []


def test_a_kill_during_a_write_outside_wal_mode_is_rolled_back_and_not_damage(tmp_path: Path) -> None:
    """As on the very first start, or after an operator's tool has left that mode."""
    path = a_ledger(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN")
        db.execute("UPDATE sessions SET body = randomblob(100000)")
        killed = tmp_path / "killed"
        killed.mkdir()
        for file in tmp_path.glob("ledger.db*"):
            shutil.copy(file, killed)
    assert (killed / "ledger.db-journal").stat().st_size > 0
    assert len(Ledger(killed / "ledger.db").recall(NOW).sessions) == 1


# --- growth ----------------------------------------------------------------------------------------------


def pages(ledger: Ledger) -> int:
    (count,) = ledger._db.execute("PRAGMA page_count").fetchone()
    return int(count)


def test_the_end_of_a_session_writes_one_page(tmp_path: Path) -> None:
    """No index is kept up with it: disks wear, and a commit waits for what it writes."""
    path = a_ledger(tmp_path, sessions=500)
    ledger, body = Ledger(path), records.session_body(an_ended_session())
    ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.commit(Changes(sessions=[SessionRow(f"a.{250:09}", NOW + 1, body)]))
    page, header_of_page, header = 4096, 24, 32
    assert Path(f"{path}-wal").stat().st_size == header + header_of_page + page


def test_what_ended_a_day_ago_goes_to_the_history_one_row_a_commit(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ended = [an_ended_session(name) for name in "123"]
    ledger.commit(Changes(sessions=[row(session) for session in ended]))
    ledger.commit(Changes(forget_before_ms=NOW - 1))
    assert list(ledger.history()) == []
    ledger.commit(Changes(forget_before_ms=NOW))
    assert list(ledger.recall(NOW).sessions) == []
    assert {session.session_id for session in ledger.history()} == {session.session_id for session in ended}
    assert ledger._db.execute("SELECT count(*) FROM history").fetchone() == (1,)
    ledger.commit(Changes(forget_before_ms=NOW + HISTORY_MS))
    assert list(ledger.history()) == []


def test_a_ledger_in_use_for_long_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "HISTORY_BYTES", 100_000)
    ledger, body = Ledger(tmp_path / "ledger.db"), records.session_body(an_ended_session())
    sizes = []
    for hour in range(8 * 24):
        now = NOW + hour * HOUR_MS
        names = [f"a.{hour:06}-{number:06}" for number in range(50)]
        ledger.commit(Changes(sessions=[SessionRow(name, None, body) for name in names]))
        ended = [SessionRow(name, now, body) for name in names]
        ledger.commit(Changes(sessions=ended, forget_before_ms=now - REMEMBER_MS))
        sizes.append(pages(ledger))
    assert max(sizes[3 * 24 :]) == max(sizes[: 3 * 24])
    assert sum(1 for _ in ledger.history()) * len(body) <= ledgers.HISTORY_BYTES
    assert ledger._db.execute("SELECT count(*) FROM sessions").fetchone() == (24 * 50,)
    assert (tmp_path / "ledger.db-wal").stat().st_size < 1200 * 4096


def test_the_wal_shrinks_again_after_a_long_reader_kept_it_from_being_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "_WAL_BYTES", 100_000)
    ledger, wal = Ledger(tmp_path / "ledger.db"), tmp_path / "ledger.db-wal"
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM state").fetchall()
        for _ in range(12):
            ledger.commit(Changes(sessions=[SessionRow("a.1", NOW, bytes(500_000))]))
        assert wal.stat().st_size > 5_000_000
    for _ in range(2):
        ledger.commit(Changes(state={"draining": 0}))
    assert wal.stat().st_size <= 100_000
