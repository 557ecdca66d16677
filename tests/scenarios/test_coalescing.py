"""Charges that leave together, on a real mesh: each has its own fate, whatever becomes of those it left with."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from signal import SIGCONT, SIGSTOP
from statistics import fmean, pstdev
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from gridmesh.v1 import charging_pb2, charging_pb2_grpc
from mesh.clock import seconds
from mesh.errors import MeshError
from mesh.status import from_status
from tests.mesh_processes import Mesh, eventually
from tests.scenarios.asking import CAR, Server, new_key
from tests.scenarios.connection import Connection
from tests.scenarios.crowd import BRIEF, Crowd

# What was measured; --log-cli-level=info shows it.
log = logging.getLogger(__name__)

SUBSTATIONS = ("a", "b", "c")
# A charge that leaks would soon leave no room for others.
MAX_CALLS = 200
GATEWAY_TIMEOUT_S = 2.5
SOON_S = 20.0
ONE_LIVE_S = 5.0

IN_FLIGHT = 48
QUIET_S = 1.5
# Three intervals of a second until its reports are stale, and then some.
STOPPED_S = 4.0
TRIES = 3

ITEMS = 100
# So many that a few cars too many somewhere, whose neighbours' stops were not heard of in time, do not count.
MOST_LIVE = 1_800
GROUPS = 5


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The gateway finds the second balancer down until a test starts it."""
    settings = {
        "gateway": {"TIMEOUT_S": str(GATEWAY_TIMEOUT_S)},
        "balancer": {"MAX_CALLS": str(MAX_CALLS), "LOG_LEVEL": "warning"},
    }
    with Mesh(
        tmp_path_factory.mktemp("mesh"), rated_kw=(100_000.0,) * 3, charge_points=5_000, balancers=2, settings=settings
    ) as running:
        yield running.start(*SUBSTATIONS, "balancer", "gateway")


@pytest.fixture
async def mesh(running: Mesh) -> Mesh:
    """Whole and empty again, whatever the test before left."""
    if not running.alive("balancer"):
        running.start("balancer")
    running.stop("balancer-2")
    running.wait_ready("gateway")
    await whole(running)
    async with stub_of(running, "balancer") as stub:
        await stop(stub, [session.session_id for name in SUBSTATIONS for session in Server(running, name).sessions()])
    await holds(lambda: not seen_demand_kw(running), "the balancer knows that all are empty")
    return running


async def whole(mesh: Mesh) -> None:
    """Every substation takes cars, also one that was left out: that is over only when somebody asks there."""

    def takes_a_car(name: str) -> bool:
        with suppress(grpc.RpcError):
            return Server(mesh, "balancer").charge(allowed_substation_ids=[name], energy_kwh=0.05) is not None
        return False

    await holds(lambda: all(map(takes_a_car, SUBSTATIONS)), "all substations are there")


def seen_demand_kw(mesh: Mesh) -> float:
    return sum(substation.report.demand_kw for substation in Server(mesh, "balancer").substations())


async def holds(condition: Callable[[], object], what: str, bound_s: float = SOON_S) -> None:
    """Waits for something that takes a blocking call to find out."""
    await eventually(lambda: asyncio.to_thread(condition), bound_s, what)


@asynccontextmanager
async def standing_still(mesh: Mesh, name: str) -> AsyncIterator[None]:
    mesh.signal(name, SIGSTOP)
    try:
        yield
    finally:
        mesh.signal(name, SIGCONT)


def sessions_of(mesh: Mesh, keys: Sequence[str]) -> dict[str, list[str]]:
    """The sessions of these keys, ended ones too, as the substations themselves say."""
    found: dict[str, list[str]] = {key: [] for key in keys}
    for name in SUBSTATIONS:
        for session in Server(mesh, name).sessions(include_ended=True):
            if session.request_id in found:
                found[session.request_id].append(session.session_id)
    return found


