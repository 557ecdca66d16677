"""The only place of the mesh that reads a clock. Everything else takes `now`, in milliseconds of wall time."""

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time in milliseconds since 1970."""

    def now_ms(self) -> int: ...


class SystemClock:
    """Wall time as it was at the start, carried on by the monotonic clock.

    A correction of the system clock while the process runs moves no deadline and turns no register
    back; timestamps stay off by that much until the next start.
    """

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ms(self) -> int:
        return (time.monotonic_ns() + self._offset_ns) // 1_000_000


def wall_ns() -> int:
    """Nanoseconds since 1970, for timestamps that only people read."""
    return time.time_ns()


# Monotonic seconds, for durations only. No function of ours: a charge asks a dozen times.
seconds = time.monotonic
