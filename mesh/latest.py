"""A stream whose messages each hold the whole state, read ahead: only the last one is kept."""

import asyncio
from typing import Any, Generic, TypeVar

import grpc

M = TypeVar("M")


class Latest(Generic[M]):
    """Whoever is slower than the stream misses what was overtaken, and costs the memory of one message."""

    def __init__(self, call: "grpc.aio.UnaryStreamCall[Any, M]") -> None:
        self._call = call
        self._message: M | None = None
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read_all())
        self._reading.add_done_callback(lambda _: self._news.set())

    async def _read_all(self) -> None:
        while (message := await self._call.read()) is not grpc.aio.EOF:
            self._message = message  # type: ignore[assignment]  # the stub's read() may be EOF
            self._news.set()

    async def read(self) -> Any:  # noqa: ANN401 - a message, or grpc's EOF
        """The last message that was not read yet, as soon as there is one; at the end EOF, or the call's error."""
        while self._message is None:
            if self._reading.done():
                self._reading.result()
                return grpc.aio.EOF
            await self._news.wait()
            self._news.clear()
        message, self._message = self._message, None
        return message

    def cancel(self) -> None:
        """Ends the stream."""
        self._call.cancel()
        self._reading.cancel()
