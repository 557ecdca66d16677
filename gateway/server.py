"""uvicorn inside our process: our socket, our signals, our log, and problems also for what is no HTTP."""

import asyncio
import contextlib
import logging
import math
import resource
import socket
from collections.abc import Iterator
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import unquote

import httptools
import structlog
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway import problems
from gateway.asgi import CONNECTION, WHOLE, ASGIApp, Message, Scope
from gateway.bodies import LARGE_BYTES
from gateway.schemas import Problem
from mesh.clock import Clock
from mesh.settings import StartupError

log = structlog.get_logger()

_BACKLOG = 2048
# Longer than clients and proxies keep theirs: who closes last does not lose a request.
_KEEP_ALIVE_S = 75
# Of a request before its body: path and headers together, and how long they may take to come.
_MAX_HEAD = 64 * 1024
_HEAD_WITHIN_S = 15.0
# More connections are refused; each may hold 64 KiB in either direction. Descriptors that are not for them: listeners,
# the balancer, logs.
_MAX_CONNECTIONS = 10_000
_OTHER_DESCRIPTORS = 64
# What the kernel holds of what was written and not sent: events that wait there are old when they come.
_UNSENT_BYTES = 16 * 1024
# Said by a reply after which the connection ends.
_CLOSE = (b"connection", b"close")
# Headers of a request that are looked at here. The parser takes the last for the one before it.
_OURS = frozenset({b"expect", b"connection", b"proxy-connection", b"upgrade"})


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. StartupError when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise StartupError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    return listener


def _most_connections() -> int:
    """As many as are sound, or as the process may open."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(1, min(_MAX_CONNECTIONS, descriptors - _OTHER_DESCRIPTORS))


async def serve(app: ASGIApp, listener: socket.socket, stopping: asyncio.Event, grace_s: float, clock: Clock) -> None:
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
        date_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(grace_s),
    )
    server = _Server(config, clock)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    stop = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    server.should_exit = True
    await serving


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, clock: Clock) -> None:
        super().__init__(config)
        self._clock = clock

    async def on_tick(self, counter: int) -> bool:
        """Says once a second the time that attempts are named by, so that who compares clocks compares that one."""
        ends = await super().on_tick(counter)
        if counter % 10 == 0:
            date = formatdate(self._clock.now_ms() / 1_000, usegmt=True)
            self.server_state.default_headers = [(b"date", date.encode())]
        return ends

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process handles its signals itself."""
        yield


