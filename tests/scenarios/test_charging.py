"""The life of a session as its driver sees it through the gateway, and as an operator lists it."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from gridmesh.v1 import charging_pb2
from mesh.clock import seconds
from tests.mesh_processes import Mesh, wait_for
from tests.scenarios.asking import Server, new_key, post_car, session_events

SCALE = 600
# On a busy machine a message that is due may come a little late.
LATE_S = 0.5


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("mesh"), rated_kw=(100.0, 100.0), time_scale=SCALE) as running:
        yield running.start()


@pytest.fixture(autouse=True)
def idle(mesh: Mesh) -> Iterator[None]:
    """Whatever the test before left has ended, and the balancer knows it."""
    yield
    balancer = Server(mesh, "balancer")
    for session in balancer.sessions():
        balancer.stop(session.session_id)

    def sees_nobody() -> bool:
        return not any(each.report.demand_kw + each.reserved_kw for each in balancer.substations())

    wait_for(sees_nobody, 10, "the balancer sees nobody")


def charged(mesh: Mesh, **said: Any) -> dict[str, Any]:  # noqa: ANN401
    """The reply to a charge that is admitted."""
    reply = post_car(mesh.http, **said)
    assert reply.status_code == 201, reply.text
    body: dict[str, Any] = reply.json()
    assert reply.headers["location"] == f"/v1/charges/{body['session']['session_id']}"
    return body


def life(mesh: Mesh, session_id: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All that the events say of a session, and the last event."""
    seen: list[dict[str, Any]] = []
    with session_events(mesh, session_id) as events:
        for name, data in events:
            if name != "session":
                assert name == "end", (name, data)
                end = json.loads(data)
                assert next(events, None) is None, "nothing comes after the end"
                return seen, end
            seen.append(json.loads(data))
    raise AssertionError("the events ended without an end")


def get(mesh: Mesh, session_id: str) -> dict[str, Any]:
    body: dict[str, Any] = mesh.http.get(f"/v1/charges/{session_id}").json()["session"]
    return body


def test_a_car_gets_what_it_asked_for_and_leaves(mesh: Mesh) -> None:
    session = charged(mesh, energy_kwh=2.5)["session"]
    assert (session["delivered_kwh"], session["energy_kwh"], session["departure_assumed"]) == (0, 2.5, True)
    seen, end = life(mesh, session["session_id"])
    assert end == {"session_id": session["session_id"], "stop_reason": "ENERGY_LIMIT_REACHED"}
    assert "CHARGING" in [each["state"] for each in seen]
    assert seen[-1]["state"] == "ENDED"
    assert seen[-1]["delivered_kwh"] == 2.5
    assert (seen[-1]["granted_power_kw"], seen[-1]["measured_power_kw"]) == (0, 0)
    assert all(one["delivered_kwh"] <= following["delivered_kwh"] for one, following in pairwise(seen))
    assert all(each["delivered_kwh"] <= 2.5 for each in seen)
    assert get(mesh, session["session_id"]) == seen[-1]
    # Who comes later learns the end at once.
    assert life(mesh, session["session_id"]) == ([seen[-1]], end)


def test_a_car_without_a_wish_charges_until_it_is_full(mesh: Mesh) -> None:
    session = charged(mesh, energy_kwh=None, max_power_kw=90.0)["session"]
    assert "energy_kwh" not in session
    seen, end = life(mesh, session["session_id"])
    assert end["stop_reason"] == "SOC_LIMIT_REACHED"
    assert seen[-1]["delivered_kwh"] > 5
    # Near full it takes less than before.
    drawn = [each["measured_power_kw"] for each in seen if each["measured_power_kw"]]
    assert max(drawn) > 80
    assert drawn[-1] < 50


def test_a_full_car_stays_plugged_in_until_it_leaves(mesh: Mesh) -> None:
    charge = charged(mesh, energy_kwh=1.0, departure_in="2s")
    session, free = charge["session"], charge["load"]["free_charge_points"]
    assert not session["departure_assumed"]
    seen, end = life(mesh, session["session_id"])
    states = [each["state"] for each in seen]
    assert [state for state in dict.fromkeys(states) if state != "SUSPENDED_EVSE"] == [
        "CHARGING",
        "EV_CONNECTED",
        "ENDED",
    ]
    assert end["stop_reason"] == "ENERGY_LIMIT_REACHED"
    full = [each for each in seen if each["state"] == "EV_CONNECTED"]
    assert {(each["delivered_kwh"], each["granted_power_kw"]) for each in full} == {(1.0, 0)}
    assert seen[-1]["ended_at"] == session["departure_time"]
    substation = Server(mesh, session["substation_id"])
    wait_for(lambda: substation.load().free_charge_points >= free + 1, 2, "its plug is free")


def test_a_car_that_leaves_early_is_disconnected(mesh: Mesh) -> None:
    session = charged(mesh, departure_in="1s")["session"]
    seen, end = life(mesh, session["session_id"])
    assert end["stop_reason"] == "EV_DISCONNECTED"
    assert 0 < seen[-1]["delivered_kwh"] < session["energy_kwh"]
    assert seen[-1]["ended_at"] == session["departure_time"]


