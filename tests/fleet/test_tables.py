"""Tables of substations and sessions, as lines of text."""

from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console, RenderableType

from fleet import tables
from fleet.gateway import Lost
from fleet.watching import View, draw

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
FULL: dict[str, Any] = {
    "rated_power_kw": 100.0, "limit_power_kw": 100.0, "measured_kw": 50.0, "committed_kw": 75.0,
    "active_sessions": 5, "free_charge_points": 115, "accepting": True,
}  # fmt: skip
A: dict[str, Any] = {
    "address": "x:1", "substation_id": "a", "state": "FRESH", "ejected": False, "report_age": "0.4s", "report": FULL
}  # fmt: skip
SESSION: dict[str, Any] = {
    "session_id": "a.01a202d8-6b4d-79a3-af69-90677fc928b6", "vehicle_id": "EV-001", "state": "CHARGING",
    "measured_power_kw": 10.0, "delivered_kwh": 5.0, "energy_kwh": 20.0, "expected_end_at": "2026-03-01T12:00:50Z",
}  # fmt: skip


def lines(shown: RenderableType, width: int) -> list[str]:
    out = Console(width=width, highlight=False)
    with out.capture() as captured:
        out.print(shown)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_a_bar_shows_what_is_drawn_committed_and_free() -> None:
    assert tables.bar(FULL, 8).plain == "████▒▒··"


def test_a_bar_marks_a_limit_below_the_rating_and_keeps_its_width() -> None:
    assert tables.bar({**FULL, "limit_power_kw": 75.0, "measured_kw": 75.0}, 8).plain == "██████│ "
    assert tables.bar({**FULL, "limit_power_kw": 0.0, "measured_kw": 0.0, "committed_kw": 0.0}, 4).plain == "│   "


def test_a_substation_is_one_line_at_80_columns() -> None:
    [_, line] = lines(tables.substations([A], 80), 80)
    assert line.split() == ["a", "████████▒▒▒▒····", "75.0", "/", "100", "5", "115", "0.4", "s", "fresh"]


def test_one_that_never_reported_is_not_shown_as_empty() -> None:
    silent = {"address": "10.0.0.7:50061", "state": "NEVER_REPORTED", "ejected": False}
    [_, line] = lines(tables.substations([silent], 80), 80)
    assert line.split()[:5] == ["10.0.0.7:50061", "?", "?", "?", "never"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("state", ["CHARGING", "SUSPENDED_EVSE"])
def test_a_session_is_one_line_with_its_whole_id(width: int, state: str) -> None:
    session = {**SESSION, "vehicle_id": "A" * 128, "state": state, "limit_reason": "LIMIT_CUT", "limit_source": "SO"}
    [_, line] = lines(tables.sessions([session], width, NOW), width)
    assert line.startswith(SESSION["session_id"])
    assert "25%" in line
    assert ("limit cut" in line) == (width == 120)


def test_a_car_that_wants_to_be_full_has_no_percentage() -> None:
    unlimited = {name: value for name, value in SESSION.items() if name != "energy_kwh"}
    assert lines(tables.sessions([unlimited], 80, NOW), 80)[1].endswith("5 kWh")


@pytest.mark.parametrize(("seconds", "words"), [(0.44, "0.4 s"), (50, "50 s"), (600, "10 min"), (7200, "2.0 h")])
def test_a_duration_is_said_in_words(seconds: float, words: str) -> None:
    assert tables.span(seconds) == words


def test_the_screen_says_that_it_is_live_and_that_it_is_old() -> None:
    view = View("http://mesh")
    assert view.status(0.0)[0] == "connecting"
    view.heard([A], 10.0)
    assert view.status(11.0)[0] == "live"
    assert view.status(15.0)[0] == "NO NEWS; this is 5.0 s old"
    view.lost = Lost("no gateway answers", 1.0)
    assert view.status(15.0)[0] == "STREAM LOST; this is 5.0 s old; trying again"


@pytest.mark.parametrize("height", [12, 24])
def test_the_screen_has_room_for_what_it_shows(height: int) -> None:
    view = View("http://mesh")
    view.heard([A], 0.0)
    view.sessions = {"sessions": [SESSION] * 50}
    shown = lines(draw(view, 0.1, 80, height), 80)
    assert len(shown) <= height
    assert shown[-1] == f"and {50 - (height - 9)} more: gridmesh sessions --all"


def test_reports_grow_old_while_nothing_is_heard() -> None:
    view = View("http://mesh")
    view.heard([A], 0.0)
    assert "7.4 s" in lines(draw(view, 7.0, 80, 24), 80)[3]


def test_the_screen_says_whose_sessions_cannot_be_seen() -> None:
    view = View("http://mesh")
    view.heard([A], 0.0)
    view.sessions = {"sessions": [], "unreachable_substation_ids": ["c"]}
    assert lines(draw(view, 0.1, 80, 24), 80)[-1] == "sessions at c cannot be seen: not reachable"
