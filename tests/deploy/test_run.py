"""`make run` itself: real services, until Ctrl-C."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mesh.clock import seconds
from tests.mesh_processes import ROOT, free_port, wait_for

READY_S = 30


class Run:
    """One `python -m deploy.local` on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._settings = {
            "MESH_RATED_KW": "100",
            "MESH_DATA": str(folder / "data"),
            "MESH_GATEWAY_PORT": str(self.port),
            "MESH_BALANCER_PORT": str(free_port()),
            "MESH_SUBSTATION_PORT": str(free_port()),
            # The gateway's, and from there the balancer's and the substation's.
            "MESH_METRICS_PORT": str(free_port(1, 10)),
        }
        self._log = folder / "terminal.log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                (sys.executable, "-m", "deploy.local"),
                env={**os.environ, **self._settings},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def terminal(self) -> str:
        return self._log.read_text(errors="replace")

    def says(self, words: str) -> None:
        def said() -> bool:
            assert self.process.poll() is None, self.terminal
            return words in self.terminal

        wait_for(said, READY_S, f"it says {words!r}")

    def readyz(self) -> int:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz", trust_env=False).status_code
        except httpx.TransportError:
            return 0

    def child(self, module: str) -> int:
        """The pid of the child that runs it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        [found] = [pid for pid in children if Path(f"/proc/{pid}/cmdline").read_text().split("\0")[-2] == module]
        return int(found)

    def interrupt(self) -> int:
        """Ctrl-C, and the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(15)

    def again(self) -> None:
        self._log.unlink()
        self.process = self._start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    running = Run(tmp_path)
    yield running
    running.kill()


def test_a_mesh_runs_until_ctrl_c_and_goes_on_where_it_was(run: Run) -> None:
    run.says("Ctrl-C stops.")
    url = f"http://127.0.0.1:{run.port}/v1/charges"
    car = {"vehicle_id": "EV-001", "energy_kwh": 200, "max_power_kw": 11}
    reply = httpx.post(url, json=car, trust_env=False)
    assert reply.status_code == 201
    session = reply.json()["session"]["session_id"]

    begun = seconds()
    assert run.interrupt() == 0
    assert seconds() - begun < 10
    assert run.terminal.rstrip().endswith("| stopped")

    run.again()
    run.says("Ctrl-C stops.")
    reply = httpx.get(f"{url}/{session}", trust_env=False)
    assert reply.status_code == 200
    assert reply.json()["session"]["state"] == "CHARGING"
    assert run.interrupt() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="finds the children in /proc")
@pytest.mark.parametrize("module", ["substation", "balancer", "gateway"])
def test_a_service_that_dies_is_started_again(run: Run, module: str) -> None:
    run.says("Ctrl-C stops.")
    name = "a" if module == "substation" else module
    os.kill(run.child(module), signal.SIGKILL)
    run.says(f"{name} was killed by SIGKILL; starting it again in 0.2 s")
    wait_for(lambda: run.readyz() == 200, READY_S, "ready again")
    assert run.interrupt() == 0
