"""What goes wrong, and when: drawn from a seed before anything starts.

A run is rounds, each of scenes that run beside one another and then a quiet time, in which everything is connected.
A round never kills both balancers, and gives each substation to one scene at most, so that what is found wrong has
few causes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from tests.faults.records import BALANCERS, PLACES

# After the mesh is whole: two seconds are the contract's, the rest is for looking.
QUIET_S = 3.0
# A round of the long run takes at least so long, with its quiet time.
_ROUND_S = 5.0


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing that goes wrong: `at_s` after its round began, for `for_s`. `balancer` may be of no use to it."""

    kind: str
    substation: str
    balancer: str
    at_s: float = 0.0
    for_s: float = 1.0


Round = tuple[Scene, ...]

# The deliberate ones: each pulls exactly the plug that one guard is there for.
REPLY_LOST = "reply lost"  # the rule on doubt
REQUEST_LATE = "request late"  # the fence
SPLIT = "split"  # EndDuplicate
KILLED_IN_DOUBT = "balancer killed in doubt"  # the index, on another balancer
RESTARTED_IN_DOUBT = "substation restarted in doubt"  # the snapshot of a newer epoch
KILLED_AFTER_REPLY = "killed after replies"  # commit before reply
IMPATIENT = "impatient clients"  # EndDuplicate, without any death
DISK_FULL = "disk full"  # commit before reply
LIMIT_CUT = "limit cut"  # the limit check
CROWD = "crowd"  # lower before raise
STOPPED_LONG = "stopped for longer than a lease"  # the lease
DEAD_LONG = "dead for longer than a lease"  # the lease in the ledger
CLOCK = "clock jumps"
# The plain ones.
KILL_SUBSTATION, STOP_SUBSTATION = "kill substation", "stop substation"
KILL_BALANCER, STOP_BALANCER, KILL_GATEWAY = "kill balancer", "stop balancer", "kill gateway"
CUT, HANG, SLOW = "cut link", "hung link", "slow link"

LEASE_S = 10.0
_LONG_S = LEASE_S + 4.0
_AT_A_SUBSTATION = (
    REPLY_LOST, REQUEST_LATE, RESTARTED_IN_DOUBT, KILLED_AFTER_REPLY, DISK_FULL, LIMIT_CUT, CROWD, CLOCK, IMPATIENT,
    KILL_SUBSTATION, STOP_SUBSTATION, CUT, HANG, SLOW,
)  # fmt: skip
AT_A_BALANCER = (KILL_BALANCER, STOP_BALANCER, KILLED_IN_DOUBT)


def short(seed: int) -> list[Round]:
    """Every deliberate situation once, and some of the plain ones."""
    rng = Random(f"{seed} short")
    a, b, c = rng.sample(PLACES, 3)
    x, y = rng.sample(BALANCERS, 2)
    return [
        (
            Scene(REPLY_LOST, a, x),
            Scene(REQUEST_LATE, b, y),
            Scene(CROWD, c, x),
            Scene(IMPATIENT, c, x, 1.0),
        ),
        # At a link that has not failed yet: after failures a balancer leaves a substation out for a while.
        (Scene(SPLIT, c, x),),
        (Scene(KILL_BALANCER, a, y, for_s=0.5), Scene(CROWD, b, x)),
        (
            Scene(STOPPED_LONG, a, x, for_s=_LONG_S),
            Scene(KILLED_AFTER_REPLY, b, y),
            Scene(LIMIT_CUT, c, y),
            Scene(KILLED_IN_DOUBT, c, y, 3.0),
            Scene(DISK_FULL, b, x, 5.0, 1.5),
            Scene(RESTARTED_IN_DOUBT, c, x, 7.0),
            Scene(CUT, b, y, 8.0, 1.0),
            Scene(KILL_GATEWAY, b, x, 8.5),
            Scene(CLOCK, b, y, 9.0, 1.0),
        ),
    ]


def long(seed: int, minutes: float) -> list[Round]:
    """More rounds than fit, all different."""
    rng = Random(f"{seed} long")
    return [tuple(_round(rng, number)) for number in range(1 + int(60 * minutes / _ROUND_S))]


def _round(rng: Random, number: int) -> Iterator[Scene]:
    places, (x, y) = rng.sample(PLACES, 3), rng.sample(BALANCERS, 2)
    if number % 6 == 0:
        # Nothing else is wrong, so that what a dead balancer costs its clients can be told.
        yield Scene(KILL_BALANCER, places[0], x, 0.5, rng.uniform(0.3, 2.0))
        yield Scene(LIMIT_CUT, places[1], y, 0.0, rng.uniform(1, 3))
        yield Scene(CROWD, places[2], y, 1.0)
        return
    if number % 6 == 5:
        # Long ones, with others meanwhile.
        kind = rng.choice((STOPPED_LONG, DEAD_LONG))
        yield Scene(kind, places.pop(), x, for_s=_LONG_S)
        places *= 2
    if number % 6 == 2:
        yield Scene(SPLIT, places[0], x)
        yield Scene(LIMIT_CUT, places[1], y, 0.5, rng.uniform(1, 3))
        yield Scene(CROWD, places[2], y, 1.0)
        return
    for place in places:
        at_s = 0.0 if places.count(place) == 1 else rng.choice((0.0, 6.0))
        for turn in range(2):
            yield Scene(
                rng.choice(_AT_A_SUBSTATION), place, rng.choice((x, y)), at_s + 3.0 * turn + rng.uniform(0, 0.5),
                rng.uniform(0.3, 2.0),
            )  # fmt: skip
    yield Scene(rng.choice(AT_A_BALANCER), rng.choice(PLACES), x, rng.uniform(0, 3), rng.uniform(0.3, 2.5))
    if rng.random() < 0.3:
        yield Scene(KILL_GATEWAY, places[0], x, rng.uniform(0, 3))
