"""The engine in real time: a real ledger, a plant that the test is in control of."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from mesh.charge import Charge
from mesh.clock import Clock, SystemClock
from mesh.errors import Unavailable
from mesh.model import ErrorReason, LimitSource, NotAccepting, SessionState, StopReason
from mesh.outlook import NOTHING
from substation.cars import Plugged
from substation.engine import Engine, find_cars
from substation.events import CarEvent, Confirmed, Event, Reading
from substation.ledger import Ledger
from substation.limits import Limit
from substation.metrics import SubstationMetrics
from substation.sessions import Offer, Session
from substation.station import Station, StationConfig
from tests.substation.rig import a_charge, an_attempt


class Plant:
    """Writes down what it is told."""

    def __init__(self, readings: Iterable[Reading] = ()) -> None:
        self.told: list[tuple[str, object]] = []
        self.readings = list(readings)
        self.say: Callable[[list[CarEvent]], None] = lambda _: None

    def start(self, listener: Callable[[list[CarEvent]], None]) -> None:
        self.say = listener

    def recover(self, plugged: Iterable[Plugged], now: int) -> list[Reading]:
        self.told += [("found", car) for car in plugged]
        return self.readings

    def read(self) -> list[Reading]:
        return self.readings

    def plug_in(self, plugged: Plugged) -> None:
        self.told.append(("plugged", plugged))

    def offer(self, session_id: str, offer: Offer) -> None:
        self.told.append(("offered", offer.power_w))

    def open(self, session_id: str) -> None:
        self.told.append(("opened", session_id))

    def stop(self) -> None:
        self.told.append(("stopped", None))

    def offers(self) -> list[object]:
        return [what for kind, what in self.told if kind == "offered"]


@asynccontextmanager
async def an_engine(
    folder: Path, plant: Plant, rated_w: int = 22_000, clock: Clock | None = None
) -> AsyncIterator[Engine]:
    clock = clock or SystemClock()
    ledger = Ledger(folder / "ledger.db")
    memory = ledger.recall(clock.now_ms())
    find_cars(plant, memory.sessions, clock.now_ms())
    station = Station(StationConfig("a", rated_w, 10), Random(1), clock.now_ms(), memory)
    epoch = ledger.next_epoch(clock.now_ms())
    engine = Engine(station, plant, ledger, clock, SubstationMetrics(CollectorRegistry()), epoch)
    engine.start()
    try:
        yield engine
    finally:
        engine.shut()
        await engine.stop()


async def charge(engine: Engine, charge: Charge) -> tuple[Session, bool]:
    """The session, on disk, and whether the key was known."""
    taken = await engine.together(lambda now: engine.admit(charge, now))
    return engine.outcome(taken), taken.repeated


async def repeated_item(engine: Engine, charge: Charge) -> Session:
    """As an item of a batch is repeated, at once."""
    taken = engine.repeat(charge.key, charge.body, charge.attempt_id, SystemClock().now_ms())
    await engine.written()
    return engine.outcome(taken)


def rows(folder: Path) -> dict[str, Session]:
    """What a process that starts now would find."""
    ledger = Ledger(folder / "ledger.db")
    try:
        return {session.session_id: session for session in ledger.recall(SystemClock().now_ms()).sessions}
    finally:
        ledger.close()


def protect_disk(engine: Engine, protected: bool) -> None:
    """SQLite itself refuses every write."""
    engine._ledger._db.execute(f"PRAGMA query_only = {int(protected)}")


@asynccontextmanager
async def a_slow_disk(engine: Engine) -> AsyncIterator[None]:
    """Nothing is written until the end."""
    written = threading.Event()
    engine._writer.submit(written.wait)
    try:
        yield
    finally:
        written.set()


async def until(condition: Callable[[], bool], bound_s: float) -> None:
    async with asyncio.timeout(bound_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_session_is_on_disk_before_the_reply_and_its_car_hears_of_it_after(tmp_path: Path) -> None:
    plant = Plant()
    async with an_engine(tmp_path, plant) as engine:
        session, repeated = await charge(engine, a_charge())
        assert not repeated
        assert rows(tmp_path)[session.session_id].granted_w == 11_000
        assert [kind for kind, _ in plant.told] == ["plugged", "offered"]
        plugged = plant.told[0][1]
        assert isinstance(plugged, Plugged)
        assert (plugged.held_w, plugged.lease_until_ms) == (0, 0)


async def test_an_admission_whose_caller_went_away_is_counted_all_the_same(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        async with a_slow_disk(engine):
            caller = asyncio.create_task(charge(engine, a_charge()))
            await until(lambda: bool(engine._station.sessions()), 2)
            caller.cancel()
        admitted = engine._metrics.sessions.labels("admitted", "")
        await until(lambda: admitted._value.get() == 1, 2)
        assert (await charge(engine, a_charge()))[1]
        assert admitted._value.get() == 1


async def test_a_raise_reaches_a_car_only_once_the_ledger_knows_of_it(tmp_path: Path) -> None:
    plant = Plant()
    async with an_engine(tmp_path, plant, rated_w=11_000) as engine:
        first, _ = await charge(engine, a_charge("1"))
        await charge(engine, a_charge("2"))
        assert plant.offers() == [11_000, 5_500]
        plant.say([Confirmed(first.session_id, 2)])
        assert plant.offers() == [11_000, 5_500]
        await until(lambda: plant.offers() == [11_000, 5_500, 5_500], 2)
        assert sum(session.committed_w for session in rows(tmp_path).values()) == 11_000


async def test_a_raise_to_what_a_commit_under_way_takes_off_the_books_waits_for_the_next_one(tmp_path: Path) -> None:
    plant = Plant()
    async with an_engine(tmp_path, plant, rated_w=11_000) as engine:
        first, _ = await charge(engine, a_charge("1"))
        second, _ = await charge(engine, a_charge("2"))
        plant.say([Confirmed(first.session_id, 2)])
        while engine._batch:
            await asyncio.sleep(0)
        # The ledger still says 11 kW of the first car, and will say 5.5 in a moment.
        stop = asyncio.create_task(engine.stop_session(second.session_id, StopReason.REMOTE))
        await asyncio.sleep(0)
        assert plant.offers() == [11_000, 5_500]
        await stop
        await until(lambda: plant.offers()[-1] == 11_000, 2)
        assert rows(tmp_path)[first.session_id].held_w == 11_000


async def test_a_cut_reaches_the_cars_without_waiting_for_the_disk(tmp_path: Path) -> None:
    plant = Plant()
    async with an_engine(tmp_path, plant) as engine:
        await charge(engine, a_charge())
        task = asyncio.create_task(engine.set_limit(Limit(LimitSource.SO, 5_000, 0)))
        await asyncio.sleep(0)
        assert plant.offers() == [11_000, 5_000]
        await task


async def test_that_a_cut_is_complied_with_is_written_at_once(tmp_path: Path) -> None:
    """What the ledger holds of the cars counts after a restart, which would be over the limit again."""
    plant = Plant()
    async with an_engine(tmp_path, plant) as engine:
        session, _ = await charge(engine, a_charge())
        await engine.set_limit(Limit(LimitSource.SO, 5_000, 0))
        assert rows(tmp_path)[session.session_id].held_w == 11_000
        plant.say([Confirmed(session.session_id, 2)])
        await until(lambda: rows(tmp_path)[session.session_id].held_w == 5_000, 2)


async def test_a_limit_that_begins_later_waits_for_no_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hour_s = 3600
    plant = Plant()
    async with an_engine(tmp_path, plant) as engine:
        await charge(engine, a_charge())
        monkeypatch.setattr("substation.engine.TURN_S", hour_s)
        monkeypatch.setattr("substation.engine._TURN_MS", hour_s * 1000)
        await engine.set_limit(Limit(LimitSource.SO, 5_000, SystemClock().now_ms() + 200))
        assert plant.offers() == [11_000]
        await until(lambda: plant.offers() == [11_000, 5_000], 5)


async def test_an_admission_that_the_disk_did_not_take_is_undone_and_reported(tmp_path: Path) -> None:
    plant = Plant()
    async with an_engine(tmp_path, plant) as engine:
        live, _ = await charge(engine, a_charge("live"))
        protect_disk(engine, True)
        with pytest.raises(Unavailable) as caught:
            await charge(engine, a_charge("lost", max_w=7_000))
        assert caught.value.reason is ErrorReason.OUTCOME_UNKNOWN
        load = engine.report().load
        assert (load.not_accepting, load.active_sessions) == (NotAccepting.LEDGER, 1)
        with pytest.raises(Unavailable) as caught:
            await charge(engine, a_charge("refused"))
        assert caught.value.reason is ErrorReason.LEDGER_UNAVAILABLE
        assert engine.shown.session(live.session_id).state is SessionState.CHARGING
        protect_disk(engine, False)
        await until(lambda: not engine.report().load.not_accepting, 5)
        again, repeated = await charge(engine, a_charge("lost", max_w=7_000))
        assert not repeated
        assert set(rows(tmp_path)) == {live.session_id, again.session_id}


def bound_ledger(engine: Engine, pages: int) -> None:
    """SQLite finds the disk full beyond so many pages; it never cuts the file."""
    engine._ledger._db.execute(f"PRAGMA max_page_count = {pages}")


async def test_a_full_disk_stops_admissions_but_not_the_cars_and_is_recovered_from(tmp_path: Path) -> None:
    plant = Plant()
    async with an_engine(tmp_path, plant) as engine:
        live, _ = await charge(engine, a_charge("live"))
        bound_ledger(engine, 1)
        with pytest.raises(Unavailable) as caught:
            await charge(engine, a_charge("large", body=bytes(100_000)))
        assert (caught.value.reason, "full" in engine._ledger_error) == (ErrorReason.OUTCOME_UNKNOWN, True)
        assert engine.report().load.not_accepting is NotAccepting.LEDGER
        assert not engine.ledger_works
        plant.say([Confirmed(live.session_id, 1), Reading(live.session_id, 10_000, 5_000)])
        await until(lambda: engine.report().load.measured_w == 10_000, 1)
        bound_ledger(engine, 1_000_000)
        await until(lambda: engine.ledger_works, 5)
        assert not engine.report().load.not_accepting
        large, repeated = await charge(engine, a_charge("large", body=bytes(100_000)))
        assert (repeated, set(rows(tmp_path))) == (False, {live.session_id, large.session_id})


async def test_a_repeat_of_an_admission_that_failed_does_not_bring_it_back(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        protect_disk(engine, True)
        async with a_slow_disk(engine):
            first = asyncio.create_task(charge(engine, a_charge(attempt=1)))
            await until(lambda: bool(engine._station.sessions()), 2)
            # The commit of the admission is under way: its repeat, an item of a batch, waits for the next one.
            second = asyncio.create_task(repeated_item(engine, a_charge(attempt=2)))
            await until(lambda: bool(engine._batch.waiting), 2)
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert [getattr(outcome, "reason", None) for outcome in outcomes] == [ErrorReason.OUTCOME_UNKNOWN] * 2
        protect_disk(engine, False)
        await until(lambda: not engine.report().load.not_accepting, 5)
        assert rows(tmp_path) == {}
        assert engine.shown.admissions_after(0) == []


async def test_a_repeat_that_raises_the_attempt_of_what_has_ended_is_shown_once_it_is_on_disk(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        session, _ = await charge(engine, a_charge(attempt=1))
        ended = await engine.stop_session(session.session_id, StopReason.REMOTE)
        async with a_slow_disk(engine):
            repeat = asyncio.create_task(repeated_item(engine, a_charge(attempt=2)))
            await until(lambda: engine._station.session(session.session_id).attempt_id == an_attempt(2), 2)
            assert not engine.repeat(session.charge.key, b"body", an_attempt(2), SystemClock().now_ms()).kept
            assert engine.shown.session(session.session_id).attempt_id == an_attempt(1)
        raised = await repeat
        assert (raised.attempt_id, raised.ended_ms) == (an_attempt(2), ended.ended_ms)
        assert engine.shown.session(session.session_id) is raised
        assert rows(tmp_path)[session.session_id].attempt_id == an_attempt(2)
        # What was said of it before stays as it was said.
        entries = engine.shown.admissions_after(0) or []
        assert [(entry.attempt_id, entry.live) for entry in entries] == [
            (an_attempt(1), True),
            (an_attempt(1), False),
            (an_attempt(2), False),
        ]


async def test_a_raised_attempt_that_the_disk_did_not_take_is_not_shown(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        session, _ = await charge(engine, a_charge(attempt=1))
        await engine.stop_session(session.session_id, StopReason.REMOTE)
        protect_disk(engine, True)
        with pytest.raises(Unavailable):
            await repeated_item(engine, a_charge(attempt=2))
        assert engine.shown.session(session.session_id).attempt_id == an_attempt(1)
        protect_disk(engine, False)
        await until(lambda: engine.shown.session(session.session_id).attempt_id == an_attempt(2), 5)
        assert rows(tmp_path)[session.session_id].attempt_id == an_attempt(2)


async def test_after_a_restart_the_meters_are_read_and_registers_have_not_gone_back(tmp_path: Path) -> None:
    plant = Plant()
    async with an_engine(tmp_path, plant) as engine:
        session, _ = await charge(engine, a_charge())
        plant.say([Confirmed(session.session_id, 1), Reading(session.session_id, 10_000, 5_000)])
        await until(lambda: engine.shown.session(session.session_id).delivered_mj > 5_000, 3)
        before = engine.shown.session(session.session_id).delivered_mj
    again = Plant([Reading(session.session_id, 9_000, 77_000_000_000)])
    async with an_engine(tmp_path, again) as engine:
        shown = engine.shown.session(session.session_id)
        found = again.told[0][1]
        assert isinstance(found, Plugged)
        assert (found.power_w, found.held_w) == (10_000, 11_000)
        assert found.register_mj >= before
        assert (shown.measured_w, shown.delivered_mj) == (9_000, 77_000_000_000)
        assert await charge(engine, a_charge()) == (engine.shown.session(session.session_id), True)


async def test_after_a_restart_with_a_clock_that_was_set_back_cars_are_found_now_and_not_in_the_future(
    tmp_path: Path,
) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        session, _ = await charge(engine, a_charge())
    back = SystemClock().now_ms() - 300_000
    plant = Plant([Reading(session.session_id, 0, 0)])
    find_cars(plant, rows(tmp_path).values(), back)
    found = plant.told[0][1]
    assert isinstance(found, Plugged)
    assert found.at_ms == back


async def test_limits_drain_fences_and_endings_survive_a_restart(tmp_path: Path) -> None:
    attempt = "00000005-0000-7000-8000-000000000000"
    limit = Limit(LimitSource.EMS, 9_000, 0, None, "agreed")
    async with an_engine(tmp_path, Plant()) as engine:
        session, _ = await charge(engine, a_charge())
        await engine.stop_session(session.session_id, StopReason.LOCAL)
        await engine.set_limit(limit)
        await engine.drain(True)
        assert await engine.resolve(a_charge("unknown").key, attempt) == attempt
        assert await engine.resolve(a_charge().key, attempt) == engine.shown.session(session.session_id)
        epoch = engine.epoch
    async with an_engine(tmp_path, Plant()) as engine:
        assert engine.epoch > epoch
        assert engine.limits() == [limit]
        assert engine.report().load.not_accepting is NotAccepting.DRAINING
        assert engine.shown.session(session.session_id).stop_reason is StopReason.LOCAL
        assert await engine.resolve(a_charge("unknown").key, attempt) == attempt


class _Later(SystemClock):
    """Two hours have passed."""

    def now_ms(self) -> int:
        return super().now_ms() + 7_200_000


async def test_a_limit_that_ended_while_the_substation_was_down_is_not_shown(tmp_path: Path) -> None:
    lasting, ends_ms = Limit(LimitSource.SO, 5_000, 0), SystemClock().now_ms() + 3_600_000
    async with an_engine(tmp_path, Plant()) as engine:
        await engine.set_limit(lasting)
        await engine.set_limit(Limit(LimitSource.EMS, 4_000, 0, ends_ms))
        assert [limit.source for limit in engine.limits()] == [LimitSource.EMS, LimitSource.SO]
    async with an_engine(tmp_path, Plant(), clock=_Later()) as engine:
        assert engine.limits() == [lasting]


async def test_a_start_forgets_what_is_old_without_waiting_for_an_hour(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        old, _ = await charge(engine, a_charge())
        await engine.stop_session(old.session_id, StopReason.LOCAL)
        engine._ledger._db.execute("UPDATE sessions SET ended_ms = 1")
    async with an_engine(tmp_path, Plant()) as engine:
        await charge(engine, a_charge("new"))
        assert [session.session_id for session in engine._ledger.history()] == [old.session_id]


async def test_the_stream_of_admissions_can_be_resumed_where_it_broke(tmp_path: Path) -> None:
    async with an_engine(tmp_path, Plant()) as engine:
        sessions = [(await charge(engine, a_charge(name)))[0] for name in ("1", "2")]
        snapshot, position = engine.shown.admission_snapshot()
        assert [s.session_id for s in snapshot] == [s.session_id for s in sessions]
        ended = await engine.end_duplicate(sessions[0].session_id, "b.x", "ffffffff-0000-7000-8000-000000000000")
        assert ended.duplicate_of == "b.x"
        assert engine.shown.admissions_after(position) == [ended]
        assert len(engine.shown.admissions_after(0) or ()) == 3


async def test_a_watcher_is_woken_by_changes_of_its_own_session_only(tmp_path: Path) -> None:
    plant = Plant()
    async with an_engine(tmp_path, plant, rated_w=50_000) as engine:
        mine, _ = await charge(engine, a_charge("mine"))
        news = engine.shown.watch(mine.session_id)
        other, _ = await charge(engine, a_charge("other"))
        assert not news.is_set()
        plant.say([Reading(other.session_id, 9_000, 0)])
        assert not news.is_set()
        plant.say([Reading(mine.session_id, 9_000, 0)])
        assert news.is_set()
        engine.shown.unwatch(mine.session_id, news)


async def test_a_scrape_reads_what_was_published_and_asks_nothing_of_the_station(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from another thread, in which the station's sessions may change at any moment."""
    registry = CollectorRegistry()
    async with an_engine(tmp_path, Plant()) as engine:
        await charge(engine, a_charge())
        SubstationMetrics(registry).show(lambda: engine.load, 60, lambda: engine.shown.delivered_mj // 1000)
        with monkeypatch.context() as scrape:
            scrape.setattr(engine, "_station", None)
            assert registry.get_sample_value("substation_committed_watts") == 11_000
            assert registry.get_sample_value("substation_time_scale") == 60


async def test_a_defect_breaks_the_engine_for_all_to_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant = Plant()
    async with an_engine(tmp_path, plant) as engine:
        session, _ = await charge(engine, a_charge())
        monkeypatch.setattr(engine._station, "heard", lambda *_: 1 // 0)
        plant.say([Reading(session.session_id, 1, 1)])
        assert isinstance(engine.broken.exception(), ZeroDivisionError)


async def test_what_many_cars_say_at_once_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, looks = Plant(), 0

    def counted(station: Station) -> list[Event]:
        nonlocal looks
        looks += 1
        return settle(station)

    settle = Station.settle
    async with an_engine(tmp_path, plant) as engine:
        session, _ = await charge(engine, a_charge("car"))
        monkeypatch.setattr(Station, "settle", counted)
        for power_w in range(10_000, 10_200):
            plant.say([Reading(session.session_id, power_w, 5_000)])
        assert looks <= 20, "a look at every session for each word would take as many as there are sessions, squared"
        await until(lambda: engine.report().load.measured_w == 10_199, 1)
        monkeypatch.undo()


async def test_what_is_promised_follows_who_comes_and_goes_at_once(tmp_path: Path) -> None:
    def promised_mj() -> float:
        # At the end of the hours ahead: all that the cars want, whatever the time now.
        return engine.report().ahead.evenly_mj[-1]

    async with an_engine(tmp_path, Plant()) as engine:
        assert engine.report().ahead == NOTHING
        first, _ = await charge(engine, a_charge("1"))
        assert promised_mj() == pytest.approx(36_000_000_000)
        second, _ = await charge(engine, a_charge("2"))
        assert promised_mj() == pytest.approx(72_000_000_000)
        await engine.stop_session(first.session_id, StopReason.REMOTE)
        assert promised_mj() == pytest.approx(36_000_000_000)
        await engine.stop_session(second.session_id, StopReason.REMOTE)
        assert engine.report().ahead == NOTHING
