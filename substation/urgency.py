"""Sharing by urgency: who has the least time to spare, or leaves first, charges at its maximum before others.

The next in order gets what is left. A car whose order has not come has nothing for a while, also where
the floors of all would fit: cars that charge one after the other are done as soon, and the first sooner.
"""

from collections.abc import Callable, Iterable, Sequence

from substation.sharing import Claim

# Seconds of charging: order changes as time passes and energy flows.
REVIEW_S = 600
# With less to spare than this a car needs all that it can take, now.
TIGHT_MS = 1_800_000


def spare_ms(claim: Claim, limit_w: int) -> int:
    """How long it could wait and still be completed at full power; full power is never above the limit.

    A car that should have left already, and of which nobody said when it would, has just none to spare.
    """
    spare = claim.left_ms - claim.remaining_mj // max(1, min(claim.max_w, limit_w))
    return max(0, spare) if claim.assumed else spare


def by_order(ordered: Sequence[Claim], limit_w: int, firm: Callable[[Claim], bool]) -> dict[str, int]:
    """Watts per session id: maxima in this order as far as `limit_w` goes.

    Where the rest is less than the next one's floor, those before it make room down to their own floors, so
    that the limit is used up, but not the `firm` ones: lowering a car that has no time to spare fails it.
    """
    shares = dict.fromkeys((claim.session_id for claim in ordered), 0)
    given: list[Claim] = []
    left = limit_w
    for claim in ordered:
        if left <= 0:
            break
        if claim.floor_w > left:
            left += _make_room(shares, given, claim.floor_w - left, firm)
        if claim.floor_w <= left:
            shares[claim.session_id] = min(claim.max_w, left)
            left -= shares[claim.session_id]
            given.append(claim)
    return shares


def _make_room(shares: dict[str, int], given: Iterable[Claim], room_w: int, firm: Callable[[Claim], bool]) -> int:
    """Lowers shares by `room_w` in all, the last first; by nothing if that much cannot be found."""
    can = [(claim, shares[claim.session_id] - claim.floor_w) for claim in given if not firm(claim)]
    if sum(spare for _, spare in can) < room_w:
        return 0
    missing = room_w
    for claim, spare in reversed(can):
        shares[claim.session_id] -= min(spare, missing)
        missing -= min(spare, missing)
    return room_w


class LeastLaxity:
    """First who has the least time to spare."""

    name = "least_laxity"
    review_s = REVIEW_S

    def share(self, claims: Sequence[Claim], limit_w: int, turn_over: bool) -> dict[str, int]:
        spare = {claim.session_id: spare_ms(claim, limit_w) for claim in claims}
        ordered = sorted(claims, key=lambda c: (spare[c.session_id], c.started_ms, c.session_id))
        return by_order(ordered, limit_w, lambda c: spare[c.session_id] < TIGHT_MS)


class EarliestDeadline:
    """First who leaves first."""

    name = "earliest_deadline"
    review_s = REVIEW_S

    def share(self, claims: Sequence[Claim], limit_w: int, turn_over: bool) -> dict[str, int]:
        ordered = sorted(claims, key=lambda c: (c.left_ms, c.started_ms, c.session_id))
        return by_order(ordered, limit_w, lambda c: spare_ms(c, limit_w) < TIGHT_MS)
