"""The substation's gRPC services: messages in, engine calls, messages out. Nothing is decided here."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from gridmesh.v1 import (
    charging_pb2,
    charging_pb2_grpc,
    load_pb2,
    operations_pb2,
    operations_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
)
from mesh import ids, requests
from mesh.admission import Admission
from mesh.batching import Batches, Outcomes
from mesh.charge import Key
from mesh.clock import Clock, seconds
from mesh.errors import InvalidRequest, NotFound, Unavailable, Violation
from mesh.model import ErrorReason
from substation import paging, wire
from substation.charges import ChargeBatch, Charges
from substation.engine import Engine
from substation.sessions import Session

Context = grpc.aio.ServicerContext[Any, Any]

_COALESCE_S = 0.02
_SNAPSHOT_CHUNK = 200
_WATCH_S = 1.0
_ASK_A_BALANCER = "a substation knows only itself: ask a balancer"


class Charging(charging_pb2_grpc.ChargingServiceServicer):
    """ChargingService, answered from this substation's ledger."""

    def __init__(self, charges: Charges, admission: Admission) -> None:
        self._charges = charges
        self._engine = charges.engine
        self._admission = admission

    async def Charge(self, request: charging_pb2.ChargeRequest, context: Context) -> charging_pb2.ChargeResponse:
        return await self._charges.charge(request)

    async def ChargeBatch(
        self, request: charging_pb2.ChargeBatchRequest, context: Context
    ) -> AsyncIterator[charging_pb2.ChargeBatchResponse]:
        batch = ChargeBatch(self._charges, self._admission, context.time_remaining())
        async with aclosing(batch.messages(request)) as responses:
            async for response in responses:
                yield response.batch

    async def StreamCharges(
        self, requests: AsyncIterator[charging_pb2.StreamChargesRequest], context: Context
    ) -> AsyncIterator[charging_pb2.StreamChargesResponse]:
        def serve(request: charging_pb2.ChargeBatchRequest) -> Outcomes:
            return ChargeBatch(self._charges, self._admission, None).messages(request)

        async with aclosing(Batches(serve, self._admission.leaving).responses(requests)) as responses:
            async for response in responses:
                yield response

    async def GetSession(
        self, request: charging_pb2.GetSessionRequest, context: Context
    ) -> charging_pb2.GetSessionResponse:
        session = self._engine.shown.session(request.session_id)
        return charging_pb2.GetSessionResponse(session=_shown(self._engine, session))

    async def ListSessions(
        self, request: charging_pb2.ListSessionsRequest, context: Context
    ) -> charging_pb2.ListSessionsResponse:
        page = paging.page(self._engine.shown.sessions(), paging.query(request), request.page_token)
        return charging_pb2.ListSessionsResponse(
            sessions=[_shown(self._engine, session) for session in page.sessions], next_page_token=page.next_token
        )

    async def StopSession(
        self, request: charging_pb2.StopSessionRequest, context: Context
    ) -> charging_pb2.StopSessionResponse:
        session = await self._engine.stop_session(request.session_id, wire.stop_reason(request))
        return charging_pb2.StopSessionResponse(session=_shown(self._engine, session))

    async def WatchSession(
        self, request: charging_pb2.WatchSessionRequest, context: Context
    ) -> AsyncIterator[charging_pb2.WatchSessionResponse]:
        news = self._engine.shown.watch(request.session_id)
        try:
            while True:
                news.clear()
                session = self._engine.shown.session(request.session_id)
                yield charging_pb2.WatchSessionResponse(session=_shown(self._engine, session))
                if not session.live:
                    return
                await _news(self._engine, news, _WATCH_S)
        finally:
            self._engine.shown.unwatch(request.session_id, news)


