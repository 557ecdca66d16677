"""What surrounds every RPC handler: errors become statuses with details, and each call is counted once."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import structlog
from grpc_status import rpc_status

from mesh.clock import seconds
from mesh.errors import InternalError, MeshError
from mesh.metrics import GrpcServerMetrics
from mesh.status import to_status

log = structlog.get_logger()
Context = grpc.aio.ServicerContext[Any, Any]
# The handler type is generic in its stub only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class Calls(grpc.aio.ServerInterceptor):
    """Wraps each handler by its kind: a handler of another kind than the call's makes its client hang."""

    def __init__(self, metrics: GrpcServerMetrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MaybeHandler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or handler.request_streaming or _writes_itself(handler):
            # Unknown methods; reflection's two-way stream, which has errors of its own; Watch of health.
            return handler
        kind: Any = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
        behavior = (
            self._stream(method, handler.unary_stream)
            if handler.response_streaming
            else self._unary(method, handler.unary_unary)
        )
        wrapped: Handler = kind(behavior, handler.request_deserializer, handler.response_serializer)
        return wrapped

    def _unary(self, method: str, behavior: Any) -> Any:  # noqa: ANN401 - grpcio types handlers so
        async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
            started, code = seconds(), "OK"
            try:
                return await behavior(request, context)
            except BaseException as error:
                code = _code_of(error, context)
                await _fail(error, method, context)
                raise
            finally:
                self._metrics.observe(method, code, seconds() - started)

        return call

    def _stream(self, method: str, behavior: Any) -> Any:  # noqa: ANN401
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
            code = "OK"
            try:
                async for response in behavior(request, context):
                    yield response
            except BaseException as error:
                code = _code_of(error, context)
                await _fail(error, method, context)
                raise
            finally:
                self._metrics.observe(method, code, None)

        return call


def _writes_itself(handler: Handler) -> bool:
    """A stream whose handler yields nothing but writes to the context."""
    return bool(handler.response_streaming) and not inspect.isasyncgenfunction(handler.unary_stream)


def _code_of(error: BaseException, context: Context) -> str:
    match error:
        case MeshError():
            return error.code
        case asyncio.CancelledError() | GeneratorExit():
            return "CANCELLED"
        case grpc.aio.AbortError():
            return grpc.StatusCode(context.code()).name
        case _:
            return "INTERNAL"


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
