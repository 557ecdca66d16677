"""`make run`: its settings, its plan, and what it says."""

import socket
from pathlib import Path

import pytest

from deploy.local import MeshSettings, check_folder, check_ports, main, plan, scale_in_words, welcome
from deploy.parts import LOOPBACK
from deploy.supervisor import ROOT
from mesh.settings import StartupError
from tests.mesh_processes import free_port


def test_the_plan_has_the_documented_ports() -> None:
    mesh = plan(MeshSettings())
    assert [(part.name, part.port, part.metrics_port) for part in mesh.parts] == [
        ("a", 50061, 9111),
        ("b", 50062, 9112),
        ("c", 50063, 9113),
        ("balancer", 50051, 9102),
        ("gateway", 8080, 9101),
    ]


def test_each_part_is_told_its_settings_through_the_environment() -> None:
    mesh = plan(MeshSettings(rated_kw=(50.0, 100.5), time_scale=288, data="elsewhere", log_level="debug"))
    common = {"HOST": "127.0.0.1", "LOG_FORMAT": "text", "GRACE_S": "2", "LOG_LEVEL": "debug"}
    assert mesh.substations[1].environ == {
        **{f"SUBSTATION_{name}": value for name, value in common.items()},
        "SUBSTATION_PORT": "50062",
        "SUBSTATION_METRICS_PORT": "9112",
        "SUBSTATION_ID": "b",
        "SUBSTATION_RATED_KW": "100.5",
        "SUBSTATION_CHARGE_POINTS": "120",
        "SUBSTATION_TIME_SCALE": "288",
        "SUBSTATION_DATA": str(ROOT / "elsewhere"),
    }
    assert mesh.balancer.environ["BALANCER_SUBSTATIONS"] == "127.0.0.1:50061,127.0.0.1:50062"
    assert mesh.gateway.environ["GATEWAY_BALANCERS"] == "127.0.0.1:50051"


def test_who_is_asked_starts_before_who_asks() -> None:
    stages = plan(MeshSettings()).stages()
    assert [[command.name for command in stage] for stage in stages] == [["a", "b", "c"], ["balancer"], ["gateway"]]


def test_a_data_folder_that_cannot_be_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StartupError, match=rf"^the data folder {file}/data cannot be made: not a directory$"):
        check_folder(file / "data")
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(StartupError, match=rf"^the data folder {tmp_path} cannot be written: permission denied$"):
        check_folder(tmp_path)


def test_an_absolute_data_folder_stays_where_it_is(tmp_path: Path) -> None:
    assert MeshSettings(data=str(tmp_path)).folder == tmp_path


@pytest.mark.parametrize("ratings", [(), (100.0,) * 27])
def test_a_mesh_has_1_to_26_substations(ratings: tuple[float, ...]) -> None:
    with pytest.raises(StartupError, match="MESH_RATED_KW must name 1 to 26 substations"):
        plan(MeshSettings(rated_kw=ratings))


def test_a_port_in_use_is_named_before_anything_starts_and_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartupError) as caught:
            check_ports(plan(on_free_ports(port)))
    assert str(caught.value).startswith(f"cannot listen on {LOOPBACK}:{port} (gateway): address already in use; ")
    assert "is a mesh running already? Stop it, or give this one ports and a folder of its own" in str(caught.value)


def on_free_ports(gateway_port: int) -> MeshSettings:
    return MeshSettings(
        rated_kw=(100.0,),
        gateway_port=gateway_port,
        balancer_port=free_port(),
        substation_port=free_port(),
        metrics_port=free_port(),
    )


def test_a_port_wanted_twice_is_named() -> None:
    with pytest.raises(StartupError, match="port 50061 is wanted twice: a, and balancer"):
        check_ports(plan(MeshSettings(balancer_port=50061)))


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--time-scale", "fast"], "mesh: --time-scale='fast' is not a whole number"),
        (["--rated-kw", "100,-1"], "mesh: --rated-kw='100,-1' must be from 0 to 1e+06"),
        (["--metrics-port", "65530"], "mesh: --metrics-port='65530' must be from 1 to 65500"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (1, "1x: real time"),
        (60, "60x: one minute of charging passes in one second;"),
        (288, "288x: 4.8 minutes of charging pass in one second;"),
        (30, "30x: 30 seconds of charging pass in one second;"),
    ],
)
def test_the_time_scale_is_said_in_words(scale: int, words: str) -> None:
    assert scale_in_words(scale).splitlines()[0] == words


def test_the_welcome_says_where_everything_is_and_what_to_type() -> None:
    settings = MeshSettings(gateway_port=8081)
    text = "\n".join(welcome(plan(settings), settings))
    for expected in (
        "http://localhost:8081 ",
        "http://localhost:8081/docs",
        "127.0.0.1:50051",
        "127.0.0.1:50063",
        "http://127.0.0.1:9111/metrics",
        str(ROOT / "data"),
        "curl -sS -X POST http://localhost:8081/v1/charges",
        "gridmesh charge EV-002 --energy 20 --watch --url http://localhost:8081",
        "`GRIDMESH_URL=http://localhost:8081 make rush-hour`",
    ):
        assert expected in text
