"""The terminal that `make run` was typed in."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_STDIN = 0


class Terminal:
    """Prints lines with the name of who says them. When nobody reads any more, the mesh stops."""

    def __init__(self, width: int, stopping: asyncio.Event) -> None:
        self._width = width
        self._stopping = stopping

    def say(self, who: str, line: str) -> None:
        """`who` is empty for the supervisor itself."""
        self._print(f"{who or 'mesh':<{self._width}} | {line}")

    def show(self, lines: Iterator[str]) -> None:
        self._print("\n" + "\n".join(lines) + "\n")

    def _print(self, text: str) -> None:
        try:
            print(text, flush=True)
        except OSError:
            self._stopping.set()


@contextmanager
def foreground() -> Iterator[None]:
    """Ctrl-C reaches this process alone, not also the `make` that started it, which would end with an error.

    Does nothing without a terminal, in the background, or when nobody stands between it and the shell.
    """
    if os.getpgrp() == os.getpid() or not _in_front():
        yield
        return
    before = os.getpgrp()
    # Whoever takes the terminal is in the background for a moment; Ctrl-Z would stop what the shell cannot see.
    for number in (signal.SIGTTOU, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(_STDIN, os.getpgrp())
    try:
        yield
    finally:
        with suppress(OSError):  # the terminal may be gone
            os.tcsetpgrp(_STDIN, before)


def _in_front() -> bool:
    try:
        return os.tcgetpgrp(_STDIN) == os.getpgrp()
    except OSError:  # no terminal
        return False
