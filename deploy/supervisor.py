"""Keeps child processes alive, shows what they log, and stops them in order.

A child that dies is started again after a backoff. One that exits with code 2 before it ever ran was told
something wrong and would only say so again: everything stops. One that has run before was told right: what
keeps it from starting now, such as a full disk, may pass, and the others go on. No child outlives the
supervisor.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.clock import seconds
from mesh.process import EXIT_STARTUP

ROOT = Path(__file__).resolve().parent.parent
# prctl option: the kernel sends this process a signal when its parent dies. Linux only.
_PR_SET_PDEATHSIG = 1

Say = Callable[[str, str], None]


@dataclass(frozen=True)
class Pace:
    """When a child that died is started again, and how long one may take to stop; seconds."""

    first: float = 0.2
    most: float = 10.0
    # A child that lived this long had started: none takes so long to find out that it was told something wrong.
    started: float = 3.0
    # A child that lived this long did not die of its start: the backoff begins anew.
    steady: float = 30.0
    # Three stages one after the other stay within 10 s.
    stop: float = 3.0


@dataclass(frozen=True)
class Command:
    """What a child runs. `environ` comes on top of the supervisor's own environment."""

    name: str
    argv: Sequence[str]
    environ: Mapping[str, str]


class CannotStart(Exception):
    """A child exited with code 2 and had never run: the message is its name and its own one line."""


class Child:
    """One process that is kept alive until `stop`."""

    def __init__(self, command: Command, say: Say, pace: Pace) -> None:
        self.name = command.name
        self._command = command
        self._say = say
        self._pace = pace
        self._process: Process | None = None
        self._last_line = ""
        self._ran = False
        self._stopping = asyncio.Event()

    async def keep(self, ending: asyncio.Event) -> None:
        """Returns when it was stopped, or ended once `ending` is set: a service manager may tell each process.

        CannotStart when it makes no sense to start it again.
        """
        delay = self._pace.first
        while not self._stopping.is_set():
            started = seconds()
            code = await self._run()
            if self._stopping.is_set() or ending.is_set():
                return
            if code == EXIT_STARTUP and not self._ran:
                raise CannotStart(f"{self.name} cannot start: {self._last_line}")
            lived, could_start = seconds() - started, code != EXIT_STARTUP
            self._ran |= could_start and lived >= self._pace.started
            if could_start and lived >= self._pace.steady:
                delay = self._pace.first
            why = "" if could_start else f" ({self._last_line})"
            self._say("", f"{self.name} {how_it_ended(code)}{why}; starting it again in {delay:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
            delay = min(2 * delay, self._pace.most)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that takes too long."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        _signal(process, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self._pace.stop)
        except TimeoutError:
            self._say("", f"{self.name} did not stop within {self._pace.stop:g} s; killed")
            _signal(process, signal.SIGKILL)

    async def _run(self) -> int:
        parent = os.getpid()
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command.argv,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self._command.environ},
            cwd=ROOT,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            process_group=0,  # Ctrl-C in the terminal reaches only the supervisor, which stops them in order
            preexec_fn=lambda: _die_with(parent),
        )
        if self._stopping.is_set():  # stop() came while it was being started and saw no process
            _signal(process, signal.SIGTERM)
        assert process.stdout
        async for line in _lines(process.stdout):
            self._last_line = line
            self._say(self.name, line)
        return await process.wait()


async def supervise(
    stages: Sequence[Sequence[Command]], say: Say, stopping: asyncio.Event, pace: Pace | None = None
) -> None:
    """Runs all until `stopping` is set, then stops stage after stage, the last first.

    CannotStart, after everything has stopped, when a child was told something wrong.
    """
    staged = [[Child(command, say, pace or Pace()) for command in stage] for stage in stages]
    kept = [asyncio.create_task(child.keep(stopping)) for stage in staged for child in stage]
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([stop, *kept], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
        for stage in reversed(staged):
            await asyncio.gather(*(child.stop() for child in stage))
        ended = await asyncio.gather(*kept, return_exceptions=True)
    for error in ended:
        if isinstance(error, BaseException):
            raise error


def how_it_ended(code: int) -> str:
    """An exit code in words; negative means a signal."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines as they come; one beyond the stream's limit comes in pieces."""
    while True:
        try:
            line = await stream.readuntil()
        except asyncio.IncompleteReadError as error:
            if error.partial:
                yield error.partial.decode(errors="replace")
            return
        except asyncio.LimitOverrunError as error:
            line = await stream.readexactly(error.consumed)
        yield line.decode(errors="replace").rstrip("\r\n")


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _load_libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


# Loaded before any fork: between fork and exec, only the call itself is safe.
_LIBC = _load_libc()


def _die_with(parent: int) -> None:
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was told
        os._exit(1)
