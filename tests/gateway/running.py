# ruff: noqa: N802 - the contract names its methods
"""A gateway on a free port, and a balancer that can be told to fail in every way a real one cannot."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

import grpc
import httpx
from prometheus_client import CollectorRegistry

from gateway import app, server
from gateway.balancers import Balancers
from gateway.cors import Cors
from gateway.live import Live
from gateway.metrics import HttpMetrics
from gateway.problems import ProblemError
from gateway.routes import Api
from gateway.table import operations
from gateway.waiting import MOST_WAITING, Waiting
from gridmesh.v1 import charging_pb2, charging_pb2_grpc, load_pb2, operations_pb2, operations_pb2_grpc
from mesh.admission import Admission, Bound
from mesh.batching import Batches, Outcomes
from mesh.clock import SystemClock
from mesh.errors import MeshError
from mesh.metrics import GrpcServerMetrics
from mesh.requests import key_of, parse_charge
from mesh.server import start_server
from mesh.status import to_status

SESSION_ID = "north.01900000-0000-7000-8000-000000000001"
CAR = {"vehicle_id": "EV-001", "energy_kwh": 20, "max_power_kw": 11}
# Any message of the contract, and grpcio's context, whose types say no more.
Message: TypeAlias = Any
Context: TypeAlias = Any
Told: TypeAlias = AsyncGenerator[charging_pb2.ChargeBatchResponse, None]
Answer = Callable[[Message, Context], Awaitable[Any]]


def a_session(**fields: object) -> charging_pb2.Session:
    session = charging_pb2.Session(
        session_id=SESSION_ID,
        substation_id="north",
        owner="anonymous",
        request_id="r-1",
        vehicle_id="EV-001",
        max_power_kw=11,
        phases=3,
        min_power_kw=4.14,
        state=charging_pb2.SESSION_STATE_CHARGING,
        granted_power_kw=11,
    )
    session.started_at.FromMilliseconds(1_767_225_600_123)
    session.MergeFrom(charging_pb2.Session(**fields))  # type: ignore[arg-type]
    return session


def a_substation(**fields: object) -> operations_pb2.Substation:
    report = load_pb2.LoadReport(substation_id="north", rated_power_kw=100, demand_kw=0, accepting=True)
    substation = operations_pb2.Substation(
        substation_id="north", address="127.0.0.1:50061", state=operations_pb2.REPORT_STATE_FRESH, report=report
    )
    substation.report_age.FromMilliseconds(120)
    substation.MergeFrom(operations_pb2.Substation(**fields))  # type: ignore[arg-type]
    return substation


@dataclass
class FakeBalancer(charging_pb2_grpc.ChargingServiceServicer, operations_pb2_grpc.OperationsServiceServicer):
    """Records every request. It validates charges as a real one does; `answer` takes over a method by its name."""

    answers: dict[str, Answer] = field(default_factory=dict)
    # What a stream goes on with.
    streams: dict[str, Callable[[Message, Context], AsyncIterator[Message]]] = field(default_factory=dict)
    calls: list[Any] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    substations: list[operations_pb2.Substation] = field(default_factory=lambda: [a_substation()])
    # What a watched session does; the stream ends after it.
    updates: list[charging_pb2.Session] = field(default_factory=lambda: [a_session()])
    # Set when a stream's client has left.
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def _take(self, name: str, request: Message, context: Context) -> Message:
        self.calls.append(request)
        self.timeouts.append(context.time_remaining())
        return await self.answers[name](request, context) if name in self.answers else None

    async def Charge(self, request: Message, context: Context) -> Message:
        return await self._take("Charge", request, context) or self.admit(request)

    def admit(self, request: charging_pb2.ChargeRequest) -> charging_pb2.ChargeResponse:
        parse_charge(request, key_of(request), SystemClock().now_ms())
        session = a_session(request_id=request.request_id, vehicle_id=request.vehicle_id)
        placement = charging_pb2.Placement(substation_id="north", policy="least_utilisation", eligible=3, tried=1)
        load = load_pb2.LoadReport(substation_id="north", epoch=7, sequence=0, demand_kw=0)
        return charging_pb2.ChargeResponse(session=session, placement=placement, load=load)

    async def ChargeBatch(self, request: Message, context: Context) -> Told:
        if "ChargeBatch" not in self.answers:
            for coming in asyncio.as_completed([self._outcome(*item, context) for item in enumerate(request.items)]):
                yield charging_pb2.ChargeBatchResponse(outcomes=[await coming])
            return
        answer = await self._take("ChargeBatch", request, context)
        for outcomes in answer or []:
            if isinstance(outcomes, Exception):
                raise outcomes
            whole = isinstance(outcomes, charging_pb2.ChargeBatchResponse)
            yield outcomes if whole else charging_pb2.ChargeBatchResponse(outcomes=outcomes)

    async def StreamCharges(self, requests: AsyncIterator[Message], context: Context) -> AsyncIterator[Message]:
        async def serve(request: Message) -> Outcomes:
            async with aclosing(self.ChargeBatch(request, context)) as told:
                async for known in told:
                    yield charging_pb2.StreamChargesResponse(batch=known)

        async with aclosing(Batches(serve, asyncio.Event()).responses(requests)) as responses:
            async for response in responses:
                yield response

    async def _outcome(self, index: int, item: Message, context: Context) -> charging_pb2.ChargeBatchOutcome:
        """One item as a call of its own."""
        try:
            response = await self.Charge(item.request, context)
        except MeshError as error:
            return charging_pb2.ChargeBatchOutcome(index=index, status=to_status(error))
        return charging_pb2.ChargeBatchOutcome(index=index, response=response)

    async def GetSession(self, request: Message, context: Context) -> Message:
        answer = await self._take("GetSession", request, context)
        return answer or charging_pb2.GetSessionResponse(session=a_session())

    async def ListSessions(self, request: Message, context: Context) -> Message:
        answer = await self._take("ListSessions", request, context)
        return answer or charging_pb2.ListSessionsResponse(sessions=[a_session()])

    async def StopSession(self, request: Message, context: Context) -> Message:
        answer = await self._take("StopSession", request, context)
        return answer or charging_pb2.StopSessionResponse(session=a_session(state=charging_pb2.SESSION_STATE_ENDED))

    async def WatchSession(self, request: Message, context: Context) -> AsyncIterator[Message]:
        try:
            await self._take("before WatchSession", request, context)
            for update in self.updates:
                yield charging_pb2.WatchSessionResponse(session=update)
            await self._take("WatchSession", request, context)
            if "WatchSession" in self.streams:
                async for message in self.streams["WatchSession"](request, context):
                    yield message
        finally:
            self.left.set()

    async def SetLimit(self, request: Message, context: Context) -> Message:
        answer = await self._take("SetLimit", request, context)
        load = load_pb2.LoadReport(substation_id=request.substation_id)
        return answer or operations_pb2.SetLimitResponse(load=load, limits=[request.limit])

    async def ClearLimit(self, request: Message, context: Context) -> Message:
        answer = await self._take("ClearLimit", request, context)
        return answer or operations_pb2.ClearLimitResponse(load=load_pb2.LoadReport(substation_id="north"))

    async def Drain(self, request: Message, context: Context) -> Message:
        answer = await self._take("Drain", request, context)
        load = load_pb2.LoadReport(
            substation_id="north", accepting=False, not_accepting_reason=load_pb2.NOT_ACCEPTING_REASON_DRAINING
        )
        return answer or operations_pb2.DrainResponse(load=load)

    async def Undrain(self, request: Message, context: Context) -> Message:
        answer = await self._take("Undrain", request, context)
        return answer or operations_pb2.UndrainResponse(load=load_pb2.LoadReport(substation_id="north", accepting=True))

    async def ListSubstations(self, request: Message, context: Context) -> Message:
        answer = await self._take("ListSubstations", request, context)
        return answer or operations_pb2.ListSubstationsResponse(substations=self.substations)

    async def WatchSubstations(self, request: Message, context: Context) -> AsyncIterator[Message]:
        yield operations_pb2.WatchSubstationsResponse(substations=self.substations)
        await self._take("WatchSubstations", request, context)
        if "WatchSubstations" in self.streams:
            async for message in self.streams["WatchSubstations"](request, context):
                yield message


def fails(error: Exception) -> Answer:
    """An answer that raises."""

    async def answer(request: Message, context: Context) -> Message:
        raise error

    return answer


def aborts(code: grpc.StatusCode, message: str = "from elsewhere") -> Answer:
    """An answer with a status that has no details of ours."""

    async def answer(request: Message, context: Context) -> Message:
        await context.abort(code, message)

    return answer


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Waits for what another part does by itself."""
    async with asyncio.timeout(10):
        while not await holds():
            await asyncio.sleep(0.02)


