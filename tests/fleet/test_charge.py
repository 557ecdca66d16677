"""One charge whose outcome is in doubt."""

from typing import Any

import httpx
import pytest

from fleet.gateway import Refusal
from tests.fleet.fake_gateway import FakeMesh, in_no_time, problem

CAR = {"vehicle_id": "EV", "max_power_kw": 11, "energy_kwh": 20}


class Doubtful(FakeMesh):
    """Does not know of the first so many."""

    def __init__(self, times: int) -> None:
        super().__init__(charge=self._answer_charge)
        self._left = times

    def _answer_charge(self, key: str, body: dict[str, Any]) -> httpx.Response:
        self._left -= 1
        return self.admit(key, body) if self._left < 0 else problem(503, "OUTCOME_UNKNOWN")


def test_it_is_asked_for_again_with_its_key_and_that_is_said_once() -> None:
    mesh, said = Doubtful(3), []
    reply = in_no_time(mesh.gateway().charge_one("mine", CAR, 20, lambda: said.append("doubt")))
    assert reply["session"]["session_id"] == "a.mine"
    assert [key for _, key, _ in mesh.asked] == ["mine"] * 4
    assert said == ["doubt"]


def test_when_patience_ends_the_error_names_the_key() -> None:
    mesh = Doubtful(1_000)
    with pytest.raises(Refusal, match="repeat with --key mine to learn whether the car was admitted"):
        in_no_time(mesh.gateway().charge_one("mine", CAR, 20, lambda: None))
    assert 18 < mesh.asked[-1][0] <= 20
