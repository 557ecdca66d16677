"""Whole watts and joules inside, kW and kWh at the edge.

Integers add up exactly, whatever the order: a sum of grants can be compared with a limit without a
tolerance. Registers count millijoules, because watts times milliseconds are just that.
"""

JOULES_PER_KWH = 3_600_000
MJ_PER_KWH = 1000 * JOULES_PER_KWH


def watts(kw: float) -> int:
    """Kilowatts to whole watts, rounded to the nearest."""
    return round(kw * 1000)


def kilowatts(w: int) -> float:
    """Watts to kilowatts."""
    return w / 1000


def joules(kwh: float) -> int:
    """Kilowatt-hours to whole joules, rounded to the nearest."""
    return round(kwh * JOULES_PER_KWH)


def kilowatt_hours(mj: float) -> float:
    """Millijoules to kilowatt-hours."""
    return mj / MJ_PER_KWH
