"""What a reply of the gateway means to a car."""

import pytest

from fleet.replies import Admitted, InDoubt, Load, OverLimit, Refused, Rejected, Reply, read_loads, read_reply

SESSION = {"session": {"session_id": "a.1", "substation_id": "a"}}


@pytest.mark.parametrize(
    ("status", "headers", "body", "meaning"),
    [
        (201, {}, SESSION, Admitted("a.1", "a")),
        (200, {}, SESSION, Admitted("a.1", "a")),
        (503, {"retry-after": "7"}, {"reason": "NO_CHARGE_POINT"}, Refused("NO_CHARGE_POINT", 7)),
        (503, {}, {"reason": "NO_SUBSTATION"}, Refused("NO_SUBSTATION", 1)),
        (429, {"retry-after": "soon"}, {"reason": "RATE"}, Refused("RATE", 1)),
        (503, {"retry-after": "2"}, {"reason": "OUTCOME_UNKNOWN"}, InDoubt("OUTCOME_UNKNOWN", 2)),
        (503, {}, None, InDoubt("HTTP_503", 1)),  # a proxy's page: who knows what it did
        (504, {}, {"reason": "DEADLINE_EXCEEDED"}, InDoubt("DEADLINE_EXCEEDED", 1)),
        (409, {}, {"reason": "ATTEMPT_FENCED"}, InDoubt("ATTEMPT_FENCED", 1)),
        (500, {}, {"reason": "INTERNAL"}, InDoubt("INTERNAL", 1)),
        (200, {}, None, InDoubt("HTTP_200", 1)),
        (400, {}, {"reason": "INVALID_REQUEST", "detail": "energy_kwh"}, Rejected("INVALID_REQUEST", "energy_kwh")),
        (422, {}, {"reason": "KEY_REUSED"}, Rejected("KEY_REUSED", "")),
    ],
)
def test_a_reply_is_read(status: int, headers: dict[str, str], body: object, meaning: Reply) -> None:
    assert read_reply(status, headers, body) == meaning


def load(epoch: int, over_limit_s: float) -> dict[str, Load]:
    return {"a": Load("a", epoch, 100, 50, 50, 5, 60, over_limit_s)}


def test_a_substation_that_has_not_reported_is_not_empty_but_absent() -> None:
    assert read_loads({"substations": [{"address": "x", "state": "NEVER_REPORTED"}]}) == {}


def test_time_over_the_limit_counts_from_where_it_stood() -> None:
    over = OverLimit(load(1, 3.0))
    over.update(load(1, 4.5))
    assert over.seconds == {"a": 1.5}


def test_time_over_the_limit_counts_on_after_a_restart() -> None:
    over = OverLimit(load(1, 3.0))
    over.update(load(1, 4.0))
    over.update(load(2, 0.5))
    over.update(load(2, 0.75))
    assert over.seconds == {"a": 1.75}


def test_a_substation_that_comes_later_counts_from_its_start() -> None:
    over = OverLimit({})
    over.update(load(1, 2.0))
    assert over.seconds == {"a": 2.0}


def test_a_limit_of_zero_is_no_division() -> None:
    assert Load("a", 1, 0, 0, 0, 0, 60, 0).utilisation == 0
