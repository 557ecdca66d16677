"""What surrounds every RPC handler: who is let in, errors as statuses with details, slow readers, and a count."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, closing, nullcontext, suppress
from typing import Any, TypeAlias, cast

import grpc
import structlog
from grpc_status import rpc_status

from mesh import logs, tracing
from mesh.admission import Admission, Bound
from mesh.clock import seconds
from mesh.errors import InternalError, MeshError, Refused
from mesh.metrics import GrpcServerMetrics
from mesh.model import ErrorReason
from mesh.status import to_status

log = structlog.get_logger()
Context = grpc.aio.ServicerContext[Any, Any]
# The handler type is generic in its stub only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


# What customers ask. The others must get through an overload of these: operators' calls, StopSession, which frees
# power, and what balancers ask to settle their doubts.
_ASKED = frozenset(f"/gridmesh.v1.ChargingService/{rpc}" for rpc in ("Charge", "GetSession", "ListSessions"))
# What customers watch. Those of LoadReportService are the mesh's own.
_WATCHED = frozenset(
    (
        "/gridmesh.v1.ChargingService/ChargeBatch",
        "/gridmesh.v1.ChargingService/WatchSession",
        "/gridmesh.v1.OperationsService/WatchSubstations",
    )
)
_OF_THE_MESH = "/gridmesh.v1."
_CHARGE = "/gridmesh.v1.ChargingService/Charge"
_BATCH = "/gridmesh.v1.ChargingService/ChargeBatch"
# A reader for whom nothing could be written for so long is not fed any longer, and has so long to hear why.
PATIENCE_S = 5.0
_FAREWELL_S = 1.0
# Code and reason of a call without an error.
_SERVED = ("OK", "")


class Calls:
    """Wraps each handler by its kind: a handler of another kind than the call's makes its client hang.

    At most `admission.most` calls of each kind are open at once: those asked, those watched, all others.
    """

    def __init__(self, metrics: GrpcServerMetrics, admission: Admission, patience_s: float = PATIENCE_S) -> None:
        self._metrics = metrics
        self._admission = admission
        self._watched = Bound(admission.most, "streams")
        self._others = Bound(admission.most, "calls of operators and balancers")
        self._patience_s = patience_s

    def of(self, server: grpc.aio.Server) -> grpc.aio.Server:
        """That server, for who registers services: what is added is wrapped."""
        return cast("grpc.aio.Server", _Server(server, self.wrap))

    def wrap(self, method: str, handler: Handler) -> Handler:
        """The handler of a method (`/package.Service/Method`) with all that surrounds it."""
        kind: Any
        if handler.request_streaming and method.startswith(_OF_THE_MESH):
            kind, behavior = grpc.stream_stream_rpc_method_handler, self._batches(method, handler.stream_stream)
        elif handler.request_streaming or _writes_itself(handler):
            # Reflection's two-way stream, which has errors of its own; Watch of health.
            return handler
        elif handler.response_streaming:
            kind, behavior = grpc.unary_stream_rpc_method_handler, self._stream(method, handler.unary_stream)
        else:
            kind, behavior = grpc.unary_unary_rpc_method_handler, self._unary(method, handler.unary_unary)
        wrapped: Handler = kind(behavior, handler.request_deserializer, handler.response_serializer)
        return wrapped

    def _unary(self, method: str, behavior: Any) -> Any:  # noqa: ANN401 - grpcio types handlers so
        asked, bound = method in _ASKED, self._bound(method)

        async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
            tracing.came_with(_trace_of(context))
            started, ended, admitted = seconds(), _SERVED, False
            try:
                with tracing.serving(method):
                    if not asked:
                        with bound:
                            return await behavior(request, context)
                    # By the wall clock: 0 may only say that it was set. grpc's core ends late calls by itself.
                    with self._admission.admitted(context.time_remaining() or None):
                        admitted = True
                        return await behavior(request, context)
            except BaseException as error:
                ended = _ended_by(error, context)
                if method == _CHARGE and not admitted and isinstance(error, MeshError):
                    logs.refused(request.request_id, error)
                await _fail(error, method, context)
                raise
            finally:
                self._metrics.observe(method, *ended, seconds() - started)

        return call

    def _stream(self, method: str, behavior: Any) -> Any:  # noqa: ANN401
        # What is watched has no end to wait for.
        spanned, bound = method == _BATCH, self._bound(method)

        async def call(request: Any, context: Context) -> None:  # noqa: ANN401
            tracing.came_with(_trace_of(context))
            ended = _SERVED
            try:
                with tracing.serving(method) if spanned else tracing.NOTHING, bound:
                    await self._relay(behavior(request, context), context)
            except BaseException as error:
                ended = _ended_by(error, context)
                if isinstance(error, MeshError) and error.reason is ErrorReason.READER_TOO_SLOW:
                    log.warning("stream ended: its reader is too slow", method=method, peer=context.peer())
                    await _farewell(error, context)
                await _fail(error, method, context)
                raise
            finally:
                self._metrics.observe(method, *ended, None)

        return call

    def _batches(self, method: str, behavior: Any) -> Any:  # noqa: ANN401
        """Of StreamCharges: each message is counted as what it could have been, a call of ChargeBatch."""

        async def counted(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
            async for request in requests:
                self._metrics.observe(_BATCH, *_SERVED, None)
                yield request

        return self._stream(method, lambda requests, context: behavior(counted(requests), context))

    async def _relay(self, responses: Any, context: Context) -> None:  # noqa: ANN401
        """Holds one message at a time; a reader that takes none for too long is given up."""
        with closing(_Patience(self._patience_s)) as patience:
            async with aclosing(responses):
                async for response in responses:
                    with patience:
                        await _write(response, context)

    def _bound(self, method: str) -> Bound | nullcontext[None]:
        """Counts a call that is not asked for by customers. Health and reflection are never refused."""
        if not method.startswith(_OF_THE_MESH):
            return nullcontext()
        return self._watched if method in _WATCHED else self._others


class _Patience:
    """Of this task with what is written: a block that takes longer is Refused with READER_TOO_SLOW.

    One timer, which looks at its end whether a block has begun since: nearly always a timeout for each message would be
    set up and taken down for nothing.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        # When the block began; None outside of it.
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    def __enter__(self) -> None:
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience_s, self._look)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._since = None
        if self._over and kind is asyncio.CancelledError and self._task is not None and not self._task.uncancel():
            message = f"nothing could be written for {self._patience_s:g} s: the reader is too slow"
            raise Refused(ErrorReason.READER_TOO_SLOW, message, 0) from None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            return  # the next block sets it again
        end = self._since + self._patience_s
        if end > self._loop.time():
            self._timer = self._loop.call_at(end, self._look)
        elif self._task is not None:
            # The task waits in the block: nowhere else does it hear of this.
            self._over = True
            self._task.cancel()


