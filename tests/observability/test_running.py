"""A real Prometheus on a running mesh under load: every panel and every rule has something to say."""

from collections.abc import Iterator
from functools import partial
from threading import Event, Thread
from urllib.parse import urlsplit

import grpc
import httpx
import pytest

from gridmesh.v1 import operations_pb2
from tests.mesh_processes import Mesh, wait_for
from tests.observability.running import Prometheus, needs_prometheus, running
from tests.observability.sources import Target, alerts, recorded, rules, selectors, targets
from tests.scenarios.asking import Server, post_car

pytestmark = needs_prometheus

# Nobody was there to be asked.
LONG_AGO = "1000000000"
BOUND_S = 20.0
FALLBACKS = (" or vector(0)", " or on () label_replace(")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A mesh in which everything that can be counted happens, asked every second."""
    folder, stopped = tmp_path_factory.mktemp("prometheus"), Event()
    with Mesh(tmp_path_factory.mktemp("mesh"), rated_kw=(60.0, 60.0, 60.0), charge_points=30, time_scale=600) as mesh:
        mesh.start()
        found = {
            kind: [urlsplit(mesh.metrics_url(name)).netloc for name in names] for kind, names in kinds(mesh).items()
        }
        with running(folder, found) as asked:
            wait_for(lambda: asked.all_up(5), BOUND_S, "every page was read")
            load = Thread(target=charge_cars, args=(mesh, stopped))
            load.start()
            try:
                disturb(mesh)
                yield asked
            finally:
                stopped.set()
                load.join()


def kinds(mesh: Mesh) -> dict[str, tuple[str, ...]]:
    return {"gateway": mesh.gateways, "balancer": mesh.balancers, "substation": mesh.substations}


def charge_cars(mesh: Mesh, stopped: Event) -> None:
    """Some are full soon, the others fill the plugs; what a gateway says of a lost substation is no matter here."""
    with httpx.Client(base_url=mesh.url, timeout=10, trust_env=False) as http:
        while not stopped.wait(0.05):
            post_car(http, energy_kwh=1.0)
            post_car(http)


def disturb(mesh: Mesh) -> None:
    """What does not happen by itself: mistakes, a lost substation, calls that come too late, a limit, a drain."""
    assert post_car(mesh.http, energy_kwh=-1).status_code == 400
    session_id = Server(mesh, "c").charge().session.session_id
    mesh.kill9("c")
    wait_for(lambda: mesh.http.get(f"/v1/charges/{session_id}").status_code == 503, BOUND_S, "c is missed")
    # An alert that fires at once.
    (mesh.data("c") / "ledger.damaged-20260101T000000Z.db").touch()
    mesh.restart("c")
    for name in ("a", "balancer"):
        with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
            Server(mesh, name).charge(not_after={"seconds": 1})
    Server(mesh, "a").set_limit(20.0)
    Server(mesh, "b").operations.Drain(operations_pb2.DrainRequest(substation_id="b"), timeout=5)


def without_fallback(target: Target) -> str:
    """The query alone: what stands in for it where there is nothing would always be there."""
    return min((target.filled().partition(fallback)[0] for fallback in FALLBACKS), key=len)


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.panel)
def test_every_panel_shows_something_of_a_mesh_under_load(prometheus: Prometheus, target: Target) -> None:
    wait_for(lambda: prometheus.values(without_fallback(target)), BOUND_S, without_fallback(target))
    assert prometheus.values(target.filled())


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.panel)
def test_a_panel_shows_zeros_where_there_is_nothing(prometheus: Prometheus, target: Target) -> None:
    assert prometheus.values(target.filled(), time=LONG_AGO) == [0.0]


@pytest.mark.parametrize("name", sorted(recorded()))
def test_every_recorded_series_has_data(prometheus: Prometheus, name: str) -> None:
    wait_for(lambda: prometheus.values(name), BOUND_S, name)


@pytest.mark.parametrize("name", alerts())
def test_every_series_that_an_alert_reads_has_data(prometheus: Prometheus, name: str) -> None:
    """The alert itself has nothing to say of a mesh that is well."""
    for series, matchers in selectors(alerts()[name]["expr"]):
        wait_for(partial(prometheus.values, f"{series}{matchers}"), BOUND_S, f"{series}{matchers}")


def test_every_rule_is_evaluated_without_an_error(prometheus: Prometheus) -> None:
    def evaluated() -> bool:
        found = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
        assert [rule for rule in found if rule["health"] == "err" or rule.get("lastError")] == []
        return len(found) == len(rules()) and all(rule["health"] == "ok" for rule in found)

    wait_for(evaluated, BOUND_S, "every rule was evaluated")


def test_an_alert_that_fires_is_seen_in_grafana_and_says_where_to_read_on(prometheus: Prometheus) -> None:
    (fires,) = [
        alert for alert in prometheus.api("alerts")["alerts"] if alert["labels"]["alertname"] == "LedgerDamaged"
    ]
    assert fires["annotations"]["summary"] == "Substation c has 1 damaged ledgers set aside"
    assert fires["annotations"]["runbook_url"] == "observability/RUNBOOK.md#ledgerdamaged"
