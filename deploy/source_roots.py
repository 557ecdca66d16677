"""Puts the checkout and `generated/` on the path of the virtual environment that runs this, and `gridmesh` into it.

A `.pth` file does what an editable install would, without a build step: `python -m substation`
works from any folder, and protoc's output is importable as `gridmesh.v1`. The script is what an entry point would be.
"""

import os
import shlex
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(sysconfig.get_path("purelib"))
SCRIPT = Path(sysconfig.get_path("scripts"), "gridmesh")

# Relative, as Python reads it in the encoding of the locale: with LC_ALL=C it did not start in a folder like `Müller`.
ABOVE = os.path.relpath(ROOT, SITE)

(SITE / "gridmesh.pth").write_text(f"{ABOVE}\n{ABOVE}/generated\n")
SCRIPT.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m deploy.command_line "$@"\n')
SCRIPT.chmod(0o755)
