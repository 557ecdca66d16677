"""One operation of the API: what it is called, what it takes and gives, and who answers it.

The table of these (`gateway.table`) makes both the routes and the OpenAPI document, so that neither
can say what the other does not.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from gateway.asgi import Request, Response

EVENT_STREAM = "text/event-stream"
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Parameter:
    """A part of the path or query, or a header of a request or reply."""

    name: str
    where: Literal["path", "query", "header"]
    description: str
    schema: dict[str, Any]
    required: bool = False
    example: Any = None


@dataclass(frozen=True)
class Link:
    """What can be asked next. `parameters` are of that operation, as runtime expressions over this reply."""

    name: str
    operation: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """A reply that is no problem."""

    status: int
    description: str
    # A type of `gateway.schemas`; None for text, which `media_type` then names, or where that is empty for no body.
    body: Any = None
    media_type: str = "application/json"
    headers: tuple[Parameter, ...] = ()
    # One of that type.
    example: Any = None
    links: tuple[Link, ...] = ()
    # Of an event stream: each event's name, and the type of its data.
    events: Mapping[str, Any] = field(default_factory=dict)


class Failure(NamedTuple):
    """A status of problems: when it happens, and the reasons that may stand in it."""

    status: int
    when: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Operation:
    """A method of a path. `problems` are its failures besides 500."""

    name: str
    method: str
    path: str
    tag: str
    summary: str
    handler: Handler
    replies: tuple[Reply, ...]
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Any = None
    body_required: bool = True
    # A body that can be sent as it is.
    example: Any = None
    problems: tuple[Failure, ...] = ()
    problem_headers: tuple[Parameter, ...] = ()
