"""Cars of which nobody said when they leave, and cars of which somebody did, at a substation that is never free."""

import pytest

from substation.completion import Completion
from substation.sharing import EqualShare, SharingPolicy
from substation.urgency import EarliestDeadline, LeastLaxity
from tests.substation.rig import NOW, Rig, a_charge, a_config

HOUR_S = 3_600
KWH_J = 3_600_000
POLICIES: list[SharingPolicy] = [EqualShare(), LeastLaxity(), EarliestDeadline(), Completion()]
# One car at a time at full power; a new one of 10 kWh comes each hour, 55 minutes' worth.
ONE_CAR_W = 11_000
HOURS = 24


def busy_day(policy: SharingPolicy, *, others_say: bool) -> tuple[float, float]:
    """One car among many: what part of its energy it got, and what part the others got, in a day of cars that leave."""
    rig = Rig(a_config(rated_w=ONE_CAR_W, lease_ms=HOUR_S * 1000), policy=policy)
    departure_ms = None if others_say else NOW + 12 * HOUR_S * 1000
    one = rig.charge(a_charge("one", energy_j=20 * KWH_J, departure_ms=departure_ms))
    others = []
    for hour in range(HOURS):
        departure_ms = rig.now + 4 * HOUR_S * 1000 if others_say else None
        others.append(rig.charge(a_charge(f"{hour}", energy_j=10 * KWH_J, departure_ms=departure_ms)))
        rig.run(HOUR_S)
    got = sum(other.delivered_mj for other in others) / (len(others) * 10 * KWH_J * 1000)
    return one.delivered_mj / (20 * KWH_J * 1000), got


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_a_car_of_unknown_departure_is_not_starved_by_those_that_say_theirs(policy: SharingPolicy) -> None:
    one, others = busy_day(policy, others_say=True)
    assert one == 1
    assert others > 0.75


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_a_car_that_says_its_departure_is_not_starved_by_those_that_do_not(policy: SharingPolicy) -> None:
    one, others = busy_day(policy, others_say=False)
    assert one > (0.5 if policy.name == "equal_share" else 0.99)
    assert others > 0.75
