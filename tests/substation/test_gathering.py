"""Single charges that wait for the next commit, and how long that waits for more of them."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

from gridmesh.v1 import charging_pb2
from mesh.clock import SystemClock
from mesh.errors import AttemptExpired, InvalidRequest, Refused, Unavailable
from mesh.model import ErrorReason
from substation.charges import Charges
from substation.engine import Engine
from substation.gathering import FEWEST, LONGEST_S, QUIET_S, Crowd, Taken
from tests.substation.rig import a_charge
from tests.substation.test_engine import Plant, a_slow_disk, an_engine, charge, protect_disk, rows, until

T = TypeVar("T")

# --- how long to wait, at virtual times -------------------------------------------------------------


def test_nobody_waits_where_nobody_was_answered() -> None:
    assert Crowd().until_s(1) == 0


@pytest.mark.parametrize(("answered", "waiting", "waits"), [(FEWEST, 1, True), (FEWEST, FEWEST, False)])
def test_it_waits_until_those_are_back_that_were_answered(answered: int, waiting: int, waits: bool) -> None:
    crowd = Crowd()
    crowd.answered(answered, 10.0)
    assert bool(crowd.until_s(waiting)) is waits


def test_a_few_are_not_waited_for() -> None:
    crowd = Crowd()
    crowd.answered(FEWEST - 1, 10.0)
    assert crowd.until_s(1) == 0


def test_it_waits_only_as_long_as_some_keep_coming() -> None:
    crowd = Crowd()
    crowd.answered(64, 10.0)
    assert crowd.until_s(0) == 10.0 + QUIET_S
    crowd.came(10.0015)
    assert crowd.until_s(1) == 10.0015 + QUIET_S


def test_it_does_not_wait_for_ever_for_a_trickle() -> None:
    crowd = Crowd()
    crowd.answered(64, 10.0)
    crowd.came(10.0 + LONGEST_S - QUIET_S / 2)
    assert crowd.until_s(1) == 10.0 + LONGEST_S


def test_who_comes_long_after_a_crowd_waits_for_nobody() -> None:
    crowd = Crowd()
    crowd.answered(64, 10.0)
    crowd.came(70.0)
    assert crowd.until_s(1) < 70.0


# --- at an engine -----------------------------------------------------------------------------------


def commits(engine: Engine) -> float:
    return next(s.value for m in engine._metrics.commit.collect() for s in m.samples if s.name.endswith("_count"))


def start(work: Awaitable[T]) -> "asyncio.Task[T]":
    return asyncio.ensure_future(work)


async def waiting(engine: Engine, count: int) -> None:
    await until(lambda: len(engine._gathering._calls) == count, 2)


async def during_a_commit(engine: Engine) -> "asyncio.Task[object]":
    """One whose commit is under way."""
    first = start(charge(engine, a_charge("first")))
    await until(lambda: bool(engine._station.sessions()), 2)
    return first


async def test_what_comes_during_a_commit_is_admitted_together_by_the_next(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant(), rated_w=200_000) as engine:
        async with a_slow_disk(engine):
            first = await during_a_commit(engine)
            others = [start(charge(engine, a_charge(f"other-{number}"))) for number in range(5)]
            await waiting(engine, 5)
            assert len(list(engine._station.sessions())) == 1
        before = commits(engine)
        sessions = [session for session, _ in await asyncio.gather(*others)]
        await first
        assert {session.session_id for session in sessions} <= set(rows(tmp_path))
        assert [session.admission_sequence for session in sessions] == [2, 3, 4, 5, 6]
        # The first one's, which was not counted yet, and theirs.
        assert commits(engine) - before <= 2


async def test_who_has_gone_before_the_commit_was_never_admitted(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        async with a_slow_disk(engine):
            first = await during_a_commit(engine)
            gone, stays = (start(charge(engine, a_charge(name))) for name in ("gone", "stays"))
            await waiting(engine, 2)
            gone.cancel()
        await asyncio.gather(first, stays)
        assert {session.charge.key.request_id for session in rows(tmp_path).values()} == {"first", "stays"}
        assert not engine.knows(a_charge("gone").key)


async def test_one_that_is_refused_or_defect_holds_back_nobody(tmp_path: Path) -> None:
    def defect(_: int) -> Taken:
        raise ZeroDivisionError

    async with an_engine(tmp_path, Plant()) as engine:
        async with a_slow_disk(engine):
            first = await during_a_commit(engine)
            # Its floor is above all that there is.
            refused = start(charge(engine, a_charge("refused", max_w=44_000, floor_w=44_000)))
            broken = start(engine.together(defect))
            served = start(charge(engine, a_charge("served")))
            await waiting(engine, 3)
        await first
        assert (await served)[0].charge.key.request_id == "served"
        with pytest.raises(Refused):
            await refused
        with pytest.raises(ZeroDivisionError):
            await broken


async def test_those_that_wait_while_the_disk_fails_are_refused_and_nothing_of_them_is_kept(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        protect_disk(engine, True)
        async with a_slow_disk(engine):
            first = await during_a_commit(engine)
            second = start(charge(engine, a_charge("second")))
            await waiting(engine, 1)
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        reasons = [getattr(outcome, "reason", None) for outcome in outcomes]
        assert reasons == [ErrorReason.OUTCOME_UNKNOWN, ErrorReason.LEDGER_UNAVAILABLE]
        assert isinstance(outcomes[1], Unavailable)
        protect_disk(engine, False)
        await until(lambda: engine.ledger_works, 5)
        assert rows(tmp_path) == {}


async def test_a_batch_ends_the_wait_for_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("substation.gathering.QUIET_S", 60)
    monkeypatch.setattr("substation.gathering.LONGEST_S", 60)
    async with an_engine(tmp_path, Plant(), rated_w=200_000) as engine:
        async with a_slow_disk(engine):
            first = await during_a_commit(engine)
            crowd = [start(charge(engine, a_charge(f"crowd-{number}"))) for number in range(FEWEST)]
            await waiting(engine, FEWEST)
        await asyncio.gather(first, *crowd)
        alone = start(charge(engine, a_charge("alone")))
        await waiting(engine, 1)
        async with asyncio.timeout(5):
            await engine.written()
            await alone


async def test_an_attempt_whose_time_passes_while_it_waits_is_not_admitted(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        clock = SystemClock()
        charges = Charges(engine, clock, Random(1), engine._metrics)
        request = charging_pb2.ChargeRequest(request_id="late", vehicle_id="EV", max_power_kw=11)
        request.not_after.FromMilliseconds(clock.now_ms() + 50)
        async with a_slow_disk(engine):
            first = await during_a_commit(engine)
            late = start(charges.charge(request))
            await waiting(engine, 1)
            await until(lambda: clock.now_ms() > request.not_after.ToMilliseconds(), 2)
        await first
        with pytest.raises(AttemptExpired):
            await late
        with pytest.raises(InvalidRequest):
            await charges.charge(charging_pb2.ChargeRequest())
