"""Structured logs on standard output: one line per event, JSON for machines or text for a terminal.

A line says what was decided and why, with the request's id and the trace that it belongs to. Who charges is nobody's
business there: no `vehicle_id`, no `owner`, and nothing else of what a client wrote but its `request_id`.
"""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import IO, Any, AnyStr, Generic, cast

import msgspec
import structlog

from mesh import tracing
from mesh.clock import seconds, wall_ns
from mesh.errors import MeshError

log = structlog.get_logger()

# Refusals cost a client nothing, so that nothing else bounds them. What is served is bounded by what can be.
_MOST_REFUSALS = 100
# A request id as it should be; a longer one is none.
_ID_CHARS = 128


class _Lossy(Generic[AnyStr]):
    """A stream whose disk may be full, or whose reader may be gone: lines are lost, the service goes on."""

    def __init__(self, stream: IO[AnyStr]) -> None:
        self._stream: IO[AnyStr] = stream

    def write(self, text: AnyStr) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class _Begin:
    """What every line begins with."""

    def __init__(self, service: str) -> None:
        self.common: dict[str, str] = {"service": service}
        # The second of the last line, and how it is written.
        self._second, self._text = 0, ""

    def __call__(self, _: object, level: str, line: MutableMapping[str, Any]) -> Mapping[str, Any]:
        begin = {"timestamp": self._now(), "level": level, **self.common, "event": line.pop("event")}
        if trace_id := tracing.trace_id():
            begin["trace_id"] = trace_id
        return {**begin, **line}

    def _now(self) -> str:
        second, ns = divmod(wall_ns(), 1_000_000_000)
        if second != self._second:
            self._second, self._text = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._text}.{ns // 1000:06d}Z"


def configure(service: str, form: str, level: str) -> None:
    """Sets up logging for this process. `form` is json or text; every line carries the service's name."""
    global _begin  # noqa: PLW0603 - as structlog itself is set up: once, for the process
    _begin = _Begin(service)
    out: tuple[structlog.typing.Processor, Any]
    if form == "json":
        out = (_json, structlog.BytesLoggerFactory(cast("Any", _Lossy(sys.stdout.buffer))))
    else:
        text = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
        out = (text, structlog.PrintLoggerFactory(cast("Any", _Lossy(sys.stdout))))
    structlog.configure(
        processors=[cast("Any", _begin), structlog.processors.format_exc_info, out[0]],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=out[1],
        cache_logger_on_first_use=True,
    )


def bind(**fields: str) -> None:
    """Every further line of this process carries these too."""
    _begin.common.update(fields)


_begin = _Begin("")
_encode = msgspec.json.Encoder(enc_hook=str).encode


def _json(_: object, __: str, line: MutableMapping[str, Any]) -> bytes:
    return _encode(line)


# --- refusals --------------------------------------------------------------------------------------


class Flood:
    """At most so many lines a second. Time is monotonic seconds."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._second = 0.0
        self._passed = 0
        self._left_out = 0

    def passes(self, now: float) -> bool:
        if now >= self._second + 1:
            self._second, self._passed = now, 0
        self._passed += 1
        passes = self._passed <= self._most
        self._left_out += not passes
        return passes

    def left_out(self) -> int:
        """How many did not pass since this was asked."""
        count, self._left_out = self._left_out, 0
        return count


_refusals = Flood(_MOST_REFUSALS)


def refused(request_id: str, error: MeshError, **more: object) -> None:
    """The one line for a request that was not served, by whoever decided it.

    Beyond 100 a second they are left out, and the next line says how many; the metrics count all.
    """
    retry = {} if error.retry_after_ms is None else {"retry_after_s": error.retry_after_ms / 1000}
    not_served(request_id, error.reason.name, definite=error.definite, why=error.message, **retry, **more)


def not_served(request_id: str, reason: str, *, definite: bool, **more: object) -> None:
    """`refused` for what is no MeshError. Not `definite`: it may stand, and its repeat will tell."""
    if not _refusals.passes(seconds()):
        return
    if left_out := _refusals.left_out():
        more["left_out"] = left_out
    say, event = (log.info, "refused") if definite else (log.warning, "outcome unknown")
    say(event, request_id=request_id[:_ID_CHARS], reason=reason, **more)
