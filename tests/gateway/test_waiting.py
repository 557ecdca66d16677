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

    return await Waiting(asyncio.Event()).charge(CAR, 20, Tries(attempt, never_known, stays), FULL)


async def stays() -> None:
    await asyncio.Event().wait()


async def test_a_turn_that_comes_while_a_newcomer_asks_for_its_key_is_kept_for_it() -> None:
    waiting, asked, answered = Waiting(asyncio.Event()), asyncio.Event(), asyncio.Event()
    full = [FULL]

    async def refused_once() -> Charged:
        if full:
            raise full.pop()
        return SERVED

    async def served() -> Charged:
        return SERVED

    async def known_slowly() -> bool:
        asked.set()
        await answered.wait()
        return False

    async with asyncio.timeout(5):
        first = asyncio.create_task(waiting.charge(CAR, 20, Tries(refused_once, known_slowly, stays), FULL))
        await asyncio.sleep(0)
        newcomer = asyncio.create_task(waiting.charge(CAR, 20, Tries(served, known_slowly, stays)))
        await asked.wait()
        assert await first is SERVED
        another = asyncio.create_task(waiting.charge(CAR, 20, Tries(served, known_slowly, stays)))
        await asyncio.sleep(0)
        assert not newcomer.done()
        assert not another.done()
        answered.set()
        assert [await newcomer, await another] == [SERVED, SERVED]


async def test_it_keeps_its_place_while_there_is_no_balancer() -> None:
    assert await waited(unreachable()) is SERVED


async def test_it_is_told_when_it_may_have_been_admitted() -> None:
    with pytest.raises(ProblemError) as caught:
        await waited(if_sent(unreachable(), "mine"))
    assert caught.value.problem.reason == "OUTCOME_UNKNOWN"
