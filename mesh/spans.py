"""Spans through OpenTelemetry to an OTLP receiver. `mesh.tracing` imports this only where one is configured.

Settings are OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_*, OTEL_BSP_*, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES). Spans wait in a bounded queue and are sent by a thread: a receiver that is slow or gone
costs spans, never calls. Attributes have the names of the semantic conventions, or begin with `gridmesh.`.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import Token
from types import TracebackType
from typing import Self

import grpc
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from mesh import tracing
from mesh.clock import seconds, wall_ns
from mesh.errors import MeshError
from mesh.settings import StartupError
from mesh.tracing import Kind, Span, Value

log = structlog.get_logger()

_KINDS = {Kind.INTERNAL: SpanKind.INTERNAL, Kind.SERVER: SpanKind.SERVER, Kind.CLIENT: SpanKind.CLIENT}
_NUMBERS = {code.name: code.value[0] for code in grpc.StatusCode}
# The convention for servers: the others are the caller's affair.
_SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Tracer:
    """Makes spans and sends them. StartupError when the variables say what cannot be."""

    def __init__(self, service: str, instance: str, environ: Mapping[str, str]) -> None:
        for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            if environ.get(name, "grpc") != "grpc":
                raise StartupError(f"{name}={environ[name]!r} must be grpc, or absent")
        _log_through_structlog()
        named = {"service.name": service, "service.namespace": "gridmesh"}
        if instance:
            named["service.instance.id"] = instance
        try:
            # What the environment says of the process comes before what we say.
            resource = Resource.create(named).merge(OTELResourceDetector().detect())
            self._exporter = OTLPSpanExporter()
            self._processor = BatchSpanProcessor(_Watched(self._exporter))
        except Exception as error:
            raise StartupError(f"the OTEL_ variables cannot be used: {error}") from None
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("gridmesh")

    def span(self, name: str, kind: Kind, attributes: Mapping[str, Value]) -> Span:
        """A span in what the task does now."""
        return _Recorded(self._begin(name, kind, attributes))

    def call(self, method: str, kind: Kind, attributes: Mapping[str, Value]) -> Span:
        """A span of a gRPC call; `method` is `/package.Service/Method`."""
        service, _, name = method[1:].partition("/")
        named = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name, **attributes}
        return _Call(self._begin(method[1:], kind, named), kind)

    def past(self, name: str, started_s: float, ended_s: float, attributes: Mapping[str, Value]) -> None:
        """A span that is over; monotonic seconds."""
        # Between the two clocks, as of now: OpenTelemetry's times are of the wall.
        offset_ns = wall_ns() - round(seconds() * 1e9)
        span = self._begin(name, Kind.INTERNAL, attributes, round(started_s * 1e9) + offset_ns)
        span.end(round(ended_s * 1e9) + offset_ns)

    def _begin(self, name: str, kind: Kind, attributes: Mapping[str, Value], start_ns: int | None = None) -> trace.Span:
        return self._tracer.start_span(name, _parent(), _KINDS[kind], attributes, start_time=start_ns)

    async def stop(self, within_s: float) -> None:
        """Sends what waits. After that time the rest is lost."""
        flushing = asyncio.create_task(asyncio.to_thread(self._processor.shutdown))
        await asyncio.wait({flushing}, timeout=within_s)
        # Ends also an export that is under way.
        self._exporter.shutdown()
        with suppress(Exception):
            await flushing


def _parent() -> Context:
    """The span around, or that of the caller."""
    text = tracing.here.get()
    if not text:
        return Context()
    _, trace_id, span_id, flags = text.split("-")
    remote = tracing.current.get() is tracing.NOTHING
    context = SpanContext(int(trace_id, 16), int(span_id, 16), remote, TraceFlags(int(flags, 16) & 1))
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


class _Recorded(Span):
    """One of OpenTelemetry's. While it is open, what the task sends and begins are parts of it."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._failed = False
        self._tokens: tuple[Token[str], Token[Span]]

    def __enter__(self) -> Self:
        own = self._span.get_span_context()
        text = f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
        self._tokens = (tracing.here.set(text), tracing.current.set(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        here, current = self._tokens
        tracing.here.reset(here)
        tracing.current.reset(current)
        if error is not None and not self._failed:
            self._ended_by(error)
        self._span.end()

    def _ended_by(self, error: BaseException) -> None:
        match error:
            case MeshError():
                self.failed(error.reason.name, error=error.code in _SERVER_ERRORS)
            case asyncio.CancelledError():
                self.failed("CANCELLED", error=False)
            case _:
                self.failed(type(error).__name__)

    def set(self, name: str, value: Value) -> None:
        # What goes on after its caller has left may be told of a span that is over.
        if self._span.is_recording():
            self._span.set_attribute(name, value)

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        if self._span.is_recording():
            self._span.add_event(name, attributes)

    def failed(self, why: str, *, error: bool = True) -> None:
        self._failed = True
        self.set("error.type", why)
        if error and self._span.is_recording():
            self._span.set_status(Status(StatusCode.ERROR))


class _Call(_Recorded):
    """A gRPC call, on its client's or its server's side."""

    def __init__(self, span: trace.Span, kind: Kind) -> None:
        super().__init__(span)
        self._client = kind is Kind.CLIENT

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.set("rpc.grpc.status_code", 0)
        super().__exit__(kind, error, tb)

    def _ended_by(self, error: BaseException) -> None:
        match error:
            case grpc.aio.AioRpcError():
                code = why = error.code().name
            case grpc.aio.AbortError():
                return  # the handler said what it is
            case MeshError():
                code, why = error.code, error.code if self._client else error.reason.name
            case asyncio.CancelledError():
                code = why = "CANCELLED"
            case _:
                code, why = "INTERNAL", type(error).__name__
        self.set("rpc.grpc.status_code", _NUMBERS[code])
        self.failed(why, error=self._client or code in _SERVER_ERRORS)


class _Watched(SpanExporter):
    """Says once that spans are lost, and once that they are no longer."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._lost:
                log.warning("spans are lost: their receiver does not take them")
            self._lost += len(spans)
        elif self._lost:
            log.info("spans are taken again", lost=self._lost)
            self._lost = 0
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _ToStructlog(logging.Handler):
    """OpenTelemetry's own warnings, each kind once. What its exporter says, `_Watched` says."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("opentelemetry.exporter") or record.msg in self._said:
            return
        self._said.add(record.msg)
        log.warning(record.getMessage(), logger=record.name)


def _log_through_structlog() -> None:
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(_ToStructlog())
    logger.propagate = False
