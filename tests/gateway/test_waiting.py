"""What a charge that waits for a plug makes of each answer."""

import asyncio

import pytest

from gateway.problems import ProblemError, if_sent, problem, unreachable
from gateway.schemas import Problem
from gateway.waiting import Tries, Waiting
from gridmesh.v1 import charging_pb2, load_pb2
from mesh.coalescing import Charged
from tests.gateway.test_line import CAR

FULL = ProblemError(problem(503, "NO_CHARGE_POINT", "full"))
SERVED = Charged(charging_pb2.ChargeResponse(), load_pb2.LoadReport())


async def waited(*answers: Problem) -> Charged:
    """What comes of it when its tries are answered like that, and then it is served."""
    left = [*map(ProblemError, answers)]

    async def attempt() -> Charged:
        if left:
            raise left.pop(0)
        return SERVED

    async def never_known() -> bool:
        return False

    async def stays() -> None:
        await asyncio.Event().wait()

    return await Waiting(asyncio.Event()).charge(CAR, 20, Tries(attempt, never_known, stays), FULL)


async def test_it_keeps_its_place_while_there_is_no_balancer() -> None:
    assert await waited(unreachable()) is SERVED


async def test_it_is_told_when_it_may_have_been_admitted() -> None:
    with pytest.raises(ProblemError) as caught:
        await waited(if_sent(unreachable(), "mine"))
    assert caught.value.problem.reason == "OUTCOME_UNKNOWN"
