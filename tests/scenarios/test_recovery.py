"""Processes die and come back: no session is lost or doubled, no register goes back, and every answer is right."""

from collections import Counter
from collections.abc import Iterator
from signal import SIGCONT, SIGSTOP

import grpc
import httpx
import pytest

from gridmesh.v1 import charging_pb2
from tests.mesh_processes import Mesh, wait_for
from tests.scenarios.asking import CAR, Refusal, Server, new_key, post_car, problem, refusal
from tests.scenarios.traffic import traffic

PARTS = ("a", "b", "c", "balancer", "gateway")
SUBSTATIONS = ("a", "b", "c")
BACK_S = 2.0
# Until a balancer knows that a silent substation is stale: three intervals of a second, and some.
STALE_S = 6.0

Registers = dict[str, float]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("mesh"), rated_kw=(1000.0,) * 3, charge_points=2000) as running:
        yield running.start()


@pytest.fixture
def mesh(running: Mesh) -> Mesh:
    """Whole again, whatever the test before left."""
    if dead := [name for name in PARTS if not running.alive(name)]:
        running.start(*dead)
    running.wait_ready("balancer")
    running.wait_ready("gateway")
    for name in SUBSTATIONS:
        wait_until_reached(running, name)
    return running


def wait_until_reached(mesh: Mesh, name: str) -> None:
    """A restarted substation is known from before, and connected to within a second or so."""

    def reached() -> bool:
        page = mesh.http.get("/v1/charges", params={"substation_id": name, "page_size": 1})
        return page.status_code == 200 and "unreachable_substation_ids" not in page.json()

    wait_for(reached, BACK_S, f"the balancer reaches {name}")


def registers(mesh: Mesh, *names: str) -> Registers:
    """Of the sessions that these substations say they have, live or ended."""
    return {s.session_id: s.delivered_kwh for name in names for s in Server(mesh, name).sessions(include_ended=True)}


def only_forward(before: Registers, after: Registers) -> None:
    """All are there, and none went back."""
    assert [session_id for session_id in before if session_id not in after] == []
    assert [session_id for session_id in before if after[session_id] < before[session_id]] == []


def doubled(mesh: Mesh) -> list[tuple[str, str]]:
    """Keys with more than one live session."""
    live = [session for name in SUBSTATIONS for session in Server(mesh, name).sessions()]
    keys = Counter((session.owner, session.request_id) for session in live)
    return [key for key, number in keys.items() if number > 1]


def shown(mesh: Mesh, session_id: str) -> bool:
    """The balancer can be asked about it."""
    try:
        return Server(mesh, "balancer").session(session_id).session_id == session_id
    except grpc.RpcError as error:
        said = refusal(error)
    assert said.code == "UNAVAILABLE", said
    return False


def refused(mesh: Mesh, name: str, **said: object) -> Refusal:
    with pytest.raises(grpc.RpcError) as caught:
        Server(mesh, name).charge(**said)  # type: ignore[arg-type]
    return refusal(caught.value)


def test_a_substation_dies_under_traffic_and_comes_back(mesh: Mesh) -> None:
    with traffic(mesh) as told:
        wait_for(lambda: min(len(told.on(name)) for name in SUBSTATIONS) >= 20, 20, "all three have cars")
        # Of what clients were shown, not only of what is on disk.
        before = registers(mesh, "a")
        mesh.kill9("a")
        mark = {name: len(told.on(name)) for name in SUBSTATIONS}
        wait_for(lambda: all(len(told.on(n)) >= mark[n] + 20 for n in ("b", "c")), 10, "the others take the traffic")
        died_with = told.on("a")
        mesh.restart("a")  # until it serves: how long Python takes to start is the machine's affair
        wait_for(lambda: shown(mesh, died_with[-1]), BACK_S, "the balancer asks it again")
        only_forward(before, registers(mesh, "a"))
        wait_for(lambda: len(told.on("a")) >= len(died_with) + 10, 10, "it takes traffic again")
    assert told.wrong == []
    assert set(told.refusals) <= {"OUTCOME_UNKNOWN", "NO_SUBSTATION", "SUBSTATION_UNREACHABLE"}
    assert set(told.acknowledged.values()) <= registers(mesh, *SUBSTATIONS).keys(), "what was acknowledged exists"
    wait_for(lambda: not doubled(mesh), BACK_S, "no key has two live sessions")


