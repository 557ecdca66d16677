"""The health check of containers, against services that run."""

import signal
import subprocess
import sys

import pytest

from mesh import probe
from tests.conftest import StartMesh
from tests.mesh_processes import ROOT, wait_for


def test_a_service_is_well_when_it_says_so_and_not_when_it_stands_still(
    start_mesh: StartMesh, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.5)
    mesh = start_mesh("a")
    mesh.spawn("gateway")
    assert probe.main(mesh.address("a")) == 0
    wait_for(lambda: probe.main(f"http://{mesh.address('gateway')}/healthz") == 0, 10, "the gateway listens")
    assert probe.main(f"http://{mesh.address('gateway')}/readyz") == 1, "its balancer does not run"
    assert "503" in capsys.readouterr().out
    mesh.signal("a", signal.SIGSTOP)
    assert probe.main(mesh.address("a")) == 1, "its port is open all the same"
    mesh.signal("a", signal.SIGCONT)
    mesh.stop("a", "gateway")
    assert probe.main(mesh.address("a")) == 1
    assert probe.main(f"http://{mesh.address('gateway')}/healthz") == 1


def test_it_is_a_command_whose_exit_code_says_it() -> None:
    command = [sys.executable, "-m", "mesh.probe"]
    nobody = subprocess.run([*command, "127.0.0.1:9"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (nobody.returncode, nobody.stdout[:24]) == (1, "127.0.0.1:9: UNAVAILABLE")
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 1
