from pathlib import Path

import pytest

from mesh.model import LimitReason, LimitSource, SessionState, StopReason
from mesh.settings import StartupError
from substation import records, slots
from substation.keys import REMEMBER_MS
from substation.ledger import Changes, Ledger, LedgerError, SessionRow
from substation.limits import Limit
from tests.substation.rig import NOW, Rig, a_charge, an_attempt


def test_what_was_committed_is_recalled_by_the_next_process(tmp_path: Path) -> None:
    rig = Rig()
    live, ended = rig.charge(a_charge("live", departure_ms=NOW + 10**7)), rig.charge(a_charge("ended"))
    rig.run(20)
    rig.do(rig.station.stop(ended.session_id, StopReason.LOCAL, rig.now))
    limits = [
        Limit(LimitSource.SO, 50_000, NOW, NOW + 10**7, "grid", grid_critical=True),
        Limit(LimitSource.EMS, 0, NOW),
    ]
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.commit(
        Changes(
            sessions=[SessionRow(s.session_id, s.ended_ms, records.session_body(s)) for s in (live, ended)],
            fences=[(a_charge("fenced").key, an_attempt(3), NOW)],
            state={"live": records.live_body([live]), "limits": records.limits_body(limits), "draining": 1},
        )
    )
    ledger.close()
    memory = Ledger(tmp_path / "ledger.db").recall(NOW + 1000)
    found = {session.session_id: session for session in memory.sessions}
    again = found[live.session_id]
    assert again.charge == live.charge
    for name in (
        "state",
        "granted_w",
        "measured_w",
        "delivered_mj",
        "metered_ms",
        "held_w",
        "last_offer",
        "started_ms",
    ):
        assert getattr(again, name) == getattr(live, name), name
    assert (again.limit_reason, again.limit_source) == (LimitReason.UNSPECIFIED, LimitSource.UNSPECIFIED)
    over = found[ended.session_id]
    assert (over.state, over.stop_reason, over.ended_ms) == (SessionState.ENDED, StopReason.LOCAL, ended.ended_ms)
    assert over.delivered_mj == ended.delivered_mj
    assert (list(memory.limits), memory.draining) == (limits, True)
    assert list(memory.fences) == [(a_charge("fenced").key, an_attempt(3), NOW)]


def test_an_empty_ledger_recalls_nothing(tmp_path: Path) -> None:
    memory = Ledger(tmp_path / "ledger.db").recall(NOW)
    assert (list(memory.sessions), list(memory.limits), memory.draining, list(memory.fences)) == ([], [], False, [])


def test_what_is_old_is_forgotten_and_what_was_withdrawn_is_removed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    session = Rig().charge(a_charge())
    body = records.session_body(session)
    ledger.commit(Changes(sessions=[SessionRow("a.old", NOW, body), SessionRow("a.bad", None, body)]))
    ledger.commit(Changes(removed=["a.bad"], forget_before_ms=NOW))
    assert list(ledger.recall(NOW).sessions) == []
    ledger.commit(Changes(sessions=[SessionRow("a.old", NOW, body)]))
    assert len(ledger.recall(NOW + REMEMBER_MS - 1).sessions) == 1
    assert len(ledger.recall(NOW + REMEMBER_MS).sessions) == 0


def test_the_epoch_grows_on_every_start_also_when_the_clock_went_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    assert [ledger.next_epoch(now) for now in (NOW, NOW - 5_000, NOW + 9)] == [NOW, NOW + 1, NOW + 9]


def test_the_id_is_made_once_and_kept(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "ledger.db").substation_id("first") == "first"
    assert Ledger(tmp_path / "ledger.db").substation_id("second") == "first"


def test_every_commit_is_synced_to_the_disk(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_failed_commit_says_so_and_the_next_one_works(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    session = Rig().charge(a_charge())
    row = SessionRow(session.session_id, None, records.session_body(session))
    ledger._db.execute("PRAGMA max_page_count = 1")
    big = SessionRow("a.big", None, b"x" * 1_000_000)
    with pytest.raises(LedgerError, match="full"):
        ledger.commit(Changes(sessions=[row, big]))
    ledger._db.execute("PRAGMA max_page_count = 1000000")
    assert list(ledger.recall(NOW).sessions) == []
    ledger.commit(Changes(sessions=[row]))
    assert len(ledger.recall(NOW).sessions) == 1


def test_replicas_claim_slots_in_turn_and_an_id_claims_its_own(tmp_path: Path) -> None:
    first, second = slots.claim(tmp_path, ""), slots.claim(tmp_path, "")
    assert [slot.folder.name for slot in (first, second)] == ["slot-1", "slot-2"]
    first.release()
    third = slots.claim(tmp_path, "")
    assert third.folder.name == "slot-1"
    named = slots.claim(tmp_path, "north")
    with pytest.raises(StartupError, match="used by another"):
        slots.claim(tmp_path, "north")
    for slot in (second, third, named):
        slot.release()


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot be written"):
        slots.claim(tmp_path / "file", "a")