class Reports(reports_pb2_grpc.LoadReportServiceServicer):
    """LoadReportService, for balancers. `load` says the load as it is now, in a message that is not changed.

    Balancers ask for the same at the same time, so a message is made once for all of them.
    """

    def __init__(self, engine: Engine, load: Callable[[], load_pb2.LoadReport]) -> None:
        self._engine = engine
        self._load = load
        # What was said last, from where to where in the stream of admissions.
        self._changes: tuple[tuple[int, int], reports_pb2.StreamAdmissionsResponse] | None = None

    async def StreamLoadReports(
        self, request: reports_pb2.StreamLoadReportsRequest, context: Context
    ) -> AsyncIterator[reports_pb2.StreamLoadReportsResponse]:
        interval = _seconds(request.interval) if request.HasField("interval") else 1.0
        if not 0.1 <= interval <= 60:
            raise InvalidRequest(Violation("interval", "must be from 0.1 s to 60 s"))
        news = self._engine.shown.listen()
        try:
            while True:
                news.clear()
                report = self._load()
                yield reports_pb2.StreamLoadReportsResponse(report=report)
                await self._next_report(report.sequence, news, interval)
        finally:
            self._engine.shown.unlisten(news)

    async def _next_report(self, sent: int, news: asyncio.Event, interval: float) -> None:
        """Until the commitments have changed, at the earliest 20 ms and at the latest `interval` from now."""
        until = seconds() + interval
        await asyncio.sleep(_COALESCE_S)
        while self._engine.load.sequence == sent and seconds() < until:
            news.clear()
            await _news(self._engine, news, until - seconds())

    async def StreamAdmissions(
        self, request: reports_pb2.StreamAdmissionsRequest, context: Context
    ) -> AsyncIterator[reports_pb2.StreamAdmissionsResponse]:
        news = self._engine.shown.read_admissions()
        try:
            opening, after = self._opening(request)
            for message in opening:
                yield message
            while True:
                news.clear()
                _check_open(self._engine)
                entries = self._engine.shown.admissions_after(after)
                if entries is None:
                    raise Unavailable(ErrorReason.NO_SUBSTATION, "the reader fell behind; start anew", 0)
                for chunk in _chunks(entries):
                    message = self._changed(chunk, after)
                    after = message.position.sequence
                    yield message
                await news.wait()
        finally:
            self._engine.shown.unlisten(news)

    def _opening(
        self, request: reports_pb2.StreamAdmissionsRequest
    ) -> tuple[Iterable[reports_pb2.StreamAdmissionsResponse], int]:
        """What the stream begins with, and up to where that is: a snapshot, or where it goes on.

        The reader is told where it goes on even when nothing has come since: silence would not say that it missed
        nothing.
        """
        after = self._resume(request)
        if after is not None:
            return [self._message(reports_pb2.ADMISSION_PHASE_CHANGES, [], after)], after
        sessions, after = self._engine.shown.admission_snapshot()
        return self._snapshot(sessions, after), after

    def _resume(self, request: reports_pb2.StreamAdmissionsRequest) -> int | None:
        """The position to go on from, or None when it takes a snapshot."""
        if not request.HasField("after") or request.after.epoch != self._engine.epoch:
            return None
        sequence = request.after.sequence
        return None if self._engine.shown.admissions_after(sequence) is None else sequence

    def _snapshot(self, sessions: list[Session], sequence: int) -> Iterable[reports_pb2.StreamAdmissionsResponse]:
        for chunk in _chunks(sessions):
            yield self._message(reports_pb2.ADMISSION_PHASE_SNAPSHOT, chunk, sequence)
        yield self._message(reports_pb2.ADMISSION_PHASE_SNAPSHOT_END, [], sequence)

    def _changed(self, sessions: list[Session], after: int) -> reports_pb2.StreamAdmissionsResponse:
        """All entries from there on up to the last of these."""
        span = after, sessions[-1].admission_sequence
        if self._changes is None or self._changes[0] != span:
            self._changes = span, self._message(reports_pb2.ADMISSION_PHASE_CHANGES, sessions, span[1])
        return self._changes[1]

    def _message(
        self, phase: reports_pb2.AdmissionPhase.ValueType, sessions: list[Session], sequence: int
    ) -> reports_pb2.StreamAdmissionsResponse:
        message = reports_pb2.StreamAdmissionsResponse(
            phase=phase, position=reports_pb2.AdmissionPosition(epoch=self._engine.epoch, sequence=sequence)
        )
        for session in sessions:
            wire.admit(session, message.admissions.add())
        return message

    async def ResolveCharge(
        self, request: reports_pb2.ResolveChargeRequest, context: Context
    ) -> reports_pb2.ResolveChargeResponse:
        if not ids.is_uuid7(request.attempt_id):
            raise InvalidRequest(Violation("attempt_id", "must be a UUIDv7"))
        key = Key(request.owner or requests.ANONYMOUS, request.request_id)
        outcome = await self._engine.resolve(key, request.attempt_id)
        response = reports_pb2.ResolveChargeResponse(load=self._load())
        if isinstance(outcome, Session):
            response.session.CopyFrom(_shown(self._engine, outcome))
        else:
            response.fence.attempt_id = outcome
        return response

    async def EndDuplicate(
        self, request: reports_pb2.EndDuplicateRequest, context: Context
    ) -> reports_pb2.EndDuplicateResponse:
        session = await self._engine.end_duplicate(
            request.session_id, request.survivor_session_id, request.survivor_attempt_id
        )
        return reports_pb2.EndDuplicateResponse(session=_shown(self._engine, session))


