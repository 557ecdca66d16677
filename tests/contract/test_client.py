"""A typed client comes out of the document by a generator that knows nothing of us, and charges a car."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mesh_processes import ROOT, Mesh

PROGRAM = Path(__file__).with_name("generated_client.py")
# It would format what it wrote.
CONFIG = "post_hooks: []\n"


def run(*argv: str, where: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(where), "MYPYPATH": str(where)}
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def client(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a client's package."""
    tmp_path = tmp_path_factory.mktemp("client")
    document, config = tmp_path / "openapi.json", tmp_path / "config.yml"
    document.write_text(mesh.http.get("/openapi.json").text)
    config.write_text(CONFIG)
    package = tmp_path / "gridmesh_client"
    run(
        *("-m", "openapi_python_client", "generate", "--fail-on-warning", "--meta", "none"),
        *("--path", str(document), "--output-path", str(package), "--config", str(config)),
        where=tmp_path,
    )
    (package / "py.typed").touch()
    return tmp_path


def test_a_generated_client_charges_a_car_reads_it_and_stops_it(mesh: Mesh, client: Path) -> None:
    run("-W", "error", str(PROGRAM), mesh.url, where=client)


def test_a_program_that_uses_it_is_typed(client: Path) -> None:
    run("-m", "mypy", "--config-file=", "--strict", "--follow-imports=silent", str(PROGRAM), where=client)
