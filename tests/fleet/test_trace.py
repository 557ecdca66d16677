"""Session files: what a good one gives, and what a bad one is told."""

from datetime import date, datetime
from pathlib import Path

import pytest

from fleet.trace import Car, TraceError, cars_of, clock_at, read_cars, schedule
from tests.mesh_processes import ROOT

NORWAY = "session_id,site_id,user_id,plug_in_local,plug_out_local,energy_kwh,max_power_kw,battery_kwh"
ACN = "session_id,station_id,arrival_utc,departure_utc,requested_energy_kwh,max_power_kw"
DATA = ROOT / "benchmarks" / "data"
DAY = date(2019, 12, 10)


def norway(*rows: str) -> list[Car]:
    return read_cars("f.csv", [NORWAY, *rows])


def test_a_norwegian_session_becomes_a_car() -> None:
    assert norway("s1,OSL,u1,2019-12-10T08:30:00,2019-12-10T16:00:00,20.5,7.2,") == [
        Car("s1", "u1", datetime(2019, 12, 10, 8, 30), datetime(2019, 12, 10, 16), 20.5, 7.2)
    ]


def test_a_session_of_acn_becomes_a_car() -> None:
    row = "2_39_89_25,CA-315,2019-03-01T14:20:00+00:00,2019-03-01T15:40:00+00:00,4.216,6.6"
    assert read_cars("f.csv", [ACN, row]) == [
        Car("2_39_89_25", "2_39_89_25", datetime(2019, 3, 1, 14, 20), datetime(2019, 3, 1, 15, 40), 4.216, 6.6)
    ]


@pytest.mark.parametrize(
    ("file", "day", "cars", "energy_kwh"),
    [
        ("norway12_2019-12_2020-01_normalised.csv", DAY, 102, 1198.65),
        ("acn_caltech_2019-03_sessions.csv", date(2019, 3, 5), 37, 312.161),
    ],
)
def test_the_files_that_come_with_the_project_are_read_whole(
    file: str, day: date, cars: int, energy_kwh: float
) -> None:
    with (DATA / file).open(encoding="utf-8", newline="") as lines:
        found = cars_of(file, read_cars(file, lines), day)
    assert len(found) == cars
    assert sum(car.energy_kwh for car in found) == pytest.approx(energy_kwh, abs=0.1)


GOOD = "s1,OSL,u1,2019-12-10T08:30:00,2019-12-10T16:00:00,20.5,7.2,"


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([], "f.csv: line 1: column plug_in_local (or arrival_utc) is missing"),
        (["a,b", "1,2"], "f.csv: line 1: column plug_in_local (or arrival_utc) is missing"),
        ([NORWAY.replace("energy_kwh,", "")], "f.csv: line 1: column energy_kwh is missing"),
        (
            [NORWAY, GOOD, GOOD.replace("20.5", "much")],
            "f.csv: line 3: column energy_kwh: 'much' is not a number above 0",
        ),
        ([NORWAY, GOOD.replace("7.2", "nan")], "f.csv: line 2: column max_power_kw: 'nan' is not a number above 0"),
        ([NORWAY, GOOD.replace("7.2", "-1")], "f.csv: line 2: column max_power_kw: '-1' is not a number above 0"),
        ([NORWAY, GOOD.replace("u1", "")], "f.csv: line 2: column user_id: is empty"),
        ([NORWAY, "s1,OSL,u1"], "f.csv: line 2: column plug_in_local: is empty"),
        (
            [NORWAY, GOOD.replace("2019-12-10T08:30:00", "morning")],
            "f.csv: line 2: column plug_in_local: 'morning' is not a time such as 2019-12-10T08:30:00",
        ),
        (
            [NORWAY, GOOD.replace("2019-12-10T16", "2019-12-10T08")],
            "f.csv: line 2: column plug_out_local: is not after plug_in_local",
        ),
        ([NORWAY, GOOD, GOOD], "f.csv: session_id s1 is there twice"),
        ([NORWAY, '"s1'], "f.csv: line 2: unexpected end of data"),
    ],
)
def test_a_bad_file_is_one_line_that_says_where(lines: list[str], error: str) -> None:
    with pytest.raises(TraceError) as raised:
        read_cars("f.csv", lines)
    assert str(raised.value) == error


def test_a_day_without_cars_is_told_which_days_there_are() -> None:
    with pytest.raises(TraceError, match=r"no car plugs in on 2020-01-01; its days are 2019-12-10 to 2019-12-10"):
        cars_of("f.csv", norway(GOOD), date(2020, 1, 1))
    with pytest.raises(TraceError, match="it has no sessions"):
        cars_of("f.csv", [], DAY)


def test_a_day_is_played_in_the_order_of_arrival() -> None:
    early = GOOD.replace("s1", "s2").replace("T08:30", "T07:00")
    assert [car.session_id for car in cars_of("f.csv", norway(GOOD, early), DAY)] == ["s2", "s1"]


def test_the_schedule_runs_at_the_time_scale() -> None:
    [arrival] = schedule(norway(GOOD), DAY, scale=60)
    assert (arrival.arrives_s, arrival.leaves_s) == (8.5 * 60, 16 * 60)


def test_the_played_clock_goes_on_after_midnight() -> None:
    assert clock_at(DAY, 60, 1500) == datetime(2019, 12, 11, 1)


def test_the_data_folder_names_its_sources() -> None:
    words = Path(DATA / "README.md").read_text(encoding="utf-8")
    assert "10.5281/zenodo.13896176" in words
    assert "CC BY 4.0" in words
