"""A recorded day against a gateway that is not there: when cars come, ask again, and what they get."""

import asyncio
from datetime import date, datetime, timedelta
from typing import Any

import httpx
import pytest

from fleet import replay
from fleet.gateway import GatewayError
from fleet.replay import Day
from fleet.results import Replay
from fleet.screen import print_replay
from fleet.trace import Car
from tests.fleet.fake_gateway import FakeMesh, in_no_time, problem

DAY = date(2019, 12, 10)


def car(name: str, arrives_h: float, stays_h: float = 2.0, energy_kwh: float = 10.0) -> Car:
    arrival = datetime(2019, 12, 10) + timedelta(hours=arrives_h)
    return Car(name, f"EV {name}", arrival, arrival + timedelta(hours=stays_h), energy_kwh, 7.2)


def play(mesh: FakeMesh, *cars: Car, tail_hours: float = 24) -> Replay:
    return in_no_time(replay.run(mesh.gateway(), Day("r", DAY, cars, tail_hours)))


def test_a_car_comes_at_its_time_with_what_it_wants() -> None:
    mesh = FakeMesh()
    play(mesh, car("s1", arrives_h=8))
    [(at, key, body)] = mesh.asked
    assert at == pytest.approx(8 * 60)
    assert key == "replay-r-s1"
    assert body == {"vehicle_id": "EV s1", "energy_kwh": 10.0, "max_power_kw": 7.2, "departure_in": "120.000s"}


def test_a_refused_car_comes_back_as_told_with_less_time() -> None:
    mesh = FakeMesh()
    mesh.charge = lambda key, body: (
        mesh.admit(key, body) if len(mesh.asked) > 2 else problem(503, "NO_CHARGE_POINT", "30")
    )
    result = play(mesh, car("s1", arrives_h=8))
    assert [at for at, _, _ in mesh.asked] == pytest.approx([480, 510, 540])
    assert [body["departure_in"] for _, _, body in mesh.asked] == ["120.000s", "90.000s", "60.000s"]
    assert result.refusals == {"NO_CHARGE_POINT": 2}
    assert result.not_admitted == 0


def test_a_car_that_is_always_refused_leaves_at_its_time() -> None:
    mesh = FakeMesh(charge=lambda _, __: problem(503, "TOO_MANY_WAITING", "50"))
    result = play(mesh, car("s1", arrives_h=8))
    assert [at for at, _, _ in mesh.asked] == [pytest.approx(480 + n * 50) for n in range(3)]
    assert (result.not_admitted, result.total.delivered_kwh) == (1, 0)


def test_a_car_without_an_answer_says_the_very_same_again() -> None:
    mesh = FakeMesh()

    def charge(key: str, body: dict[str, Any]) -> httpx.Response:
        if len(mesh.asked) < 4:
            raise httpx.ConnectError("no gateway")
        return mesh.admit(key, body)

    mesh.charge = charge
    result = play(mesh, car("s1", arrives_h=8))
    assert len({str(body) for _, _, body in mesh.asked}) == 1
    assert [at - 480 for at, _, _ in mesh.asked] == pytest.approx([0, 0.2, 0.6, 1.4])
    assert result.refusals == {"NO_ANSWER": 3}


def test_a_car_whose_outcome_stays_unknown_leaves_at_its_time() -> None:
    mesh = FakeMesh(charge=lambda _, __: problem(503, "OUTCOME_UNKNOWN", "50"))
    result = play(mesh, car("s1", arrives_h=8))
    assert len(mesh.asked) == 3
    assert result.not_admitted == 1


def test_a_wrong_request_is_not_repeated() -> None:
    mesh = FakeMesh(charge=lambda _, __: problem(400, "INVALID_REQUEST"))
    result = play(mesh, car("s1", arrives_h=8))
    assert len(mesh.asked) == 1
    assert result.refusals == {"INVALID_REQUEST": 1}


