"""A batch at a substation: one pass, one commit, few messages; each item with its own time and outcome."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from google.protobuf.duration_pb2 import Duration

from gridmesh.v1 import charging_pb2
from mesh.admission import Admission
from mesh.batching import MAX_ITEMS
from mesh.clock import SystemClock
from mesh.errors import InvalidRequest
from mesh.ids import uuid7
from mesh.model import ErrorReason
from mesh.status import from_status
from substation.charges import ChargeBatch, Charges
from substation.engine import Engine
from tests.substation.test_engine import Plant, a_slow_disk, an_engine, protect_disk, rows, until

Message = charging_pb2.ChargeBatchResponse


class Asker:
    """Sends batches to one engine."""

    def __init__(self, engine: Engine, most: int = MAX_ITEMS) -> None:
        self.engine = engine
        self.admission = Admission(most, Random(1))
        self.rng = Random(2)
        self.charges = Charges(engine, SystemClock(), self.rng, engine._metrics)

    def item(self, name: str, *, max_kw: float = 11, timeout_s: float | None = None) -> charging_pb2.ChargeBatchItem:
        item = charging_pb2.ChargeBatchItem(
            request=charging_pb2.ChargeRequest(
                request_id=name,
                vehicle_id="EV",
                max_power_kw=max_kw,
                attempt_id=uuid7(SystemClock().now_ms(), self.rng),
            )
        )
        if timeout_s is not None:
            item.timeout.CopyFrom(Duration(nanos=round(timeout_s * 1e9)))
        return item

    async def messages(self, *items: charging_pb2.ChargeBatchItem) -> AsyncGenerator[Message, None]:
        request = charging_pb2.ChargeBatchRequest(items=items)
        async with aclosing(ChargeBatch(self.charges, self.admission, None).messages(request)) as responses:
            async for said in responses:
                yield said.batch

    async def all(self, *items: charging_pb2.ChargeBatchItem) -> list[Message]:
        async with asyncio.timeout(5):
            return [message async for message in self.messages(*items)]


@asynccontextmanager
async def an_asker(folder: Path, most: int = MAX_ITEMS) -> AsyncIterator[Asker]:
    async with an_engine(folder, Plant(), rated_w=200_000) as engine:
        # Not while a commit is under way, which would make two of the next.
        await engine.written()
        yield Asker(engine, most)


def outcomes(*messages: Message) -> dict[int, str | ErrorReason]:
    """By index: the request id of the session, or why not."""
    found: dict[int, str | ErrorReason] = {}
    for one in (one for message in messages for one in message.outcomes):
        error = from_status(one.status) if one.HasField("status") else None
        found[one.index] = error.reason if error else one.response.session.request_id
    return found


async def test_a_batch_is_one_message_with_one_load_and_on_disk_before_it(tmp_path: Path) -> None:
    async with an_asker(tmp_path) as asker:
        [message] = await asker.all(*(asker.item(str(n)) for n in range(8)))
        assert outcomes(message) == {n: str(n) for n in range(8)}
        assert {session.charge.key.request_id for session in rows(tmp_path).values()} == {str(n) for n in range(8)}
        [load] = message.loads
        assert (load.active_sessions, load.granted_kw) == (8, 88)
        assert not any(one.response.HasField("load") for one in message.outcomes)
        assert {one.response.session.granted_power_kw for one in message.outcomes} == {11}
        assert {one.response.placement.policy for one in message.outcomes} == {"direct"}
        assert asker.admission.in_flight == 0


async def test_what_is_refused_or_on_disk_already_is_told_without_waiting_for_the_disk(tmp_path: Path) -> None:
    async with an_asker(tmp_path) as asker:
        known = asker.item("known")
        await asker.all(known)
        async with (
            a_slow_disk(asker.engine),
            aclosing(
                asker.messages(known, asker.item("bad", max_kw=-1), asker.item("new"), asker.item("known", max_kw=7))
            ) as messages,
        ):
            first = await anext(messages)
            assert outcomes(first) == {0: "known", 1: ErrorReason.INVALID_REQUEST, 3: ErrorReason.KEY_REUSED}
            assert first.outcomes[0].response.repeated
        assert asker.admission.in_flight == 0


async def test_a_repeat_that_raises_the_attempt_waits_for_the_disk(tmp_path: Path) -> None:
    async with an_asker(tmp_path) as asker:
        [first] = await asker.all(asker.item("1"))
        again = asker.item("1")
        [message] = await asker.all(again)
        session = message.outcomes[0].response.session
        assert (session.session_id, session.attempt_id) == (
            first.outcomes[0].response.session.session_id,
            again.request.attempt_id,
        )
        assert rows(tmp_path)[session.session_id].attempt_id == again.request.attempt_id


async def test_an_item_whose_time_passes_while_the_disk_is_slow_is_unknown_and_holds_back_nobody(
    tmp_path: Path,
) -> None:
    async with an_asker(tmp_path) as asker:
        items = [asker.item("short", timeout_s=0.05), asker.item("long"), asker.item("none", timeout_s=-1.0)]
        stream = asker.messages(*items)
        async with asyncio.timeout(5):
            async with a_slow_disk(asker.engine):
                assert outcomes(await anext(stream)) == {2: ErrorReason.INVALID_REQUEST}
                assert outcomes(await anext(stream)) == {0: ErrorReason.OUTCOME_UNKNOWN}
            assert [outcomes(message) async for message in stream] == [{1: "long"}]
        assert asker.admission.in_flight == 0
        [message] = await asker.all(asker.item("short"))
        assert message.outcomes[0].response.repeated


async def test_what_a_batch_that_was_cancelled_had_admitted_stands(tmp_path: Path) -> None:
    async with an_asker(tmp_path) as asker:
        async with a_slow_disk(asker.engine):
            stream = asker.messages(asker.item("1"), asker.item("2"), asker.item("bad", max_kw=0))
            await anext(stream)
            await stream.aclose()
            assert asker.admission.in_flight == 0
        await until(lambda: len(rows(tmp_path)) == 2, 5)
        admitted = asker.engine._metrics.sessions.labels("admitted", "")
        assert admitted._value.get() == 2


async def test_items_beyond_the_bound_are_refused_at_once_and_the_others_charged(tmp_path: Path) -> None:
    async with an_asker(tmp_path, most=2) as asker:
        first, second = await asker.all(*(asker.item(str(n)) for n in range(3)))
        assert (outcomes(first), outcomes(second)) == ({2: ErrorReason.OVERLOADED}, {0: "0", 1: "1"})
        assert not first.loads


async def test_a_disk_that_fails_leaves_every_item_unknown_and_nothing_admitted(tmp_path: Path) -> None:
    async with an_asker(tmp_path) as asker:
        protect_disk(asker.engine, True)
        [message] = await asker.all(asker.item("1"), asker.item("2"))
        assert outcomes(message) == {0: ErrorReason.OUTCOME_UNKNOWN, 1: ErrorReason.OUTCOME_UNKNOWN}
        refused = asker.engine._metrics.sessions.labels("refused", "OUTCOME_UNKNOWN")
        assert (refused._value.get(), asker.admission.in_flight, len(message.loads)) == (2, 0, 0)
        protect_disk(asker.engine, False)
        await until(lambda: asker.engine.ledger_works, 5)
        assert rows(tmp_path) == {}


async def test_a_defect_in_one_item_is_that_items_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with an_asker(tmp_path) as asker:
        knows = asker.engine.knows
        monkeypatch.setattr(asker.engine, "knows", lambda key: knows(key) if key.request_id == "1" else 1 // 0)
        messages = await asker.all(asker.item("1"), asker.item("2"))
        assert outcomes(*messages) == {0: "1", 1: ErrorReason.INTERNAL}
        assert asker.admission.in_flight == 0


async def test_a_batch_that_is_too_long_is_refused_as_a_whole(tmp_path: Path) -> None:
    async with an_asker(tmp_path) as asker:
        with pytest.raises(InvalidRequest):
            await asker.all(*[charging_pb2.ChargeBatchItem()] * (MAX_ITEMS + 1))


async def test_nobody_waits_for_a_batch_of_nothing(tmp_path: Path) -> None:
    async with an_asker(tmp_path) as asker:
        assert await asker.all() == []
