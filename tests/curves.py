"""What the curves of one car are, said as plainly as can be."""

from mesh.outlook import LEAST_LEFT_MS, Need


def evenly_mj(need: Need, by_ms: int) -> int:
    """At a constant power until it leaves."""
    return min(need.need_mj, need.max_w * by_ms, need.need_mj * by_ms // max(need.left_ms, LEAST_LEFT_MS))


def at_latest_mj(need: Need, by_ms: int) -> int:
    """At full power, as late as that brings all of it."""
    return min(need.need_mj, max(0, need.max_w * (by_ms - need.spare_ms)))
