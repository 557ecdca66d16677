"""The ASGI application from the table of operations: methods, counting, and no answer but a problem on errors."""

from collections.abc import Iterable, MutableMapping
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import problems
from gateway.metrics import UNMATCHED, HttpMetrics
from gateway.operation import EVENT_STREAM, Handler, Operation
from gateway.problems import Naming, ProblemError, ProblemResponse
from mesh import clock, tracing
from mesh.errors import MeshError
from mesh.tracing import Kind

log = structlog.get_logger()

# Health, readiness and pages are asked again and again: they have no traces.
_TRACED = "/v1/"
_TRACEPARENT = tracing.TRACEPARENT.encode()


def build(operations: Iterable[Operation], metrics: HttpMetrics) -> ASGIApp:
    """The whole application."""
    by_path: dict[str, dict[str, Handler]] = {}
    for operation in operations:
        handlers = by_path.setdefault(operation.path, {})
        handlers[operation.method] = operation.handler
        if operation.method == "GET" and not any(reply.media_type == EVENT_STREAM for reply in operation.replies):
            handlers["HEAD"] = operation.handler  # uvicorn leaves the body out; a stream would have nothing else
    app = Starlette(
        routes=[Route(path, _Path(path, handlers)) for path, handlers in by_path.items()],
        exception_handlers={HTTPException: _http_error},
    )
    app.router.redirect_slashes = False
    return _Counted(app, metrics)


class _Path:
    """One path."""

    def __init__(self, path: str, handlers: dict[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._allow = ", ".join(sorted(self._handlers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route_template"] = self._path
        response = await self._traced(Request(scope, receive))
        if isinstance(response, ProblemResponse):
            scope["problem_reason"] = response.reason
        await response(scope, receive, send)

    async def _traced(self, request: Request) -> Response:
        """The response within the client's trace, if it said one. A span ends where the response begins."""
        tracing.came_with(_traceparent(request))
        if not (tracing.exporting() and self._path.startswith(_TRACED)):
            return await self._respond(request)
        # The route, not the path: what a client writes into that may be of a person.
        attributes = {"http.request.method": request.method, "http.route": self._path}
        with tracing.span(f"{request.method} {self._path}", Kind.SERVER, attributes) as span:
            response = await self._respond(request)
            span.set("http.response.status_code", response.status_code)
            if response.status_code >= 500:
                span.failed(str(response.status_code))
            return response

    async def _respond(self, request: Request) -> Response:
        handler = self._handlers.get(request.method)
        if handler is None:
            detail = f"{self._path} takes {self._allow}"
            return problems.response(problems.problem(405, "METHOD_NOT_ALLOWED", detail), {"Allow": self._allow})
        try:
            return await handler(request)
        except ProblemError as error:
            return problems.response(error.problem, error.headers)
        except MeshError as error:
            return problems.response(problems.of_mesh(error, Naming()))
        except Exception:
            log.exception("request failed", method=request.method, route=self._path)
            return problems.response(problems.internal())


def _traceparent(request: Request) -> str:
    """As it came, or nothing: two of them are none."""
    came = [value for name, value in request.scope["headers"] if name == _TRACEPARENT]
    return came[0].decode("latin-1") if len(came) == 1 else ""


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses."""
    del error
    request.scope["problem_reason"] = "PATH_NOT_FOUND"
    return problems.response(problems.problem(404, "PATH_NOT_FOUND", "no such path; /docs lists those there are"))


class _Counted:
    """Counts each request once, when its response begins: an event stream has no end to wait for."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = clock.seconds()

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route_template", UNMATCHED)
                reason, took_s = scope.get("problem_reason", ""), clock.seconds() - started
                self._metrics.observe(route, scope["method"], message["status"], reason, took_s)
            await send(message)

        await self._app(scope, receive, counted)
