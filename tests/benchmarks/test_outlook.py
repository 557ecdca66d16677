import pytest

from mesh.outlook import GRID_MS, NOTHING, Need, need_of, outlook
from tests.substation.rig import a_charge

HOUR_MS = 3_600_000
# 10 kWh in 4 h at 10 kW: 3 h to spare.
CAR = Need(36_000_000_000, 4 * HOUR_MS, 10_000)


def test_charged_as_late_as_possible_nothing_must_flow_before_the_time_to_spare_is_over() -> None:
    assert CAR.spare_ms == 3 * HOUR_MS
    assert [CAR.at_latest_mj(h * HOUR_MS) for h in (1, 3, 4, 9)] == [0, 0, CAR.need_mj, CAR.need_mj]


def test_charged_evenly_a_quarter_flows_in_a_quarter_of_the_stay() -> None:
    assert CAR.evenly_mj(HOUR_MS) == CAR.need_mj // 4
    assert CAR.evenly_mj(9 * HOUR_MS) == CAR.need_mj


def test_curves_of_cars_add_up_and_are_straight_between_their_points() -> None:
    ahead = outlook([CAR, CAR], [CAR])
    assert ahead.evenly_by(HOUR_MS) == 2 * CAR.evenly_mj(HOUR_MS)
    assert ahead.evenly_by(5 * MINUTES) == pytest.approx(2 * CAR.evenly_mj(5 * MINUTES), rel=1e-6)
    assert ahead.at_latest_mj[GRID_MS.index(4 * HOUR_MS)] == CAR.need_mj
    assert NOTHING.evenly_by(HOUR_MS) == 0


MINUTES = 60_000


def test_a_request_without_an_amount_has_no_curve_and_one_without_departure_an_assumed_stay() -> None:
    assert need_of(a_charge(energy_j=None), 0, 1.0) is None
    need = need_of(a_charge(energy_j=36_000_000, max_w=1_000, departure_ms=None), 0, 1.0)
    assert need is not None
    assert need.left_ms == 20 * HOUR_MS


def test_energy_flows_faster_where_time_is_scaled() -> None:
    need = need_of(a_charge(departure_ms=60_000), 0, 60.0)
    assert need is not None
    assert need.left_ms == HOUR_MS
