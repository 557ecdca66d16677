"""A rush hour against a gateway that is not there."""

import httpx
import pytest

from fleet import rush_hour
from fleet.gateway import Gateway, GatewayError
from fleet.results import RushHour
from fleet.rush_hour import Rush
from fleet.screen import print_rush_hour
from tests.fleet.fake_gateway import FakeMesh, in_no_time, problem

RUSH = Rush("r", cars=30, seconds=3, max_power_kw=11, energy_kwh=20)


def run(mesh: FakeMesh, rush: Rush = RUSH) -> RushHour:
    return in_no_time(rush_hour.run(mesh.gateway(), rush))


def test_the_cars_come_evenly_over_the_seconds() -> None:
    mesh = FakeMesh()
    run(mesh)
    assert [at for at, _, _ in mesh.asked] == pytest.approx([n * 0.1 for n in range(30)])


def test_all_come_at_once_when_there_are_no_seconds() -> None:
    mesh = FakeMesh()
    run(mesh, Rush("r", 30, 0, 11, 20))
    assert {at for at, _, _ in mesh.asked} == {0.0}


def test_an_even_spread_is_a_success(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(FakeMesh())
    assert result.ok
    assert result.verdict == "all 30 cars admitted, 10/10/10, 0 s over the limit"
    assert (result.sessions_spread, result.utilisation_spread) == (0, 0)
    print_rush_hour(result)
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith("a ")] == [
        ["a", "10", "110.0%", "100.0", "100", "0"]
    ]
    assert "refusals: none" in out


def test_a_refused_car_is_counted_by_its_reason() -> None:
    mesh = FakeMesh()
    mesh.charge = lambda key, body: problem(503, "NO_CHARGE_POINT", "1") if key == "rush-r-7" else mesh.admit(key, body)
    result = run(mesh)
    assert not result.ok
    assert result.refusals == {"NO_CHARGE_POINT": 1}
    assert result.verdict.startswith("only 29 of 30 cars admitted, 10/10/9")


def test_a_car_without_an_answer_asks_again_with_its_key() -> None:
    mesh = FakeMesh()
    silent = {"rush-r-0"}

    def charge(key: str, body: dict[str, object]) -> httpx.Response:
        if key in silent:
            silent.discard(key)
            raise httpx.ReadTimeout("nobody")
        return mesh.admit(key, body)

    mesh.charge = charge
    assert run(mesh).ok
    assert [key for _, key, _ in mesh.asked].count("rush-r-0") == 2


def test_time_over_the_limit_is_a_failure() -> None:
    mesh = FakeMesh()

    def charge(key: str, body: dict[str, object]) -> httpx.Response:
        mesh.over_limit_s["b"] = 0.5
        return mesh.admit(key, body)

    mesh.charge = charge
    result = run(mesh)
    assert not result.ok
    assert result.verdict.endswith("0.5 s over the limit")


def test_a_substation_that_says_nothing_any_more_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    mesh = FakeMesh()

    def charge(key: str, body: dict[str, object]) -> httpx.Response:
        reply = mesh.admit(key, body)
        if len(mesh.sessions) == 30:
            mesh.substations = ("a", "b")
        return reply

    mesh.charge = charge
    result = run(mesh)
    assert not result.ok
    assert result.verdict.endswith("no report from c")
    print_rush_hour(result)
    assert "?" in capsys.readouterr().out


def refuse_connections(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused")


@pytest.mark.parametrize(
    ("handler", "line"),
    [
        (refuse_connections, "no gateway answers at http://mesh: connection refused"),
        (lambda _: problem(503, "BALANCER_UNREACHABLE"), "None: in words (BALANCER_UNREACHABLE)"),
        (lambda _: httpx.Response(502, text="Bad Gateway"), "http://mesh answers 502: Bad Gateway"),
        (lambda _: httpx.Response(200, text="hello"), "http://mesh does not answer like a gateway"),
        (lambda _: httpx.Response(200, json={}), "http://mesh does not answer like a gateway"),
    ],
)
def test_a_gateway_that_cannot_be_used_is_one_line(handler: object, line: str) -> None:
    transport = httpx.MockTransport(handler)  # type: ignore[arg-type]
    gateway = Gateway(httpx.AsyncClient(base_url="http://mesh", transport=transport))
    with pytest.raises(GatewayError) as raised:
        in_no_time(rush_hour.run(gateway, RUSH))
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)
