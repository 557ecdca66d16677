"""A stream of batches as it is served: beside each other, each under its number, until the client begins no more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from gridmesh.v1 import charging_pb2
from mesh.batching import MAX_ITEMS, Batches, Outcomes, check_length
from mesh.errors import InvalidRequest

SOON_S = 5.0


class Served:
    """Answers each item when it is told to."""

    def __init__(self) -> None:
        self.go: dict[str, asyncio.Event] = {}
        self.given_up: list[str] = []

    def event(self, name: str) -> asyncio.Event:
        return self.go.setdefault(name, asyncio.Event())

    async def batch(self, request: charging_pb2.ChargeBatchRequest) -> Outcomes:
        check_length(request)
        try:
            for index, item in enumerate(request.items):
                await self.event(item.request.request_id).wait()
                said = charging_pb2.StreamChargesResponse()
                said.batch.outcomes.add(index=index)
                yield said
        except BaseException:
            self.given_up.append(request.items[0].request.request_id)
            raise


class Caller:
    """The requests of one call."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[charging_pb2.StreamChargesRequest | None] = asyncio.Queue()

    def ask(self, number: int, *names: str) -> None:
        items = [charging_pb2.ChargeBatchItem(request=charging_pb2.ChargeRequest(request_id=name)) for name in names]
        batch = charging_pb2.ChargeBatchRequest(items=items)
        self._asked.put_nowait(charging_pb2.StreamChargesRequest(number=number, batch=batch))

    def half_close(self) -> None:
        self._asked.put_nowait(None)

    async def requests(self) -> AsyncIterator[charging_pb2.StreamChargesRequest]:
        while (asked := await self._asked.get()) is not None:
            yield asked


@pytest.fixture(autouse=True)
async def soon() -> AsyncIterator[None]:
    async with asyncio.timeout(SOON_S):
        yield


async def test_a_batch_that_waits_holds_up_none_beside_it() -> None:
    served, caller = Served(), Caller()
    async with aclosing(Batches(served.batch, asyncio.Event()).responses(caller.requests())) as responses:
        caller.ask(1, "slow")
        caller.ask(2, "a", "b")
        for name in ("a", "b"):
            served.event(name).set()
        said = [await anext(responses) for _ in range(2)]
        assert [(one.number, one.batch.outcomes[0].index) for one in said] == [(2, 0), (2, 1)]
        served.event("slow").set()
        assert (await anext(responses)).number == 1


async def test_all_that_was_begun_is_answered_before_the_call_ends() -> None:
    served, caller = Served(), Caller()
    async with aclosing(Batches(served.batch, asyncio.Event()).responses(caller.requests())) as responses:
        caller.ask(1, "a")
        caller.ask(2, "b")
        caller.half_close()
        served.event("b").set()
        assert (await anext(responses)).number == 2
        served.event("a").set()
        assert [one.number async for one in responses] == [1]


async def test_a_caller_that_has_gone_leaves_nothing_behind() -> None:
    served, caller = Served(), Caller()
    async with aclosing(Batches(served.batch, asyncio.Event()).responses(caller.requests())) as responses:
        caller.ask(1, "a", "b")
        served.event("a").set()
        await anext(responses)
    while not served.given_up:
        await asyncio.sleep(0)
    assert served.given_up == ["a"]


async def test_who_stops_says_so_once_and_still_serves_what_comes() -> None:
    served, caller, leaving = Served(), Caller(), asyncio.Event()
    async with aclosing(Batches(served.batch, leaving).responses(caller.requests())) as responses:
        leaving.set()
        first = await anext(responses)
        assert first.leaving
        assert not first.HasField("batch")
        caller.ask(7, "a")
        caller.half_close()
        served.event("a").set()
        assert [(one.number, one.leaving) async for one in responses] == [(7, False)]


async def test_a_batch_that_is_too_long_ends_the_call_with_its_error_after_what_was_known() -> None:
    served, caller = Served(), Caller()
    served.event("a").set()
    async with aclosing(Batches(served.batch, asyncio.Event()).responses(caller.requests())) as responses:
        caller.ask(1, "a")
        assert (await anext(responses)).number == 1
        caller.ask(2, *("a" for _ in range(MAX_ITEMS + 1)))
        with pytest.raises(InvalidRequest, match="items"):
            await anext(responses)
