"""How often something happens lately."""

from math import exp


class Rate:
    """Events per millisecond; those of the last `memory_ms` count most. Times are wall milliseconds."""

    def __init__(self, memory_ms: int) -> None:
        self._memory_ms = memory_ms
        self._count = 0.0
        self._at_ms: int | None = None

    def count(self, events: int, now: int) -> None:
        """So many more; below 0 takes back what was counted too much."""
        if events:
            self._count = self._faded(now) + events
            self._at_ms = now

    def per_ms(self, now: int) -> float:
        """Never below 0."""
        return max(0.0, self._faded(now)) / self._memory_ms

    def _faded(self, now: int) -> float:
        if self._at_ms is None or now <= self._at_ms:  # as for most of those that become known together
            return self._count
        return self._count * exp((self._at_ms - now) / self._memory_ms)