def test_energy_and_served_cars_add_up_per_substation_and_in_all(capsys: pytest.CaptureFixture[str]) -> None:
    mesh = FakeMesh(substations=("a", "b"))
    mesh.charge = lambda key, body: mesh.admit(key, body, delivered=0.5 if key.endswith("s3") else 0.995)
    result = play(mesh, car("s1", 8), car("s2", 9), car("s3", 10, energy_kwh=20))
    assert [(row.substation_id, row.cars, row.served, row.asked_kwh) for row in result.rows] == [
        ("a", 2, 1, 30),
        ("b", 1, 1, 10),
    ]
    assert result.total.delivered_kwh == pytest.approx(9.95 + 9.95 + 10)
    assert result.verdict == (
        "29.9 of 40.0 kWh delivered (74.8%), 2 of 3 cars fully served (66.7%), 0 s over the limit"
    )
    print_replay(result)
    last_row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("all"))
    assert last_row.split()[:6] == ["all", "3", "2", "40.0", "29.9", "74.8%"]
    assert result.as_json() | {"substations": []} == {
        "day": "2019-12-10",
        "time_scale": 60.0,
        "cars": 3,
        "asked_kwh": 40.0,
        "delivered_kwh": 29.9,
        "delivered_share": 0.7475,
        "fully_served": 2,
        "fully_served_share": 0.6667,
        "not_admitted": 0,
        "still_charging": 0,
        "lost": 0,
        "refusals": {},
        "over_limit_seconds": 0.0,
        "substations": [],
    }


def test_a_car_that_stays_overnight_is_waited_for_until_it_is_full() -> None:
    mesh = FakeMesh()

    def charge(key: str, body: dict[str, Any]) -> httpx.Response:
        reply = mesh.admit(key, body, delivered=0.1)
        [session] = mesh.sessions.values()
        session["state"] = "CHARGING"

        def later() -> None:
            session.update(state="EV_CONNECTED", delivered_kwh=10.0)

        asyncio.get_running_loop().call_later(6 * 60, later)
        return reply

    mesh.charge = charge
    result = play(mesh, car("s1", arrives_h=20, stays_h=100))
    assert (result.unsettled, result.total.served) == (0, 1)


def test_a_car_that_never_gets_full_is_waited_for_until_the_bound() -> None:
    mesh = FakeMesh()

    def charge(key: str, body: dict[str, Any]) -> httpx.Response:
        reply = mesh.admit(key, body, delivered=0.1)
        for session in mesh.sessions.values():
            session["state"] = "CHARGING"
        return reply

    mesh.charge = charge
    result = play(mesh, car("s1", arrives_h=20, stays_h=100), tail_hours=1)
    assert result.unsettled == 1
    assert result.verdict.endswith("1 still charging")


def test_a_session_that_the_mesh_forgot_is_lost_and_a_failure() -> None:
    mesh = FakeMesh()

    def charge(key: str, body: dict[str, Any]) -> httpx.Response:
        reply = mesh.admit(key, body)
        mesh.sessions.clear()
        return reply

    mesh.charge = charge
    result = play(mesh, car("s1", arrives_h=8))
    assert (result.lost, result.ok) == (1, False)
    assert result.verdict.endswith("1 lost by the mesh")


def test_a_duplicate_counts_where_it_survives() -> None:
    mesh = FakeMesh()

    def charge(key: str, body: dict[str, Any]) -> httpx.Response:
        reply = mesh.admit(key, body)
        mesh.sessions["a.replay-r-s1"] |= {"delivered_kwh": 0.0, "duplicate_of": "b.other"}
        mesh.sessions["b.other"] = {"substation_id": "b", "state": "ENDED", "delivered_kwh": 10.0}
        return reply

    mesh.charge = charge
    result = play(mesh, car("s1", arrives_h=8))
    assert [(row.substation_id, row.served) for row in result.rows] == [("a", 0), ("b", 1), ("c", 0)]


def test_different_time_scales_are_refused() -> None:
    with pytest.raises(GatewayError, match=r"different time scales \(a: 1, b: 60, c: 60\)"):
        play(FakeMesh(time_scale={"a": 1.0}), car("s1", 8))


def test_no_substation_means_no_time_scale() -> None:
    with pytest.raises(GatewayError, match="no substation has reported"):
        play(FakeMesh(substations=()), car("s1", 8))
