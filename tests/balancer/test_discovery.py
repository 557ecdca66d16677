"""Names of substations: what their answers add and drop, on a clock of the test's."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from random import Random

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from balancer.desk import Desk, Doubt, Fenced
from balancer.discovery import ABSENT_MS, Membership, name_of
from balancer.lookups import Lookups, resolve
from balancer.metrics import BalancerMetrics
from balancer.peers import Peers
from balancer.pick import FULL_SCAN, Pick
from balancer.settings import BalancerSettings
from balancer.subscriptions import Subscriptions
from mesh import settings
from mesh.clock import SystemClock
from mesh.errors import Unavailable
from tests.balancer.makers import INTERVAL, NOW, address, attempt_id, charge, desk_of, key, load

NAME = "substation:50061"


@pytest.mark.parametrize("target", ["dns:substation:50061", "dns:///substation:50061"])
def test_a_name_is_written_as_grpc_writes_it(target: str) -> None:
    assert name_of(target) == NAME
    assert name_of(NAME) is None
    loaded = settings.load(BalancerSettings, "BALANCER", [], {"BALANCER_SUBSTATIONS": target})
    assert loaded.substations == (target,)


@pytest.mark.parametrize("target", ["dns:", "dns:substation", "dns:///substation:0", "dns:substation:port"])
def test_a_name_without_a_port_is_refused_at_the_start(target: str) -> None:
    with pytest.raises(settings.StartupError, match="BALANCER_SUBSTATIONS"):
        settings.load(BalancerSettings, "BALANCER", [], {"BALANCER_SUBSTATIONS": target})


def test_an_address_is_new_once_and_expires_when_no_answer_has_named_it_for_a_while() -> None:
    members = Membership()
    assert members.resolved(NAME, ["a:1", "b:1"], NOW) == ["a:1", "b:1"]
    assert members.resolved(NAME, ["b:1", "c:1"], NOW + 1) == ["c:1"]
    assert (list(members.absent), members.expired(NOW + ABSENT_MS)) == (["a:1"], [])
    assert members.expired(NOW + 1 + ABSENT_MS) == ["a:1"]
    members.dropped("a:1")
    assert not members.absent
    assert members.resolved(NAME, ["a:1"], NOW + 2) == ["a:1"], "back after it was dropped"


def test_one_that_is_named_again_in_time_was_never_away() -> None:
    members = Membership()
    members.resolved(NAME, ["a:1"], NOW)
    members.resolved(NAME, [], NOW)
    assert members.resolved(NAME, ["a:1"], NOW + ABSENT_MS - 1) == []
    members.resolved(NAME, [], NOW + ABSENT_MS)
    assert members.expired(NOW + ABSENT_MS) == []


def test_what_one_name_leads_to_is_not_dropped_for_another_ones_answer() -> None:
    members = Membership(["fixed:1"])
    assert members.resolved(NAME, ["a:1", "fixed:1"], NOW) == ["a:1"]
    assert members.resolved("other:1", ["a:1", "b:1"], NOW) == ["b:1"]
    members.resolved(NAME, [], NOW)
    assert not members.absent
    members.resolved("other:1", [], NOW)
    assert set(members.absent) == {"a:1", "b:1"}, "what was given as an address is nobody's to drop"


def test_an_address_is_kept_while_a_doubt_may_have_to_be_settled_there() -> None:
    desk = desk_of(load("a"), load("b"))
    silent = NOW + 10 * INTERVAL + 1
    reservation = desk.view.reserve(address("a"), key(), 11_000, NOW)
    doubt = desk.doubts[key()] = Doubt(key(), address("a"), "a", attempt_id(), NOW, reservation)
    # The substation is heard of at another address; the doubt may still have to be settled at the first.
    desk.add("elsewhere:1")
    desk.reported("elsewhere:1", load("a", epoch=NOW + 1), NOW)
    assert [desk.removable(known.address, silent) for known in desk.view] == [False, True, False]
    desk.settle(doubt, Fenced(), silent)
    assert [desk.removable(known.address, silent) for known in desk.view] == [True, True, True]


def test_a_substation_that_was_removed_is_not_picked_and_one_that_was_added_is() -> None:
    desk = desk_of(load("a"))
    for _ in range(7):
        desk.ejections.failed(address("a"), NOW)
    desk.remove(address("a"))
    assert isinstance(desk.picker.pick(charge(), NOW), Unavailable)
    desk.add(address("b"))
    desk.reported(address("b"), load("b"), NOW)
    picked = desk.picker.pick(charge(), NOW)
    assert isinstance(picked, Pick)
    assert picked.substation_id == "b"


def test_many_that_come_one_after_the_other_are_all_picked_from() -> None:
    desk = Desk([], INTERVAL, Random(1))
    names = [f"s{number}" for number in range(FULL_SCAN + 2)]
    for name in names:
        desk.add(address(name))
        desk.reported(address(name), load(name, demand_w=0 if name == names[-1] else 90_000), NOW)
        picked = desk.picker.pick(charge(), NOW)
        assert isinstance(picked, Pick)
    picks = [desk.picker.pick(charge(), NOW + 101) for _ in range(20)]
    assert names[-1] in {pick.substation_id for pick in picks if isinstance(pick, Pick)}


async def test_the_systems_resolver_is_asked() -> None:
    assert "127.0.0.1:50061" in await resolve("localhost:50061")
    assert await resolve("[::1]:50061") == {"[::1]:50061"}
    with pytest.raises(OSError, match=r"\w"):
        await resolve("nobody.invalid:50061")


class Idle:
    """A subscription that follows nobody."""

    def __init__(self) -> None:
        self.reported = asyncio.Event()

    async def run(self) -> None:
        await asyncio.Event().wait()


class Clock(SystemClock):
    """The test sets it."""

    now = NOW

    def now_ms(self) -> int:
        return self.now


class Rig:
    """Lookups whose answers the test gives, beside a desk that hears nothing by itself."""

    def __init__(self) -> None:
        self.answer: Iterable[str] | OSError = ()
        self.registry, self.clock = CollectorRegistry(), Clock()
        self.desk, self.peers = Desk([], INTERVAL, Random(1)), Peers([], Random(1))
        self.subscriptions = Subscriptions(self.peers, lambda _: Idle())  # type: ignore[arg-type, return-value]
        self.lookups = Lookups(
            [NAME], self._ask, self.desk, self.peers, self.subscriptions, self.clock, BalancerMetrics(self.registry)
        )

    async def _ask(self, _: str) -> Iterable[str]:
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer

    async def look(self, *addresses: str, after_ms: int = 0) -> list[str]:
        """The addresses in use after that answer."""
        self.clock.now += after_ms
        self.answer = addresses
        await self.lookups.look()
        return [known.address for known in self.desk.view]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.subscriptions.stop()
    await rig.peers.close()


async def test_a_name_that_does_not_resolve_is_told_once_and_changes_nothing(rig: Rig) -> None:
    with capture_logs() as lines:
        await rig.look("127.0.0.1:9")
        rig.answer = socket.gaierror(-2, "Name or service not known")
        for _ in range(3):
            rig.clock.now += ABSENT_MS
            await rig.lookups.look()
        assert [known.address for known in rig.desk.view] == ["127.0.0.1:9"]
        await rig.look("127.0.0.1:9")
    assert [line["event"] for line in lines] == [
        "substation address found", "the name of the substations does not resolve", "the name resolves again",
    ]  # fmt: skip
    assert rig.registry.get_sample_value("balancer_lookups_total", {"result": "failed"}) == 3


async def test_one_that_no_answer_names_is_kept_while_it_reports_or_is_being_called(rig: Rig) -> None:
    here, there = "127.0.0.1:9", "127.0.0.2:9"
    await rig.look(here, there)
    rig.desk.reported(here, load("a"), NOW)
    await rig.look(there)
    rig.clock.now += ABSENT_MS
    rig.desk.reported(here, load("a", sequence=2), rig.clock.now)
    assert await rig.look(there) == [here, there]
    silent_ms = 3 * INTERVAL + 1
    with rig.peers[here].in_use():
        assert await rig.look(there, after_ms=silent_ms) == [here, there]
    assert await rig.look(there) == [there]
    assert [peer.address for peer in rig.peers] == [there]
