"""Single charges that are admitted together, right before the commit that keeps them.

A commit costs the same whether it keeps one charge or thirty; so does a look at what is due, and the load that follows.
What comes while a commit is under way cannot be answered before the next is over: it waits until that begins, and who
has gone by then was never admitted.

Most callers ask again once they are answered, so the next commit waits for those who just were, as long as some keep
coming. Without that parts of them take turns, in more and smaller commits. Who is alone waits for nobody.
"""

import asyncio
from collections.abc import Callable

from msgspec import Struct

from mesh.clock import seconds
from mesh.coalescing import LAST_LOOKS
from substation.batch import Batch, Waiter

# When nobody came for so long, nobody comes again.
QUIET_S = 0.002
# However many come, the first of them waits no longer.
LONGEST_S = 0.02
# Fewer than this share too little to be waited for.
FEWEST = 4


class Taken(Struct, frozen=True):
    """What became of a charge in memory. `kept`: on disk already, with all that its answer says."""

    session_id: str
    repeated: bool
    kept: bool


class Crowd:
    """Until when it pays to wait for more. Times in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._expected = 0
        # When the last one came, or was answered.
        self._last_s = 0.0
        self._until_s = 0.0

    def answered(self, callers: int, now: float) -> None:
        """So many were answered, or came while these were not: all of them may share the next commit."""
        self._expected = callers
        self._last_s, self._until_s = now, now + LONGEST_S

    def came(self, now: float) -> None:
        """One more."""
        self._last_s = now

    def until_s(self, waiting: int) -> float:
        """Until when to wait for more, where so many are here; unless one more comes before that. 0: no longer."""
        if waiting >= self._expected or self._expected < FEWEST:
            return 0.0
        return min(self._last_s + QUIET_S, self._until_s)


class _Call:
    """One that waits: to be admitted, then for the commit."""

    __slots__ = ("admit", "done", "taken", "waiter")

    def __init__(self, admit: Callable[[int], Taken], done: asyncio.Future[None]) -> None:
        self.admit = admit
        self.done = done
        self.taken: Taken | None = None
        self.waiter: Waiter | None = None


class Gathering:
    """Those that wait to be admitted. `wake` is called for each that comes."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._calls: list[_Call] = []
        # Of the last commit.
        self._admitted: list[_Call] = []
        self._crowd = Crowd()
        self._enough = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._calls)

    async def admitted(self, admit: Callable[[int], Taken]) -> Taken:
        """What becomes of a charge, once it is on disk. `admit` is called with the time in wall milliseconds.

        MeshError: what `admit` raises, or Unavailable (OUTCOME_UNKNOWN) when the disk failed.
        """
        call = _Call(admit, self._loop.create_future())
        self._calls.append(call)
        self._crowd.came(seconds())
        if not self._crowd.until_s(len(self._calls)):
            self._enough.set()
        self._wake()
        try:
            await call.done
        finally:
            if call.waiter is not None:
                call.waiter.trace()
        assert call.taken is not None
        return call.taken

    async def complete(self) -> None:
        """Returns when all have come who are likely to."""
        self._enough.clear()
        while (left_s := self._crowd.until_s(len(self._calls)) - seconds()) > 0:
            timer = self._loop.call_later(left_s, self._enough.set)
            await self._enough.wait()
            timer.cancel()
            self._enough.clear()
            # The loop may have been busy with answers for all of that time: what is in its sockets is here, too.
            for _ in range(LAST_LOOKS):
                await asyncio.sleep(0)

    def hurry(self) -> None:
        """Somebody else waits for the commit."""
        self._crowd = Crowd()
        self._enough.set()

    def admit(self, batch: Batch, now: int) -> None:
        """Admits all that wait, in the order in which they came, and lets them wait for the batch's commit."""
        calls, self._calls, self._admitted = self._calls, [], []
        for call in calls:
            if not call.done.done():
                self._admit(call, batch, now)

    def _admit(self, call: _Call, batch: Batch, now: int) -> None:
        try:
            call.taken = call.admit(now)
        except Exception as error:
            call.done.set_exception(error)
        else:
            call.waiter = batch.join(1, call.done)
            self._admitted.append(call)

    def committed(self) -> None:
        """Those that were admitted last are being answered."""
        self._crowd.answered(len(self._admitted) + len(self._calls), seconds())
        self._admitted = []
