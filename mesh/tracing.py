"""The W3C trace context of what is being done here, and spans of it where somebody wants them.

The `traceparent` that came with a call goes on with the calls that it leads to, and log lines name its trace, whether
or not spans are made. Spans are made only when OTEL_EXPORTER_OTLP_ENDPOINT says where they go; otherwise `span` gives
one that does nothing, and OpenTelemetry is not even imported.
"""

import os
import re
from collections.abc import Mapping
from contextvars import Context, ContextVar, copy_context
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Self

from google.protobuf.message import Message

if TYPE_CHECKING:
    from mesh.spans import Tracer

Value = str | int | float | bool

TRACEPARENT = "traceparent"
# Version ff, and ids that are all zero, are not valid. A later version's longer form is dropped.
_VALID = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_ID = slice(3, 35)
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# Asked again and again, by readiness checks and pages: no traces of their own, only as parts of others'.
_READS = ("/GetSession", "/ListSessions", "/ListSubstations")


class Kind(Enum):
    """On which side of a call a span is."""

    INTERNAL = 0
    SERVER = 1
    CLIENT = 2


class Span:
    """What is being done, for `with`. This one does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def set(self, name: str, value: Value) -> None:
        """An attribute."""

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        """Something that happened in it, now."""

    def failed(self, why: str, *, error: bool = True) -> None:
        """It did not succeed. Not an `error`: as it should be, like a refusal."""


NOTHING = Span()
# The traceparent of what this task does, as it came or of the span around it; empty when there is none.
here: ContextVar[str] = ContextVar("traceparent", default="")
current: ContextVar[Span] = ContextVar("span", default=NOTHING)
_tracer: "Tracer | None" = None


# --- context ---------------------------------------------------------------------------------------


def came_with(text: str) -> None:
    """What this task does from now on belongs to that trace, or to none where that is no traceparent.

    Also to none: a task may begin where another one, of another trace, ends.
    """
    parent = text if text and _VALID.fullmatch(text) else ""
    if parent or here.get():  # to set what is so already makes the task's context anew
        here.set(parent)


def trace_id() -> str:
    """Of what this task does; empty when it is part of no trace."""
    return here.get()[_TRACE_ID]


def metadata() -> tuple[tuple[str, str], ...]:
    """What a gRPC call carries on."""
    parent = here.get()
    return ((TRACEPARENT, parent),) if parent else ()


def branch() -> Context | None:
    """A context of its own for a part of what this task does; None where nothing is traced, as it needs none then."""
    return copy_context() if _tracer is not None or here.get() else None


# --- spans -----------------------------------------------------------------------------------------


def exporting() -> bool:
    """Whether spans are made."""
    return _tracer is not None


def span(name: str, kind: Kind = Kind.INTERNAL, attributes: Mapping[str, Value] | None = None) -> Span:
    """A part of what is being done."""
    return NOTHING if _tracer is None else _tracer.span(name, kind, attributes or {})


def serving(method: str) -> Span:
    """A call that came in; `method` is `/package.Service/Method`."""
    if _tracer is None or (method.endswith(_READS) and not here.get()):
        return NOTHING
    return _tracer.call(method, Kind.SERVER, {})


def calling(request: Message, address: str) -> Span:
    """A call of the contract that goes out to host:port, by its request. Take `metadata` inside of it."""
    if _tracer is None:
        return NOTHING
    host, _, port = address.rpartition(":")
    where: dict[str, Value] = {"server.address": host.strip("[]"), "server.port": int(port)}
    return _tracer.call(_method_of(request), Kind.CLIENT, where)


def end(span: Span, error: BaseException | None) -> None:
    """Of one that was entered elsewhere than in a `with`."""
    span.__exit__(None if error is None else type(error), error, None)


def past(name: str, started_s: float, ended_s: float, attributes: Mapping[str, Value]) -> None:
    """A part that is over; monotonic seconds."""
    if _tracer is not None:
        _tracer.past(name, started_s, ended_s, attributes)


def _method_of(request: Message) -> str:
    """The contract names each request after its method, in the file of its service."""
    asked = request.DESCRIPTOR
    (service,) = asked.file.services_by_name.values()
    return f"/{service.full_name}/{asked.name.removesuffix('Request')}"


# --- life ------------------------------------------------------------------------------------------


def start(service: str, instance: str = "") -> None:
    """Spans are exported from now on if the environment says where to. StartupError when it says so wrongly."""
    global _tracer  # noqa: PLW0603 - as logging is set up: once, for the process
    if _wanted(os.environ):
        from mesh import spans  # noqa: PLC0415 - 0.12 s of CPU and 21 MB, for those who want it

        _tracer = spans.Tracer(service, instance, os.environ)


def _wanted(environ: Mapping[str, str]) -> bool:
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    return not off and any(environ.get(name) for name in _ENDPOINTS)


async def stop(within_s: float) -> None:
    """Sends what is left, as far as it goes in that time."""
    global _tracer
    tracer, _tracer = _tracer, None
    if tracer is not None:
        await tracer.stop(within_s)
