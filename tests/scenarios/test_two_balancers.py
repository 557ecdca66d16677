"""Two balancers over the same substations: no plug is given twice, no key charges twice, and one may be lost.

RACES=1000 in the environment runs as many races instead of a hundred and fifty.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from signal import SIGCONT, SIGSTOP

import grpc
import httpx
import pytest

from gridmesh.v1 import charging_pb2, charging_pb2_grpc
from mesh.clock import seconds
from tests.mesh_processes import Mesh, eventually, wait_for
from tests.scenarios.asking import CAR, Server, new_key, post_car, refusal

BALANCERS = ("balancer", "balancer-2")
RACES = int(os.environ.get("RACES", "150"))
# As many at once as keep both balancers busy.
AT_ONCE = 20
ONE_LIVE_S = 2.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh")
    with Mesh(folder, rated_kw=(100_000.0,) * 3, charge_points=2_000, balancers=2) as running:
        yield running.start()


@pytest.fixture(scope="module")
def one_plug(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Three substations with one charge point each, of which two are taken."""
    with Mesh(tmp_path_factory.mktemp("one"), charge_points=1, balancers=2) as running:
        running.start(*running.substations, *running.balancers)
        for _ in range(2):
            Server(running, "balancer").charge()
        yield running


class Client:
    """One client of one balancer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.charging: charging_pb2_grpc.ChargingServiceAsyncStub = charging_pb2_grpc.ChargingServiceStub(channel)

    async def charge(self, key: str) -> str:
        """The session's id, or the reason of the refusal."""
        request = charging_pb2.ChargeRequest(request_id=key, **CAR)
        try:
            return (await self.charging.Charge(request, timeout=10)).session.session_id
        except grpc.aio.AioRpcError as error:
            return refusal(error).reason

    async def stop(self, session_id: str) -> None:
        await self.charging.StopSession(charging_pb2.StopSessionRequest(session_id=session_id), timeout=10)


def live(mesh: Mesh) -> dict[str, list[str]]:
    """Live sessions by request id, as the substations themselves say."""
    found: dict[str, list[str]] = {}
    for name in mesh.substations:
        for session in Server(mesh, name).sessions():
            found.setdefault(session.request_id, []).append(session.session_id)
    return found


async def test_of_two_cars_at_the_last_plug_exactly_one_wins(one_plug: Mesh) -> None:
    won: Counter[str] = Counter()
    async with one_plug.aio_channel(BALANCERS[0]) as left, one_plug.aio_channel(BALANCERS[1]) as right:
        clients = [Client(left), Client(right)]
        for _ in range(RACES):
            answers = await asyncio.gather(*(client.charge(new_key()) for client in clients))
            (winner,) = [answer for answer in answers if answer != "NO_CHARGE_POINT"]
            assert winner.split(".")[0] in one_plug.substations, answers
            won[BALANCERS[answers.index(winner)]] += 1
            await clients[answers.index(winner)].stop(winner)
            await eventually(lambda: both_see_a_plug(one_plug), 5, "both balancers know that the plug is free again")
    assert won.total() == RACES
    assert set(won) == set(BALANCERS), "neither is always first"


async def both_see_a_plug(mesh: Mesh) -> bool:
    return all(
        sum(s.report.free_charge_points for s in Server(mesh, balancer).substations()) == 1 for balancer in BALANCERS
    )


async def test_one_key_through_both_balancers_at_once_is_one_session(mesh: Mesh) -> None:
    keys = [f"twice-{number}" for number in range(RACES)]
    told: dict[str, list[str]] = {}
    async with mesh.aio_channel(BALANCERS[0]) as left, mesh.aio_channel(BALANCERS[1]) as right:
        clients = [Client(left), Client(right)]
        for first in range(0, RACES, AT_ONCE):
            batch = keys[first : first + AT_ONCE]
            answers = await asyncio.gather(*(client.charge(key) for key in batch for client in clients))
            told |= {key: list(answers[2 * i : 2 * i + 2]) for i, key in enumerate(batch)}
        wait_for(lambda: all(len(ids) == 1 for ids in live(mesh).values()), ONE_LIVE_S, "no key has two live sessions")
        now = live(mesh)
        assert sorted(now) == sorted(keys)
        # Also for who was told of the one that ended.
        for key in keys[::10]:
            for client in clients:
                assert [await client.charge(key)] == now[key]
    assert all(answer.split(".")[0] in mesh.substations for answers in told.values() for answer in answers)
    assert sum(mesh.metric(name, "balancer_reserved_watts") for name in BALANCERS) == 0
    assert len({each for ids in told.values() for each in ids}) >= RACES


def wait_until_told(mesh: Mesh, balancer: str, what: str) -> None:
    """The last that the gateway said of this balancer is that."""

    def told() -> bool:
        lines = [line for line in mesh.log("gateway").splitlines() if f" address={mesh.address(balancer)} " in line]
        return bool(lines) and what in lines[-1]

    wait_for(told, 5, f"{balancer}: {what}")


def test_the_gateway_goes_on_when_a_balancer_is_killed(mesh: Mesh) -> None:
    with httpx.Client(base_url=mesh.url, timeout=10, trust_env=False) as http:
        for _ in range(4):
            assert post_car(http).status_code == 201
        mesh.kill9("balancer")
        # Not one of them has to be repeated: what was lost on the way was sent again through the other one.
        assert [post_car(http).status_code for _ in range(20)] == [201] * 20
        assert http.get("/readyz").status_code == 200
        mesh.start("balancer")
        wait_until_told(mesh, "balancer", "connected=True")
        mesh.kill9("balancer-2")
        assert [post_car(http).status_code for _ in range(20)] == [201] * 20
        mesh.start("balancer-2")


def test_the_gateway_goes_on_when_a_balancer_stands_still(mesh: Mesh) -> None:
    with httpx.Client(base_url=mesh.url, timeout=10, trust_env=False) as http:
        wait_until_told(mesh, "balancer-2", "connected=True")
        mesh.signal("balancer", SIGSTOP)
        try:
            wait_until_told(mesh, "balancer", "answers=False")
            started = seconds()
            assert [post_car(http).status_code for _ in range(20)] == [201] * 20
            assert seconds() - started < 4, "nobody waits for the one that stands still"
        finally:
            mesh.signal("balancer", SIGCONT)
        wait_until_told(mesh, "balancer", "answers=True")


def test_a_balancer_that_cannot_reach_the_substations_is_not_the_last_word(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    nowhere = {"balancer-2": {"SUBSTATIONS": "127.0.0.1:9"}}
    with Mesh(tmp_path_factory.mktemp("mesh"), balancers=2, settings=nowhere) as half:
        half.start(*half.substations, "balancer")
        half.spawn("balancer-2")
        wait_for(lambda: half.serving("balancer-2"), 10)
        half.start("gateway")
        assert [post_car(half.http).status_code for _ in range(6)] == [201] * 6
        assert refused_by(half, "balancer-2") == "NO_SUBSTATION"


def refused_by(mesh: Mesh, name: str) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        Server(mesh, name).charge()
    return refusal(caught.value).reason
