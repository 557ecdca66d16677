"""The running mesh does what its document says, whatever it is asked. `SCHEMATHESIS_EXAMPLES=2000` for a long run.

The short run asks the same each time; a long one draws a seed, which it shows when it fails.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import httpx

from tests.mesh_processes import ROOT, Mesh

CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES")
HOW_MUCH = ("--max-examples", EXAMPLES) if EXAMPLES else ("--max-examples", "10", "--seed", "1")
MOST_SESSIONS = 40
TIDY_EVERY_S = 1.0


def tidy(http: httpx.Client) -> None:
    """What an operator would do about operations that drain, limit and fill the grid: so that charges go on."""
    for substation in "abc":
        http.post(f"/v1/substations/{substation}/undrain")
        for source in ("ems", "so", "cso", "other"):
            http.delete(f"/v1/substations/{substation}/limits/{source}")
    for session in http.get("/v1/charges", params={"page_size": 1000}).json()["sessions"][MOST_SESSIONS:]:
        http.post(f"/v1/charges/{session['session_id']}/stop")


@contextmanager
def tidied(mesh: Mesh) -> Iterator[None]:
    done = Event()

    def keep() -> None:
        with httpx.Client(base_url=mesh.url, timeout=30, trust_env=False) as http:
            while not done.wait(TIDY_EVERY_S):
                tidy(http)

    thread = Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_all_that_is_served_conforms_to_the_document(mesh: Mesh, tmp_path: Path) -> None:
    # From a file: the tool leaves out the operation that it has a document from.
    document, report = tmp_path / "openapi.json", tmp_path / "report.json"
    document.write_text(mesh.http.get("/openapi.json").text)
    argv = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
        *("run", str(document), "--url", mesh.url, "--checks", "all", *HOW_MUCH),
        *("--report", "json", "--report-json-path", str(report), "--continue-on-failure"),
    ]
    with tidied(mesh):
        # It leaves a cache where it runs.
        run = subprocess.run(
            argv, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
    assert run.returncode == 0, run.stdout + run.stderr
    tested = json.loads(report.read_text())
    assert tested["complete"]
    operations = [each for methods in json.loads(document.read_text())["paths"].values() for each in methods]
    assert tested["operations"]["tested"] == len(operations)
