"""A gateway in front of a fake balancer."""

from collections.abc import AsyncIterator

import pytest

from tests.gateway.running import FakeBalancer, Gateway, gateway_before, served


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    fake = FakeBalancer()
    async with served(fake) as port, gateway_before(port, fake) as running:
        yield running
