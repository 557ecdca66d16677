"""uvicorn inside our process: our socket, our signals, our log, and problems also for what is no HTTP."""

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Iterator

import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway import problems
from mesh.settings import StartupError

log = structlog.get_logger()

_BACKLOG = 2048
# Longer than clients and proxies keep theirs: who closes last does not lose a request.
_KEEP_ALIVE_S = 75


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. StartupError when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise StartupError(f"cannot listen on {host}:{port}: {error.strerror}") from None


async def serve(app: ASGIApp, listener: socket.socket, stopping: asyncio.Event, grace_s: float) -> None:
    """Serves until `stopping`, and then until what is in flight has finished or `grace_s` is over."""
    _log_through_structlog()
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(grace_s),
    )
    server = _Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    stop = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    server.should_exit = True
    await serving


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process handles its signals itself."""
        yield


class _Protocol(HttpToolsProtocol):
    def send_400_response(self, msg: str) -> None:
        """For bytes that are no HTTP request."""
        body = problems.encode(problems.problem(400, "BAD_HTTP", "this is not a request of HTTP/1.1"))
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            f"content-type: {problems.MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
            return  # cut off at the end of the grace, which uvicorn says in a line of its own
        event = log.error if record.levelno >= logging.ERROR else log.warning
        event(record.getMessage().strip(), logger=record.name, exc_info=record.exc_info or None)


def _log_through_structlog() -> None:
    """Uvicorn's and asyncio's warnings and errors as lines of our log."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(each, _ToStructlog) for each in logger.handlers):
            logger.addHandler(_ToStructlog(logging.WARNING))
        logger.propagate = False
