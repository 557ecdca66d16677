from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mesh.outlook import GRID_MS, NOTHING, Need, Outlook, lost_mj, need_of, outlook, place
from tests.curves import at_latest_mj, evenly_mj
from tests.substation.rig import a_charge

MINUTES = 60_000
HOUR_MS = 3_600_000
# 10 kWh in 4 h at 10 kW: 3 h to spare.
CAR = Need(36_000_000_000, 4 * HOUR_MS, 10_000)
# A millijoule of rounding for each watt, and the floats of the sum.
ROUNDING_MJ = 200_000

needs = st.builds(
    Need,
    need_mj=st.integers(1, 100_000).map(lambda wh: wh * 3_600_000),
    left_ms=st.integers(1, 60 * HOUR_MS),
    max_w=st.integers(1_000, 100_000),
)


def test_charged_as_late_as_possible_nothing_must_flow_before_the_time_to_spare_is_over() -> None:
    assert CAR.spare_ms == 3 * HOUR_MS
    assert [at_latest_mj(CAR, h * HOUR_MS) for h in (1, 3, 4, 9)] == [0, 0, CAR.need_mj, CAR.need_mj]


def test_charged_evenly_a_quarter_flows_in_a_quarter_of_the_stay() -> None:
    assert evenly_mj(CAR, HOUR_MS) == CAR.need_mj // 4
    assert evenly_mj(CAR, 9 * HOUR_MS) == CAR.need_mj


@given(needs)
def test_points_of_a_curve_are_what_they_are_in_all_of_it(car: Need) -> None:
    assert [car.evenly_around_mj(at) for at in range(1, len(GRID_MS))] == list(pairwise(car.evenly_mj()))


@given(st.lists(needs, max_size=5))
def test_the_curves_are_the_sums_over_the_cars(cars: list[Need]) -> None:
    ahead = outlook(cars)
    for at, t in enumerate(GRID_MS):
        assert abs(ahead.evenly_mj[at] - sum(evenly_mj(car, t) for car in cars)) <= ROUNDING_MJ * len(cars)
        at_latest = sum(at_latest_mj(car, t) - at_latest_mj(car, 0) for car in cars)
        assert abs(ahead.at_latest_mj[at] - at_latest) <= ROUNDING_MJ * len(cars)


@given(needs, needs)
def test_what_is_added_can_be_taken_away_again(one: Need, other: Need) -> None:
    assert one.outlook() + other.outlook() - one.outlook() - other.outlook() == NOTHING


def cost(promised: Outlook, need: Need, limit_w: int) -> float:
    return lost_mj(need, promised.slack_mj(limit_w), limit_w)


def test_a_car_costs_what_is_promised_and_asked_above_the_limit() -> None:
    hurried = Need(22 * HOUR_MS * 1_000, 2 * HOUR_MS, 11_000)
    assert cost(NOTHING, hurried, 11_000) == 0
    assert cost(NOTHING, hurried, 10_000) == pytest.approx(2 * HOUR_MS * 1_000, rel=1e-6), "its own power is cut"
    assert cost(hurried.outlook(), hurried, 22_000) == 0
    assert cost(hurried.outlook(), hurried, 20_000) == pytest.approx(4 * HOUR_MS * 1_000, rel=1e-6)
    later = Need(22 * HOUR_MS * 1_000, 4 * HOUR_MS, 11_000)
    assert cost(hurried.outlook(), later, 11_000) == 0, "one after the other"
    half_an_hour = HOUR_MS // 2 * 11_000
    assert cost(hurried.outlook(), replace(later, left_ms=7 * HOUR_MS // 2), 11_000) == pytest.approx(half_an_hour)
    both = hurried.outlook() + hurried.outlook()
    assert cost(both, later, 11_000) == pytest.approx(0), "what is lost without it is not its fault"


def test_after_the_last_point_the_limit_is_all_that_is_known() -> None:
    promised = Need(500 * 3_600_000_000, 47 * HOUR_MS, 11_000).outlook()
    later = Need(60 * 3_600_000_000, 5 * 24 * HOUR_MS, 11_000)
    assert cost(promised, later, 11_000) == 0, "there is room after two days"
    assert cost(promised, replace(later, left_ms=48 * HOUR_MS), 11_000) > 0


def test_what_is_late_already_is_nobodys_promise() -> None:
    late = outlook([Need(36_000_000_000, -600_000, 11_000)])
    assert min(late.at_latest_mj) == 0


def test_a_time_is_placed_between_two_points() -> None:
    assert [place(m * MINUTES) for m in (0, 15, 75, 2_880, 99_999)] == [
        (1, 0), (2, 0), (5, 0.5), (len(GRID_MS) - 1, 1), (len(GRID_MS) - 1, 1),
    ]  # fmt: skip


def test_a_request_without_an_amount_has_no_curve_and_one_without_departure_an_assumed_stay() -> None:
    assert need_of(a_charge(energy_j=None), 0, 1.0) is None
    need = need_of(a_charge(energy_j=36_000_000, max_w=1_000, departure_ms=None), 0, 1.0)
    assert need is not None
    assert need.left_ms == 20 * HOUR_MS


def test_energy_flows_faster_where_time_is_scaled() -> None:
    need = need_of(a_charge(departure_ms=60_000), 0, 60.0)
    assert need is not None
    assert need.left_ms == HOUR_MS
