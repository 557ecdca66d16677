"""The dashboards as Grafana reads them: by its own SDK's schema, and by what an operator expects of a panel."""

import configparser
import json
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from observability.dashboards import __main__ as tool
from tests.observability.sources import DASHBOARDS, GRAFANA, panels

every = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
SOURCE = {"type": "prometheus", "uid": "gridmesh-prometheus"}


@every
def test_a_dashboard_is_what_the_schema_says(path: Path) -> None:
    """A field that the schema does not know, or one of another kind, does not come back."""
    register_default_plugins()
    said = json.loads(path.read_text())
    understood = Dashboard.from_json(json.loads(path.read_text()))
    assert json.loads(JSONEncoder().encode(understood)) == said


def test_the_files_are_what_the_code_says() -> None:
    assert tool.check() == 0


@every
def test_a_dashboard_shows_the_last_quarter_of_an_hour_and_cannot_be_changed(path: Path) -> None:
    said = json.loads(path.read_text())
    assert (said["uid"], said["editable"]) == (f"gridmesh-{path.stem}", False)
    assert (said["time"], said["refresh"]) == ({"from": "now-15m", "to": "now"}, "5s")


@every
def test_every_panel_has_a_unit_a_description_and_queries_with_names(path: Path) -> None:
    for panel in panels(path):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == SOURCE
        assert panel["targets"], panel["title"]
        assert all(target["legendFormat"] and target["datasource"] == SOURCE for target in panel["targets"])


@every
def test_panels_are_told_apart_and_do_not_overlap(path: Path) -> None:
    all_of_it = json.loads(path.read_text())["panels"]
    assert len({panel["id"] for panel in all_of_it}) == len(all_of_it)
    cells = [
        (x, y)
        for panel in all_of_it
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_source_of_the_panels_is_provisioned() -> None:
    said = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    (source,) = said["datasources"]
    assert {"type": source["type"], "uid": source["uid"]} == SOURCE
    assert source["editable"] is False


def test_grafana_opens_with_the_grid_for_anybody_and_for_looking_only() -> None:
    said = configparser.ConfigParser()
    said.read(GRAFANA / "grafana.ini")
    assert (said["auth.anonymous"]["enabled"], said["auth.anonymous"]["org_role"]) == ("true", "Viewer")
    mounted = Path(said["dashboards"]["default_home_dashboard_path"]).relative_to("/etc/grafana")
    assert json.loads((GRAFANA / mounted).read_text())["title"] == "Grid"
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "gridmesh.yml").read_text())["providers"]
    assert provider["options"]["path"] == f"/etc/grafana/{mounted.parent}"
    assert provider["allowUiUpdates"] is False
