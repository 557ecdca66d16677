"""The ASGI application from the table of operations: paths, methods, counting, and only problems on errors."""

import re
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

import structlog

from gateway import problems
from gateway.asgi import ASGIApp, Receive, Request, Response, Scope, Send
from gateway.cors import Cors
from gateway.metrics import UNMATCHED, HttpMetrics
from gateway.operation import EVENT_STREAM, Handler, Operation
from gateway.problems import Naming, ProblemError
from mesh import clock, tracing
from mesh.errors import MeshError
from mesh.tracing import Kind

log = structlog.get_logger()

# Health, readiness and pages are asked again and again: they have no traces.
_TRACED = "/v1/"
_TRACEPARENT = tracing.TRACEPARENT.encode()
_NO_PARAMS: Mapping[str, str] = {}


def build(operations: Iterable[Operation], metrics: HttpMetrics, cors: Cors | None = None) -> ASGIApp:
    """The whole application. Without `cors` browsers let no page of another origin read a reply."""
    by_path: dict[str, dict[str, Handler]] = {}
    for operation in operations:
        handlers = by_path.setdefault(operation.path, {})
        handlers[operation.method] = operation.handler
        if operation.method == "GET" and not any(reply.media_type == EVENT_STREAM for reply in operation.replies):
            handlers["HEAD"] = operation.handler  # the server leaves the body out; a stream would have nothing else
    return _App([_Path(path, handlers) for path, handlers in by_path.items()], metrics, cors)


class _App:
    """Finds the path, and counts each request once, when its reply begins: an event stream has no end to wait for."""

    def __init__(self, paths: Iterable["_Path"], metrics: HttpMetrics, cors: Cors | None) -> None:
        self._metrics = metrics
        self._cors = cors
        self._plain = {path.template: path for path in paths if "{" not in path.template}
        self._with_params = [path for path in paths if "{" in path.template]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = clock.seconds()
        path, params = self._find(scope["path"])
        request = Request(scope, receive, params)
        response = None if self._cors is None or path is None else self._cors.preflight(request, path.allow)
        if response is None:
            response = _nowhere() if path is None else await path.respond(request)
        if self._cors is not None:
            response.headers = [*response.headers, *self._cors.headers(request)]
        route = UNMATCHED if path is None else path.template
        took_s = clock.seconds() - started - request.waited_s
        self._metrics.observe(route, request.method, response.status, response.reason, took_s)
        await response.send(request, send)

    def _find(self, said: str) -> tuple["_Path | None", Mapping[str, str]]:
        if (plain := self._plain.get(said)) is not None:
            return plain, _NO_PARAMS
        for path in self._with_params:
            if match := path.pattern.fullmatch(said):
                return path, match.groupdict()
        return None, _NO_PARAMS


class _Path:
    """One path."""

    def __init__(self, template: str, handlers: dict[str, Handler]) -> None:
        self.template = template
        self.pattern = re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(template)))
        self._handlers = handlers
        self.allow = ", ".join(sorted(self._handlers))

    def respond(self, request: Request) -> Coroutine[Any, Any, Response]:
        """The response within the client's trace, if it said one. A span ends where the response begins."""
        tracing.came_with(_traceparent(request))
        if tracing.exporting() and self.template.startswith(_TRACED):
            return self._traced(request)
        return self._respond(request)

    async def _traced(self, request: Request) -> Response:
        # The route, not the path: what a client writes into that may be of a person.
        attributes = {"http.request.method": request.method, "http.route": self.template}
        with tracing.span(f"{request.method} {self.template}", Kind.SERVER, attributes) as span:
            response = await self._respond(request)
            span.set("http.response.status_code", response.status)
            if response.status >= 500:
                span.failed(str(response.status))
            return response

    async def _respond(self, request: Request) -> Response:
        handler = self._handlers.get(request.method)
        if handler is None:
            detail = f"{self.template} takes {self.allow}"
            return problems.response(problems.problem(405, "METHOD_NOT_ALLOWED", detail), {"Allow": self.allow})
        try:
            return await handler(request)
        except ProblemError as error:
            return problems.response(error.problem, error.headers)
        except MeshError as error:
            return problems.response(problems.of_mesh(error, Naming()))
        except Exception:
            log.exception("request failed", method=request.method, route=self.template)
            return problems.response(problems.internal())


def _traceparent(request: Request) -> str:
    """As it came, or nothing: two of them are none."""
    came = request.given(_TRACEPARENT)
    return came[0] if len(came) == 1 else ""


def _nowhere() -> Response:
    return problems.response(problems.problem(404, "PATH_NOT_FOUND", "no such path; /docs lists those there are"))
