"""What is promised, kept up with who comes and goes, is what a look at every session finds."""

from substation.ahead import Ahead
from tests.substation.rig import NOW, Rig, a_charge, a_config

LIMIT_W = 100_000


def test_promises_that_were_kept_up_are_those_made_anew() -> None:
    rig = Rig(a_config(rated_w=LIMIT_W))
    kept = Ahead([], LIMIT_W, 1, NOW)
    stays = (None, 3_600_000, 40_000_000)
    sessions = [
        rig.charge(a_charge(str(n), energy_j=n * 3_000_000 + 1, departure_ms=stay and NOW + stay))
        for n, stay in enumerate(stays * 4)
    ]
    for session in sessions:
        kept.add(session, NOW)
    assert kept.outlook() == rig.station.outlook(NOW) == Ahead(sessions, LIMIT_W, 1, NOW).outlook()
    for session in sessions[::2]:
        kept.drop(session.session_id)
    assert kept.outlook() == Ahead(sessions[1::2], LIMIT_W, 1, NOW).outlook()
    for session in sessions[1:-2:2]:
        kept.drop(session.session_id)
    assert kept.outlook() == Ahead(sessions[-1:], LIMIT_W, 1, NOW).outlook(), "most have gone"


def test_who_came_and_went_between_two_looks_is_not_promised_anything() -> None:
    rig = Rig(a_config(rated_w=LIMIT_W))
    kept = Ahead([], LIMIT_W, 1, NOW)
    stays, goes = (rig.charge(a_charge(name, energy_j=3_000_000)) for name in ("stays", "goes"))
    kept.add(stays, NOW)
    kept.add(goes, NOW)
    kept.drop(goes.session_id)
    assert kept.outlook() == Ahead([stays], LIMIT_W, 1, NOW).outlook()


def test_who_was_never_promised_anything_cannot_be_dropped() -> None:
    kept = Ahead([], LIMIT_W, 1, NOW)
    before = kept.outlook()
    kept.drop("a.unknown")
    assert kept.outlook() == before
