"""Slots: whose folder is whose, and what is in those that nobody owns."""

import fcntl
import math
import os
from pathlib import Path
from threading import Timer

import pytest

from mesh.settings import StartupError
from substation import slots
from substation.ledger import LEDGER, Changes, Ledger, SessionRow
from tests.conftest import StartMesh
from tests.mesh_processes import wait_for
from tests.scenarios.asking import Server


def keep(folder: Path, *ended_ms: int | None) -> None:
    """A ledger with so many sessions; None is one that lives."""
    ledger = Ledger(folder / LEDGER)
    rows = [SessionRow(f"a.{number}", ended, b"") for number, ended in enumerate(ended_ms)]
    ledger.commit(Changes(sessions=rows))
    ledger.close()


def test_each_claims_the_first_slot_that_is_free(tmp_path: Path) -> None:
    first, second = slots.claim(tmp_path, ""), slots.claim(tmp_path, "")
    assert [slot.folder.name for slot in (first, second)] == ["slot-1", "slot-2"]
    first.release()
    again = slots.claim(tmp_path, "")
    assert again.folder.name == "slot-1"
    with pytest.raises(StartupError, match="used by another substation"):
        slots.claim(tmp_path, "slot-2")
    again.release()
    second.release()


def test_sessions_in_a_slot_that_nobody_owns_are_counted(tmp_path: Path) -> None:
    own, other, lost = (slots.claim(tmp_path, "") for _ in range(3))
    for slot in (own, other, lost):
        keep(slot.folder, None, None, 1)
    (tmp_path / "no-slot").mkdir()
    lost.release()
    assert dict(slots.orphans(tmp_path, own.folder)) == {"slot-2": 0, "slot-3": 2}
    found = slots.claim(tmp_path, "")
    assert dict(slots.orphans(tmp_path, own.folder)) == {"slot-2": 0, "slot-3": 0}
    for slot in (own, other, found):
        slot.release()


def test_of_a_ledger_that_cannot_be_read_nobody_knows_how_many(tmp_path: Path) -> None:
    for name, file in (("broken", LEDGER), ("aside", "ledger.damaged-20261122T100000.000000Z.db"), ("unused", "else")):
        slots.claim(tmp_path, name).release()
        (tmp_path / name / file).write_bytes(b"no database at all" * 100)
    assert dict(slots.orphans(tmp_path, tmp_path / "own")) == {"broken": math.inf, "aside": math.inf, "unused": 0}


def test_a_look_at_a_slot_takes_it_from_nobody(tmp_path: Path) -> None:
    slots.claim(tmp_path, "").release()
    looking = os.open(tmp_path / "slot-1" / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    ends = Timer(0.05, os.close, [looking])
    ends.start()
    slot = slots.claim(tmp_path, "")
    assert slot.folder.name == "slot-1"
    slot.release()
    ends.join()


def test_the_siblings_of_one_that_was_killed_tell_of_its_sessions(start_mesh: StartMesh) -> None:
    mesh = start_mesh("a", "b", time_scale=1)

    def orphaned() -> float:
        return mesh.metric("b", "substation_orphaned_sessions", slot="a")

    Server(mesh, "a").charge()
    assert orphaned() == 0
    mesh.kill9("a")
    assert orphaned() == 1
    mesh.start("a")
    assert orphaned() == 0
    assert len(Server(mesh, "a").sessions()) == 1
    mesh.stop("a")
    wait_for(lambda: orphaned() == 1, 5, "also after a stop")
