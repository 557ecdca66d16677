"""Charges for one destination: alone at once, together when it is busy, each with its own fate."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import grpc
import pytest

from gridmesh.v1 import charging_pb2, charging_pb2_grpc, load_pb2
from mesh import coalescing
from mesh.batching import Batches, Outcomes
from mesh.channel import open_channel
from mesh.clock import seconds
from mesh.coalescing import Charged, Coalescer, Item, Outcome, Unsent
from mesh.errors import MeshError, Refused
from mesh.interceptors import Context
from mesh.model import ErrorReason
from mesh.status import to_status

if TYPE_CHECKING:
    from gridmesh.v1.charging_pb2_grpc import ChargingServiceAsyncStub

SOON_S = 5.0


def request(name: str) -> charging_pb2.ChargeRequest:
    return charging_pb2.ChargeRequest(request_id=name)


def answer(name: str) -> charging_pb2.ChargeResponse:
    return charging_pb2.ChargeResponse(session=charging_pb2.Session(session_id=name, substation_id="a"))


class _Broken(Exception):
    pass


class Destination(charging_pb2_grpc.ChargingServiceServicer):
    """Answers what it is asked when it is told to; remembers what came together."""

    def __init__(self) -> None:
        self.arrived: list[list[str]] = []
        self.batches: list[charging_pb2.ChargeBatchRequest] = []
        self._go: dict[str, asyncio.Event] = {}
        self.statuses: dict[str, MeshError | grpc.StatusCode] = {}
        # So many calls of StreamCharges there were, and when it says that it is about to stop.
        self.calls = 0
        self.leaving = asyncio.Event()
        self.half_closed = False
        # Ends the call with this, once the first item of a batch was answered.
        self.breaks: grpc.StatusCode | None = None
        # Tells of each twice.
        self.stutters = False
        self.refuses: MeshError | None = None

    def go(self, *names: str) -> None:
        for name in names:
            self._event(name).set()

    async def has(self, name: str) -> None:
        """A call with that one alone."""
        await until(lambda: [name] in self.arrived)

    def _event(self, name: str) -> asyncio.Event:
        return self._go.setdefault(name, asyncio.Event())

    async def Charge(self, request: charging_pb2.ChargeRequest, context: Context) -> charging_pb2.ChargeResponse:  # noqa: N802
        self.arrived.append([request.request_id])
        await self._event(request.request_id).wait()
        response = answer(request.request_id)
        response.load.substation_id = "a"
        return response

    async def StreamCharges(  # noqa: N802
        self, requests: AsyncIterator[charging_pb2.StreamChargesRequest], context: Context
    ) -> AsyncIterator[charging_pb2.StreamChargesResponse]:
        self.calls += 1
        if self.refuses is not None:
            await context.abort_with_status(grpc_status(self.refuses))
        try:
            async for response in Batches(self._batch, self.leaving).responses(self._until_closed(requests)):
                yield response
        except _Broken:
            assert self.breaks is not None
            await context.abort(self.breaks, "broken")

    async def _until_closed(
        self, requests: AsyncIterator[charging_pb2.StreamChargesRequest]
    ) -> AsyncIterator[charging_pb2.StreamChargesRequest]:
        async for request in requests:
            yield request
        self.half_closed = True

    async def _batch(self, request: charging_pb2.ChargeBatchRequest) -> Outcomes:
        names = [item.request.request_id for item in request.items]
        self.arrived.append(names)
        self.batches.append(request)
        waiting = [asyncio.ensure_future(self._outcome(*each)) for each in enumerate(names)]
        for coming in asyncio.as_completed(waiting):
            outcome = await coming
            # Of more than one, as a balancer says them.
            loads = [load_pb2.LoadReport(substation_id=name, sequence=7) for name in ("b", "a", "c")]
            outcomes = [outcome] * (1 + self.stutters)
            batch = charging_pb2.ChargeBatchResponse(outcomes=outcomes, loads=loads)
            yield charging_pb2.StreamChargesResponse(batch=batch)
            if self.breaks is not None:
                raise _Broken

    async def _outcome(self, index: int, name: str) -> charging_pb2.ChargeBatchOutcome:
        await self._event(name).wait()
        status = self.statuses.get(name)
        if isinstance(status, MeshError):
            return charging_pb2.ChargeBatchOutcome(index=index, status=to_status(status))
        if status is not None:
            outcome = charging_pb2.ChargeBatchOutcome(index=index)
            outcome.status.code = status.value[0]
            return outcome
        return charging_pb2.ChargeBatchOutcome(index=index, response=answer(name))


def grpc_status(error: MeshError) -> grpc.Status:
    from grpc_status import rpc_status  # noqa: PLC0415

    return rpc_status.to_status(to_status(error))


class Client:
    """What was sent, and what was heard of it."""

    def __init__(self, coalescer: Coalescer) -> None:
        self.coalescer = coalescer
        self.heard: dict[str, Outcome] = {}
        self.items: dict[str, Item] = {}
        # What is done when one hears.
        self.told: dict[str, Callable[[], object]] = {}

    def send(self, *names: str, within_s: float = 30.0, bytes_each: int = 0) -> None:
        for name in names:
            asked = request(name)
            asked.vehicle_id = "x" * bytes_each
            item = Item(asked, seconds() + within_s, partial(self._hear, name))
            self.items[name] = item
            self.coalescer.send(item)

    def _hear(self, name: str, came: Outcome) -> None:
        assert name not in self.heard, f"{name} heard twice"
        self.heard[name] = came
        if told := self.told.get(name):
            told()

    def session(self, name: str) -> str:
        return self._charged(name).response.session.session_id

    def load(self, name: str) -> load_pb2.LoadReport:
        return self._charged(name).load

    def _charged(self, name: str) -> Charged:
        came = self.heard[name]
        assert isinstance(came, Charged), came
        return came


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture
async def to() -> Destination:
    return Destination()  # type: ignore[abstract]  # the rest is not called here


@pytest.fixture
async def client(to: Destination, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    # Nothing here is held back by time unless a test says so.
    monkeypatch.setattr(coalescing, "_SHORTEST_HOLD_S", 60.0)
    monkeypatch.setattr(coalescing, "_LONGEST_HOLD_S", 60.0)
    async with connected(to) as stub:
        yield Client(Coalescer(stub))


@pytest.fixture
async def patient(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """One whose next batch waits for callers that may come again; a million times the usual."""
    monkeypatch.setattr(coalescing, "_LINGER", 1e6)
    return client


@asynccontextmanager
async def connected(to: Destination) -> AsyncIterator["ChargingServiceAsyncStub"]:
    server = grpc.aio.server()
    charging_pb2_grpc.add_ChargingServiceServicer_to_server(to, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = open_channel(f"127.0.0.1:{port}")
    yield charging_pb2_grpc.ChargingServiceStub(channel)
    await channel.close()
    await server.stop(0)


async def test_one_alone_leaves_at_once_as_a_call_of_its_own(to: Destination, client: Client) -> None:
    to.go("a")
    charged = await client.coalescer.charge(request("a"), seconds() + 5)
    assert charged.response.session.session_id == "a"
    assert charged.load.substation_id == "a"
    assert to.batches == []


async def test_those_of_one_moment_leave_together_and_share_a_load(to: Destination, client: Client) -> None:
    client.send("a", "b", "c")
    to.go("a", "b", "c")
    await until(lambda: len(client.heard) == 3)
    assert to.arrived == [["a", "b", "c"]]
    assert [client.session(name) for name in "abc"] == ["a", "b", "c"]
    assert [client.load(name).substation_id for name in "abc"] == ["a"] * 3, "each session is at a"


async def test_while_one_is_unanswered_others_gather_and_leave_with_the_answer(to: Destination, client: Client) -> None:
    client.send("a")
    await to.has("a")
    for name in ("b", "c", "d"):
        client.send(name)
        await asyncio.sleep(0)
    assert to.arrived == [["a"]], "sent although one is unanswered"
    to.go("a")
    await until(lambda: ["b", "c", "d"] in to.arrived)
    assert list(client.heard) == ["a"]


async def test_others_leave_when_the_whole_batch_is_answered(to: Destination, client: Client) -> None:
    client.send("a", "b", "c")
    await until(lambda: len(to.arrived) == 1)
    client.send("d", "e")
    to.go("a", "b")
    await until(lambda: {"a", "b"} <= client.heard.keys())
    assert len(to.arrived) == 1
    to.go("c")
    await until(lambda: ["d", "e"] in to.arrived)


async def test_where_callers_come_again_the_next_batch_waits_for_as_many(
    to: Destination, patient: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalescing, "_LONGEST_LINGER_S", 60.0)
    patient.send("a", "b")
    await until(lambda: len(to.arrived) == 1)
    patient.send("c")
    to.go("a", "b")
    await until(lambda: len(patient.heard) == 2)
    patient.send("d")
    assert len(to.arrived) == 1
    patient.send("e")
    await until(lambda: ["c", "d", "e"] in to.arrived)


async def test_a_caller_who_is_back_before_the_batch_is_answered_is_waited_for_once(
    to: Destination, patient: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalescing, "_LONGEST_LINGER_S", 60.0)
    patient.send("a", "b", "c")
    await until(lambda: len(to.arrived) == 1)
    patient.send("d")
    to.go("a")
    await until(lambda: "a" in patient.heard)
    patient.send("a again")
    to.go("b", "c")
    await until(lambda: len(patient.heard) == 3)
    patient.send("b again", "c again")
    await until(lambda: ["d", "a again", "b again", "c again"] in to.arrived)


async def test_who_was_alone_waits_for_nobody_when_it_comes_again(to: Destination, patient: Client) -> None:
    to.go("a", "b")
    for name in ("a", "b"):
        patient.send(name)
        await to.has(name)
        await until(partial(patient.heard.__contains__, name))


async def test_what_is_in_a_socket_when_the_wait_is_over_leaves_too(
    to: Destination, patient: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the event loop had been busy with the answers for all of it.
    monkeypatch.setattr(coalescing, "_LONGEST_LINGER_S", 0.0)
    loop, (theirs, ours) = asyncio.get_running_loop(), socket.socketpair()
    later = loop.call_soon
    with theirs, ours:
        patient.send("a", "b")
        await until(lambda: len(to.arrived) == 1)
        patient.send("c")
        # Read in one turn, its handler begins in the next; uvloop, unlike this loop, reads after its timers.
        loop.add_reader(ours, lambda: later(later, patient.send, ours.recv(1).decode()))
        patient.told["b"] = partial(theirs.send, b"d")
        to.go("a")
        await until(lambda: "a" in patient.heard)
        to.go("b")
        await until(lambda: len(to.arrived) > 1)
        loop.remove_reader(ours)
    assert to.arrived[1:] == [["c", "d"]]


async def test_a_batch_waits_only_for_a_moment_for_those_who_may_come_again(to: Destination, patient: Client) -> None:
    patient.send("a", "b")
    await until(lambda: len(to.arrived) == 1)
    patient.send("c", "d")
    to.go("a", "b")
    await until(lambda: ["c", "d"] in to.arrived)


async def test_a_destination_that_stands_still_holds_others_back_for_a_moment_only(
    to: Destination, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalescing, "_SHORTEST_HOLD_S", 0.01)
    for name in ("a", "b", "c", "d"):
        client.send(name)
        await to.has(name)
    assert client.heard == {}


async def test_what_is_usual_is_learned_from_answers_and_bounds_the_hold(
    to: Destination, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalescing, "_SHORTEST_HOLD_S", 0.0)
    monkeypatch.setattr(coalescing, "_LONGEST_HOLD_S", 0.05)
    for number in range(30):
        name = f"slow-{number}"
        client.send(name)
        await to.has(name)
        await asyncio.sleep(0.03)
        to.go(name)
        await until(partial(client.heard.__contains__, name))
    assert client.coalescer.hold_s == 0.05


async def test_one_that_expires_delays_no_neighbour(to: Destination, client: Client) -> None:
    client.send("late", within_s=0.05)
    client.send("a", "b")
    await until(lambda: "late" in client.heard)
    late = client.heard["late"]
    assert isinstance(late, grpc.aio.AioRpcError)
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # On a busy machine its time is over before it arrives.
    await until(lambda: to.arrived)
    assert to.arrived == [["late", "a", "b"]]
    to.go("a", "b", "late")
    await until(lambda: len(client.heard) == 3)
    assert (client.session("a"), client.session("b")) == ("a", "b")
    timeouts = [item.timeout.ToMilliseconds() for item in to.batches[0].items]
    assert timeouts[0] <= 50
    assert all(ms > 1_000 for ms in timeouts[1:])


async def test_who_left_before_it_was_sent_is_not_sent(to: Destination, client: Client) -> None:
    client.send("first")
    await to.has("first")
    asked = [asyncio.create_task(client.coalescer.charge(request(name), seconds() + 5)) for name in "ab"]
    await asyncio.sleep(0)  # both are gathered
    asked[0].cancel()
    await asyncio.gather(asked[0], return_exceptions=True)
    to.go("first", "b")
    assert (await asked[1]).response.session.session_id == "b"
    assert to.arrived == [["first"], ["b"]]


async def test_what_is_for_a_channel_that_was_closed_was_not_sent(client: Client) -> None:
    channel = open_channel("127.0.0.1:1")
    gone = Client(Coalescer(charging_pb2_grpc.ChargingServiceStub(channel)))
    await channel.close()
    gone.send("a")
    await until(lambda: gone.heard)
    gone.send("b", "c")
    await until(lambda: len(gone.heard) == 3)
    assert set(gone.heard.values()) == {Unsent.VOID}


async def test_who_left_after_it_was_sent_cancels_nothing(to: Destination, client: Client) -> None:
    asked = [asyncio.create_task(client.coalescer.charge(request(name), seconds() + 5)) for name in "ab"]
    await until(lambda: to.arrived == [["a", "b"]])
    asked[0].cancel()
    to.go("a", "b")
    assert (await asked[1]).response.session.session_id == "b"
    assert asked[0].cancelled()


async def test_one_that_stands_no_longer_or_is_late_is_not_sent(to: Destination, client: Client) -> None:
    client.send("a", "void")
    client.send("late", within_s=0.0)
    client.items["void"].stands = lambda: False
    to.go("a")
    await until(lambda: len(client.heard) == 3)
    assert (client.heard["void"], client.heard["late"]) == (Unsent.VOID, Unsent.LATE)
    assert to.arrived == [["a"]]


async def test_none_leaves_for_who_cannot_be_reached_which_is_asked_once_for_all(
    to: Destination, client: Client
) -> None:
    asked: list[bool] = []

    def ready() -> bool:
        asked.append(True)
        return False

    cut_off = Client(Coalescer(client.coalescer.stub, ready=ready))
    cut_off.send("a", "b")
    cut_off.send("late", within_s=0.0)
    await until(lambda: len(cut_off.heard) == 3)
    assert cut_off.heard == {"a": Unsent.VOID, "b": Unsent.VOID, "late": Unsent.LATE}
    assert asked == [True]
    assert to.arrived == []


async def test_each_has_its_own_status_and_only_one_of_ours_is_an_answer(to: Destination, client: Client) -> None:
    to.statuses = {
        "full": Refused(ErrorReason.NO_CHARGE_POINT, "all are taken", 1_500),
        "foreign": grpc.StatusCode.UNAVAILABLE,
    }
    client.send("full", "foreign", "a")
    to.go("full", "foreign", "a")
    await until(lambda: len(client.heard) == 3)
    full, foreign = client.heard["full"], client.heard["foreign"]
    assert isinstance(full, Refused)
    assert (full.reason, full.retry_after_ms) == (ErrorReason.NO_CHARGE_POINT, 1_500)
    assert isinstance(foreign, grpc.aio.AioRpcError)
    assert foreign.code() is grpc.StatusCode.UNAVAILABLE
    assert client.session("a") == "a"


async def test_a_batch_that_breaks_loses_those_without_an_outcome_and_no_others(
    to: Destination, client: Client
) -> None:
    to.breaks = grpc.StatusCode.RESOURCE_EXHAUSTED
    client.send("a", "b", "c")
    to.go("a")
    await until(lambda: len(client.heard) == 3)
    assert client.session("a") == "a"
    for name in ("b", "c"):
        lost = client.heard[name]
        assert isinstance(lost, grpc.aio.AioRpcError)
        assert lost.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_batches_travel_on_one_call(to: Destination, client: Client) -> None:
    for names in (("a", "b"), ("c", "d"), ("e", "f")):
        client.send(*names)
        to.go(*names)
        await until(partial(client.heard.__contains__, names[1]))
    assert to.arrived == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert to.calls == 1


async def test_a_batch_that_is_answered_late_holds_up_none_on_the_same_call(
    to: Destination, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalescing, "_SHORTEST_HOLD_S", 0.01)
    client.send("slow-1", "slow-2")
    await until(lambda: len(to.arrived) == 1)
    client.send("a", "b")
    to.go("a", "b")
    await until(lambda: len(client.heard) == 2)
    to.go("slow-1", "slow-2")
    await until(lambda: len(client.heard) == 4)
    assert to.calls == 1


async def test_who_is_about_to_stop_answers_what_was_sent_and_hears_the_next_on_another_call(
    to: Destination, client: Client
) -> None:
    client.send("a", "b")
    await until(lambda: len(to.arrived) == 1)
    client.send("c", "d")
    to.leaving.set()
    await until(lambda: to.half_closed)
    to.leaving = asyncio.Event()
    to.go("a", "b", "c", "d")
    await until(lambda: len(client.heard) == 4)
    assert [client.session(name) for name in "abcd"] == ["a", "b", "c", "d"]
    assert to.calls == 2


async def test_after_a_call_that_broke_the_next_batch_opens_another(to: Destination, client: Client) -> None:
    to.breaks = grpc.StatusCode.UNAVAILABLE
    client.send("a", "b")
    to.go("a", "b")
    await until(lambda: len(client.heard) == 2)
    to.breaks = None
    client.send("c", "d")
    to.go("c", "d")
    await until(lambda: len(client.heard) == 4)
    assert (client.session("c"), client.session("d")) == ("c", "d")
    assert to.calls == 2


@pytest.mark.parametrize(
    ("reason", "told"),
    [(ErrorReason.OVERLOADED, True), (ErrorReason.READER_TOO_SLOW, False)],
    ids=str,
)
async def test_only_a_batch_that_was_refused_at_the_door_was_certainly_not_served(
    to: Destination, client: Client, reason: ErrorReason, told: bool
) -> None:
    to.refuses = Refused(reason, "no", 100)
    client.send("a", "b")
    await until(lambda: len(client.heard) == 2)
    assert [isinstance(came, MeshError) for came in client.heard.values()] == [told, told]


async def test_who_tells_of_one_twice_leaves_no_other_without_an_end(to: Destination, client: Client) -> None:
    to.stutters = True
    client.send("a", "b", within_s=0.5)
    to.go("a")
    await until(lambda: len(client.heard) == 2)
    assert client.session("a") == "a"
    lost = client.heard["b"]
    assert isinstance(lost, grpc.aio.AioRpcError)
    assert lost.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_those_that_are_too_large_together_take_no_neighbour_along(to: Destination, client: Client) -> None:
    client.send("large", "larger", bytes_each=2_500_000)
    client.send("a", "b")
    names = ["large", "larger", "a", "b"]
    to.go(*names)
    await until(lambda: len(client.heard) == 4)
    assert [client.session(name) for name in names] == names
    assert sorted(to.arrived) == [["a", "b"], ["large"], ["larger"]]


async def test_without_coalescing_each_is_a_call_of_its_own(to: Destination, client: Client) -> None:
    alone = Client(Coalescer(client.coalescer.stub, together=False))
    alone.send("a", "b", "c", "d")
    to.go("a", "b", "c", "d")
    await until(lambda: len(alone.heard) == 4)
    assert sorted(to.arrived) == [["a"], ["b"], ["c"], ["d"]]