def open_at(mesh: Mesh) -> float:
    """What the balancer has reserved or in doubt."""
    return mesh.metric("balancer", "balancer_reserved_watts") + mesh.metric("balancer", "balancer_open_doubts")


# --- one of three stands still -------------------------------------------------------------------------


async def test_one_substation_that_stands_still_holds_back_only_its_own(mesh: Mesh) -> None:
    # What else this machine does may fall into one of the two phases: the better of three tries counts.
    tried: list[tuple[float, float]] = []
    crowd = Crowd(mesh)
    async with crowd.asking(IN_FLIGHT):
        await eventually(_told(crowd, 500), SOON_S, "warm")
        while len(tried) < TRIES and not any(held <= 2 * quiet for quiet, held in tried):
            tried.append(await quiet_and_stopped(mesh, crowd))
            await whole(mesh)
            await eventually(_told_at(crowd, "a", seconds()), SOON_S, "a is asked as before")
    log.info(
        "p99 in ms, quiet and while one stands still: %s", [(round(1e3 * q, 1), round(1e3 * h, 1)) for q, h in tried]
    )
    assert any(held <= 2 * quiet for quiet, held in tried), tried

    doubtful = [one for one in crowd.heard if not one.place]
    # A gateway that is short of processor besides refuses some: those in doubt are in flight too.
    assert ("OUTCOME_UNKNOWN", True) in (said := {(one.reason, one.says_when) for one in doubtful})
    assert said <= {("OUTCOME_UNKNOWN", True), ("OVERLOADED", True)}
    with closing(await Connection.to(mesh.address("gateway"))) as client:
        for one in doubtful:
            status, _, body = await client.post("/v1/charges", BRIEF, one.key)
            assert status in {200, 201}, body
    sessions = await asyncio.to_thread(sessions_of, mesh, [one.key for one in crowd.heard])
    assert [ids for ids in sessions.values() if len(ids) != 1] == []
    await holds(lambda: not open_at(mesh), "nothing is reserved or in doubt")


async def quiet_and_stopped(mesh: Mesh, crowd: Crowd) -> tuple[float, float]:
    """The 99th percentile of b's and c's answers in seconds, before `a` stops and while it stands still."""
    began = seconds()
    await asyncio.sleep(QUIET_S)
    async with standing_still(mesh, "a"):
        stopped = seconds()
        await asyncio.sleep(STOPPED_S)
        over = seconds()
        assert "a" not in await asyncio.to_thread(mesh.fresh)
    quiet, held = (
        crowd.at_places("b", "c", since=began, until=stopped),
        crowd.at_places("b", "c", since=stopped, until=over),
    )
    return p99(quiet), p99(held)


