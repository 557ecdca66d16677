"""A closed loop over gRPC, the same for all that serve it: each task calls, waits for the answer, and calls again.

grpc.aio costs a client several times what the HTTP loop costs, so what is compared by it is CPU by process, not speed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import grpc

from benchmarks.closed_loop import Run, no_collection
from gridmesh.v1.charging_pb2_grpc import ChargingServiceStub
from mesh.clock import seconds

if TYPE_CHECKING:
    from gridmesh.v1.charging_pb2_grpc import ChargingServiceAsyncStub as Stub

# One connection would keep a server with a thread per core to one of them.
_CHANNELS = 4
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))

M = TypeVar("M")


class Answer(NamedTuple, Generic[M]):
    """What came to the call of that number."""

    number: int
    sent_s: float
    came_s: float
    message: M


async def run(
    target: str, call: Callable[["Stub", int], Awaitable[M]], in_flight: int, for_s: float, first: int = 0
) -> Run[Answer[M]]:
    """Calls host:port for so many seconds, with so many in flight, then waits for those that are.

    Numbers begin with `first`. A group with grpc.aio.AioRpcError when a call fails.
    """
    async with AsyncExitStack() as closing:
        channels = [grpc.aio.insecure_channel(target, options=_OPTIONS) for _ in range(min(_CHANNELS, in_flight))]
        for channel in channels:
            await closing.enter_async_context(channel)
            await channel.channel_ready()
        stubs = [ChargingServiceStub(channel) for channel in channels]
        numbers = count(first)
        began_s = seconds()
        made: Run[Answer[M]] = Run(began_s, began_s + for_s)

        async def one_after_another(stub: "Stub") -> None:
            sent_s = seconds()
            while sent_s < made.ends_s:
                number = next(numbers)
                message = await call(stub, number)
                made.replies.append(Answer(number, sent_s, came_s := seconds(), message))
                sent_s = came_s

        with no_collection():
            async with asyncio.TaskGroup() as group:
                for index in range(in_flight):
                    group.create_task(one_after_another(stubs[index % len(stubs)]))
        return made
