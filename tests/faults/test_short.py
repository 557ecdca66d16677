"""The short run of the fault harness, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.mesh_processes import ROOT

SEED = os.environ.get("FAULTS_SEED", "1")
BOUND_S = 180.0


def test_the_invariants_hold_whatever_plug_is_pulled(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "tests.faults", "--short", "--seed", SEED, "--folder", str(tmp_path))
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " 0 batches" not in ran.stdout, "no charges shared a call"
