"""Sharing by urgency: who has the least time to spare, or leaves first, charges at its maximum before others.

The next in order gets what is left. A car whose order has not come has nothing for a while, also where
the floors of all would fit: five cars on full power one after the other are done sooner than five at a
fifth of it.
"""

from collections.abc import Sequence

from substation.sharing import Claim

# Order changes as time passes and energy flows.
REVIEW_S = 300


def by_order(ordered: Sequence[Claim], limit_w: int) -> dict[str, int]:
    """Watts per session id: maxima in this order as far as `limit_w` goes, floors first.

    Takes in claims until their maxima reach the limit, so that the last one may lower those before it
    to make room for its floor: the limit is used up whenever the floors let it.
    """
    shares = dict.fromkeys((claim.session_id for claim in ordered), 0)
    chosen: list[Claim] = []
    floors = maxima = 0
    for claim in ordered:
        if maxima >= limit_w:
            break
        if floors + claim.floor_w <= limit_w:
            chosen.append(claim)
            floors += claim.floor_w
            maxima += claim.max_w
    left = limit_w - floors
    for claim in chosen:
        more = min(claim.max_w - claim.floor_w, left)
        shares[claim.session_id] = claim.floor_w + more
        left -= more
    return shares


class LeastLaxity:
    """First who has the least time to spare: the time until it leaves less the time that it needs at full power."""

    name = "least_laxity"
    review_s = REVIEW_S

    def share(self, claims: Sequence[Claim], limit_w: int, turn_over: bool) -> dict[str, int]:  # noqa: ARG002
        return by_order(sorted(claims, key=lambda c: (c.laxity_ms, c.started_ms, c.session_id)), limit_w)


class EarliestDeadline:
    """First who leaves first."""

    name = "earliest_deadline"
    review_s = REVIEW_S

    def share(self, claims: Sequence[Claim], limit_w: int, turn_over: bool) -> dict[str, int]:  # noqa: ARG002
        return by_order(sorted(claims, key=lambda c: (c.left_ms, c.started_ms, c.session_id)), limit_w)
