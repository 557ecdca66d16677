"""What set-up writes into a virtual environment: the checkout is found, wherever it lies."""

import os
import shutil
import subprocess
import venv
from pathlib import Path

from tests.mesh_processes import ROOT


def test_a_checkout_in_a_folder_that_the_locale_cannot_spell_is_found(tmp_path: Path) -> None:
    checkout = tmp_path / "Müller's mesh"
    (checkout / "deploy").mkdir(parents=True)
    (checkout / "generated").mkdir()
    shutil.copy(ROOT / "deploy" / "source_roots.py", checkout / "deploy")
    venv.create(checkout / ".venv", symlinks=True)
    python = checkout / ".venv" / "bin" / "python"
    environ = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    subprocess.run((python, checkout / "deploy" / "source_roots.py"), env=environ, check=True)
    asked = (python, "-c", "import os, sys; sys.stdout.buffer.write(os.fsencode('\\n'.join(sys.path)))")
    found = (
        subprocess.run(asked, env=environ, cwd=tmp_path, capture_output=True, check=True).stdout.decode().splitlines()
    )
    assert found[-2:] == [str(checkout), str(checkout / "generated")]
