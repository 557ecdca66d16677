"""The hops of a charge for `benchmarks.cost`: each alone in this process, with a stand-in for the one behind it.

What is served is the services' own code, with what grpc does in Python: bytes of a request are read, bytes of a reply
are written, at both ends of a hop. Sockets, HTTP/1 and HTTP/2 are left out. Each hop prepares a slice, which is not
measured, and then serves it; what a stand-in does to make a reply is counted aside. A car has 0.02 kWh at 11 kW and
departs when it has it, as in table g.
"""

import asyncio
import selectors
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar, cast
from unittest.mock import patch

import msgspec
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from balancer import wire
from balancer.batch import Batch
from balancer.desk import Desk
from balancer.metrics import BalancerMetrics
from balancer.peers import Peer, Peers
from balancer.router import Router
from benchmarks.costs import a_load
from gateway import app
from gateway.asgi import CONNECTION, ASGIApp, Message, Scope
from gateway.balancers import Balancers
from gateway.live import Live
from gateway.metrics import HttpMetrics
from gateway.routes import MAX_LARGE_BODIES, Api
from gateway.table import operations
from gateway.upstream import Balancer
from gateway.waiting import Waiting
from gridmesh.v1 import charging_pb2, load_pb2
from mesh.admission import Admission, Bound
from mesh.batching import Outcomes
from mesh.clock import Clock, SystemClock
from mesh.coalescing import Coalescer
from mesh.ids import session_id, uuid7
from substation.cars import SimulatedCars
from substation.charges import ChargeBatch, Charges
from substation.engine import Engine
from substation.ledger import LEDGER, Ledger
from substation.metrics import SubstationMetrics
from substation.plant import SimulatedPlant
from substation.station import Station, StationConfig

if TYPE_CHECKING:
    from gridmesh.v1.charging_pb2_grpc import ChargingServiceAsyncStub

MAX_KW, ENERGY_KWH = 11, 0.02
TIME_SCALE = 240
# Room for all cars of a run at once.
RATED_W, CHARGE_POINTS = 1_000_000_000_000, 1_000_000
MOST_CALLS = 10_000
TIMEOUT_S = 10.0
INTERVAL_MS = 1_000
SUBSTATIONS = ("a", "b", "c")
CLOCK = SystemClock()
# Of virtual time.
_BEGIN_MS = 1_800_000_000_000
# Where there is such a place: what a disk takes is no CPU, but waiting for one costs some.
_MEMORY = next((folder for folder in ("/dev/shm",) if Path(folder).is_dir()), None)  # noqa: S108 - in one of our own

T = TypeVar("T")
Work = Callable[[], Awaitable[None]]


class Aside:
    """CPU seconds of the stand-ins, which are no part of a hop."""

    def __init__(self) -> None:
        self.cpu_s = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """What is done within."""
        begun_s = time.process_time()
        yield
        self.cpu_s += time.process_time() - begun_s


@dataclass(frozen=True, slots=True)
class Hop:
    """One hop, ready to serve. `prepare` makes the next slice, of so many charges, and returns the work to measure."""

    charges: int
    prepare: Callable[[], Awaitable[Work]]
    aside: Aside


# --- what comes, and what is behind -----------------------------------------------------------------


