"""How a service's process lives: uvloop, SIGTERM and SIGINT, and one line instead of a stack trace."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import uvloop

from mesh import logs, settings, tracing
from mesh.settings import ServiceSettings, StartupError

S = TypeVar("S", bound=ServiceSettings)

EXIT_STARTUP = 2
# What is remembered for a day is in no cycles: to look for some among 21,000 sessions holds up all calls for 68 ms.
# Young objects are looked at after so many more, older ones after so many such looks, the rest after so many of those.
_GARBAGE = (20_000, 50, 20)
# Of the grace, what may be spent on spans that were not sent yet.
_FLUSH_S = 1.0


def run(
    settings_class: type[S],
    prefix: str,
    serve: Callable[[S, asyncio.Event], Awaitable[None]],
) -> None:
    """Loads the settings and runs `serve(settings, stopping)` until it returns. Never returns.

    `stopping` is set by SIGTERM or SIGINT. Exit code 0 after a stop, 2 with one line on standard error
    when the service cannot start as it is set.
    """
    try:
        loaded = settings.load(settings_class, prefix, sys.argv[1:], os.environ)
        logs.configure(prefix.lower(), loaded.log_format, loaded.log_level)
        uvloop.run(_until_stopped(loaded, serve))
    except StartupError as error:
        print(f"{prefix.lower()}: {error}", file=sys.stderr)  # noqa: T201 - the one line that a person reads
        sys.exit(EXIT_STARTUP)
    sys.exit(0)


async def _until_stopped(loaded: S, serve: Callable[[S, asyncio.Event], Awaitable[None]]) -> None:
    # What was imported stays.
    gc.freeze()
    gc.set_threshold(*_GARBAGE)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        await serve(loaded, stopping)
    finally:
        await tracing.stop(min(_FLUSH_S, loaded.grace_s))
