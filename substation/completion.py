"""Sharing that completes as many cars as it can, and loses next to no energy for it.

What must have flowed by time t, were each car charged as late as its full power allows, adds up over the
cars. All of them can be completed exactly when the sum is at most limit x t wherever a car leaves. Where it
is not, least laxity lets all fail a little. Here those are put back, one by one, that ask for the most
before the overload, until the rest fits (Moore and Hodgson's rule for the fewest late jobs). The rest is
protected: while it has time to spare, least laxity helps those that were put back; when that
is used up, the protected go first, by deadline, the tight ones before (EDZL, which changes order seldom).
"""

from collections.abc import Sequence

from mesh.outlook import Need, Outlook, outlook
from substation.sharing import Claim
from substation.urgency import REVIEW_S, TIGHT_MS, by_order

# Rounding and the moments in which power changes hands are no reason to give a car up.
_TOLERANCE_MS = 1_000
# The protected keep so much of the whole limit's time in reserve for cars still to come.
_RESERVE_MS = 300_000


def need(claim: Claim, limit_w: int) -> Need:
    """What a claim asks of the hours ahead."""
    return need_of(claim.remaining_mj, claim.left_ms, claim.max_w, limit_w, assumed=claim.assumed)


def need_of(remaining_mj: int, left_ms: int, max_w: int, limit_w: int, *, assumed: bool) -> Need:
    """The same, without a claim. A car whose departure is only assumed stays until it is done."""
    power_w = max_w if max_w <= limit_w else max(1, limit_w)
    if assumed and (charging_ms := remaining_mj // power_w) > left_ms:
        left_ms = charging_ms
    return Need(remaining_mj, left_ms, power_w)


def completable(needs: dict[str, Need], limit_w: int) -> tuple[list[str], int]:
    """The session ids that can all be completed, and what they leave of the limit: mJ at the tightest moment.

    One sweep over time. `level` is what must have flowed by then, `slope` the power at which it grows.
    """
    kept = {name: need for name, need in needs.items() if need.spare_ms >= -_TOLERANCE_MS}
    spans = [(max(0, n.spare_ms), n.left_ms, name) for name, n in kept.items()]
    edges = sorted(
        edge for start, end, name in spans if start < end for edge in ((start, True, name), (end, False, name))
    )
    charging: set[str] = set()
    level = slope = at = 0
    tightest: int | None = None
    for t, starts, name in edges:
        level += slope * (t - at)
        at = t
        if name not in kept:
            continue
        if starts:
            slope += kept[name].max_w
            charging.add(name)
            continue
        slope -= kept[name].max_w
        charging.discard(name)
        while level > limit_w * t:
            worst = max(kept, key=lambda name: (_swept_mj(kept[name], t), name))
            level -= _swept_mj(kept[worst], t)
            slope -= kept[worst].max_w if worst in charging else 0
            charging.discard(worst)
            del kept[worst]
        tightest = limit_w * t - level if tightest is None else min(tightest, limit_w * t - level)
    return list(kept), tightest or 0


def _swept_mj(need: Need, t: int) -> int:
    """Its part of the level, at full power as late as that brings all of it.

    What rounding takes from its time to spare is let go.
    """
    return need.max_w * max(0, min(t, need.left_ms) - max(0, need.spare_ms))


class Completion:
    """Protects what can be completed, and gives the others all that the protected can spare."""

    name = "completion"
    review_s = REVIEW_S

    def share(self, claims: Sequence[Claim], limit_w: int, turn_over: bool) -> dict[str, int]:
        needs = {claim.session_id: need(claim, limit_w) for claim in claims}
        names, spare_mj = completable(needs, limit_w)
        kept = set(names)

        def tight(claim: Claim) -> bool:
            return needs[claim.session_id].spare_ms <= TIGHT_MS

        def protected(claim: Claim) -> tuple[bool, int, str]:
            own = needs[claim.session_id]
            return (not tight(claim), own.spare_ms if tight(claim) else own.left_ms, claim.session_id)

        first = sorted((c for c in claims if c.session_id in kept), key=protected)
        put_back = sorted(
            (c for c in claims if c.session_id not in kept),
            key=lambda c: (needs[c.session_id].spare_ms, c.session_id),
        )
        ordered = put_back + first if spare_mj > limit_w * _RESERVE_MS else first + put_back
        return by_order(ordered, limit_w, lambda c: c.session_id in kept and tight(c))


def promised(claims: Sequence[Claim], limit_w: int) -> Outlook:
    """What the substation has ahead of it, as its reports say it."""
    return outlook([need(claim, limit_w) for claim in claims])
