"""One operation of the API: what it is called, what it takes and gives, and who answers it.

The table of these (`gateway.routes`) makes both the routes and the OpenAPI document, so that neither
can say what the other does not.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

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
class Reply:
    """A reply that is no problem."""

    status: int
    description: str
    # A type of `gateway.schemas`; None for text, which `media_type` then names, or where that is empty for no body.
    body: Any = None
    media_type: str = "application/json"
    headers: tuple[Parameter, ...] = ()


@dataclass(frozen=True)
class Operation:
    """A method of a path. `problems` are its statuses besides 500, each with when it happens."""

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
    problems: tuple[tuple[int, str], ...] = ()
    problem_headers: tuple[Parameter, ...] = ()
