from hypothesis import given
from hypothesis import strategies as st

from substation.sharing import Claim, EqualShare, fill, water_level, whose_turn


def a_claim(name: str, floor: int = 1_380, most: int = 11_000, *, on: bool = False, last_on: int = 0) -> Claim:
    return Claim(name, floor, most, on, last_on, 0, remaining_mj=10**9, left_ms=10**7)


@st.composite
def claims(draw: st.DrawFn) -> list[Claim]:
    sizes = draw(
        st.lists(
            st.tuples(st.integers(1, 5_000), st.integers(0, 20_000), st.booleans(), st.integers(0, 9)), max_size=30
        )
    )
    return [
        Claim(str(i), floor, floor + more, on, last, 0, 10**9, 10**7) for i, (floor, more, on, last) in enumerate(sizes)
    ]


@given(claims(), st.integers(0, 100_000), st.booleans())
def test_shares_obey_floors_maxima_and_the_limit(asked: list[Claim], limit_w: int, turn_over: bool) -> None:
    shares = EqualShare().share(asked, limit_w, turn_over)
    assert shares.keys() == {claim.session_id for claim in asked}
    assert sum(shares.values()) <= limit_w
    for claim in asked:
        assert shares[claim.session_id] == 0 or claim.floor_w <= shares[claim.session_id] <= claim.max_w


@given(claims(), st.integers(0, 100_000))
def test_the_water_level_leaves_nothing_that_could_be_given(asked: list[Claim], limit_w: int) -> None:
    chosen = whose_turn(asked, limit_w, turn_over=False)
    level = water_level(chosen, limit_w)
    assert sum(fill(claim, level) for claim in chosen) <= limit_w
    if any(fill(claim, level) < claim.max_w for claim in chosen):
        assert sum(fill(claim, level + 1) for claim in chosen) > limit_w


def test_equal_cars_get_equal_shares_and_a_small_one_leaves_the_rest_to_the_others() -> None:
    shares = EqualShare().share([a_claim("a"), a_claim("b"), a_claim("c", most=2_000)], 20_000, turn_over=False)
    assert shares == {"a": 9_000, "b": 9_000, "c": 2_000}


def test_where_floors_do_not_fit_who_has_power_keeps_it_until_the_turn_is_over() -> None:
    asked = [a_claim("on", 4_000, on=True, last_on=9), a_claim("waits", 4_000, last_on=1)]
    assert EqualShare().share(asked, 5_000, turn_over=False) == {"on": 5_000, "waits": 0}
    assert EqualShare().share(asked, 5_000, turn_over=True) == {"on": 0, "waits": 5_000}


def test_a_high_floor_that_waited_longest_comes_first_when_the_turn_is_over() -> None:
    asked = [
        a_claim("s1", 1_380, on=True, last_on=9),
        a_claim("s2", 1_380, on=True, last_on=9),
        a_claim("big", 4_140, last_on=1),
    ]
    assert EqualShare().share(asked, 4_140, turn_over=True) == {"s1": 0, "s2": 0, "big": 4_140}


def test_nobody_gets_anything_of_a_limit_of_zero() -> None:
    assert EqualShare().share([a_claim("a")], 0, turn_over=False) == {"a": 0}
