"""What a process has used so far, from /proc."""

import os
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# Of /proc/PID/stat, counted after the name in brackets: time in user mode and in the kernel.
_USER, _KERNEL = 11, 12


def cpu_s(pid: int) -> float:
    """CPU seconds, all threads, those that have ended included; in steps of a tick (10 ms)."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[_USER]) + int(after_name[_KERNEL])) / _TICKS


def rss_mb(pid: int) -> float:
    """Resident memory in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 1e6


def own_cpu_s() -> float:
    """CPU seconds of this process, all threads."""
    return time.process_time()