def test_all_substations_die_one_after_the_other_under_traffic(mesh: Mesh) -> None:
    before = registers(mesh, *SUBSTATIONS)
    with traffic(mesh) as told:
        for name in SUBSTATIONS:
            mark = len(told.acknowledged)
            wait_for(lambda mark=mark: len(told.acknowledged) >= mark + 20, 10, "traffic flows")  # type: ignore[misc]
            mesh.kill9(name)
            mesh.restart(name)
    assert told.wrong == []
    after = registers(mesh, *SUBSTATIONS)
    only_forward(before, after)
    assert set(told.acknowledged.values()) <= after.keys()
    wait_for(lambda: not doubled(mesh), BACK_S, "no key has two live sessions")
    assert [mesh.metric(name, "substation_over_limit_seconds_total") for name in SUBSTATIONS] == [0, 0, 0]


def test_sessions_live_on_while_balancer_and_gateway_are_dead(mesh: Mesh) -> None:
    keys = [new_key() for _ in range(6)]
    sessions = {key: post_car(mesh.http, key).json()["session"]["session_id"] for key in keys}
    before = registers(mesh, *SUBSTATIONS)
    mesh.kill9("gateway")
    mesh.kill9("balancer")
    during = registers(mesh, *SUBSTATIONS)
    only_forward(before, during)
    mesh.start("balancer", "gateway")
    only_forward(during, registers(mesh, *SUBSTATIONS))
    for key, session_id in sessions.items():
        repeated = post_car(mesh.http, key)
        assert (repeated.status_code, repeated.json()["session"]["session_id"]) == (200, session_id)
        assert Server(mesh, "balancer").charge(key).session.session_id == session_id
    assert doubled(mesh) == []
    # And the next car goes where there is most room.
    demand = {name: Server(mesh, name).load().demand_kw for name in SUBSTATIONS}
    placement = Server(mesh, "balancer").charge().placement
    assert demand[placement.substation_id] == min(demand.values())
    assert placement.eligible == 3


def test_without_a_balancer_the_gateway_says_so_and_when_to_come_back(mesh: Mesh) -> None:
    mesh.kill9("balancer")
    for reply in (post_car(mesh.http), mesh.http.get("/v1/charges"), mesh.http.get("/readyz")):
        said = problem(reply)
        assert (said.status, said.reason) in {(503, "BALANCER_UNREACHABLE"), (503, "OUTCOME_UNKNOWN")}
        assert said.retry_after_s
        assert "balancer" in said.message
    assert mesh.http.get("/healthz").status_code == 200
    assert Server(mesh, "a").charge().placement.policy == "direct", "a substation needs nobody"


def test_a_drain_survives_a_restart_and_still_answers_reads_and_stops(mesh: Mesh) -> None:
    session_id = post_car(mesh.http, allowed_substation_ids=["a"]).json()["session"]["session_id"]
    drained = mesh.http.post("/v1/substations/a/drain").json()["load"]
    assert (drained["accepting"], drained["not_accepting_reason"]) == (False, "DRAINING")
    mesh.kill9("a")
    mesh.restart("a")
    wait_until_reached(mesh, "a")
    try:
        assert (Server(mesh, "a").load().accepting, mesh.serving("a")) == (False, True)
        directly = refused(mesh, "a")
        assert (directly.code, directly.reason) == ("RESOURCE_EXHAUSTED", "NOT_ACCEPTING")
        assert directly.retry_after_s
        only_there = problem(post_car(mesh.http, allowed_substation_ids=["a"]))
        assert (only_there.status, only_there.reason) == (503, "NOT_ACCEPTING")
        assert only_there.retry_after_s
        assert post_car(mesh.http).json()["session"]["substation_id"] in {"b", "c"}
        assert mesh.http.get(f"/v1/charges/{session_id}").json()["session"]["state"] != "ENDED"
        stopped = mesh.http.post(f"/v1/charges/{session_id}/stop")
        assert stopped.json()["session"]["state"] == "ENDED"
    finally:
        mesh.http.post("/v1/substations/a/undrain")
    wait_for(lambda: post_car(mesh.http, allowed_substation_ids=["a"]).status_code == 201, 2, "it admits again")


def not_ready(mesh: Mesh, why: str) -> bool:
    """/readyz says so, and why of each substation."""
    said = problem(mesh.http.get("/readyz"))
    assert (said.status, said.reason) == (503, "NO_SUBSTATION")
    assert said.retry_after_s
    return said.message.count(why) == len(SUBSTATIONS)


def refusals(mesh: Mesh) -> tuple[Refusal, Refusal]:
    """What both doors say to a car: not now, and when to come back."""
    over_http, over_grpc = problem(post_car(mesh.http)), refused(mesh, "balancer")
    assert (over_http.status, over_grpc.code) == (503, "UNAVAILABLE")
    assert over_http.retry_after_s
    assert over_grpc.retry_after_s
    return over_http, over_grpc


