"""A limit is halved while 200 cars charge: granted power follows with the call, measured power with the cars."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gridmesh.v1 import load_pb2
from mesh.clock import seconds
from tests.mesh_processes import Mesh, wait_for
from tests.scenarios.asking import Server

CARS, RATED_KW = 200, 1_000.0
SCALE = 8
# A car acts within 5 s of charging; what is read of it is a little older.
OBEDIENCE_S = 5 / SCALE
SLACK_S = 1.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One substation of 1,000 kW with 200 cars that could take 2,200."""
    folder = tmp_path_factory.mktemp("mesh")
    with Mesh(folder, rated_kw=(RATED_KW,), charge_points=CARS, time_scale=SCALE) as running:
        substation = Server(running.start("a"), "a")
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda _: substation.charge(), range(CARS)))
        yield running


def test_a_cut_by_half_holds_from_the_reply_on_and_survives_a_kill(mesh: Mesh) -> None:
    substation = Server(mesh, "a")
    wait_for(lambda: substation.load().measured_kw > 0.9 * RATED_KW, 30, "the cars draw almost all there is")
    called = seconds()
    reply = substation.set_limit(RATED_KW / 2).load
    replied = seconds()
    assert (reply.limit_power_kw, reply.active_sessions) == (RATED_KW / 2, CARS)
    assert reply.granted_kw <= RATED_KW / 2, "granted is lowered with the call, not after it"
    assert reply.committed_kw > RATED_KW / 2, "what cars still hold counts"
    wait_for(lambda: substation.load().measured_kw <= RATED_KW / 2, OBEDIENCE_S + SLACK_S, "the cars obey")
    obeyed = seconds()
    print(f"replied after {(replied - called) * 1000:.0f} ms, obeyed after {(obeyed - called) * 1000:.0f} ms")  # noqa: T201
    assert substation.load().over_limit_seconds == 0

    substation.set_limit(RATED_KW / 4)
    mesh.kill9("a")
    mesh.restart("a")
    again = Server(mesh, "a").load()
    assert (again.limit_power_kw, again.limit_source) == (RATED_KW / 4, load_pb2.LIMIT_SOURCE_SO)
    assert (again.active_sessions, again.over_limit_seconds) == (CARS, 0)
    wait_for(lambda: Server(mesh, "a").load().measured_kw <= RATED_KW / 4, OBEDIENCE_S + SLACK_S, "the cars obey")
    assert mesh.metric("a", "substation_over_limit_seconds_total") == 0
