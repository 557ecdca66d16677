"""Looks at every substation directly, all the time, and at the ledgers in the end."""

import asyncio
import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import grpc
import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gridmesh.v1 import charging_pb2, charging_pb2_grpc, load_pb2, reports_pb2, reports_pb2_grpc
from substation import records as kept
from tests.faults.mesh import Mesh
from tests.faults.records import BALANCERS, PLACES, Kept, Left, Log, Look, Meter, Report, Seen

LOOK_EVERY_S = 0.3
METER_EVERY_S = 1.0
_TIMEOUT_S = 1.0
# A report comes every second at least.
REPORTED_S = 3.0
# Calls of ChargeBatch: one label's part of a metric.
BATCHES = "batches"


class Witness:
    """Writes what it sees to the log until it is stopped."""

    def __init__(self, mesh: Mesh, log: Log, clock: Callable[[], float]) -> None:
        self._mesh = mesh
        self._log = log
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        for place in PLACES:
            for watch in (self._look_forever, self._hear_forever, self._read_meter_forever):
                self._tasks.append(asyncio.create_task(watch(place)))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for gone in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(gone, Exception):
                raise gone

    # --- while it runs -------------------------------------------------------------------------------

    async def look(self, place: str) -> Look | None:
        """All live sessions there; None when it does not say."""
        stub: Any = charging_pb2_grpc.ChargingServiceStub(self._mesh.channel(place))
        sent = self._clock()
        try:
            page = await stub.ListSessions(charging_pb2.ListSessionsRequest(page_size=1000), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None
        assert not page.next_page_token, "one page is of one moment, two are not"
        look = Look(sent, self._clock(), place, tuple(_seen(session) for session in page.sessions))
        self._log.looks.append(look)
        return look

    async def _look_forever(self, place: str) -> None:
        while True:
            await self.look(place)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _hear_forever(self, place: str) -> None:
        stub: Any = reports_pb2_grpc.LoadReportServiceStub(self._mesh.channel(place))
        while True:
            call = stub.StreamLoadReports(reports_pb2.StreamLoadReportsRequest())
            with suppress(grpc.aio.AioRpcError):
                async for message in call:
                    self._log.reports.append(self._report(message.report))
            await asyncio.sleep(0.1)

    def _report(self, load: load_pb2.LoadReport) -> Report:
        return Report(
            self._clock(), load.substation_id, load.limit_power_kw, load.committed_kw, load.measured_kw
        )  # fmt: skip

    async def _read_meter_forever(self, place: str) -> None:
        while True:
            await self.read_meter(place)
            await asyncio.sleep(METER_EVERY_S)

    async def read_meter(self, place: str) -> None:
        """Its own account of the time over its limit."""
        values = await self._metrics(place)
        if (over_s := values.get("substation_over_limit_seconds_total")) is not None:
            self._log.meters.append(Meter(self._clock(), place, over_s, int(values.get(BATCHES, 0))))

    async def _metrics(self, name: str) -> dict[str, float]:
        """Sums over labels, and BATCHES; empty when there is no answer."""
        async with httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S) as http:
            try:
                page = await http.get(self._mesh.parts[name].metrics_url)
            except httpx.TransportError:
                return {}
        if not page.is_success:
            self._log.wrong.append(f"/metrics of {name} after {self._clock():.2f} s: {page.status_code}")
            return {}
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(page.text):
            for sample in family.samples:
                names = [sample.name, BATCHES] if _is_batches(sample) else [sample.name]
                for each in names:
                    sums[each] = sums.get(each, 0.0) + sample.value
        return sums

    # --- at the end ----------------------------------------------------------------------------------

    async def left(self) -> None:
        """What balancers still hold when the reports that end reservations have had their time."""
        for name in BALANCERS:
            end = self._clock() + REPORTED_S
            while not (left := await self._left(name)).nothing and self._clock() < end:
                await asyncio.sleep(0.1)
            self._log.left.append(left)

    async def _left(self, balancer: str) -> Left:
        values = await self._metrics(balancer)
        life = self._mesh.log_of(balancer).rpartition(" serving ")[2]
        doubts = life.count("doubt opened") - life.count("doubt settled")
        return Left(balancer, values.get("balancer_reserved_watts", math.nan), doubts)

    def read_ledgers(self) -> None:
        """After all substations have stopped."""
        for place in PLACES:
            self._log.kept += read_ledger(self._mesh, place)


def _is_batches(sample: Sample) -> bool:
    return sample.name == "grpc_server_handled_total" and sample.labels["grpc_method"] == "ChargeBatch"


def _seen(s: charging_pb2.Session) -> Seen:
    return Seen(s.session_id, s.request_id, s.granted_power_kw, s.measured_power_kw, s.delivered_kwh)


def read_ledger(mesh: Mesh, place: str) -> Iterator[Kept]:
    """All sessions of its file."""
    with closing(sqlite3.connect(mesh.folder / place / "ledger.db")) as db:
        bodies = [body for (body,) in db.execute("SELECT body FROM sessions")]
        (live,) = db.execute("SELECT value FROM state WHERE name = 'live'").fetchone() or (None,)
    for session in kept.read_sessions(bodies, live):
        yield Kept(
            place, session.session_id, session.charge.key.request_id, session.live,
            session.delivered_mj / 3.6e9, session.attempt_id, session.duplicate_of,
        )  # fmt: skip