class Cars:
    """Requests with keys of their own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rng = Random(1)
        self._count = 0

    def batch(self, charges: int) -> bytes:
        """A ChargeBatchRequest as a gateway, or a balancer, sends it."""
        request, now = charging_pb2.ChargeBatchRequest(), self._clock.now_ms()
        for _ in range(charges):
            self._count += 1
            item = request.items.add()
            item.timeout.seconds = int(TIMEOUT_S)
            charge = item.request
            charge.request_id, charge.vehicle_id, charge.owner = f"charge-{self._count:012}", "EV-1", "anonymous"
            charge.max_power_kw, charge.energy_kwh = MAX_KW, ENERGY_KWH
            charge.attempt_id = uuid7(now, self._rng)
            charge.not_after.FromMilliseconds(now + 2_000 + int(TIMEOUT_S * 1000))
        return request.SerializeToString()


class Behind:
    """A substation, or a balancer, that admits all that it is asked at once: stands in for its stub."""

    def __init__(self, name: str, aside: Aside) -> None:
        self._name = name
        self._aside = aside
        self._rng = Random(name)
        self._epoch = CLOCK.now_ms()
        self._load = a_load(name, self._rng)
        self._admitted = 0

    async def ChargeBatch(  # noqa: N802 - as the stub has it
        self, request: charging_pb2.ChargeBatchRequest, **_: object
    ) -> AsyncIterator[charging_pb2.ChargeBatchResponse]:
        """All outcomes in one message."""
        asked = request.SerializeToString()
        with self._aside.counted():
            reply = charging_pb2.ChargeBatchResponse()
            self._reply(charging_pb2.ChargeBatchRequest.FromString(asked), reply)
            said = reply.SerializeToString()
        yield charging_pb2.ChargeBatchResponse.FromString(said)

    def StreamCharges(self) -> "_Travelled":  # noqa: N802 - as the stub has it
        """The same, on one call."""
        return _Travelled(self)

    def answer(self, asked: bytes) -> bytes:
        """To a StreamChargesRequest."""
        with self._aside.counted():
            request = charging_pb2.StreamChargesRequest.FromString(asked)
            reply = charging_pb2.StreamChargesResponse(number=request.number)
            self._reply(request.batch, reply.batch)
            return reply.SerializeToString()

    def load(self) -> load_pb2.LoadReport:
        """Its load now."""
        return wire.report_of(
            replace(
                self._load,
                epoch=self._epoch,
                sequence=self._admitted,
                admission_sequence=self._admitted,
                generated_at_ms=CLOCK.now_ms(),
                rated_w=RATED_W,
                limit_w=RATED_W,
                demand_w=self._admitted * MAX_KW * 1000,
                charge_points=CHARGE_POINTS,
                free_charge_points=CHARGE_POINTS - self._admitted,
                time_scale=TIME_SCALE,
            )
        )

    def _reply(self, request: charging_pb2.ChargeBatchRequest, message: charging_pb2.ChargeBatchResponse) -> None:
        for index, item in enumerate(request.items):
            self._admitted += 1
            outcome = message.outcomes.add(index=index)
            self._admit(item.request, outcome.response)
        message.loads.add().CopyFrom(self.load())

    def _admit(self, asked: charging_pb2.ChargeRequest, response: charging_pb2.ChargeResponse) -> None:
        now, session, placement = CLOCK.now_ms(), response.session, response.placement
        session.session_id = session_id(self._name, uuid7(now, self._rng))
        session.substation_id = placement.substation_id = self._name
        session.owner, session.request_id, session.attempt_id = asked.owner, asked.request_id, asked.attempt_id
        session.vehicle_id, session.energy_kwh, session.max_power_kw = asked.vehicle_id, ENERGY_KWH, MAX_KW
        session.phases, session.min_power_kw, session.departure_assumed = 3, 4.14, True
        session.state, session.granted_power_kw = charging_pb2.SESSION_STATE_CHARGING, MAX_KW
        session.started_at.FromMilliseconds(now)
        session.expected_end_at.FromMilliseconds(now + 30)
        placement.policy, placement.eligible, placement.tried = "direct", 1, 1
        placement.score = placement.utilisation_after = 0.11


class _Travelled:
    """A call of StreamCharges, as its client sees it."""

    def __init__(self, behind: Behind) -> None:
        self._behind = behind
        self._replies: asyncio.Queue[bytes] = asyncio.Queue()

    async def write(self, request: charging_pb2.StreamChargesRequest) -> None:
        self._replies.put_nowait(self._behind.answer(request.SerializeToString()))

    async def read(self) -> charging_pb2.StreamChargesResponse:
        return charging_pb2.StreamChargesResponse.FromString(await self._replies.get())


# --- gateway ----------------------------------------------------------------------------------------


class _Balancer(Balancer):
    """One that is well, and has no channel."""

    def __init__(self, stub: object) -> None:
        self.target = "127.0.0.1:1"
        self.charging = cast("ChargingServiceAsyncStub", stub)
        self.charges = Coalescer(self.charging)

    @property
    def connected(self) -> bool:
        return True

    @property
    def well(self) -> bool:
        return True


class _Balancers(Balancers):
    def __init__(self, balancer: Balancer) -> None:
        super().__init__([], TIMEOUT_S)
        self._all = [balancer]


class _Transport:
    """Of a client that stays."""

    def is_closing(self) -> bool:
        return False


def _gateway(aside: Aside) -> ASGIApp:
    rng, metrics, stopping = Random(1), HttpMetrics(CollectorRegistry()), asyncio.Event()
    balancers = _Balancers(_Balancer(Behind("a", aside)))
    api = Api(
        balancers,
        CLOCK,
        rng,
        stopping,
        TIMEOUT_S,
        Admission(MOST_CALLS, rng),
        Bound(MOST_CALLS, "event streams"),
        Bound(MAX_LARGE_BODIES, "large bodies"),
        metrics.dropped.inc,
        Live(balancers, CLOCK),
        Waiting(stopping),
    )
    return app.build(operations(api, "0"), metrics)


def _post(path: str, body: object, **headers: str) -> Scope:
    """A POST as `gateway.server` hands it on."""
    said = {"host": "127.0.0.1:8080", "content-type": "application/json", **headers}
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in said.items()],
        "extensions": {CONNECTION: {"transport": _Transport(), "body": msgspec.json.encode(body)}},
    }


async def _nothing_more() -> Message:
    raise AssertionError("the body is there already")


async def _posted(serve: ASGIApp, scope: Scope) -> Message:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await serve(scope, _nothing_more, send)
    return sent[0]


CAR = {"vehicle_id": "EV-1", "energy_kwh": ENERGY_KWH, "max_power_kw": MAX_KW}


@asynccontextmanager
async def gateway_singles(aside: Aside, in_flight: int = 16) -> AsyncIterator[Hop]:
    """POSTs of one charge each, so many at once."""
    serve, count = _gateway(aside), 0

    async def prepare() -> Work:
        nonlocal count
        count += 1
        posts = [_post("/v1/charges", CAR, idempotency_key=f"charge-{count}-{one}") for one in range(in_flight)]

        async def work() -> None:
            for reply in await asyncio.gather(*(_posted(serve, scope) for scope in posts)):
                assert reply["status"] == 201, reply

        return work

    yield Hop(in_flight, prepare, aside)


@asynccontextmanager
async def gateway_batch(aside: Aside, items: int = 100) -> AsyncIterator[Hop]:
    """A POST of many charges."""
    serve, count = _gateway(aside), 0

    async def prepare() -> Work:
        nonlocal count
        count += 1
        scope = _post("/v1/charges:batch", [{"request_id": f"charge-{count}-{one}", **CAR} for one in range(items)])

        async def work() -> None:
            reply = await _posted(serve, scope)
            assert reply["status"] == 200, reply
            assert reply["body"].count(b'"status":201') == items

        return work

    yield Hop(items, prepare, aside)


# --- balancer ---------------------------------------------------------------------------------------


class _Peer(Peer):
    """One that is connected, to a stand-in."""

    def __init__(self, address: str, admission: Admission, stub: object) -> None:
        super().__init__(address, admission, together=True)
        self.charges = Coalescer(cast("ChargingServiceAsyncStub", stub), ready=self.ready)

    def ready(self) -> bool:
        return True


class _Peers(Peers):
    def __init__(self, behind: dict[str, Behind], rng: Random) -> None:
        super().__init__([], rng)
        self._by_address = {at: _Peer(at, Admission(MOST_CALLS, rng), stub) for at, stub in behind.items()}


@asynccontextmanager
async def balancer(aside: Aside, items: int = 30) -> AsyncIterator[Hop]:
    """Batches, over three substations that report."""
    rng, cars = Random(1), Cars(CLOCK)
    behind = {f"127.0.0.1:{port}": Behind(name, aside) for port, name in enumerate(SUBSTATIONS, 1)}
    desk, peers = Desk(list(behind), INTERVAL_MS, rng), _Peers(behind, rng)
    router = Router(desk, peers, CLOCK, rng, BalancerMetrics(CollectorRegistry()))
    admission = Admission(MOST_CALLS, rng)

    async def prepare() -> Work:
        for address, substation in behind.items():
            desk.reported(address, wire.load_of(substation.load()), CLOCK.now_ms())
        asked = cars.batch(items)

        async def work() -> None:
            request = charging_pb2.ChargeBatchRequest.FromString(asked)
            assert await _served(Batch(router, admission, request, TIMEOUT_S).responses()) == items

        return work

    yield Hop(items, prepare, aside)
    await peers.close()


async def _served(responses: Outcomes) -> int:
    """How many charges were admitted, once all is said."""
    admitted = 0
    async with aclosing(responses):
        async for response in responses:
            response.batch.SerializeToString()
            admitted += sum(outcome.HasField("response") for outcome in response.batch.outcomes)
    return admitted


# --- substation -------------------------------------------------------------------------------------


class VirtualLoop(asyncio.SelectorEventLoop):
    """Nobody waits for a timer: where nothing else is to be done, its time has come. What a thread does takes no time.

    So what happens to the cars, and in how many turns and commits, is the same however fast the machine is.
    """

    def __init__(self) -> None:
        self._sources = _Sources()
        super().__init__(self._sources)

    def time(self) -> float:
        return self._sources.now_s

    def now_ms(self) -> int:
        """Wall time, by the same clock."""
        return _BEGIN_MS + round(self.time() * 1000)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: object) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._sources.jobs += 1
        future.add_done_callback(self._done)
        return future

    def _done(self, _: object) -> None:
        self._sources.jobs -= 1


class _Sources(selectors.DefaultSelector):
    """What a loop waits for: it really waits for the jobs that threads have, and skips all other waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.jobs = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.jobs and timeout != 0:
            return super().select(None)
        self.now_s += timeout or 0.0
        return super().select(0)


