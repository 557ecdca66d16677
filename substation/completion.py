"""Sharing that completes as many cars as it can, and gives away nothing for it.

What must have flowed by time t, were every car charged as late as possible at full power, is its
demand bound. Cars can all be completed exactly when the bounds of all add up to at most limit x t for
every t (checked where a car leaves). Where they do not, least laxity lets all fail a little; here those
are put back that ask the most of the time before the overload, until the rest fits (Moore and Hodgson's rule for
the fewest late jobs).
"""

from collections.abc import Sequence

from substation.sharing import Claim
from substation.urgency import REVIEW_S, by_order


def bound_mj(claim: Claim, t_ms: int) -> int:
    """What it must have got by `t_ms` from now to be completed."""
    return min(claim.remaining_mj, max(0, claim.max_w * (t_ms - claim.laxity_ms)))


def completable(claims: Sequence[Claim], limit_w: int) -> tuple[list[Claim], list[Claim]]:
    """Those that can all be completed, and those put back for it."""
    kept, put_back = [], []
    for claim in sorted(claims, key=lambda c: (c.left_ms, c.session_id)):
        if claim.laxity_ms < 0:
            put_back.append(claim)
            continue
        kept.append(claim)
    while True:
        t = overload(kept, limit_w)
        if t is None:
            return kept, put_back
        worst = max(kept, key=lambda c: (bound_mj(c, t), c.session_id))
        kept.remove(worst)
        put_back.append(worst)


def overload(claims: Sequence[Claim], limit_w: int) -> int | None:
    """The first departure by which more must have flowed than the limit lets; None if there is none."""
    for claim in claims:
        t = claim.left_ms
        if sum(bound_mj(c, t) for c in claims) > limit_w * t:
            return t
    return None


class Completion:
    name = "completion"
    review_s = REVIEW_S

    def __init__(self, mode: str = "llf", back: str = "edf") -> None:
        self.mode = mode
        self.back = back

    def share(self, claims: Sequence[Claim], limit_w: int, turn_over: bool) -> dict[str, int]:  # noqa: ARG002
        kept, back = completable(claims, limit_w)
        k = {
            "llf": lambda c: (c.laxity_ms, c.session_id),
            "edf": lambda c: (c.left_ms, c.session_id),
            "small": lambda c: (c.remaining_mj, c.session_id),
        }
        kept.sort(key=k[self.mode])
        back.sort(key=k[self.back])
        return by_order([*kept, *back], limit_w)
