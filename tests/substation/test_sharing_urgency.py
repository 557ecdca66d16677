import pytest
from hypothesis import given
from hypothesis import strategies as st

from substation.completion import Completion, completable, need, promised
from substation.sharing import Claim, EqualShare, SharingPolicy
from substation.urgency import EarliestDeadline, LeastLaxity
from tests.curves import at_latest_mj

HOUR_MS = 3_600_000
POLICIES: list[SharingPolicy] = [EqualShare(), LeastLaxity(), EarliestDeadline(), Completion()]


def a_claim(
    name: str, kwh: float, hours: float, *, floor: int = 1_380, most: int = 10_000, assumed: bool = False
) -> Claim:
    return Claim(name, floor, most, False, 0, 0, round(kwh * 3.6e9), round(hours * HOUR_MS), assumed)


claims = st.lists(
    st.builds(
        lambda floor, more, kwh, hours, assumed: a_claim(
            "", kwh, hours, floor=floor, most=floor + more, assumed=assumed
        ),
        st.integers(1, 5_000),
        st.integers(0, 20_000),
        st.floats(0, 60),
        st.floats(-2, 50),
        st.booleans(),
    ),
    max_size=25,
).map(
    lambda them: [
        Claim(str(i), c.floor_w, c.max_w, c.on, 0, i, c.remaining_mj, c.left_ms, c.assumed) for i, c in enumerate(them)
    ]
)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@given(asked=claims, limit_w=st.integers(0, 100_000), turn_over=st.booleans())
def test_every_policy_obeys_floors_maxima_and_the_limit(
    policy: SharingPolicy, asked: list[Claim], limit_w: int, turn_over: bool
) -> None:
    shares = policy.share(asked, limit_w, turn_over)
    assert shares.keys() == {claim.session_id for claim in asked}
    assert sum(shares.values()) <= limit_w
    for claim in asked:
        assert shares[claim.session_id] == 0 or claim.floor_w <= shares[claim.session_id] <= claim.max_w


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@given(asked=claims, limit_w=st.integers(0, 100_000))
def test_no_policy_leaves_power_that_a_car_without_any_could_take(
    policy: SharingPolicy, asked: list[Claim], limit_w: int
) -> None:
    shares = policy.share(asked, limit_w, turn_over=False)
    left = limit_w - sum(shares.values())
    assert all(claim.floor_w > left for claim in asked if shares[claim.session_id] == 0)


@given(asked=claims, limit_w=st.integers(1, 100_000))
def test_what_is_kept_can_be_completed_as_the_curves_say(asked: list[Claim], limit_w: int) -> None:
    needs = {claim.session_id: need(claim, limit_w) for claim in asked}
    kept, spare_mj = completable(needs, limit_w)
    assert spare_mj >= 0
    rounding = sum(needs[name].max_w for name in kept) * 1_001
    for t in {needs[name].left_ms for name in kept}:
        assert sum(at_latest_mj(needs[name], t) for name in kept) <= limit_w * t + rounding


def test_with_power_for_one_the_one_with_no_time_to_spare_goes_first() -> None:
    asked = [a_claim("can wait", 10, 8), a_claim("tight", 10, 1.1)]
    assert LeastLaxity().share(asked, 10_000, turn_over=False) == {"can wait": 0, "tight": 10_000}
    assert Completion().share(asked, 10_000, turn_over=False) == {"can wait": 0, "tight": 10_000}


def test_where_not_all_can_be_completed_the_largest_is_put_back_and_the_rest_completed() -> None:
    asked = [a_claim("large", 9, 1), a_claim("a", 4, 1), a_claim("b", 4, 1)]
    needs = {claim.session_id: need(claim, 10_000) for claim in asked}
    assert set(completable(needs, 10_000)[0]) == {"a", "b"}
    shares = Completion().share(asked, 10_000, turn_over=False)
    # The small ones need 8 of the 10 kWh that the hour brings: what they can spare, the large one has first.
    assert shares["large"] == 10_000


def test_what_was_put_back_waits_once_the_others_have_no_time_to_spare() -> None:
    asked = [a_claim("large", 9, 1), a_claim("a", 4.9, 1), a_claim("b", 4.9, 1)]
    shares = Completion().share(asked, 10_000, turn_over=False)
    assert shares["large"] == 0
    assert shares["a"] + shares["b"] == 10_000


def test_a_car_with_no_time_to_spare_makes_no_room_for_the_next_floor() -> None:
    asked = [a_claim("tight", 2, 1.1, most=2_000), a_claim("next", 5, 9)]
    assert Completion().share(asked, 3_000, turn_over=False) == {"tight": 2_000, "next": 0}
    relaxed = [a_claim("relaxed", 2, 8, most=2_000), a_claim("next", 5, 9)]
    assert Completion().share(relaxed, 3_000, turn_over=False) == {"relaxed": 1_620, "next": 1_380}


def test_a_car_that_nobody_said_the_departure_of_is_never_given_up_for_being_late() -> None:
    late = a_claim("unknown", 5, -3, assumed=True)
    assert completable({"unknown": need(late, 10_000)}, 10_000)[0] == ["unknown"]


def test_promised_is_all_that_is_asked_also_what_cannot_be_completed() -> None:
    ahead = promised([a_claim("large", 9, 1), a_claim("a", 4, 1), a_claim("b", 4, 1)], 10_000)
    assert ahead.at_latest_mj[-1] == pytest.approx(17 * 3.6e9)
    assert ahead.evenly_mj[-1] == pytest.approx(17 * 3.6e9)