@asynccontextmanager
async def _engine(rng: Random, clock: Clock) -> AsyncIterator[tuple[Engine, SubstationMetrics]]:
    with TemporaryDirectory(dir=_MEMORY) as folder:
        ledger, now = Ledger(Path(folder) / LEDGER), clock.now_ms()
        name, epoch = ledger.substation_id("a"), ledger.next_epoch(now)
        config = StationConfig(name, RATED_W // 1000, 10_000, TIME_SCALE)
        station = Station(config, rng, now, ledger.recall(now))
        metrics = SubstationMetrics(CollectorRegistry())
        engine = Engine(station, SimulatedPlant(SimulatedCars(TIME_SCALE), clock), ledger, clock, metrics, epoch)
        engine.start()
        yield engine, metrics
        await engine.stop()


@asynccontextmanager
async def substation(aside: Aside, items: int = 30) -> AsyncIterator[Hop]:
    """Batches, until all their cars have left and the ledger knows it. On a VirtualLoop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    rng, cars = Random(1), Cars(loop)
    with patch("substation.engine.seconds", loop.time), patch("substation.charges.seconds", loop.time):
        async with _engine(rng, loop) as (engine, metrics):
            charges, admission = Charges(engine, loop, rng, metrics), Admission(MOST_CALLS, rng)

            async def prepare() -> Work:
                asked = cars.batch(items)

                async def work() -> None:
                    request = charging_pb2.ChargeBatchRequest.FromString(asked)
                    assert await _served(ChargeBatch(charges, admission, TIMEOUT_S).messages(request)) == items
                    await _left(engine)

                return work

            yield Hop(items, prepare, aside)


async def _left(engine: Engine) -> None:
    """Returns when no session lives."""
    news = engine.shown.listen()
    async with asyncio.timeout(TIMEOUT_S):
        while engine.load.active_sessions:
            news.clear()
            await news.wait()
    engine.shown.unlisten(news)
    await engine.written()
