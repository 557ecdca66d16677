"""One balancer as the gateway reaches it: how charges travel to it."""

import asyncio
from dataclasses import dataclass, field

import pytest

from gridmesh.v1 import charging_pb2
from mesh import coalescing
from tests.gateway.running import CAR, Context, FakeBalancer, Gateway, Message, Told, eventually, gateway_before, served


@dataclass
class Counting(FakeBalancer):
    """Notes how many charges came in each batch, and answers all of it at once."""

    batches: list[int] = field(default_factory=list)

    async def ChargeBatch(self, request: Message, context: Context) -> Told:  # noqa: N802 - the contract's name
        self.batches.append(len(request.items))
        outcomes = [await self._outcome(*item, context) for item in enumerate(request.items)]
        yield charging_pb2.ChargeBatchResponse(outcomes=outcomes)


@pytest.fixture
def without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to last for a moment lasts until what it waits for has come."""
    monkeypatch.setattr(coalescing, "_LINGER", 1e6)
    for name in ("_LONGEST_LINGER_S", "_SHORTEST_HOLD_S", "_LONGEST_HOLD_S"):
        monkeypatch.setattr(coalescing, name, 60.0)


async def charges(gateway: Gateway, count: int) -> None:
    """A caller who comes again as soon as it is answered."""
    for _ in range(count):
        assert (await gateway.post(CAR)).status_code == 201


@pytest.mark.usefixtures("without_end")
async def test_a_batch_waits_for_callers_that_were_answered_and_come_again() -> None:
    go = asyncio.Event()

    async def waits(request: Message, context: Context) -> None:
        await go.wait()

    fake = Counting(answers={"Charge": waits})
    async with served(fake) as port, gateway_before(port, fake, timeout_s=30.0, most=2) as gateway:

        async def asked() -> bool:
            return len(fake.calls) == 1

        async def both_are_in() -> bool:
            # Looked at for so long as to refuse it: it takes no place from them.
            return (await gateway.http.post("/v1/charges", content=b"")).status_code == 503

        async with asyncio.timeout(20), asyncio.TaskGroup() as callers:
            callers.create_task(charges(gateway, 4))
            await eventually(asked)
            callers.create_task(charges(gateway, 3))
            await eventually(both_are_in)
            go.set()
    # The first was alone; the other's, which came meanwhile, waited for its next.
    assert (len(fake.calls), fake.batches) == (7, [2, 2, 2])
