"""What the doctor says of what it was shown."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fleet import doctor
from fleet.doctor import Finding, Level

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DATE = "Sun, 01 Mar 2026 12:00:00 GMT"


def listed(state: str = "FRESH", ejected: bool = False, **report: object) -> dict[str, Any]:
    full: dict[str, object] = {"committed_kw": 11.0, "limit_power_kw": 100.0, "active_sessions": 1}
    full |= {"free_charge_points": 9, "accepting": True, "over_limit_seconds": 0.0, **report}
    return {
        "substation_id": "a",
        "address": "127.0.0.1:1",
        "state": state,
        "ejected": ejected,
        "report_age": "4.2s",
    } | {"report": full}


def test_a_sound_substation_is_one_line() -> None:
    words = "11.0 of 100 kW, 1 car, 9 plugs free, heard 4.2 s ago"
    assert doctor.substation(listed(), None) == [Finding(Level.OK, "a", words)]
    [last] = doctor.substation(listed(active_sessions=9, free_charge_points=1), None)
    assert ", 9 cars, 1 plug free, " in last.words


@pytest.mark.parametrize(
    ("substation", "words"),
    [
        (listed("STALE"), "its report is 4.2 s old"),
        (listed("GONE"), "nothing heard for 4.2 s"),
        (listed(ejected=True), "is left out for a while"),
        (listed(accepting=False, not_accepting_reason="DRAINING"), "is drained"),
        (listed(accepting=False, not_accepting_reason="LEDGER"), "its ledger cannot be written"),
        (listed(accepting=False), "takes no new cars"),
        (listed(over_limit_seconds=0.25), "was over its limit for 0.2 s"),
    ],
)
def test_what_is_wrong_with_a_substation_is_said(substation: dict[str, Any], words: str) -> None:
    [finding] = doctor.substation(substation, None)
    assert finding.level is Level.WRONG
    assert finding.words.startswith(words)
    assert finding.remedy


def test_one_that_never_reported_is_named_by_its_address() -> None:
    silent = {"address": "10.0.0.7:50061", "state": "NEVER_REPORTED", "ejected": False}
    [finding] = doctor.substation(silent, None)
    assert (finding.subject, finding.words) == ("10.0.0.7:50061", "has never reported")


def test_each_thing_that_is_wrong_has_a_line_of_its_own() -> None:
    wrong = listed("GONE", ejected=True, accepting=False, not_accepting_reason="LEDGER", over_limit_seconds=9.0)
    assert len(doctor.substation(wrong, port_open=False)) == 4


def test_a_limit_is_nothing_wrong() -> None:
    [finding] = doctor.substation(listed(limit_power_kw=40.0, limit_source="SO"), None)
    assert (finding.level, finding.words[:21]) == (Level.OK, "11.0 of 40 kW by SO, ")


@pytest.mark.parametrize(
    ("port_open", "words"),
    [
        (True, "is open: its process hangs"),
        (False, "is closed: its process is not running"),
        (None, "is its process at"),
    ],
)
def test_whether_the_port_is_open_tells_one_that_hangs_from_one_that_is_dead(
    port_open: bool | None, words: str
) -> None:
    [finding] = doctor.substation(listed("GONE"), port_open)
    assert words in finding.remedy


def test_one_that_never_reported_and_has_an_open_port_is_not_to_be_restarted_unseen() -> None:
    silent = {"address": "127.0.0.1:1", "state": "NEVER_REPORTED", "ejected": False}
    [finding] = doctor.substation(silent, port_open=True)
    assert "restart" not in finding.remedy
    assert "followed at another address" in finding.remedy


def test_a_balancer_without_substations_is_found_out() -> None:
    assert [finding.words for finding in doctor.examine([], {})] == ["the balancer knows none"]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (NOON, "this machine and the gateway agree within 2 s"),
        (NOON + timedelta(seconds=2.5), "this machine and the gateway agree within 2 s"),
        (NOON + timedelta(seconds=9), "this machine is 8.5 s ahead of the gateway"),
        (NOON - timedelta(hours=2), "this machine is 2.0 h behind the gateway"),
    ],
)
def test_clocks_that_differ_are_found_out(now: datetime, words: str) -> None:
    finding = doctor.clocks(now, DATE)
    assert finding.words == words
    assert (finding.level is Level.WRONG) == ("agree" not in words)


def test_a_gateway_that_does_not_say_its_time_is_no_fault() -> None:
    assert doctor.clocks(NOON, "").level is Level.NOTE


@pytest.mark.parametrize(
    ("port_open", "cannot_start", "local", "words"),
    [
        (True, None, True, "something listens there"),
        (False, "port 1 is taken", True, "`gridmesh up` could not start one: port 1 is taken"),
        (False, "", True, "start one with `gridmesh up`"),
        (False, None, False, "the port is closed from here"),
    ],
)
def test_no_gateway_comes_with_what_to_do(port_open: bool, cannot_start: str | None, local: bool, words: str) -> None:
    assert words in doctor.unreachable("no answer", port_open, cannot_start, local=local).remedy


def test_sessions_that_nobody_serves_are_found_out() -> None:
    assert doctor.sessions([]).level is Level.OK
    assert doctor.sessions(["c", "a"]).words == "those at a, c are served by nobody who can be asked"
