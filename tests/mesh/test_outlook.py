from hypothesis import given
from hypothesis import strategies as st

from mesh.outlook import GRID_MS, NOTHING, Need, nearest, need_of, outlook
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
    assert [CAR.at_latest_mj(h * HOUR_MS) for h in (1, 3, 4, 9)] == [0, 0, CAR.need_mj, CAR.need_mj]


def test_charged_evenly_a_quarter_flows_in_a_quarter_of_the_stay() -> None:
    assert CAR.evenly_mj(HOUR_MS) == CAR.need_mj // 4
    assert CAR.evenly_mj(9 * HOUR_MS) == CAR.need_mj


@given(st.lists(needs, max_size=5))
def test_the_curves_are_the_sums_over_the_cars(cars: list[Need]) -> None:
    completable = [car for car in cars if car.spare_ms >= 0]
    ahead = outlook(cars, completable)
    for at, t in enumerate(GRID_MS):
        assert abs(ahead.evenly_mj[at] - sum(car.evenly_mj(t) for car in cars)) <= ROUNDING_MJ * len(cars)
        assert abs(ahead.at_latest_mj[at] - sum(car.at_latest_mj(t) for car in completable)) <= ROUNDING_MJ * len(cars)


@given(needs, needs)
def test_what_is_added_can_be_taken_away_again(one: Need, other: Need) -> None:
    assert one.outlook() + other.outlook() - one.outlook() - other.outlook() == NOTHING


def test_a_car_is_completable_where_what_is_promised_leaves_it_room_at_every_moment() -> None:
    hurried = Need(22 * HOUR_MS * 1_000, 2 * HOUR_MS, 11_000)
    assert NOTHING.completable(hurried, 11_000)
    assert not NOTHING.completable(hurried, 10_999), "the limit is below its power, and it has no time to spare"
    assert not hurried.outlook().completable(hurried, 21_999)
    assert hurried.outlook().completable(hurried, 22_000)
    later = Need(22 * HOUR_MS * 1_000, 4 * HOUR_MS, 11_000)
    assert hurried.outlook().completable(later, 11_000), "one after the other"
    assert not hurried.outlook().completable(later._replace(left_ms=4 * HOUR_MS - MINUTES), 11_000)


def test_the_end_of_a_stay_is_taken_to_the_nearest_point() -> None:
    assert [GRID_MS[nearest(m * MINUTES)] // MINUTES for m in (1, 14, 20, 22, 60, 70, 100, 3_000, 99_999)] == [
        15, 15, 15, 30, 60, 60, 90, 2_880, 2_880,
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
