"""Two balancers: what is sent to the other one when the first fails, and what the client hears then."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from mesh.errors import MeshError, Refused, Unavailable
from mesh.model import ErrorReason
from tests.gateway.running import CAR, SESSION_ID, FakeBalancer, Gateway, aborts, fails, gateway_before, served
from tests.mesh_processes import eventually

NO_PLUG = Refused(ErrorReason.NO_CHARGE_POINT, "all plugs are taken", 1_000)


@asynccontextmanager
async def between(*fakes: FakeBalancer) -> AsyncIterator[Gateway]:
    """A gateway that is connected to all of them."""
    async with AsyncExitStack() as stack:
        first, *others = [await stack.enter_async_context(served(fake)) for fake in fakes]
        gateway = await stack.enter_async_context(gateway_before(first, fakes[0], others=others))

        async def all_asked() -> bool:
            await gateway.http.get("/v1/substations")
            return all(fake.calls for fake in fakes)

        await eventually(all_asked, 5, "all are asked in turn")
        for fake in fakes:
            fake.calls.clear()
        yield gateway


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_a_charge_that_was_lost_with_its_balancer_is_a_later_attempt_at_the_other(code: grpc.StatusCode) -> None:
    lost, well = FakeBalancer(answers={"Charge": aborts(code)}), FakeBalancer()
    async with between(lost, well) as gateway:
        assert [(await gateway.post(CAR, Idempotency_Key=key)).status_code for key in ("k-1", "k-2")] == [201, 201]
    (first,) = lost.calls
    (again,) = [request for request in well.calls if request.request_id == first.request_id]
    assert again.attempt_id > first.attempt_id
    assert again.not_after.ToMilliseconds() >= first.not_after.ToMilliseconds()


@pytest.mark.parametrize(
    ("error", "asked_again"),
    [
        (Unavailable(ErrorReason.NO_SUBSTATION, "no substation has reported lately", 1_000), True),
        (Unavailable(ErrorReason.OUTCOME_UNKNOWN, "the outcome is not known yet", 1_000), False),
        (NO_PLUG, False),
    ],
    ids=lambda value: value.reason.name if isinstance(value, MeshError) else "",
)
async def test_only_what_another_balancer_may_do_better_is_asked_of_it(error: MeshError, asked_again: bool) -> None:
    fails_so, well = FakeBalancer(answers={"Charge": fails(error)}), FakeBalancer()
    async with between(fails_so, well) as gateway:
        replies = [await gateway.post(CAR) for _ in range(2)]
    assert len(fails_so.calls) == 1
    assert len(well.calls) == 1 + asked_again
    assert sorted(reply.status_code for reply in replies) == ([201, 201] if asked_again else [201, 503])


async def test_a_refusal_of_the_later_attempt_says_nothing_of_the_one_that_was_lost() -> None:
    lost = FakeBalancer(answers={"Charge": aborts(grpc.StatusCode.UNAVAILABLE)})
    full = FakeBalancer(answers={"Charge": fails(NO_PLUG)})
    async with between(lost, full) as gateway:
        reasons = [(await gateway.post(CAR)).json()["reason"] for _ in range(2)]
    assert sorted(reasons) == ["NO_CHARGE_POINT", "OUTCOME_UNKNOWN"]


async def test_a_read_is_asked_of_the_other_balancer_and_hears_what_that_one_says() -> None:
    lost, well = FakeBalancer(answers={"GetSession": aborts(grpc.StatusCode.UNAVAILABLE)}), FakeBalancer()
    async with between(lost, well) as gateway:
        replies = [await gateway.http.get(f"/v1/charges/{SESSION_ID}") for _ in range(2)]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert (len(lost.calls), len(well.calls)) == (1, 2)
