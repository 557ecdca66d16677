"""What is the same of a ChargeBatch, and of a stream of them, wherever they are served."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import overload

from google.protobuf.message import DecodeError

from gridmesh.v1 import charging_pb2
from mesh.errors import InvalidRequest, Violation

MAX_ITEMS = 1_000


def check_length(request: charging_pb2.ChargeBatchRequest) -> None:
    """InvalidRequest for a batch that is too long."""
    if len(request.items) > MAX_ITEMS:
        raise InvalidRequest(Violation("items", f"must be at most {MAX_ITEMS}"))


@overload
def timeout_of(index: int, item: charging_pb2.ChargeBatchItem, left_s: float) -> float: ...


@overload
def timeout_of(index: int, item: charging_pb2.ChargeBatchItem, left_s: float | None) -> float | None: ...


def timeout_of(index: int, item: charging_pb2.ChargeBatchItem, left_s: float | None) -> float | None:
    """How long an item may take, in seconds, where its batch has `left_s`; None: any. InvalidRequest names the item."""
    if not item.HasField("timeout"):
        return left_s
    timeout = item.timeout
    timeout_s: float = timeout.seconds + timeout.nanos / 1e9
    if timeout_s <= 0:
        raise InvalidRequest(Violation(f"items[{index}].timeout", "must be above 0, or absent"))
    return timeout_s if left_s is None or timeout_s < left_s else left_s


# What is known of one batch, as a stream of them says it: an outcome is written where it leaves, and not copied there.
# The number is the stream's to fill in; a ChargeBatch says the `batch` alone.
Outcomes = AsyncGenerator[charging_pb2.StreamChargesResponse, None]


class Batches:
    """One call of StreamCharges: each message is served as a ChargeBatch, beside the others."""

    def __init__(self, serve: Callable[[charging_pb2.ChargeBatchRequest], Outcomes], leaving: asyncio.Event) -> None:
        self._serve = serve
        self._leaving = leaving
        self._said: asyncio.Queue[charging_pb2.StreamChargesResponse | BaseException | None] = asyncio.Queue()
        self._work: set[asyncio.Task[None]] = set()

    async def responses(
        self, requests: AsyncIterator[charging_pb2.StreamChargesRequest]
    ) -> AsyncGenerator[charging_pb2.StreamChargesResponse, None]:
        """What is known of each, until the client begins no more and all is answered. Who stops reading has left."""
        aside = [asyncio.create_task(work) for work in (self._read(requests), self._leave())]
        try:
            while (said := await self._said.get()) is not None:
                if isinstance(said, BaseException):
                    raise said
                yield said
        finally:
            for task in (*aside, *self._work):
                task.cancel()

    async def _read(self, requests: AsyncIterator[charging_pb2.StreamChargesRequest]) -> None:
        try:
            async for request in requests:
                task = asyncio.create_task(self._one(request))
                self._work.add(task)
                task.add_done_callback(self._work.discard)
        except DecodeError:
            self._said.put_nowait(InvalidRequest(Violation("request", "is no StreamChargesRequest")))
            return
        if self._work:
            await asyncio.wait(self._work)
        self._said.put_nowait(None)

    async def _one(self, request: charging_pb2.StreamChargesRequest) -> None:
        number = request.number
        try:
            async with aclosing(self._serve(request.batch)) as responses:
                async for said in responses:
                    said.number = number
                    self._said.put_nowait(said)
        except Exception as error:
            # Of the batch as a whole, as one that is too long: a defect of the client.
            self._said.put_nowait(error)

    async def _leave(self) -> None:
        await self._leaving.wait()
        self._said.put_nowait(charging_pb2.StreamChargesResponse(leaving=True))
