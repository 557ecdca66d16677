"""compose.yml and the Dockerfile, read as text: what an operator relies on and a careless edit would lose.

Whether the containers run is not seen here: there is no registry to take their base images from.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from balancer.settings import BalancerSettings
from fleet.__main__ import main as fleet
from gateway.settings import GatewaySettings
from mesh.settings import ServiceSettings, load
from substation.settings import SubstationSettings
from tests.mesh_processes import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS: dict[str, type[ServiceSettings]] = {
    "substation": SubstationSettings,
    "balancer": BalancerSettings,
    "gateway": GatewaySettings,
}
ON_DEMAND = {"fleet"}
PUBLISHED = {"gateway": 8080, "balancer": 50051, "prometheus": 9090, "grafana": 3000}
DOCKERFILE = (ROOT / "Dockerfile").read_text().splitlines()

every_service = pytest.mark.parametrize("name", SERVICES)


@every_service
def test_a_service_can_write_only_where_it_must_and_do_nothing_that_it_need_not(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "cap_add" not in service
    assert service.get("privileged") is None
    assert service.get("user", "nobody") not in {"root", "0"}


@every_service
def test_a_service_has_limits(name: str) -> None:
    service = SERVICES[name]
    assert service["mem_limit"].endswith("m")
    assert service["pids_limit"] > 0
    assert service["logging"]["options"]["max-size"], "a log does not fill the disk"


@every_service
def test_an_image_is_pinned(name: str) -> None:
    tag = SERVICES[name]["image"].partition(":")[2]
    assert tag not in {"", "latest"}
    assert tag == "local" or tag.count(".") == 2, "an exact version"


@every_service
def test_only_what_people_open_is_published_and_on_loopback(name: str) -> None:
    port = PUBLISHED.get(name)
    assert SERVICES[name].get("ports", []) == ([f"127.0.0.1:{port}:{port}"] if port else [])


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - ON_DEMAND))
def test_a_service_is_asked_how_it_is_and_not_only_whether_its_port_is_open(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD", "no shell is needed"
    asked = {"substation": "127.0.0.1:50061", "balancer": "127.0.0.1:50051", "gateway": "http://127.0.0.1:8080/readyz"}
    if name in asked:
        assert check["test"][1:] == ["python", "-m", "mesh.probe", asked[name]]


def test_who_asks_starts_when_who_is_asked_is_well() -> None:
    after = {
        "balancer": "substation", "gateway": "balancer", "prometheus": "balancer", "grafana": "prometheus",
        "fleet": "gateway",
    }  # fmt: skip
    assert {name for name in SERVICES if "depends_on" in SERVICES[name]} == set(after)
    for name, before in after.items():
        assert SERVICES[name]["depends_on"] == {before: {"condition": "service_healthy"}}
    assert SERVICES["fleet"]["profiles"], "it comes when it is asked for"


@pytest.mark.parametrize("name", OURS)
def test_a_services_settings_are_settings_that_it_has(name: str) -> None:
    given, known = SERVICES[name]["environment"], {field.name for field in dataclasses.fields(OURS[name])}
    assert {key.removeprefix(f"{name.upper()}_").lower() for key in given} <= known
    loaded = load(OURS[name], name.upper(), [], given)
    assert loaded.host == "0.0.0.0"
    # A balancer waits for its calls, and then for charges whose clients are gone.
    assert float(SERVICES[name]["stop_grace_period"].rstrip("s")) > 2 * loaded.grace_s


def test_each_replica_finds_a_slot_in_the_volume_that_they_share() -> None:
    substation = SERVICES["substation"]
    assert substation["scale"] == 3
    assert "container_name" not in substation
    data = substation["environment"]["SUBSTATION_DATA"]
    assert substation["volumes"] == [f"substations:{data}"]
    assert "SUBSTATION_ID" not in substation["environment"]
    assert any(line.startswith("RUN install -d -o 10001") and line.endswith(f" {data}") for line in DOCKERFILE)


def test_the_image_runs_as_nobody_in_particular_and_is_made_of_hashed_packages() -> None:
    last_stage = DOCKERFILE[max(n for n, line in enumerate(DOCKERFILE) if line.startswith("FROM")) :]
    assert last_stage[0] == "FROM python:3.11-slim"
    assert "USER 10001:10001" in last_stage
    assert not any("pip" in line or "apt" in line for line in last_stage)
    assert any("--require-hashes" in line for line in DOCKERFILE)


def test_the_image_has_what_it_is_made_of_and_the_version_that_services_say() -> None:
    copied = {line.split()[1] for line in DOCKERFILE if line.startswith("COPY ") and "--from" not in line}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in
    assert "pyproject.toml" in copied


def test_what_is_mounted_is_there() -> None:
    mounts = [volume for service in SERVICES.values() for volume in service.get("volumes", [])]
    sources = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert sources
    assert [source for source in sources if not Path(ROOT, source).is_dir()] == []
    assert all(mount.endswith(":ro") for mount in mounts if mount.startswith("./"))


def test_the_fleet_asks_the_gateway_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEET_URL", "http://127.0.0.1:9")
    assert fleet(["rush-hour"]) == 3
    assert "no gateway answers at http://127.0.0.1:9" in capsys.readouterr().err
