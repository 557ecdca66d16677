"""Puts the checkout and `generated/` on the path of the virtual environment that runs this.

A `.pth` file does what an editable install would, without a build step: `python -m substation`
works from any folder, and protoc's output is importable as `gridmesh.v1`.
"""

import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(sysconfig.get_path("purelib"))

(SITE / "gridmesh.pth").write_text(f"{ROOT}\n{ROOT / 'generated'}\n")