class Operations(operations_pb2_grpc.OperationsServiceServicer):
    """OperationsService, for this substation alone."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    async def SetLimit(
        self, request: operations_pb2.SetLimitRequest, context: Context
    ) -> operations_pb2.SetLimitResponse:
        self._check_mine(request.substation_id)
        await self._engine.set_limit(wire.limit(request.limit, self._clock.now_ms()))
        return operations_pb2.SetLimitResponse(load=self._load(), limits=self._limits())

    async def ClearLimit(
        self, request: operations_pb2.ClearLimitRequest, context: Context
    ) -> operations_pb2.ClearLimitResponse:
        self._check_mine(request.substation_id)
        await self._engine.clear_limit(wire.limit_source(request.source))
        return operations_pb2.ClearLimitResponse(load=self._load(), limits=self._limits())

    async def Drain(self, request: operations_pb2.DrainRequest, context: Context) -> operations_pb2.DrainResponse:
        self._check_mine(request.substation_id)
        await self._engine.drain(draining=True)
        return operations_pb2.DrainResponse(load=self._load())

    async def Undrain(self, request: operations_pb2.UndrainRequest, context: Context) -> operations_pb2.UndrainResponse:
        self._check_mine(request.substation_id)
        await self._engine.drain(draining=False)
        return operations_pb2.UndrainResponse(load=self._load())

    async def ListSubstations(
        self, request: operations_pb2.ListSubstationsRequest, context: Context
    ) -> operations_pb2.ListSubstationsResponse:
        return await context.abort(grpc.StatusCode.UNIMPLEMENTED, _ASK_A_BALANCER)

    async def WatchSubstations(
        self, request: operations_pb2.WatchSubstationsRequest, context: Context
    ) -> AsyncIterator[operations_pb2.WatchSubstationsResponse]:
        yield await context.abort(grpc.StatusCode.UNIMPLEMENTED, _ASK_A_BALANCER)

    def _check_mine(self, substation_id: str) -> None:
        mine = self._engine.report().substation_id
        if substation_id not in {"", mine}:
            raise NotFound(ErrorReason.SUBSTATION_NOT_FOUND, f"this is {mine!r}, not {substation_id[:80]!r}")

    def _load(self) -> load_pb2.LoadReport:
        return wire.load_report(self._engine.report())

    def _limits(self) -> list[operations_pb2.Limit]:
        return [wire.limit_message(limit) for limit in self._engine.limits()]


SERVICES = (
    "gridmesh.v1.ChargingService",
    "gridmesh.v1.LoadReportService",
    "gridmesh.v1.OperationsService",
)


def _shown(engine: Engine, session: Session) -> charging_pb2.Session:
    return wire.session(session, engine.expected_end_ms(session))


async def _news(engine: Engine, news: asyncio.Event, at_most_s: float) -> None:
    """Waits for news, or for so long."""
    # Cheaper than a timeout, of which there would be one for each message.
    timer = asyncio.get_running_loop().call_later(at_most_s, news.set)
    try:
        await news.wait()
    finally:
        timer.cancel()
    _check_open(engine)


def _check_open(engine: Engine) -> None:
    """Ends the stream with a status that tells the client to reconnect when the process stops: all are woken then."""
    if engine.closing:
        raise Unavailable(ErrorReason.SUBSTATION_UNREACHABLE, "the substation is stopping; reconnect", 1000)


def _chunks(sessions: list[Session]) -> Iterable[list[Session]]:
    return (sessions[i : i + _SNAPSHOT_CHUNK] for i in range(0, len(sessions), _SNAPSHOT_CHUNK))


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
