"""How the power under the limit is divided among the sessions that want it.

A policy is an object with `share`; it decides nothing else and keeps nothing. Every result obeys the
same floors: a session gets 0 or at least its floor, at most its maximum, and the sum is at most the
limit. Where the floors do not all fit, sessions take turns.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Claim(NamedTuple):
    """What one session wants, in watts, millijoules and milliseconds of charging, and how long it has waited for it.

    `floor_w` <= `max_w`; `max_w` is what the car can take now. `on`: it has power now. `last_on_ms`: when
    it last had, or arrived. `left_ms`: until it leaves, below 0 when it stayed on; `assumed`: nobody said when
    that is.
    """

    session_id: str
    floor_w: int
    max_w: int
    on: bool
    last_on_ms: int
    started_ms: int
    remaining_mj: int
    left_ms: int
    assumed: bool = False


class SharingPolicy(Protocol):
    """Divides `limit_w` among the claims. Where it is enough for all of them, each gets its maximum."""

    @property
    def name(self) -> str: ...

    @property
    def review_s(self) -> int | None:
        """How many seconds of charging shares hold while somebody wants more; None: until something happens."""
        ...

    def share(self, claims: Sequence[Claim], limit_w: int, turn_over: bool) -> dict[str, int]:
        """Watts per session id, for every claim. `turn_over`: those that have power now had their turn."""
        ...


class EqualShare:
    """Water-filling: all get the same, those that can take only less get less, and the rest rises."""

    name = "equal_share"
    review_s = None

    def share(self, claims: Sequence[Claim], limit_w: int, turn_over: bool) -> dict[str, int]:
        chosen = whose_turn(claims, limit_w, turn_over)
        level = water_level(chosen, limit_w)
        shares = dict.fromkeys((claim.session_id for claim in claims), 0)
        shares.update((claim.session_id, fill(claim, level)) for claim in chosen)
        return shares


def whose_turn(claims: Sequence[Claim], limit_w: int, turn_over: bool) -> Sequence[Claim]:
    """Those whose floors fit together: all if they do, else who waited longest.

    Within a turn who has power keeps it. When it is over everybody is chosen anew, so that a high floor,
    which never fits into what one leaver frees, comes first once it has waited longest.
    """
    if sum(claim.floor_w for claim in claims) <= limit_w:
        return claims

    def order(claim: Claim) -> tuple[bool, int, int, str]:
        return (turn_over or not claim.on, claim.last_on_ms, claim.started_ms, claim.session_id)

    chosen, left = [], limit_w
    for claim in sorted(claims, key=order):
        if claim.floor_w <= left:
            chosen.append(claim)
            left -= claim.floor_w
    return chosen


def fill(claim: Claim, level_w: int) -> int:
    """What a claim gets at a water level: never under its floor nor over its maximum."""
    return max(claim.floor_w, min(claim.max_w, level_w))


def water_level(claims: Sequence[Claim], limit_w: int) -> int:
    """The highest whole level at which the fills add up to at most the limit. The floors must fit.

    The sum of fills grows with the level and changes its slope only at floors and maxima, so the level
    lies in the last stretch between two of these where it still fits.
    """
    total = sum(claim.floor_w for claim in claims)
    rising = 0
    level = 0
    for at, step in sorted([(c.floor_w, 1) for c in claims] + [(c.max_w, -1) for c in claims]):
        if total + rising * (at - level) > limit_w:
            return level + (limit_w - total) // rising
        total += rising * (at - level)
        level = at
        rising += step
    return level
