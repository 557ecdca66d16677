"""The operator limits of one substation: one per source, each with a start and an end; the lowest active one counts."""

from collections.abc import Iterable
from dataclasses import dataclass

from mesh.model import LimitSource


@dataclass(frozen=True, slots=True)
class Limit:
    """One source's limit in whole watts; times are wall milliseconds, `end_ms` None: until cleared."""

    source: LimitSource
    limit_w: int
    start_ms: int
    end_ms: int | None = None
    reason: str = ""
    grid_critical: bool = False

    def active(self, now: int) -> bool:
        return self.start_ms <= now and (self.end_ms is None or now < self.end_ms)

    def over(self, now: int) -> bool:
        return self.end_ms is not None and self.end_ms <= now


class Limits:
    """All that are set, under the rated power."""

    def __init__(self, rated_w: int, limits: Iterable[Limit] = ()) -> None:
        self._rated_w = rated_w
        self._limits = {limit.source: limit for limit in limits}

    def set(self, limit: Limit) -> None:
        self._limits[limit.source] = limit

    def clear(self, source: LimitSource) -> bool:
        """Removes the source's limit; False when it had none."""
        return self._limits.pop(source, None) is not None

    def forget_over(self, now: int) -> list[LimitSource]:
        """Removes those whose end has passed and returns their sources."""
        over = [limit.source for limit in self._limits.values() if limit.over(now)]
        for source in over:
            del self._limits[source]
        return over

    def all(self) -> list[Limit]:
        return sorted(self._limits.values(), key=lambda limit: limit.source)

    def in_force(self, now: int) -> tuple[int, LimitSource]:
        """The limit at `now` in watts and whose it is; UNSPECIFIED is the rated power."""
        if not self._limits:  # the usual case, and every turn asks a few times
            return self._rated_w, LimitSource.UNSPECIFIED
        active = [(limit.limit_w, limit.source) for limit in self._limits.values() if limit.active(now)]
        return min([(self._rated_w, LimitSource.UNSPECIFIED), *active])

    def next_edge(self, now: int) -> int | None:
        """When the next limit starts or ends."""
        if not self._limits:
            return None
        times = [t for limit in self._limits.values() for t in (limit.start_ms, limit.end_ms) if t is not None]
        return min((t for t in times if t > now), default=None)

    def ends_at(self, source: LimitSource) -> int | None:
        """When the source's limit ends; None when it does not, or there is none."""
        limit = self._limits.get(source)
        return None if limit is None else limit.end_ms
