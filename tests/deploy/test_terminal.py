"""Ctrl-C in a real terminal, with somebody between the shell and the supervisor, as make is."""

import os
import pty
import sys
from contextlib import suppress

from tests.mesh_processes import ROOT

CHILD = """
import signal
from deploy.terminal import foreground
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
with foreground():
    print("up", flush=True)
    signal.sigwait([signal.SIGINT])
print("stopped", flush=True)
"""
BETWEEN = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {CHILD!r}]))"


def read_until(terminal: int, words: bytes) -> bytes:
    seen = b""
    with suppress(OSError):  # how a terminal ends
        while words not in seen and (some := os.read(terminal, 1000)):
            seen += some
    assert words in seen, seen
    return seen


def test_ctrl_c_does_not_reach_who_stands_between() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, (sys.executable, "-c", BETWEEN))
    read_until(terminal, b"up")
    os.write(terminal, b"\x03")
    read_until(terminal, b"stopped")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
