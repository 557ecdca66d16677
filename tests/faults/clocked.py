"""Runs a service whose wall clock the harness sets: `python -m tests.faults.clocked FILE substation`.

FILE holds how many milliseconds the machine's clock seems to be off, and may change at any time, as when an
operator or NTP sets it. The monotonic clock is left alone, as a kernel does.
"""

import runpy
import sys
import time
from pathlib import Path

_NS_PER_MS = 1_000_000


def off_by(file: Path) -> None:
    """From now on this process reads the time as `file` sets it."""
    real = time.time_ns  # noqa: TID251 - this is the machine's clock
    time.time_ns = lambda: real() + int(file.read_text()) * _NS_PER_MS  # noqa: TID251
    time.time = lambda: time.time_ns() / 1e9  # noqa: TID251


if __name__ == "__main__":
    off_by(Path(sys.argv[1]))
    module, sys.argv = sys.argv[2], sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
