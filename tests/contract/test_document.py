"""The running mesh does what its document says, whatever it is asked.

The short run asks the same each time. With `SCHEMATHESIS_EXAMPLES=2000` it is a long one (20 minutes): 2,000 cases for
each operation and 2,000 scenarios of linked ones, from seeds that are shown when it fails.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx

from tests.mesh_processes import ROOT, Mesh

CONFIG = Path(__file__).with_name("schemathesis.toml")
LONG = os.environ.get("SCHEMATHESIS_EXAMPLES")
EXAMPLES = int(LONG or 10)
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


def asked(mesh: Mesh, folder: Path, phases: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """All that schemathesis asks in these phases goes well: the document, its report, and what it said."""
    # From a file: the tool leaves out the operation that it has a document from.
    document, report = folder / "openapi.json", folder / "report.json"
    document.write_text(mesh.http.get("/openapi.json").text)
    argv = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
        *("run", str(document), "--url", mesh.url, "--checks", "all", "--phases", phases),
        *("--max-examples", str(EXAMPLES), *(() if LONG else ("--seed", "1")), "--continue-on-failure"),
        # Nobody reads it again, and with one the tool spends most of a long run on making smaller what went well.
        *("--generation-database", "none"),
        *("--report", "json", "--report-json-path", str(report)),
    ]
    with tidied(mesh):
        # It leaves a cache where it runs.
        run = subprocess.run(
            argv, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(report.read_text())
    assert found["complete"]
    return json.loads(document.read_text()), found, run.stdout


def test_all_that_is_served_conforms_to_the_document(mesh: Mesh, tmp_path: Path) -> None:
    document, report, _ = asked(mesh, tmp_path, "examples,coverage,fuzzing")
    operations = [each for methods in document["paths"].values() for each in methods.values()]
    assert report["operations"]["tested"] == len(operations)
    # The others take nothing: there is one way to ask them.
    varied = [each for each in operations if "parameters" in each or "requestBody" in each]
    assert report["test_cases"]["generated"] >= EXAMPLES * len(varied)


def test_what_a_reply_links_to_conforms_as_well(mesh: Mesh, tmp_path: Path) -> None:
    scenarios = 0
    # The tool gives up sooner: a list that is empty or has no next page leads nowhere.
    while scenarios < EXAMPLES:
        _, _, said = asked(mesh, tmp_path, "stateful")
        (count,) = re.findall(r"Scenarios: +([0-9]+)", said)
        assert int(count)
        scenarios += int(count)