def p99(of: Iterator[float]) -> float:
    found = sorted(of)
    return found[len(found) * 99 // 100]


def _told(crowd: Crowd, number: int) -> Callable[[], Awaitable[bool]]:
    async def told() -> bool:
        return len(crowd.heard) >= number

    return told


def _told_at(crowd: Crowd, place: str, since: float) -> Callable[[], Awaitable[bool]]:
    async def told() -> bool:
        return sum(one.place == place and one.sent >= since for one in crowd.heard) >= IN_FLIGHT

    return told


# --- one batch, many fates -----------------------------------------------------------------------------


def car(key: str, **said: Any) -> dict[str, Any]:  # noqa: ANN401
    return {**CAR, **said, "request_id": key}


def batch_of(*cars: dict[str, Any]) -> charging_pb2.ChargeBatchRequest:
    """`timeout_ms` of a car is its item's."""
    request = charging_pb2.ChargeBatchRequest()
    for said in cars:
        asked = dict(said)
        timeout_ms = asked.pop("timeout_ms", None)
        item = request.items.add(request=charging_pb2.ChargeRequest(**asked))
        if timeout_ms is not None:
            item.timeout.CopyFrom(Duration(nanos=timeout_ms * 1_000_000))
    return request


class Batch:
    """One ChargeBatch at a balancer, and the outcomes that have come, in their order."""

    def __init__(self, stub: Any, *cars: dict[str, Any]) -> None:  # noqa: ANN401
        self.call: Any = stub.ChargeBatch(batch_of(*cars), timeout=SOON_S)
        self.outcomes: dict[int, charging_pb2.ChargeBatchOutcome] = {}

    async def read(self, number: int) -> None:
        """Until so many have come."""
        while len(self.outcomes) < number:
            assert await self._read(), "ended early"

    async def _read(self) -> bool:
        message = await self.call.read()
        if message is grpc.aio.EOF:
            return False
        for outcome in message.outcomes:
            assert self.outcomes.setdefault(outcome.index, outcome) is outcome, "told twice"
        return True

    async def read_all(self) -> list[charging_pb2.ChargeResponse]:
        """All of them, each of them a session, by index."""
        while await self._read():
            pass
        assert [outcome.status for outcome in self.outcomes.values() if not outcome.HasField("response")] == []
        return [outcome.response for _, outcome in sorted(self.outcomes.items())]

    def session(self, index: int) -> str:
        return self.outcomes[index].response.session.session_id

    def reason(self, index: int) -> str:
        error = from_status(self.outcomes[index].status)
        assert isinstance(error, MeshError)
        return error.reason.name


@asynccontextmanager
async def stub_of(mesh: Mesh, name: str) -> AsyncIterator[Any]:
    async with mesh.aio_channel(name) as channel:
        yield charging_pb2_grpc.ChargingServiceStub(channel)


async def under_way(mesh: Mesh) -> None:
    """The balancer has asked the one that stands still."""
    await holds(lambda: mesh.metric("balancer", "balancer_reserved_watts", substation="a"), "a charge is under way")


async def test_each_item_of_a_batch_has_its_own_outcome_and_waits_for_no_other(mesh: Mesh) -> None:
    other, late, twice, busy, good = (new_key() for _ in range(5))
    async with stub_of(mesh, "balancer") as stub:
        async with standing_still(mesh, "a"):
            first = stub.Charge(batch_of(car(busy, allowed_substation_ids=["a"])).items[0].request, timeout=SOON_S)
            await under_way(mesh)
            batch = Batch(
                stub,
                car(good, allowed_substation_ids=["b"]),
                car(late, allowed_substation_ids=["a"], timeout_ms=50),
                car(other, max_power_kw=-1.0),
                car(twice, allowed_substation_ids=["c"]),
                car(twice, allowed_substation_ids=["c"]),
                car(busy, allowed_substation_ids=["a"]),
            )
            # All but the last, for which `a` would have to move.
            await batch.read(5)
            assert sorted(batch.outcomes) == [0, 1, 2, 3, 4]
            assert [batch.session(index).partition(".")[0] for index in (0, 3, 4)] == ["b", "c", "c"]
            assert batch.session(3) == batch.session(4)
            assert sorted(batch.outcomes[index].response.repeated for index in (3, 4)) == [False, True]
            assert batch.reason(2) == "INVALID_REQUEST"
            # A balancer that was kept from its processor for so long has not even asked.
            assert batch.reason(1) in {"OUTCOME_UNKNOWN", "ATTEMPT_EXPIRED"}
        await batch.read(6)
        assert batch.session(5) == (await first).session.session_id
        assert batch.outcomes[5].response.repeated
        repeated = await stub.Charge(batch_of(car(late, allowed_substation_ids=["a"])).items[0].request, timeout=SOON_S)
    sessions = await asyncio.to_thread(sessions_of, mesh, [late, twice, busy, good, other])
    assert sessions == {
        late: [repeated.session.session_id],
        twice: [batch.session(3)],
        busy: [batch.session(5)],
        good: [batch.session(0)],
        other: [],
    }


async def test_each_item_of_a_batch_over_http_has_its_own_outcome(mesh: Mesh) -> None:
    late, twice, busy, good = (new_key() for _ in range(4))
    cars = [
        car(good, allowed_substation_ids=["b"]),
        car(late, allowed_substation_ids=["a"]),
        car(new_key(), max_power_kw=-1.0),
        car(twice, allowed_substation_ids=["c"]),
        car(twice, allowed_substation_ids=["c"]),
        car(busy, allowed_substation_ids=["a"]),
    ]
    async with stub_of(mesh, "balancer") as stub:
        with closing(await Connection.to(mesh.address("gateway"))) as client:
            async with standing_still(mesh, "a"):
                first = stub.Charge(batch_of(cars[5]).items[0].request, timeout=SOON_S)
                await under_way(mesh)
                # One reply for all, with the last outcome: who waited for another would be in doubt like it.
                status, _, outcomes = await client.post("/v1/charges:batch", cars)
            assert (status, [each["status"] for each in outcomes[:5:2]]) == (200, [201, 400, 200])
            assert [outcomes[index]["problem"]["reason"] for index in (1, 5)] == ["OUTCOME_UNKNOWN"] * 2
            assert outcomes[2]["problem"]["errors"][0]["pointer"] == "#/2/max_power_kw"
            assert outcomes[3]["status"] == 201
            first_of, repeat = (outcomes[index]["charge"]["session"]["session_id"] for index in (3, 4))
            assert first_of == repeat
            held = (await first).session.session_id
            _, _, again = await client.post("/v1/charges:batch", [*cars[:2], *cars[3:]])
    assert [each["status"] for each in again if each["request_id"] != late] == [200] * 4
    told = {each["request_id"]: [each["charge"]["session"]["session_id"]] for each in again}
    assert told[busy] == [held]
    assert await asyncio.to_thread(sessions_of, mesh, [late, twice, busy, good]) == told


# --- the client goes away ------------------------------------------------------------------------------


async def test_what_a_client_that_goes_away_had_asked_for_stands_and_leaks_nothing(mesh: Mesh) -> None:
    keys = [new_key() for _ in range(MAX_CALLS)]
    async with stub_of(mesh, "balancer") as stub, standing_still(mesh, "a"):
        for first in range(0, len(keys), ITEMS):
            batch = Batch(stub, *(car(key) for key in keys[first : first + ITEMS]))
            await batch.read(1)
            batch.call.cancel()
    await answered_as_before(mesh, keys)


async def test_what_an_http_client_that_closes_had_asked_for_stands_and_leaks_nothing(mesh: Mesh) -> None:
    keys = [new_key() for _ in range(ITEMS)]
    async with standing_still(mesh, "a"):
        client = await Connection.to(mesh.address("gateway"))
        asked = asyncio.create_task(client.post("/v1/charges:batch", [car(key) for key in keys]))
        await under_way(mesh)
        client.close()
        with pytest.raises(asyncio.IncompleteReadError):
            await asked
    await answered_as_before(mesh, keys)


async def answered_as_before(mesh: Mesh, keys: Sequence[str]) -> None:
    """Repeats of all find one session each; the balancer has nothing open, and lets in as many as at first."""
    await whole(mesh)
    await holds(lambda: not open_at(mesh), "nothing is reserved or in doubt")
    before = {key: ids for key, ids in (await asyncio.to_thread(sessions_of, mesh, keys)).items() if ids}
    async with stub_of(mesh, "balancer") as stub:
        found = await Batch(stub, *(car(key) for key in keys)).read_all()
        # Together they are as many as it lets in: one that was not counted out would leave one without.
        more = await asyncio.gather(
            *(
                Batch(stub, *(car(new_key(), **BRIEF) for _ in range(ITEMS))).read_all()
                for _ in range(MAX_CALLS // ITEMS)
            )
        )
    now = {one.session.request_id: [one.session.session_id] for one in found}
    assert sorted(now) == sorted(keys)
    assert before.items() <= now.items(), "what was admitted stands"
    assert {one.session.request_id for one in found if one.repeated} == before.keys()
    assert await asyncio.to_thread(sessions_of, mesh, keys) == now
    assert sum(map(len, more)) == MAX_CALLS
    await holds(lambda: not open_at(mesh), "nothing is reserved or in doubt")


# --- placement -----------------------------------------------------------------------------------------


Asks = Callable[[Any, list[str]], Awaitable[list[charging_pb2.ChargeResponse]]]


class Cars:
    """Equal cars that come in groups, and never more than `MOST_LIVE`: who came first leaves first."""

    def __init__(self, stub: Any) -> None:  # noqa: ANN401
        self._stub = stub
        self._live: deque[str] = deque()
        self._at: Counter[str] = Counter()

    async def come(self, ask: Asks) -> float:
        """One group. Then the coefficient of variation of the substations' loads."""
        if len(self._live) == MOST_LIVE:
            left = [self._live.popleft() for _ in range(ITEMS)]
            self._at.subtract(session_id.partition(".")[0] for session_id in left)
            await stop(self._stub, left)
        for response in await ask(self._stub, [new_key() for _ in range(ITEMS)]):
            placement, session = response.placement, response.session
            assert placement.substation_id == session.substation_id
            assert (placement.policy, placement.eligible) == ("least_load_ahead", 3)
            self._live.append(session.session_id)
            self._at[session.substation_id] += 1
        loads = [self._at[name] for name in SUBSTATIONS]
        return pstdev(loads) / fmean(loads)


async def stop(stub: Any, session_ids: Sequence[str]) -> None:  # noqa: ANN401
    """As many at once as are let in."""
    for first in range(0, len(session_ids), ITEMS):
        asked = (charging_pb2.StopSessionRequest(session_id=one) for one in session_ids[first : first + ITEMS])
        await asyncio.gather(*(stub.StopSession(one, timeout=SOON_S) for one in asked))


async def in_a_batch(stub: Any, keys: list[str]) -> list[charging_pb2.ChargeResponse]:  # noqa: ANN401
    return await Batch(stub, *(car(key) for key in keys)).read_all()


async def one_by_one(stub: Any, keys: list[str]) -> list[charging_pb2.ChargeResponse]:  # noqa: ANN401
    calls = (stub.Charge(item.request, timeout=SOON_S) for item in batch_of(*map(car, keys)).items)
    return list(await asyncio.gather(*calls))


async def test_batches_are_spread_as_evenly_as_single_calls(mesh: Mesh) -> None:
    async with stub_of(mesh, "balancer") as stub:
        cars = Cars(stub)
        for _ in range(0, MOST_LIVE, ITEMS):
            await cars.come(in_a_batch)
        spread = {ask: [await cars.come(ask) for _ in range(GROUPS)] for ask in (in_a_batch, one_by_one)}
    means = [round(fmean(spread[ask]), 5) for ask in (in_a_batch, one_by_one)]
    log.info("spread with %d live cars, in batches and one by one: %s", MOST_LIVE, means)
    assert means[0] <= means[1] + 0.005, spread


# --- the balancer dies ---------------------------------------------------------------------------------


async def test_a_balancer_that_dies_in_the_midst_of_a_batch_leaves_one_session_per_key(mesh: Mesh) -> None:
    mesh.start("balancer-2")
    keys = [new_key() for _ in range(ITEMS)]
    async with stub_of(mesh, "balancer") as stub, standing_still(mesh, "a"):
        batch = Batch(stub, *map(car, keys))
        await batch.read(1)
        mesh.kill9("balancer")
    async with stub_of(mesh, "balancer-2") as stub:
        told = await Batch(stub, *map(car, keys)).read_all()
    assert [one.session.request_id for one in told] == keys

    def one_each() -> bool:
        live = [s for name in SUBSTATIONS for s in Server(mesh, name).sessions() if s.request_id in set(keys)]
        return sorted((s.request_id, s.session_id) for s in live) == sorted(
            (one.session.request_id, one.session.session_id) for one in told
        )

    await holds(one_each, "each key has one live session, the one that was told last", ONE_LIVE_S)
