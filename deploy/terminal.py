"""The terminal that `make run` was typed in."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

_STDIN = 0


class Terminal:
    """Prints lines with the name of who says them, or as JSON. When nobody reads any more, the mesh stops."""

    def __init__(self, width: int, stopping: asyncio.Event, *, as_json: bool = False) -> None:
        self._width = width
        self._stopping = stopping
        self._as_json = as_json

    def say(self, who: str, line: str) -> None:
        """`who` is empty for the supervisor itself."""
        if self._as_json:
            self._print(json.dumps({"part": who or "mesh", "line": _parsed(line)}))
        else:
            self._print(f"{who or 'mesh':<{self._width}} | {line}")

    def show(self, lines: Iterator[str], addresses: Mapping[str, str]) -> None:
        """That all is ready: the lines to people, the addresses to programs."""
        if self._as_json:
            self._print(json.dumps({"part": "mesh", "ready": addresses}))
        else:
            self._print("\n" + "\n".join(lines) + "\n")

    def _print(self, text: str) -> None:
        try:
            print(text, flush=True)
        except OSError:
            self._stopping.set()


def _parsed(line: str) -> Any:  # noqa: ANN401 - JSON
    """A line of a service's log as what it is, and not as JSON within JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return line


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
