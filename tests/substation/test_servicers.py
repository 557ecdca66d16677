"""What the substation's streams say."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gridmesh.v1 import reports_pb2
from mesh.errors import Unavailable
from substation import wire
from substation.engine import Engine
from substation.servicers import Reports
from tests.substation.rig import a_charge
from tests.substation.test_engine import Plant, an_engine, charge

SNAPSHOT, END, CHANGES = (
    reports_pb2.ADMISSION_PHASE_SNAPSHOT,
    reports_pb2.ADMISSION_PHASE_SNAPSHOT_END,
    reports_pb2.ADMISSION_PHASE_CHANGES,
)


def reports(engine: Engine) -> Reports:
    return Reports(engine, lambda: wire.load_report(engine.report()))


async def first(
    engine: Engine, count: int, after: tuple[int, int] | None = None
) -> list[tuple[reports_pb2.AdmissionPhase.ValueType, list[str], int]]:
    """So many messages of the stream of admissions: phase, request ids, sequence of the position."""
    request = reports_pb2.StreamAdmissionsRequest()
    if after is not None:
        request.after.epoch, request.after.sequence = after
    context: Any = None
    stream = reports(engine).StreamAdmissions(request, context)
    async with asyncio.timeout(2):
        messages = [await anext(stream) for _ in range(count)]
    assert {message.position.epoch for message in messages} == {engine.epoch}
    return [(m.phase, [one.request_id for one in m.admissions], m.position.sequence) for m in messages]


async def test_admissions_begin_with_a_snapshot(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        await charge(engine, a_charge("1"))
        assert await first(engine, 2) == [(SNAPSHOT, ["1"], 1), (END, [], 1)]
        assert await first(engine, 2, (engine.epoch - 1, 1)) == [(SNAPSHOT, ["1"], 1), (END, [], 1)]


async def test_admissions_that_resume_say_at_once_where_they_go_on(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        await charge(engine, a_charge("1"))
        assert await first(engine, 1, (engine.epoch, 1)) == [(CHANGES, [], 1)]
        await charge(engine, a_charge("2"))
        assert await first(engine, 2, (engine.epoch, 1)) == [(CHANGES, [], 1), (CHANGES, ["2"], 2)]


async def test_readers_who_are_as_far_are_sent_the_same_message_and_no_other_is(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        service = reports(engine)
        context: Any = None

        async def read(after: int) -> reports_pb2.StreamAdmissionsResponse:
            """What comes after a reader was told that it goes on from there."""
            request = reports_pb2.StreamAdmissionsRequest()
            request.after.epoch, request.after.sequence = engine.epoch, after
            stream = service.StreamAdmissions(request, context)
            await anext(stream)
            return await anext(stream)

        for number in range(1, 4):
            await charge(engine, a_charge(str(number)))
        one, behind, other = await read(1), await read(0), await read(1)
        assert [[m.request_id for m in said.admissions] for said in (one, behind)] == [["2", "3"], ["1", "2", "3"]]
        assert one == other
        assert await read(1) is other


async def test_a_reader_of_admissions_hears_of_them_alone(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        load, admissions = engine.shown.listen(), engine.shown.read_admissions()
        await engine.drain(draining=True)
        assert (load.is_set(), admissions.is_set()) == (True, False)
        await engine.drain(draining=False)
        await charge(engine, a_charge("1"))
        assert admissions.is_set()


async def test_who_waits_for_admissions_is_told_to_reconnect_when_the_process_stops(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        context: Any = None
        stream = reports(engine).StreamAdmissions(reports_pb2.StreamAdmissionsRequest(), context)
        assert (await anext(stream)).phase == END
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        engine.shut()
        async with asyncio.timeout(2):
            with pytest.raises(Unavailable):
                await waiting


async def test_who_comes_for_admissions_when_the_process_stops_is_told_so_too(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        context: Any = None
        engine.shut()
        stream = reports(engine).StreamAdmissions(reports_pb2.StreamAdmissionsRequest(), context)
        assert (await anext(stream)).phase == END
        async with asyncio.timeout(2):
            with pytest.raises(Unavailable):
                await anext(stream)
