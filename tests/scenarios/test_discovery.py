"""Substations that are found by a name, whose answers the test gives: real processes, a balancer's parts in this one.

What a name leads to changes as it does with containers: more, fewer, and the same ones at other addresses.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from balancer.desk import Desk
from balancer.discovery import ABSENT_MS
from balancer.lookups import Lookups
from balancer.metrics import BalancerMetrics
from balancer.peers import Peer, Peers
from balancer.router import Router
from balancer.servicers import Forwarder
from balancer.subscriptions import Subscription, Subscriptions
from gridmesh.v1 import charging_pb2
from mesh.clock import SystemClock
from mesh.errors import Unavailable
from mesh.model import ErrorReason, ReportState
from tests.conftest import StartMesh
from tests.mesh_processes import Mesh, eventually
from tests.scenarios.asking import CAR

INTERVAL_MS = 200


class Later(SystemClock):
    """The system's clock, set forward by the test."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


class Follower:
    """A balancer without a server, which follows the name `substation`. `leads_to` are names of parts of the mesh."""

    def __init__(self, mesh: Mesh) -> None:
        clock, rng = SystemClock(), Random(1)
        self._mesh = mesh
        self.leads_to: Iterable[str] = ()
        self.desk, self.peers = Desk([], INTERVAL_MS, rng), Peers([], rng)
        metrics = BalancerMetrics(CollectorRegistry())
        self.router = Router(self.desk, self.peers, clock, rng, metrics)
        self.forwarder = Forwarder(self.desk, self.peers, clock, 5.0)
        self.clock = Later()

        def subscribe(peer: Peer) -> Subscription:
            return Subscription(peer, self.desk, clock, rng, INTERVAL_MS, metrics, lambda: None, self.router.settled)

        self.subscriptions = Subscriptions(self.peers, subscribe)
        self._lookups = Lookups(
            ["substation:1"], self._ask, self.desk, self.peers, self.subscriptions, self.clock, metrics
        )

    async def _ask(self, _: str) -> list[str]:
        if not self.leads_to:
            raise OSError("no answer")
        return [self._mesh.address(name) for name in self.leads_to]

    async def look(self, *leads_to: str, after_ms: int = 0) -> None:
        """The name leads there now; nowhere is an answer that did not come."""
        self.leads_to = leads_to
        self.clock.ahead_ms += after_ms
        await self._lookups.look()

    def at(self) -> dict[str, ReportState]:
        """The state of each part's address that is followed."""
        names = {self._mesh.address(name): name for name in self._mesh.substations}
        now = SystemClock().now_ms()
        return {names[known.address]: self.desk.view.state(known, now) for known in self.desk.view}

    async def until_fresh(self, *names: str) -> None:
        async def fresh() -> bool:
            return {name for name, state in self.at().items() if state is ReportState.FRESH} == set(names)

        await eventually(fresh, 10, f"{names} and no others are fresh")

    async def charge(self, request_id: str) -> charging_pb2.Session:
        return (await self.router.charge(charging_pb2.ChargeRequest(request_id=request_id, **CAR), 5.0)).session


@asynccontextmanager
async def following(mesh: Mesh) -> AsyncIterator[Follower]:
    follower = Follower(mesh)
    yield follower
    await follower.router.stop(1)
    await follower.subscriptions.stop()
    await follower.peers.close()


async def test_the_balancer_follows_a_name_as_substations_come_go_and_move(start_mesh: StartMesh) -> None:
    # `c` is the substation `a` at another address: what a container is after it was started anew.
    mesh = start_mesh("a", "b", settings={"c": {"ID": "a"}})
    async with following(mesh) as follower:
        await follower.look()
        with pytest.raises(Unavailable):
            await follower.charge("too-early")
        await follower.look("a")
        await follower.until_fresh("a")
        first = await follower.charge("first")
        await follower.look("a", "b")
        await follower.until_fresh("a", "b")
        assert (await follower.charge("second")).substation_id == "b"

        mesh.kill9("a")
        mesh.start("c")
        await follower.look("b", "c")
        await follower.until_fresh("b", "c")
        assert follower.at()["a"] is ReportState.NEVER_REPORTED, "nobody is there any more"
        assert (await follower.charge("first")).session_id == first.session_id
        peer, _ = follower.forwarder.for_session(first.session_id)
        assert peer.address == mesh.address("c")

        await follower.look(after_ms=ABSENT_MS + 1)
        assert set(follower.at()) == {"a", "b", "c"}, "no answer is no news"
        await follower.look("b", "c")
        assert set(follower.at()) == {"b", "c"}

        mesh.kill9("c")
        await follower.look("b")
        await follower.until_fresh("b")
        await follower.look("b", after_ms=ABSENT_MS + 1)
        assert set(follower.at()) == {"b"}
        with pytest.raises(Unavailable) as refused:
            follower.forwarder.for_session(first.session_id)
        assert refused.value.reason is ErrorReason.SUBSTATION_UNREACHABLE, "its session lives, wherever it is"