class _Protocol(HttpToolsProtocol):
    """Bounds what uvicorn does not: connections, and a request's path and headers in size and time."""

    # The last that came, of which uvicorn knows when its connection is lost, and the last that was begun.
    cycle: "_Cycle"
    _served: "_Cycle | None" = None
    _most = _most_connections()
    # While a request's head comes: its bytes so far, and when it is too late. A head that comes in one piece, as
    # nearly all do, has no timer.
    _in_head = True
    _head = 0
    _head_timer: asyncio.TimerHandle | None = None
    # Whether the request does, in a header.
    _says_whether_to_keep = False
    # Whether it names another protocol, as Java's own client does with each first request; and its head without that.
    _asks_upgrade = False
    _again = b""
    # When the last reply ended; None while a request comes or is served. One timer for many replies. What comes and
    # begins no request, such as more of a body that is answered already, keeps no connection.
    _idle_since: float | None = None
    _idle_timer: asyncio.TimerHandle | None = None
    # Of what was written, as much as was still here when it was last found idle.
    _unread = 0
    # What the last request asked for, and its path, decoded, and query: most ask for the same again.
    _last_url = b""
    _target = "", b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        if len(self.connections) > self._most:
            self._refuse(problems.problem(503, "OVERLOADED", f"{self._most} connections are open"))
        else:
            self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)
        if (served := self._served) is not None and not served.response_complete:
            served.disconnected = True
            served.tell()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head += len(data)
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
        # Also a first read that holds the whole head, and then some body, is no larger than what is read at once.
        if self._in_head and self._head > _MAX_HEAD:
            self._refuse(
                problems.problem(431, "HEADERS_TOO_LARGE", f"path and headers must be at most {_MAX_HEAD} bytes")
            )
        elif self._in_head and self._head_timer is None:
            self._time_head()

    def _parse(self, data: bytes) -> bytes:
        """What is to be parsed after it, as the parser stops where another protocol is asked for."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as at:
            again, self._again = self._again, b""
            return again + data[at.args[0] :] if again else b""
        return b""

    def on_message_begin(self) -> None:
        if not self._in_head:
            self._in_head, self._head = True, 0
        self._idle_since = None
        self.url = b""
        self.expect_100_continue = self._says_whether_to_keep = self._asks_upgrade = False
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: it comes after what it would be about, and no proxy has looked at it
        name = name.lower()
        if name in _OURS:
            self._on_ours(name, value)
        self.headers.append((name, value))

    def _on_ours(self, name: bytes, value: bytes) -> None:
        if name == b"upgrade":
            self._asks_upgrade = True
        elif name != b"expect":
            self._says_whether_to_keep = True
        elif value.lower() == b"100-continue":
            self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        """As uvicorn's, less what only other applications need: a root path, a bound on what is served."""
        if self._asks_upgrade and self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._again = self._without_upgrade()
            return
        self._end_head()
        self._idle_since = None  # also where the reply before it ended in the midst of this head
        if self.url != self._last_url:
            self._read_url()
        path, query = self._target
        self._connection: dict[object, object] = {"transport": self.transport, "body": None}
        # What ours reads, and no more of what ASGI has.
        scope = {
            "type": "http",
            "method": self.parser.get_method().decode("ascii"),
            "path": path,
            "query_string": query,
            "client": self.client,
            "headers": self.headers,
            "extensions": {CONNECTION: self._connection},
        }
        keep_alive = self.parser.should_keep_alive()
        if keep_alive and self._says_whether_to_keep:  # without, one of 1.0 is not kept anyway
            keep_alive = self.parser.get_http_version() != "1.0"
        before, self.cycle = self.cycle, _Cycle(self, scope, keep_alive=keep_alive)
        if not keep_alive and self.parser.get_http_version() == "1.0":
            self.cycle.chunked_encoding = False  # it knows no chunks: the body goes on to the end of the connection
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _without_upgrade(self) -> bytes:
        """The head as if it asked for no other protocol: the parser would take its body for that."""
        line = self.parser.get_method(), self.url, b"HTTP/" + self.parser.get_http_version().encode()
        headers = [b": ".join(each) for each in self.headers if each[0] != b"upgrade"]
        return b"\r\n".join([b" ".join(line), *headers, b"", b""])

    def _start_asgi_task(self, cycle: "_Cycle", app: ASGIApp) -> None:  # type: ignore[override]  # only ours come
        # The loop would make up a name for each.
        self._served = cycle
        cycle.task = self.loop.create_task(cycle.run_asgi(app), name="request")
        self.tasks.add(cycle.task)

    def _read_url(self) -> None:
        url = httptools.parse_url(self.url)
        # A slash said as %2F is one within a name. None here has one, so it stays as it is, and names nothing.
        path = url.path.replace(b"%2F", b"%252F").replace(b"%2f", b"%252f")
        self._target = unquote(path.decode("ascii")), url.query or b""
        self._last_url = self.url

    # As uvicorn's, which look for an upgrade first, and wake also where nobody waits.

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle.response_complete:
            return
        if not cycle.body:
            cycle.body = body  # nearly always all of it
        else:
            if isinstance(cycle.body, bytes):
                cycle.body = bytearray(cycle.body)
            cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.tell()

    def on_message_complete(self) -> None:
        if self._again:
            return
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.more_body = False
        if len(cycle.body) <= LARGE_BYTES:
            self._connection["body"] = bytes(cycle.body)
        cycle.tell()

    def on_response_complete(self) -> None:
        closing = self.transport.is_closing()
        if (self.pipeline and not closing) or (closing and not self.transport.get_write_buffer_size()):
            super().on_response_complete()
            return
        # As uvicorn does, but for the timer, which it makes anew for each reply.
        self.server_state.total_requests += 1
        if not closing:
            self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_at(self._idle_since + _KEEP_ALIVE_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        self._idle_timer = None
        if self._idle_since is None:
            return  # the next reply sets it again
        until = self._idle_since + _KEEP_ALIVE_S
        if until <= self.loop.time():
            self._close_or_wait_for_reader()
        else:
            self._idle_timer = self.loop.call_at(until, self._close_if_idle)

    def _close_or_wait_for_reader(self) -> None:
        """A plain close would wait for a client that does not read, for ever."""
        unread: int = self.transport.get_write_buffer_size()
        if not unread:
            self.timeout_keep_alive_handler()
        elif unread == self._unread:
            self.transport.abort()
        else:
            self._unread = unread
            self._idle_timer = self.loop.call_later(_KEEP_ALIVE_S, self._close_if_idle)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def _time_head(self) -> None:
        self._head_timer = self.loop.call_later(_HEAD_WITHIN_S, self.transport.abort)

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def send_400_response(self, msg: str) -> None:
        """For bytes that are no HTTP request."""
        self._refuse(problems.problem(400, "BAD_HTTP", "this is not a request of HTTP/1.1"))

    def _refuse(self, problem: Problem) -> None:
        """Outside of a request: the connection ends with it."""
        self._end_head()
        body = problems.encode(problem)
        retry = f"retry-after: {problem.retry_after_s}\r\n" if problem.retry_after_s else ""
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n{retry}"
            f"content-type: {problems.MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class _Cycle(RequestResponseCycle):
    """One request and its reply, which may be sent whole: one write is one segment, and one call of the system."""

    # As uvicorn sets them for each.
    disconnected = False
    more_body = True
    response_started = response_complete = False
    chunked_encoding: bool | None = None
    expected_content_length = 0
    access_log = False
    # One piece of it, or several put together.
    body: bytes | bytearray = b""  # type: ignore[assignment]  # uvicorn's is always the latter
    # What serves it.
    task: asyncio.Task[None]
    _news: asyncio.Event | None = None

    def __init__(self, protocol: _Protocol, scope: Scope, *, keep_alive: bool) -> None:
        self.scope = scope  # type: ignore[assignment]  # uvicorn lists what is in it
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.tasks = protocol.tasks
        self.default_headers = protocol.server_state.default_headers
        self.on_response = protocol.on_response_complete
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue

    async def run_asgi(self, app: ASGIApp) -> None:  # type: ignore[override]  # ours
        """As uvicorn's, but it forgets its task itself: a callback for that is one more turn of the event loop."""
        try:
            await app(self.scope, self.receive, self.send)  # type: ignore[arg-type]  # uvicorn lists what is in it
        except BaseException:
            self.logger.exception("Exception in ASGI application\n")
            await self._break_off()
        else:
            if not self.response_complete and not self.disconnected:
                self.logger.error("ASGI callable returned without completing response.")
                await self._break_off()
        finally:
            self.on_response = lambda: None  # else it and its connection hold each other
            self.tasks.discard(self.task)

    async def _break_off(self) -> None:
        if self.response_started:
            self.transport.close()
        else:
            await self.send_500_response()

    @property
    def message_event(self) -> asyncio.Event:  # type: ignore[override]  # nobody sets it
        """Set where there is something to receive. Made for who first receives, as nearly nobody does."""
        if self._news is None:
            self._news = asyncio.Event()
            if self.body or not self.more_body:
                self._news.set()
        return self._news

    def tell(self) -> None:
        """Who receives looks again."""
        if self._news is not None:
            self._news.set()

    async def send(self, message: Message) -> None:  # type: ignore[override]  # uvicorn lists its messages
        if message["type"] != WHOLE:
            if self.chunked_encoding is False:
                self.expected_content_length = len(message.get("body", b""))
            await super().send(message)  # type: ignore[arg-type]
            return
        if self.flow.write_paused and not self.disconnected:
            await self._wait_for_reader()
        if self.disconnected:
            return
        reply = self._encode(message)
        self.response_started = self.response_complete = True
        self.transport.write(reply)
        self.tell()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    async def _wait_for_reader(self) -> None:
        """Until the replies before this one are read; a client that reads nothing of them for so long is given up."""
        unread = 0
        while self.flow.write_paused and not self.disconnected:
            before, unread = unread, self.transport.get_write_buffer_size()
            if unread == before:
                self.disconnected = True
                self.transport.abort()
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KEEP_ALIVE_S):
                    await self.flow.drain()

    def _encode(self, message: Message) -> bytes:
        headers = [*self.default_headers, *message["headers"]]
        if _CLOSE in headers:
            headers.remove(_CLOSE)
            self.keep_alive = False
        if not self.keep_alive:
            headers.append(_CLOSE)
        head = b"\r\n".join([*map(b": ".join, headers), b"", b""])
        if len(head.splitlines()) != len(headers) + 1:
            raise ValueError("a header would be more than one")
        body = b"" if self.scope["method"] == "HEAD" else message["body"]
        return b"".join((STATUS_LINE[message["status"]], head, body))


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
