"""The virtual clock: what is to happen, in the order of its time, and of its planning where times are equal."""

import heapq
from collections.abc import Callable
from itertools import count


class Loop:
    """`now` in milliseconds; it moves only from one planned action to the next."""

    def __init__(self, now: int) -> None:
        self.now = now
        self._planned: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, time: int, action: Callable[[], None]) -> None:
        """Plans an action; one in the past happens next."""
        heapq.heappush(self._planned, (max(time, self.now), next(self._order), action))

    def run(self, until: int) -> None:
        """Does all that is planned up to and at `until`."""
        while self._planned and self._planned[0][0] <= until:
            self.now, _, action = heapq.heappop(self._planned)
            action()
        self.now = max(self.now, until)
