"""An HTTP client that costs little, as it shares the machine with what it measures: one process, epoll, raw sockets.

A closed loop: each of its keep-alive connections sends a request, waits for the whole reply, and sends the next.
Replies are kept as they came and read after the clock has stopped. It knows as much of HTTP as the gateway and
Envoy say: one reply at a time, with a content-length or in chunks.
"""

import gc
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from mesh.clock import seconds

R = TypeVar("R")

# How long what is in flight may take when the time is over.
DRAIN_S = 30.0
# More than a reply to one charge has, and below where a buffer costs a mapping of its own.
_AT_ONCE = 1 << 16
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_CHUNKED = b"transfer-encoding: chunked"

# The bytes of the request of that number, head and body.
Request = Callable[[int], bytes]


class BadReplyError(Exception):
    """What came is no reply that this client can read, or the connection ended in the midst of it."""


class Reply(NamedTuple):
    """One reply as it came, to the request of that number."""

    number: int
    sent_s: float
    came_s: float
    raw: bytes

    @property
    def status(self) -> int:
        return int(self.raw[9:12])

    @property
    def body(self) -> bytes:
        start = self.raw.index(_HEAD_END) + len(_HEAD_END)
        if _CHUNKED in self.raw[:start].lower():
            return b"".join(self.raw[at:end] for at, end in _chunks(self.raw, start)[0])
        return self.raw[start:]


@dataclass(slots=True)
class Run(Generic[R]):
    """What a closed loop saw: replies in the order they came, those that came after `ends_s` included."""

    began_s: float
    ends_s: float
    replies: list[R] = field(default_factory=list)


@dataclass(slots=True)
class _Connection:
    """A connection with one request under way."""

    socket: socket.socket
    number: int = -1
    sent_s: float = 0.0
    # Of a reply that is not complete yet.
    received: bytes = b""

    def send(self, number: int, data: bytes, now: float) -> None:
        self.number, self.sent_s, self.received = number, now, b""
        # It is asked for nothing else meanwhile, so a request finds room in the socket at once.
        if self.socket.send(data) != len(data):
            raise BadReplyError("the request did not fit into the socket")

    def receive(self, now: float) -> Reply | None:
        """The reply, once it is there as a whole."""
        data = self.socket.recv(_AT_ONCE)
        if not data:
            raise BadReplyError(f"closed after {self.received[:200]!r}")
        self.received = self.received + data if self.received else data
        if not is_whole(self.received):
            return None
        return Reply(self.number, self.sent_s, now, self.received)


def run(address: tuple[str, int], request: Request, in_flight: int, for_s: float, first: int = 0) -> Run[Reply]:
    """Asks for so many seconds, with so many in flight, then waits for those that are. Numbers begin with `first`.

    BadReplyError, or OSError when the server goes away.
    """
    with _connected(address, in_flight) as connections, no_collection():
        loop = _Loop(connections, request, first)
        return loop.run(for_s)


@contextmanager
def no_collection() -> Iterator[None]:
    """The replies that are kept are many, in no cycle, and would be looked through again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Loop:
    def __init__(self, connections: list[_Connection], request: Request, first: int) -> None:
        self._connections = {one.socket.fileno(): one for one in connections}
        self._request = request
        self._next = first

    def run(self, for_s: float) -> Run[Reply]:
        made: Run[Reply] = Run(began_s := seconds(), began_s + for_s)
        with select.epoll() as poll:
            for descriptor, connection in self._connections.items():
                poll.register(descriptor, select.EPOLLIN)
                self._send(connection, seconds())
            left = len(self._connections)
            while left:
                ready = poll.poll(DRAIN_S)
                if not ready:
                    raise BadReplyError(f"{left} replies did not come within {DRAIN_S:g} s")
                for descriptor, _ in ready:
                    left -= self._receive(self._connections[descriptor], made)
        return made

    def _send(self, connection: _Connection, now: float) -> None:
        connection.send(self._next, self._request(self._next), now)
        self._next += 1

    def _receive(self, connection: _Connection, made: Run[Reply]) -> bool:
        """Whether it was the last reply on this connection."""
        now = seconds()
        reply = connection.receive(now)
        if reply is None:
            return False
        made.replies.append(reply)
        if now >= made.ends_s:
            return True
        self._send(connection, now)
        return False


@contextmanager
def _connected(address: tuple[str, int], count: int) -> Iterator[list[_Connection]]:
    connections = [_Connection(socket.create_connection(address, DRAIN_S)) for _ in range(count)]
    try:
        for one in connections:
            one.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connections
    finally:
        for one in connections:
            one.socket.close()


def is_whole(data: bytes) -> bool:
    """Whether this is a whole reply. BadReplyError when it is more, or says no length."""
    end = data.find(_HEAD_END)
    if end < 0:
        return False
    head, start = data[:end].lower(), end + len(_HEAD_END)
    at = head.find(_LENGTH)
    if at >= 0:
        last = start + int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
    elif _CHUNKED in head:
        last = _chunks(data, start)[1]
    else:
        raise BadReplyError(f"no length: {data[:200]!r}")
    if len(data) > last:
        raise BadReplyError("more than one reply")
    return len(data) == last


def _chunks(data: bytes, at: int) -> tuple[list[tuple[int, int]], int]:
    """Where the bytes of each chunk are, and where the last one (of size 0, no trailers) ends: later, when it lacks."""
    found: list[tuple[int, int]] = []
    while (line_end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line_end].split(b";", 1)[0], 16)
        start = line_end + 2
        at = start + size + 2
        if size == 0:
            return found, at
        found.append((start, start + size))
    return found, max(at, len(data)) + 1
