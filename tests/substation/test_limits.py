from mesh.model import LimitSource
from substation.limits import Limit, Limits

EMS, SO, RATED = LimitSource.EMS, LimitSource.SO, LimitSource.UNSPECIFIED


def test_the_lowest_active_limit_counts_and_the_rated_power_is_the_roof() -> None:
    limits = Limits(100, [Limit(EMS, 80, 0), Limit(SO, 50, 10, 20), Limit(LimitSource.CSO, 500, 0)])
    assert limits.in_force(0) == (80, EMS)
    assert limits.in_force(10) == (50, SO)
    assert limits.in_force(20) == (80, EMS)
    assert limits.clear(EMS)
    assert limits.in_force(0) == (100, RATED)


def test_one_source_has_one_limit() -> None:
    limits = Limits(100)
    limits.set(Limit(EMS, 80, 0))
    limits.set(Limit(EMS, 90, 0))
    assert [limit.limit_w for limit in limits.all()] == [90]


def test_a_limit_of_zero_is_a_limit() -> None:
    assert Limits(100, [Limit(EMS, 0, 0)]).in_force(5) == (0, EMS)


def test_edges_are_starts_and_ends_to_come() -> None:
    limits = Limits(100, [Limit(SO, 50, 10, 20), Limit(EMS, 60, 15)])
    assert [limits.next_edge(at) for at in (0, 10, 15, 20)] == [10, 15, 20, None]
    assert (limits.ends_at(SO), limits.ends_at(EMS), limits.ends_at(RATED)) == (20, None, None)


def test_what_is_over_is_forgotten_and_clearing_nothing_says_so() -> None:
    limits = Limits(100, [Limit(SO, 50, 10, 20)])
    assert limits.forget_over(19) == []
    assert limits.forget_over(20) == [SO]
    assert not limits.clear(SO)
