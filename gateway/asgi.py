"""What the gateway sees of a request and makes of a reply: as little over ASGI as its operations need.

Two extensions of ASGI are between this and `gateway.server`, so that what is usual is cheap: a request brings a body
that is there already, and a reply that is known whole leaves in one message, and so in one segment.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

# In a scope's extensions: a mapping with `transport`, and `body`, which is None where it has to be received.
CONNECTION = "gridmesh.connection"
# The type of a message that is a whole reply: `status`, `headers`, `body`.
WHOLE = "gridmesh.whole"

JSON = b"application/json"
HTML = b"text/html; charset=utf-8"


class Disconnected(Exception):
    """The client left before its body was complete."""


class Request:
    """One request. `params` are the parts of its path that the route names."""

    __slots__ = ("_first", "_repeats", "method", "params", "receive", "scope", "waited_s")

    def __init__(self, scope: Scope, receive: Receive, params: Mapping[str, str]) -> None:
        self.scope = scope
        self.receive = receive
        self.params = params
        self.method: str = scope["method"]
        # How long it waited because its client had asked for that.
        self.waited_s = 0.0
        self._first: dict[bytes, bytes] = dict(scope["headers"])
        # Nearly always no header is there twice.
        self._repeats = len(self._first) < len(scope["headers"])

    def given(self, name: bytes) -> list[str]:
        """Each header of that name, which is in lower case."""
        if self._repeats:
            return [value.decode("latin-1") for each, value in self.scope["headers"] if each == name]
        return [self._first[name].decode("latin-1")] if name in self._first else []

    def header(self, name: bytes) -> str:
        """The first header of that name; empty when there is none."""
        if self._repeats:
            given = self.given(name)
            return given[0] if given else ""
        return self._first.get(name, b"").decode("latin-1")

    @property
    def query(self) -> list[tuple[str, str]]:
        """The query's parameters, as often as each is given."""
        said: bytes = self.scope["query_string"]
        return parse_qsl(said.decode("latin-1"), keep_blank_values=True) if said else []

    @property
    def arrived(self) -> bytes | None:
        """The whole body, where it came with the head and is not large. None: it has to be received."""
        body: bytes | None = self.scope["extensions"][CONNECTION]["body"]
        return body

    @property
    def gone(self) -> bool:
        """Whether the client has left, as far as its connection has been read."""
        return bool(self.scope["extensions"][CONNECTION]["transport"].is_closing())

    async def left(self) -> None:
        """Returns when the client has left. Only after the whole body."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def part(self) -> tuple[bytes, bool]:
        """The next part of the body, and whether there is more. Disconnected when it will not come."""
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        return message.get("body", b""), message.get("more_body", False)


class Response:
    """A whole reply. `reason` is that of a problem, for whoever counts."""

    __slots__ = ("body", "headers", "reason", "status")

    def __init__(
        self, body: bytes, media: bytes, status: int = 200, headers: Sequence[Header] = (), reason: str = ""
    ) -> None:
        self.body = body
        self.status = status
        self.reason = reason
        self.headers = [(b"content-type", media), (b"content-length", b"%d" % len(body)), *headers]

    def send(self, request: Request, send: Send) -> Awaitable[None]:
        """Sends it; over when nothing of it is left to do."""
        del request
        return send({"type": WHOLE, "status": self.status, "headers": self.headers, "body": self.body})


def empty(status: int, headers: Sequence[Header] = ()) -> Response:
    """A reply of a status that has no body, and says nothing of one: 204 or 304."""
    response = Response(b"", b"", status)
    response.headers = list(headers)
    return response