def test_a_stop_ends_the_events_and_frees_the_power_at_once(mesh: Mesh) -> None:
    stays, goes = (charged(mesh, allowed_substation_ids=["a"])["session"]["session_id"] for _ in range(2))
    substation = Server(mesh, "a")
    wait_for(lambda: substation.load().measured_kw > 20, 10, "both charge")
    with session_events(mesh, goes) as events, substation.load_reports() as reports:
        assert next(events)[0] == "session"
        before = next(reports)
        stopped = mesh.http.post(f"/v1/charges/{goes}/stop", json={"reason": "EV_DISCONNECTED"}).json()["session"]
        after = next(report for report in reports if report.sequence > before.sequence)
        assert [json.loads(data) for name, data in events if name == "end"] == [
            {"session_id": goes, "stop_reason": "EV_DISCONNECTED"}
        ]
    assert (stopped["state"], stopped["stop_reason"]) == ("ENDED", "EV_DISCONNECTED")
    assert stopped["delivered_kwh"] > 0
    assert (before.demand_kw, after.demand_kw) == (22, 11)
    assert after.committed_kw <= before.committed_kw - 10
    assert after.free_charge_points == before.free_charge_points + 1
    assert get(mesh, stays)["state"] == "CHARGING"


def test_a_session_that_charges_is_told_of_every_second(mesh: Mesh) -> None:
    session_id = charged(mesh)["session"]["session_id"]
    at, registers = [seconds()], []
    with Server(mesh, "balancer").watch(session_id) as sessions:
        for session in sessions:
            at.append(seconds())
            registers.append(session.delivered_kwh)
            if at[-1] - at[0] > 2.2:
                break
    assert max(later - earlier for earlier, later in pairwise(at)) < 1 + LATE_S
    assert registers == sorted(registers)
    assert len(set(registers)) > 1, "the register moves"


def test_the_placement_says_where_and_why(mesh: Mesh) -> None:
    charged(mesh, allowed_substation_ids=["a"])
    body = charged(mesh)
    placement = body["placement"]
    assert placement["substation_id"] == body["session"]["substation_id"] == body["load"]["substation_id"] == "b"
    assert (placement["policy"], placement["eligible"], placement["tried"]) == ("least_load_ahead", 2, 1)
    assert (placement["utilisation_before"], placement["utilisation_after"]) == (0, 0.11)
    assert body["load"]["demand_kw"] == 11


@pytest.fixture
def fleet(mesh: Mesh) -> dict[str, str]:
    """Seven cars that charge, as session id to vehicle id; one more has ended."""
    vehicles = [f"EV-{new_key()}" for _ in range(8)]
    fleet = {charged(mesh, vehicle_id=vehicle)["session"]["session_id"]: vehicle for vehicle in vehicles}
    Server(mesh, "balancer").stop(next(iter(fleet)))
    return fleet


def pages(mesh: Mesh, name: str, **asked: Any) -> list[list[charging_pb2.Session]]:  # noqa: ANN401
    found = []
    request = charging_pb2.ListSessionsRequest(**asked)
    while True:
        page = Server(mesh, name).charging.ListSessions(request, timeout=5)
        assert list(page.unreachable_substation_ids) == []
        found.append(list(page.sessions))
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def test_all_sessions_are_listed_once_in_pages(mesh: Mesh, fleet: dict[str, str]) -> None:
    live = set(fleet) - {next(iter(fleet))}
    found = pages(mesh, "balancer", page_size=3)
    assert [len(page) for page in found if page] == [3, 3, 1]
    listed = [session.session_id for page in found for session in page]
    assert sorted(listed) == listed, "by substation, and by session id within each"
    assert set(listed) == live
    assert {session_id.partition(".")[0] for session_id in listed} == {"a", "b"}
    assert len(pages(mesh, "balancer", page_size=1000)) == 1
    assert [len(page) for page in pages(mesh, "balancer", page_size=1) if page] == [1] * 7


def test_sessions_are_listed_over_http_as_over_grpc(mesh: Mesh, fleet: dict[str, str]) -> None:
    listed, token = [], ""
    while True:
        page = mesh.http.get("/v1/charges", params={"page_size": 3, "page_token": token}).json()
        listed += [session["session_id"] for session in page["sessions"]]
        if not (token := page.get("next_page_token", "")):
            break
    assert listed == [session.session_id for page in pages(mesh, "balancer") for session in page]
    assert set(listed) <= set(fleet)


def test_a_list_is_filtered(mesh: Mesh, fleet: dict[str, str]) -> None:
    ended, *live = fleet

    def listed(**filters: Any) -> set[str]:  # noqa: ANN401
        return {session.session_id for session in Server(mesh, "balancer").sessions(**filters)}

    assert listed(vehicle_id=fleet[live[0]]) == {live[0]}
    assert listed(vehicle_id=fleet[ended]) == set()
    assert listed(vehicle_id=fleet[ended], include_ended=True) == {ended}
    assert listed(vehicle_id="nobody") == set()
    by_substation = {name: listed(substation_id=name) for name in ("a", "b")}
    assert set.union(*by_substation.values()) == set(live)
    assert all(session.startswith(f"{name}.") for name, found in by_substation.items() for session in found)
    assert listed(states=[charging_pb2.SESSION_STATE_CHARGING]) <= set(live)
    assert ended in listed(states=[charging_pb2.SESSION_STATE_ENDED])
    assert not set(live) & listed(states=[charging_pb2.SESSION_STATE_ENDED])
    assert set(fleet) <= listed(include_ended=True)


def test_a_repeat_is_the_same_session_also_after_its_end(mesh: Mesh) -> None:
    key = new_key()
    first = post_car(mesh.http, key, energy_kwh=1.0)
    session_id = first.json()["session"]["session_id"]
    life(mesh, session_id)
    again = post_car(mesh.http, key, energy_kwh=1.0)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["session"]["session_id"] == session_id
    assert again.json()["session"]["state"] == "ENDED"
    assert again.json()["placement"]["policy"] == "repeat"
    assert again.headers["idempotency-key"] == key
