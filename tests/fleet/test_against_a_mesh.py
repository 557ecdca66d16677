"""The two commands against real meshes."""

import json
from pathlib import Path

import pytest

from fleet.__main__ import main
from tests.conftest import StartMesh

NORWAY = "session_id,site_id,user_id,plug_in_local,plug_out_local,energy_kwh,max_power_kw,battery_kwh\n"


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.rstrip().splitlines()[-1]


def test_thirty_equal_cars_spread_evenly(start_mesh: StartMesh, capsys: pytest.CaptureFixture[str]) -> None:
    mesh = start_mesh()
    code = main(["rush-hour", "--url", mesh.url, "--watch-seconds", "2"])
    assert last_line(capsys) == "OK: all 30 cars admitted, 10/10/10, 0 s over the limit"
    assert code == 0


def test_three_hundred_at_once_spread_within_one(start_mesh: StartMesh, capsys: pytest.CaptureFixture[str]) -> None:
    mesh = start_mesh()
    code = main(["rush-hour", "--url", mesh.url, "--cars", "300", "--seconds", "0", "--watch-seconds", "2"])
    assert last_line(capsys) == "OK: all 300 cars admitted, 100/100/100, 0 s over the limit"
    assert code == 0


def test_unequal_substations_are_equally_utilised(start_mesh: StartMesh, capsys: pytest.CaptureFixture[str]) -> None:
    mesh = start_mesh(rated_kw=(50.0, 100.0, 200.0))
    code = main(["rush-hour", "--url", mesh.url, "--cars", "120", "--seconds", "0", "--watch-seconds", "2"])
    assert last_line(capsys).startswith("OK: all 120 cars admitted")
    assert code == 0
    reports = [s["report"] for s in mesh.http.get("/v1/substations").json()["substations"]]
    ratios = [report["demand_kw"] / report["limit_power_kw"] for report in reports]
    assert max(ratios) - min(ratios) <= 11 / 50


def test_recorded_cars_get_what_they_got(
    start_mesh: StartMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh = start_mesh()
    file = tmp_path / "sessions.csv"
    rows = (f"s{n},X,u{n},2019-12-10T00:00:{n}0,2019-12-10T04:00:00,0.5,7.0,\n" for n in range(6))
    file.write_text(NORWAY + "".join(rows))
    code = main(["replay", str(file), "--day", "2019-12-10", "--url", mesh.url, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["cars"], result["fully_served"], result["delivered_kwh"]) == (6, 6, 3.0)
    assert (result["refusals"], result["over_limit_seconds"], result["lost"]) == ({}, 0, 0)
    assert [row["cars"] for row in result["substations"]] == [2, 2, 2]
    assert code == 0