class _Server:
    """Wraps each handler once, when its method is called first.

    An interceptor of grpc's would be asked, and would wrap it, at every call.
    """

    def __init__(self, server: grpc.aio.Server, wrap: Callable[[str, Handler], Handler]) -> None:
        self._server = server
        self._wrap = wrap

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers([_Wrapped(handler, self._wrap) for handler in handlers])

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """The same once more, which grpc.aio has no use for."""


class _Wrapped(grpc.GenericRpcHandler):
    def __init__(self, handler: grpc.GenericRpcHandler, wrap: Callable[[str, Handler], Handler]) -> None:
        self._handler = handler
        self._wrap = wrap
        self._known: dict[str, Handler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> MaybeHandler:
        method = handler_call_details.method
        if (known := self._known.get(method)) is not None:
            return known
        handler = self._handler.service(handler_call_details)
        if handler is not None:
            handler = self._known[method] = self._wrap(method, handler)
        return handler


def _trace_of(context: Context) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == tracing.TRACEPARENT:
            return str(value)
    return ""


async def _write(response: Any, context: Context) -> None:  # noqa: ANN401
    try:
        await context.write(response)
    except grpc.aio.InternalError as error:
        # The reader went while this waited for it: grpcio fails the write, mostly before it cancels the handler.
        raise asyncio.CancelledError from error


async def _farewell(error: MeshError, context: Context) -> None:
    """The status waits behind what the reader has not taken: it stays there, the call here does not wait for it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_FAREWELL_S):
            await context.abort_with_status(rpc_status.to_status(to_status(error)))
    raise asyncio.CancelledError


def _writes_itself(handler: Handler) -> bool:
    """A stream whose handler yields nothing but writes to the context."""
    return bool(handler.response_streaming) and not inspect.isasyncgenfunction(handler.unary_stream)


def _ended_by(error: BaseException, context: Context) -> tuple[str, str]:
    """The code, and the reason where it is ours."""
    match error:
        case MeshError():
            return error.code, error.reason.name
        case asyncio.CancelledError() | GeneratorExit():
            return "CANCELLED", ""
        case grpc.aio.AbortError():
            return grpc.StatusCode(context.code()).name, ""
        case _:
            return "INTERNAL", ErrorReason.INTERNAL.name


async def _fail(error: BaseException, method: str, context: Context) -> None:
    """Ends the call with the error's status. Returns for what grpcio ends by itself."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit | grpc.aio.AbortError) or not isinstance(
        error, Exception
    ):
        return
    if not isinstance(error, MeshError):
        log.error("handler failed", method=method, exc_info=error)
        error = InternalError()
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