async def hangs(request: Message, context: Context) -> Message:
    """An answer that never comes."""
    await asyncio.Event().wait()


def register(fake: FakeBalancer, onto: grpc.aio.Server) -> None:
    charging_pb2_grpc.add_ChargingServiceServicer_to_server(fake, onto)
    operations_pb2_grpc.add_OperationsServiceServicer_to_server(fake, onto)


@asynccontextmanager
async def served(fake: FakeBalancer, port: int = 0) -> AsyncIterator[int]:
    """Serves the fake; its port."""
    started = await start_server(
        "127.0.0.1",
        port,
        GrpcServerMetrics(CollectorRegistry()),
        (),
        lambda onto: register(fake, onto),
        Admission(1_000, Random(7)),
    )
    try:
        yield started.port
    finally:
        await started.stop(0)


@dataclass
class Gateway:
    """A running gateway."""

    http: httpx.AsyncClient
    fake: FakeBalancer
    registry: CollectorRegistry
    stopping: asyncio.Event
    serving: asyncio.Task[None]
    balancers: Balancers

    @property
    def port(self) -> int:
        port = self.http.base_url.port
        assert port is not None
        return port

    async def connected(self) -> None:
        """Waits for the balancer: to connect may take longer than a call is given."""

        async def chosen() -> bool:
            try:
                await self.balancers.chosen()
            except ProblemError:
                return False
            return True

        await eventually(chosen)

    async def post(self, body: object, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post("/v1/charges", json=body, headers=named)


@asynccontextmanager
async def gateway_before(
    port: int,
    fake: FakeBalancer,
    timeout_s: float = 5.0,
    heartbeat_s: float = 15.0,
    most: int = 1_000,
    others: Sequence[int] = (),
    cors: Cors | None = None,
    most_waiting: int = MOST_WAITING,
) -> AsyncIterator[Gateway]:
    """A gateway whose balancer is, or will be, at `port`, and more of them at `others`."""
    listener = server.bind("127.0.0.1", 0)
    registry, stopping = CollectorRegistry(), asyncio.Event()
    balancers = Balancers([f"127.0.0.1:{each}" for each in (port, *others)], timeout_s)
    admission, streams = Admission(most, Random(7)), Bound(most, "event streams")
    large, metrics = Bound(1, "large bodies"), HttpMetrics(registry)
    clock, dropped = SystemClock(), metrics.dropped.inc
    live, waiting = Live(balancers, clock), Waiting(stopping, most_waiting)
    api = Api(balancers, clock, Random(7), stopping, heartbeat_s, admission, streams, large, dropped, live, waiting)
    application = app.build(operations(api, "0.1.0"), metrics, cors)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    serving = asyncio.create_task(server.serve(application, listener, stopping, 1.0, clock))
    try:
        async with httpx.AsyncClient(base_url=url, timeout=10) as http:
            yield Gateway(http, fake, registry, stopping, serving, balancers)
    finally:
        stopping.set()
        await serving
        await balancers.close()