def test_with_no_substation_up_nobody_is_placed_and_readyz_says_why(mesh: Mesh) -> None:
    before = registers(mesh, *SUBSTATIONS)
    for name in SUBSTATIONS:
        mesh.kill9(name)
    wait_for(lambda: mesh.http.get("/readyz").status_code == 503, STALE_S, "silence is not idleness")
    wait_for(lambda: not_ready(mesh, "stale"), STALE_S, "/readyz says that all are stale")
    stale = refusals(mesh)
    found = mesh.http.get("/v1/charges")
    assert (found.status_code, found.json()["unreachable_substation_ids"]) == (200, list(SUBSTATIONS))
    some = problem(mesh.http.get(f"/v1/charges/{next(iter(before))}"))
    assert (some.status, some.reason) == (503, "SUBSTATION_UNREACHABLE")
    # A balancer that has never heard of them knows no more.
    mesh.kill9("balancer")
    mesh.spawn("balancer")
    wait_for(lambda: mesh.serving("balancer"), 10, "the balancer serves")
    wait_for(lambda: mesh.http.get("/readyz").json()["reason"] == "NO_SUBSTATION", 10, "the gateway has found it")
    assert not_ready(mesh, "never reported")
    unknown = refusals(mesh)
    mesh.start(*SUBSTATIONS)
    mesh.wait_ready("gateway")
    only_forward(before, registers(mesh, *SUBSTATIONS))
    assert {said.reason for said in unknown} == {"NO_SUBSTATION"}
    assert {said.reason for said in stale} == {"NO_SUBSTATION"}


def test_however_many_substations_hang_a_listing_names_them_in_time(mesh: Mesh) -> None:
    for name in SUBSTATIONS:
        mesh.signal(name, SIGSTOP)
    try:
        found = [mesh.http.get("/v1/charges")]
        wait_for(lambda: mesh.http.get("/readyz").status_code == 503, STALE_S, "all are stale")
        found.append(mesh.http.get("/v1/charges"))
    finally:
        for name in SUBSTATIONS:
            mesh.signal(name, SIGCONT)
    assert [page.status_code for page in found] == [200, 200]
    assert [page.json()["unreachable_substation_ids"] for page in found] == [list(SUBSTATIONS)] * 2


def test_an_operator_hears_which_substation_hangs(mesh: Mesh) -> None:
    mesh.signal("b", SIGSTOP)
    try:
        said = problem(mesh.http.put("/v1/substations/b/limits/so", json={"limit_kw": 500}))
    finally:
        mesh.signal("b", SIGCONT)
    assert (said.status, said.reason) == (503, "SUBSTATION_UNREACHABLE")
    assert said.message == "substation b cannot be reached: it did not answer in time"


def test_a_session_that_is_watched_while_its_substation_dies_ends_with_an_error(mesh: Mesh) -> None:
    session_id = post_car(mesh.http, allowed_substation_ids=["a"]).json()["session"]["session_id"]
    with mesh.http.stream("GET", f"/v1/charges/{session_id}/events") as reply:
        lines = reply.iter_lines()
        assert next(lines) == "event: session"
        mesh.kill9("a")
        last = [line for line in lines if line.startswith(("event: ", "data: "))][-2:]
    assert last[0] == "event: error"
    assert '"reason":"SUBSTATION_UNREACHABLE"' in last[1]


def test_a_repeat_of_a_car_whose_substation_is_dead_goes_nowhere_else(mesh: Mesh) -> None:
    key = new_key()
    session_id = post_car(mesh.http, key, allowed_substation_ids=["a", "b"]).json()["session"]["session_id"]
    holder = session_id.partition(".")[0]
    mesh.kill9(holder)
    said = problem(post_car(mesh.http, key, allowed_substation_ids=["a", "b"]))
    assert said.status == 503
    assert said.retry_after_s
    mesh.restart(holder)

    def repeated() -> httpx.Response | None:
        reply = post_car(mesh.http, key, allowed_substation_ids=["a", "b"])
        return reply if reply.status_code == 200 else None

    reply = wait_for(repeated, BACK_S, "the repeat finds its session")
    assert reply is not None
    assert reply.json()["session"]["session_id"] == session_id
    assert doubled(mesh) == []


def test_a_stop_by_sigterm_loses_nothing(mesh: Mesh) -> None:
    session_id = Server(mesh, "b").charge(**CAR).session.session_id
    before = registers(mesh, "b")
    assert mesh.stop("b") == {"b": 0}
    mesh.restart("b")
    only_forward(before, registers(mesh, "b"))
    assert Server(mesh, "b").session(session_id).state != charging_pb2.SESSION_STATE_ENDED
