"""Tells streams that the load view has changed, and that the process is about to stop."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mesh.errors import Unavailable
from mesh.model import ErrorReason


class Watch:
    """One stream's flag: however often the view changes, it is woken once."""

    def __init__(self) -> None:
        self._flag = asyncio.Event()

    def set(self) -> None:
        self._flag.set()

    async def wait(self, timeout_s: float) -> None:
        """Until the next change, but no longer than that."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._flag.wait()
        self._flag.clear()


class Changes:
    """The streams that this process serves and that would go on for ever."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()
        self._cancels: list[Callable[[], object]] = []
        self._closed = False

    def changed(self) -> None:
        """The view has changed."""
        for watch in self._watches:
            watch.set()

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """A flag for as long as a stream lasts."""
        watch = Watch()
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    def on_close(self, cancel: Callable[[], object]) -> None:
        """Calls that when the process stops."""
        self._cancels.append(cancel)

    def off_close(self, cancel: Callable[[], object]) -> None:
        self._cancels.remove(cancel)

    def raise_if_closed(self) -> None:
        """Ends a stream so that its client connects again, elsewhere."""
        if self._closed:
            raise Unavailable(ErrorReason.NOT_ACCEPTING, "this balancer is shutting down: connect again", 500)

    def close(self) -> None:
        """The process is about to stop: every stream ends."""
        self._closed = True
        self.changed()
        for cancel in list(self._cancels):
            cancel()
