"""Faults of the transport that a real substation cannot be told to make: lost replies and silence."""

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from balancer import subscriptions, wire
from balancer.admissions import Duplicate
from balancer.changes import Changes
from balancer.desk import Desk
from balancer.metrics import BalancerMetrics, DeskCollector
from balancer.peers import Peer, Peers
from balancer.router import Router
from balancer.subscriptions import Backoff, Subscription, Subscriptions
from gridmesh.v1 import charging_pb2, charging_pb2_grpc, load_pb2, reports_pb2, reports_pb2_grpc
from mesh import coalescing
from mesh.charge import Key
from mesh.clock import SystemClock, seconds
from mesh.errors import MeshError
from mesh.interceptors import Context
from mesh.model import ErrorReason, ReportState
from tests.balancer.makers import attempt_id, entry, key, load, session

INTERVAL_MS = 300


class Charging(charging_pb2_grpc.ChargingServiceServicer):
    """Admits every car, and loses the replies that it is told to lose."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sessions: dict[str, charging_pb2.Session] = {}
        self.lose_before = False
        self.lose_after = False
        self.delay = asyncio.Event()
        self.delay.set()
        self.attempts: list[charging_pb2.ChargeRequest] = []

    async def Charge(  # noqa: N802
        self, request: charging_pb2.ChargeRequest, context: Context
    ) -> charging_pb2.ChargeResponse:
        self.attempts.append(request)
        await self.delay.wait()
        if self.lose_before:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        repeated = request.request_id in self.sessions
        made = charging_pb2.Session(session_id=session(self.name, len(self.sessions)), attempt_id=request.attempt_id)
        kept = self.sessions.setdefault(request.request_id, made)
        if self.lose_after:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        return charging_pb2.ChargeResponse(session=kept, load=self.load(), repeated=repeated)

    def load(self) -> load_pb2.LoadReport:
        count = len(self.sessions)
        return wire.report_of(
            load(
                self.name,
                epoch=1,
                sequence=count,
                admission_sequence=count,
                generated_at_ms=SystemClock().now_ms(),
                demand_w=11_000 * count,
            )
        )


class Reports(reports_pb2_grpc.LoadReportServiceServicer):
    """Reports until told to be silent."""

    def __init__(self, charging: Charging) -> None:
        self.charging = charging
        self.silent = False
        self.unimplemented = False
        # Told of every report; it may take something away.
        self.spoil: Callable[[load_pb2.LoadReport], None] = lambda _: None
        # Every stream breaks after its first report.
        self.breaks = False
        self.streams = 0
        self.resolvable = asyncio.Event()
        self.resolvable.set()
        self.resolved = 0
        # Sent after the snapshot's end, one message each, by every stream that does not resume.
        self.news: list[reports_pb2.StreamAdmissionsResponse] = []
        self.followed: list[reports_pb2.StreamAdmissionsRequest] = []
        # Ends one stream of admissions when it is set.
        self.break_admissions = asyncio.Event()
        self.refuses_to_end = False
        self.asked_to_end: list[reports_pb2.EndDuplicateRequest] = []

    async def StreamLoadReports(  # noqa: N802
        self, request: reports_pb2.StreamLoadReportsRequest, context: Context
    ) -> AsyncIterator[reports_pb2.StreamLoadReportsResponse]:
        self.streams += 1
        if self.unimplemented:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not a substation")
        while True:
            if not self.silent:
                report = self.charging.load()
                self.spoil(report)
                yield reports_pb2.StreamLoadReportsResponse(report=report)
            if self.breaks:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
            await asyncio.sleep(0.02)

    async def StreamAdmissions(  # noqa: N802
        self, request: reports_pb2.StreamAdmissionsRequest, context: Context
    ) -> AsyncIterator[reports_pb2.StreamAdmissionsResponse]:
        self.followed.append(request)
        if request.HasField("after"):
            phase = reports_pb2.ADMISSION_PHASE_CHANGES
            yield reports_pb2.StreamAdmissionsResponse(phase=phase, position=request.after)
        else:
            yield reports_pb2.StreamAdmissionsResponse(
                phase=reports_pb2.ADMISSION_PHASE_SNAPSHOT_END, position=reports_pb2.AdmissionPosition(epoch=1)
            )
            for message in self.news:
                yield message
        await self.break_admissions.wait()
        self.break_admissions.clear()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")

    async def ResolveCharge(  # noqa: N802
        self, request: reports_pb2.ResolveChargeRequest, context: Context
    ) -> reports_pb2.ResolveChargeResponse:
        self.resolved += 1
        if not self.resolvable.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        kept = self.charging.sessions.get(request.request_id)
        if kept is None:
            fence = reports_pb2.Fence(attempt_id=request.attempt_id)
            return reports_pb2.ResolveChargeResponse(fence=fence, load=self.charging.load())
        return reports_pb2.ResolveChargeResponse(session=kept, load=self.charging.load())

    async def EndDuplicate(  # noqa: N802
        self, request: reports_pb2.EndDuplicateRequest, context: Context
    ) -> reports_pb2.EndDuplicateResponse:
        self.asked_to_end.append(request)
        if self.refuses_to_end:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this attempt is the higher")
        return reports_pb2.EndDuplicateResponse()


class Substation:
    """A server on a free port of the loopback."""

    def __init__(self, name: str) -> None:
        self.charging = Charging(name)  # type: ignore[abstract]  # the rest is not called here
        self.reports = Reports(self.charging)
        self.server = grpc.aio.server()
        charging_pb2_grpc.add_ChargingServiceServicer_to_server(self.charging, self.server)
        reports_pb2_grpc.add_LoadReportServiceServicer_to_server(self.reports, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"


class Balancer:
    """Router and subscriptions over these substations."""

    def __init__(self, *substations: Substation, max_calls: int = 1_000) -> None:
        self.clock, self.rng, self.changes = SystemClock(), Random(1), Changes()
        self.registry = CollectorRegistry()
        self.metrics = BalancerMetrics(self.registry)
        self.desk = Desk([one.address for one in substations], INTERVAL_MS, self.rng)
        self.registry.register(DeskCollector(self.desk, self.clock))
        self.peers = Peers((one.address for one in substations), self.rng, max_calls)
        self.router = Router(self.desk, self.peers, self.clock, self.rng, self.metrics)
        self.subscriptions = Subscriptions(self.peers, self._subscribe)

    def _subscribe(self, peer: Peer) -> Subscription:
        return Subscription(
            peer, self.desk, self.clock, self.rng, INTERVAL_MS, self.metrics, self.changes.changed, self.router.settled
        )

    def state(self, substation: Substation) -> ReportState:
        return self.desk.view.state(self.desk.view[substation.address], self.clock.now_ms())

    def reserved(self) -> int:
        return sum(known.reserved_w for known in self.desk.view)

    async def charge(self, number: int = 0, timeout_s: float = 5.0) -> charging_pb2.ChargeResponse:
        request = charging_pb2.ChargeRequest(
            request_id=key(number).request_id, vehicle_id="EV", max_power_kw=11, allowed_substation_ids=["a", "b"]
        )
        return await self.router.charge(request, timeout_s)


def news(*session_ids: str, stop_reason: int = 0) -> reports_pb2.StreamAdmissionsResponse:
    """Admissions of request-0, request-1 and so on, with these sessions; ended just now where there is a reason."""
    ended_at = Timestamp(seconds=SystemClock().now_ms() // 1000) if stop_reason else None
    return reports_pb2.StreamAdmissionsResponse(
        phase=reports_pb2.ADMISSION_PHASE_CHANGES,
        position=reports_pb2.AdmissionPosition(epoch=1, sequence=len(session_ids)),
        admissions=[
            reports_pb2.Admission(
                sequence=number + 1,
                owner=key().owner,
                request_id=key(number).request_id,
                session_id=session_id,
                ended_at=ended_at,
                stop_reason=stop_reason,  # type: ignore[arg-type]  # also numbers that this version does not know
            )
            for number, session_id in enumerate(session_ids)
        ],
    )


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Waits for a condition, and fails when it does not come true."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def a() -> AsyncIterator[Substation]:
    substation = Substation("a")
    await substation.server.start()
    yield substation
    await substation.server.stop(0)


@pytest.fixture
async def b() -> AsyncIterator[Substation]:
    """The worse one, so that `a` is asked first."""
    substation = Substation("b")
    for number in range(3):
        substation.charging.sessions[f"other-{number}"] = charging_pb2.Session()
    await substation.server.start()
    yield substation
    await substation.server.stop(0)


@asynccontextmanager
async def running(*substations: Substation, max_calls: int = 1_000) -> AsyncIterator[Balancer]:
    """A balancer that follows them."""
    balancer = Balancer(*substations, max_calls=max_calls)
    balancer.subscriptions.start()
    await balancer.subscriptions.first_reports(5)
    yield balancer
    await balancer.router.stop(1)
    await balancer.subscriptions.stop()
    await balancer.peers.close()


@pytest.fixture
async def balancer(a: Substation, b: Substation) -> AsyncIterator[Balancer]:
    async with running(a, b) as balancer:
        yield balancer


async def test_a_reply_that_is_lost_after_the_commit_is_found_and_answered(
    balancer: Balancer, a: Substation, b: Substation
) -> None:
    a.charging.lose_after = True
    response = await balancer.charge()
    assert response.session.session_id == session("a")
    assert (response.placement.substation_id, response.placement.policy) == ("a", "least_utilisation")
    assert not response.repeated
    assert b.charging.attempts == []
    await until(lambda: balancer.reserved() == 0)


async def test_who_has_as_many_calls_as_it_may_have_is_not_sent_another(a: Substation, b: Substation) -> None:
    async with running(a, b, max_calls=1) as balancer:
        a.charging.delay.clear()
        b.charging.delay.clear()
        first = asyncio.create_task(balancer.charge(0))
        await until(lambda: len(a.charging.attempts) == 1)
        second = asyncio.create_task(balancer.charge(1))
        await until(lambda: len(b.charging.attempts) == 1)
        with pytest.raises(MeshError) as refused:
            await balancer.charge(2)
        assert refused.value.reason is ErrorReason.OVERLOADED
        assert refused.value.definite
        assert refused.value.retry_after_ms is not None
        a.charging.delay.set()
        b.charging.delay.set()
        assert {(await first).placement.substation_id, (await second).placement.substation_id} == {"a", "b"}
        await balancer.charge(2)
        assert len(a.charging.attempts) + len(b.charging.attempts) == 3


async def test_a_request_that_was_lost_is_fenced_before_another_is_asked(
    balancer: Balancer, a: Substation, b: Substation
) -> None:
    a.charging.lose_before = True
    response = await balancer.charge()
    assert response.placement.substation_id == "b"
    assert response.placement.tried == 2
    assert a.reports.resolved == 1
    assert a.charging.attempts[0].attempt_id == b.charging.attempts[0].attempt_id
    await until(lambda: balancer.reserved() == 0)
    assert [peer.admission.in_flight for peer in balancer.peers] == [0, 0]


async def test_nobody_else_is_asked_while_it_is_in_doubt_and_the_doubt_outlives_the_call(
    balancer: Balancer, a: Substation, b: Substation
) -> None:
    a.charging.lose_after = True
    a.reports.resolvable.clear()
    with pytest.raises(MeshError) as failed:
        await balancer.charge(timeout_s=0.4)
    assert failed.value.reason is ErrorReason.OUTCOME_UNKNOWN
    assert failed.value.retry_after_ms is not None
    assert b.charging.attempts == []
    assert balancer.reserved() == 11_000
    a.charging.lose_after = False
    a.reports.resolvable.set()
    await until(lambda: not balancer.desk.doubts)
    await until(lambda: balancer.reserved() == 0)
    again = await balancer.charge()
    assert again.repeated
    assert again.session.session_id == session("a")
    assert again.placement.policy == "repeat"


async def test_a_silent_substation_is_in_doubt_until_the_deadline(balancer: Balancer, a: Substation) -> None:
    a.charging.delay.clear()
    with pytest.raises(MeshError) as failed:
        await balancer.charge(timeout_s=0.4)
    assert failed.value.reason is ErrorReason.OUTCOME_UNKNOWN
    a.charging.delay.set()


async def test_two_calls_with_one_key_at_once_make_one_session(balancer: Balancer, a: Substation) -> None:
    responses = await asyncio.gather(*(balancer.charge() for _ in range(20)))
    assert {response.session.session_id for response in responses} == {session("a")}
    assert sum(not response.repeated for response in responses) == 1


async def test_a_client_that_goes_away_leaves_a_session_that_its_repeat_finds(
    balancer: Balancer, a: Substation
) -> None:
    a.charging.delay.clear()
    call = asyncio.create_task(balancer.charge())
    await until(lambda: bool(a.charging.attempts))
    call.cancel()
    await asyncio.wait({call})
    a.charging.delay.set()
    assert (await balancer.charge()).repeated
    await until(lambda: balancer.reserved() == 0)


@pytest.fixture
async def held_back(
    balancer: Balancer, a: Substation, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[asyncio.Task[Any]]:
    """A charge for `a` that has not left, as one before it is not answered."""
    monkeypatch.setattr(coalescing, "_SHORTEST_HOLD_S", 60.0)
    monkeypatch.setattr(coalescing, "_LONGEST_HOLD_S", 60.0)
    a.charging.delay.clear()
    first = asyncio.create_task(balancer.charge(0))
    await until(lambda: len(a.charging.attempts) == 1)
    held = asyncio.create_task(balancer.charge(1))
    await until(lambda: balancer.reserved() == 22_000)
    yield held
    await first


async def test_a_charge_whose_client_goes_away_before_it_leaves_is_not_sent(
    balancer: Balancer, a: Substation, b: Substation, held_back: asyncio.Task[Any]
) -> None:
    held_back.cancel()
    await asyncio.gather(held_back, return_exceptions=True)
    a.charging.delay.set()
    await until(lambda: balancer.reserved() == 0)
    assert [len(one.charging.attempts) for one in (a, b)] == [1, 0]


async def test_a_charge_is_not_sent_to_another_life_of_the_substation_than_it_was_meant_for(
    balancer: Balancer, a: Substation, b: Substation, held_back: asyncio.Task[Any]
) -> None:
    now = balancer.clock.now_ms()
    balancer.desk.reported(a.address, load("a", epoch=2, generated_at_ms=now), now)
    a.charging.delay.set()
    assert (await held_back).placement.substation_id == "b"
    assert [len(one.charging.attempts) for one in (a, b)] == [1, 1]


async def test_each_reply_has_its_own_load_however_alike_they_are(a: Substation) -> None:
    peers = Peers([a.address], Random(1))
    reports = [wire.report_of(load("a", sequence=number, demand_w=1_000 * number)) for number in (1, 2, 2)]
    assert [peers[a.address].load_of(report).demand_w for report in reports] == [1_000, 2_000, 2_000]
    await peers.close()


async def test_a_report_that_says_what_the_last_one_said_is_not_read_again_and_one_that_lacks_a_number_says_less(
    a: Substation,
) -> None:
    peers = Peers([a.address], Random(1))
    first, again, less = (wire.report_of(load("a", free_charge_points=0)) for _ in range(3))
    less.ClearField("free_charge_points")
    assert peers[a.address].load_of(first) is peers[a.address].load_of(again)
    with pytest.raises(wire.Malformed, match="free_charge_points"):
        peers[a.address].load_of(less)
    await peers.close()


async def test_what_became_of_a_call_that_nobody_waits_for_is_no_news(balancer: Balancer, a: Substation) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    a.charging.lose_before = True
    a.charging.delay.clear()
    call = asyncio.create_task(balancer.charge())
    await until(lambda: bool(a.charging.attempts))
    call.cancel()
    await asyncio.wait({call})
    a.charging.delay.set()
    await until(lambda: not balancer.router._flights)
    del call
    gc.collect()
    assert told == []


async def test_the_first_hop_names_the_attempt_and_its_end(balancer: Balancer, a: Substation) -> None:
    await balancer.charge(timeout_s=5)
    sent = a.charging.attempts[0]
    assert sent.attempt_id
    left_s = sent.not_after.seconds - balancer.clock.now_ms() / 1000
    assert 5 < left_s < 7.1


async def test_a_substation_that_falls_silent_is_stale_and_fresh_again_when_it_speaks(
    balancer: Balancer, a: Substation
) -> None:
    a.reports.silent = True
    await until(lambda: balancer.state(a) is not ReportState.FRESH)
    await until(lambda: a.reports.streams >= 2)
    a.reports.silent = False
    await until(lambda: balancer.state(a) is ReportState.FRESH)


async def test_a_balancer_that_stops_in_the_moment_in_which_a_stream_is_given_up_stops_all_the_same(
    a: Substation, monkeypatch: pytest.MonkeyPatch
) -> None:
    balancer = Balancer(a)
    stopped = []

    class Late(subscriptions.Watchdog):
        def _check(self) -> None:
            if self._due <= seconds():
                stopped.append(asyncio.ensure_future(balancer.subscriptions.stop()))
                balancer.subscriptions._tasks[a.address].cancel()
            super()._check()

    monkeypatch.setattr(subscriptions, "Watchdog", Late)
    balancer.subscriptions.start()
    await balancer.subscriptions.first_reports(5)
    a.reports.silent = True
    await until(lambda: bool(stopped))
    async with asyncio.timeout(5):
        await stopped[0]
    await balancer.peers.close()


async def test_a_lost_connection_sends_cars_elsewhere_at_once(balancer: Balancer, a: Substation, b: Substation) -> None:
    await a.server.stop(0)
    await until(lambda: not balancer.peers[a.address].ready())
    assert (await balancer.charge()).placement.substation_id == "b"
    await until(lambda: balancer.reserved() == 0)


async def test_an_address_that_is_no_substation_is_given_up(balancer: Balancer) -> None:
    stranger = Substation("a")
    stranger.reports.unimplemented = True
    await stranger.server.start()
    other = Balancer(stranger)
    other.subscriptions.start()
    await until(lambda: stranger.reports.streams == 1)
    await until(lambda: all(task.done() for task in other.subscriptions._tasks.values()))
    assert other.state(stranger) is ReportState.NEVER_REPORTED
    await other.subscriptions.stop()
    await other.peers.close()
    await stranger.server.stop(0)


async def test_admissions_that_resume_without_news_are_caught_up(balancer: Balancer, a: Substation) -> None:
    known = balancer.desk.view[a.address]
    await until(lambda: known.caught_up == (1, 0))
    a.reports.break_admissions.set()
    await until(lambda: known.caught_up is None)
    await until(lambda: known.caught_up == (1, 0))
    assert [one.HasField("after") for one in a.reports.followed] == [False, True]


async def test_the_metrics_tell_of_picks_states_and_reservations(balancer: Balancer, a: Substation) -> None:
    await balancer.charge()
    sample = balancer.registry.get_sample_value
    assert sample("balancer_picks_total", {"substation": "a"}) == 1
    assert sample("balancer_substation_state", {"substation": "a", "state": "fresh"}) == 1
    await until(lambda: sample("balancer_reserved_watts", {"substation": "a"}) == 0)
    assert sample("balancer_tries_total", {"result": "replied"}) == 1
    assert (sample("balancer_report_age_seconds", {"substation": "a"}) or 0) < 3


# --- what one message must not do -----------------------------------------------------------------------


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """The first call of that method raises."""
    method, calls = getattr(owner, name), iter([ZeroDivisionError("nobody foresaw this")])

    def failing(*args: Any, **named: Any) -> Any:  # noqa: ANN401
        for defect in calls:
            raise defect
        return method(*args, **named)

    monkeypatch.setattr(owner, name, failing)


async def test_an_admission_of_a_later_version_or_broken_costs_no_other_one(a: Substation) -> None:
    a.reports.news = [news(session("a"), "nowhere"), news(session("a"), "nowhere", session("a", 2), stop_reason=99)]
    with capture_logs() as lines:
        async with running(a) as balancer:
            await until(lambda: balancer.desk.index.holds("a", key(2)))
            assert balancer.desk.index.holds("a", key(0))
            assert not balancer.desk.index.holds("a", key(1))
            assert balancer.state(a) is ReportState.FRESH
            assert (a.reports.streams, len(a.reports.followed)) == (1, 1)
    ignored = [line for line in lines if line["event"] == "admissions ignored"]
    assert [(line["substation"], line["address"], line["count"]) for line in ignored] == [("a", a.address, 1)] * 2


async def test_a_message_that_cannot_be_processed_ends_no_more_than_its_stream(
    a: Substation, monkeypatch: pytest.MonkeyPatch
) -> None:
    a.reports.news = [news(session("a"))]
    balancer = Balancer(a)
    fails_once(monkeypatch, balancer.desk, "changes")
    with capture_logs() as lines:
        balancer.subscriptions.start()
        await until(lambda: balancer.desk.index.holds("a", key(0)))
        assert balancer.state(a) is ReportState.FRESH
        await balancer.subscriptions.stop()
        await balancer.peers.close()
    assert [one.HasField("after") for one in a.reports.followed] == [False, False], "what was half done is not resumed"
    [defect] = [line for line in lines if line["log_level"] == "error"]
    assert (defect["substation"], defect["address"], defect["stream"]) == ("a", a.address, "admissions")
    assert isinstance(defect["exc_info"], ZeroDivisionError)


async def test_a_report_that_cannot_be_processed_is_not_the_last(
    a: Substation, monkeypatch: pytest.MonkeyPatch
) -> None:
    balancer = Balancer(a)
    fails_once(monkeypatch, balancer.desk, "reported")
    balancer.subscriptions.start()
    await until(lambda: balancer.state(a) is ReportState.FRESH)
    assert a.reports.streams == 2
    await balancer.subscriptions.stop()
    await balancer.peers.close()


async def test_a_report_that_lacks_what_it_must_have_is_ignored_and_ends_nothing(
    balancer: Balancer, a: Substation
) -> None:
    def counted(result: str) -> float:
        return balancer.registry.get_sample_value("balancer_reports_total", {"result": result}) or 0

    a.reports.spoil = lambda report: report.ClearField("demand_kw")
    with capture_logs() as lines:
        await until(lambda: counted("malformed") >= 5)
        assert balancer.state(a) is ReportState.FRESH, "what is known of it still stands"
        a.reports.spoil = lambda _: None
        accepted = counted("accepted")
        await until(lambda: counted("accepted") > accepted)
    assert a.reports.streams == 1
    [why] = {line["why"] for line in lines if line["event"] == "report ignored"}
    assert why == "load report without demand_kw"


async def test_only_a_report_that_could_be_used_makes_the_next_try_come_soon(a: Substation) -> None:
    a.reports.breaks = True
    a.reports.spoil = lambda report: report.ClearField("demand_kw")
    balancer = Balancer(a)
    balancer.subscriptions.start()
    await until(lambda: a.reports.streams >= 3)
    third_s = seconds()
    await until(lambda: a.reports.streams >= 4)
    assert seconds() - third_s >= 0.9, "pauses of about 0.3, 1 and 2 s, less jitter"
    a.reports.spoil = lambda _: None
    await until(lambda: balancer.state(a) is ReportState.FRESH)
    streams = a.reports.streams
    # Without a reset these two would take 6 s and more.
    await until(lambda: a.reports.streams >= streams + 2, 4)
    await balancer.subscriptions.stop()
    await balancer.peers.close()


def test_a_message_that_comes_again_and_again_is_met_later_and_later() -> None:
    backoff = Backoff(Random(1))
    pauses = []
    for _ in range(7):
        backoff.heard()
        backoff.failed()
        pauses.append(backoff.next())
    ceilings = (1, 2, 4, 8, 16, 30, 30)
    assert all(ceiling / 2 <= pause <= ceiling for pause, ceiling in zip(pauses, ceilings, strict=True))


async def test_a_doubt_is_settled_although_its_settling_met_a_defect(
    balancer: Balancer, a: Substation, monkeypatch: pytest.MonkeyPatch
) -> None:
    a.charging.lose_after = True
    fails_once(monkeypatch, balancer.desk, "settle")
    with capture_logs() as lines:
        response = await balancer.charge()
    assert response.session.session_id == session("a")
    assert not balancer.desk.doubts
    [defect] = [line for line in lines if line["log_level"] == "error"]
    assert defect["substation"] == "a"


# --- duplicates -----------------------------------------------------------------------------------------


def two_sessions(balancer: Balancer, survivor_attempt: int) -> None:
    """Of request-0: one on `a`, and one of a later attempt on `b`."""
    balancer.desk.index.replied(entry(0, "a", attempt_id=attempt_id(1)))
    balancer.desk.index.change("b", 1, 9, [entry(0, "b", sequence=9, epoch=1, attempt_id=attempt_id(survivor_attempt))])


async def test_a_duplicate_is_ended_for_the_survivor_of_the_moment(
    balancer: Balancer, a: Substation, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: balancer.desk.index.position("b") is not None)
    scanned: list[int] = []
    duplicates = balancer.desk.duplicates

    def spy(keys: list[Key]) -> Iterator[Duplicate]:
        scanned.append(len(keys))
        return duplicates(keys)

    monkeypatch.setattr(balancer.desk, "duplicates", spy)
    a.reports.refuses_to_end = True
    two_sessions(balancer, 2)
    with capture_logs() as lines:
        balancer.router.settled([], [key(number) for number in range(1_000)])
        await until(lambda: len(a.reports.asked_to_end) >= 3)
        two_sessions(balancer, 3)
        a.reports.refuses_to_end = False
        await until(lambda: not balancer.router._ending)
    assert [line["event"] for line in lines] == ["duplicate not ended", "duplicate ended"]
    assert (lines[-1]["substation"], lines[-1]["address"]) == ("a", a.address)
    assert lines[-1]["request_id"] == key().request_id
    assert a.reports.asked_to_end[0].survivor_attempt_id == attempt_id(2)
    assert a.reports.asked_to_end[-1].survivor_attempt_id == attempt_id(3)
    assert scanned == [1_000] + [1] * (len(scanned) - 1), "a retry looks at its own key"


@pytest.mark.parametrize("lost", [False, True], ids=["replied", "found"])
async def test_a_call_that_meets_an_ended_duplicate_is_answered_from_its_survivor(
    balancer: Balancer, a: Substation, b: Substation, lost: bool
) -> None:
    name, survivor = key().request_id, session("b")
    over = charging_pb2.Session(session_id=session("a"), attempt_id=attempt_id(9), duplicate_of=survivor)
    over.ended_at.FromMilliseconds(balancer.clock.now_ms())
    a.charging.sessions[name] = over
    a.charging.lose_after = lost
    b.charging.sessions[name] = charging_pb2.Session(session_id=survivor, attempt_id=attempt_id(9))
    response = await balancer.charge()
    assert (response.session.session_id, response.placement.substation_id) == (survivor, "b")
    assert (response.repeated, response.placement.policy) == (True, "repeat")
    assert (len(a.charging.attempts), a.reports.resolved) == (1, int(lost))
    await until(lambda: balancer.reserved() == 0)


# --- what an operator reads -----------------------------------------------------------------------------


def told(lines: Any, *events: str) -> list[tuple[str, str, str]]:  # noqa: ANN401
    return [(line["event"], line["substation"], line["address"]) for line in lines if line["event"] in events]


async def test_the_states_of_a_substation_are_told_once_each(a: Substation) -> None:
    with capture_logs() as lines:
        async with running(a) as balancer:
            a.reports.silent = True
            await until(lambda: a.reports.streams >= 3)
            await until(lambda: balancer.state(a) is ReportState.GONE)
            await until(lambda: bool(told(lines, "substation gone")))
            a.reports.silent = False
            await until(lambda: len(told(lines, "substation fresh")) == 2)
    events = ("substation fresh", "substation stale", "substation gone")
    assert told(lines, *events) == [
        (f"substation {state}", "a", a.address) for state in ("fresh", "stale", "gone", "fresh")
    ]
    stale, gone = [line for line in lines if line["event"] in {"substation stale", "substation gone"}]
    assert (stale["why"], gone["why"]) == ("silent", "silent")
    assert 0.3 <= stale["report_age_s"] < gone["report_age_s"]
    reports = [line for line in lines if line.get("stream") == "load reports"]
    assert [(line["event"], line["substation"]) for line in reports] == [
        ("stream ended", "a"),
        ("stream came back", "a"),
    ], "tries that end as the last one did are no news"


async def test_an_address_that_never_reported_is_told_once() -> None:
    silent = Substation("a")
    with capture_logs() as lines:
        other = Balancer(silent)
        other.subscriptions.start()
        await until(lambda: bool(lines))
        await other.subscriptions.stop()
        await other.peers.close()
    assert [(line["event"], line["address"]) for line in lines] == [("no report from this address yet", silent.address)]


@pytest.mark.parametrize(
    ("epoch_there", "why"),
    [(1, "both addresses are of one process"), (2, "a process that was started later has the same id there")],
)
async def test_a_second_address_that_reports_as_the_same_substation_is_told_once(
    a: Substation, epoch_there: int, why: str
) -> None:
    twin = Substation("a")
    sent = Counter[str]()

    def from_twin(report: load_pb2.LoadReport) -> None:
        report.epoch = epoch_there
        sent["twin"] += 1

    twin.reports.spoil, a.reports.spoil = from_twin, lambda _: sent.update("a")
    await twin.server.start()
    with capture_logs() as lines:
        async with running(twin, a) as balancer:
            await until(lambda: min(sent["a"], sent["twin"]) > 10)
            followed_at = balancer.desk.view.address_of("a")
    await twin.server.stop(0)
    [line] = [line for line in lines if line["log_level"] == "warning"]
    assert (line["event"], line["substation"], line["why"]) == ("substation is followed at another address", "a", why)
    assert {line["address"], line["followed_at"]} == {a.address, twin.address}
    assert line["followed_at"] == followed_at


async def test_a_new_life_of_a_substation_is_told(a: Substation) -> None:
    with capture_logs() as lines:
        async with running(a) as balancer:
            balancer.desk.reported(a.address, load("a", epoch=2), balancer.clock.now_ms())
            await until(lambda: bool(told(lines, "substation restarted")))
    assert told(lines, "substation restarted") == [("substation restarted", "a", a.address)]


async def test_a_doubt_is_told_when_it_opens_and_when_it_is_settled(balancer: Balancer, a: Substation) -> None:
    a.charging.lose_before = True
    with capture_logs() as lines:
        await balancer.charge()
    opened, settled = [line for line in lines if line["event"].startswith("doubt ")]
    for line in (opened, settled):
        assert (line["substation"], line["address"], line["request_id"]) == ("a", a.address, key().request_id)
        assert line["attempt"] == a.charging.attempts[0].attempt_id
    assert (opened["event"], settled["event"]) == ("doubt opened", "doubt settled")
    assert (settled["outcome"], settled["by"]) == ("fenced", "asking")
    assert settled["after_s"] < 5


async def test_an_ejection_and_its_end_are_told_once_each(balancer: Balancer, a: Substation) -> None:
    a.charging.lose_before = True
    with capture_logs() as lines:
        for number in range(8):
            await balancer.charge(number)
        a.charging.lose_before = False
        numbers = iter(range(8, 1_000))
        async with asyncio.timeout(10):
            while not told(lines, "substation back in"):
                await balancer.charge(next(numbers))
                await asyncio.sleep(0.05)
    events = ("substation ejected", "substation back in")
    assert told(lines, *events) == [(event, "a", a.address) for event in events]
