"""The OpenAPI 3.1 document, from the table of operations and the very types that decode and encode."""

import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gateway import examples
from gateway.operation import Failure, Link, Operation, Parameter, Reply
from gateway.schemas import Problem

_REF = "#/components/schemas/{name}"
_RETRY_AFTER = Parameter(
    "Retry-After",
    "header",
    "Whole seconds until a retry makes sense.",
    {"type": "integer", "minimum": 1},
    required=True,
    example=7,
)
# These say when to come again.
_WITH_RETRY_AFTER = frozenset({429, 503, 504})

_DEFECT = Failure(500, "A defect; the log has the details.", ("INTERNAL",))

_ABOUT = """Charges electric vehicles where the grid has room, and never lets a substation draw more than its limit.

Power is in kW, energy in kWh, times are RFC 3339 in UTC. Replies leave out what is absent and print zeros; requests
with unknown fields are refused. Every error is an RFC 9457 problem: `reason` is its stable name, `errors` names each
wrong field. The same messages are served over gRPC by the balancer."""


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The whole document."""
    kinds = [Problem, *_kinds(operations)]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schema_of = {_key(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schema_of)
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {"title": "Gridmesh", "version": version, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(each.tag for each in operations)],
        "paths": paths,
        "components": {"schemas": components},
    }


def _kinds(operations: Iterable[Operation]) -> list[Any]:
    found: dict[str, Any] = {}
    for operation in operations:
        replies = [kind for reply in operation.replies for kind in (reply.body, *reply.events.values())]
        found.update((_key(kind), kind) for kind in (operation.body, *replies) if kind is not None)
    return list(found.values())


def _key(kind: Any) -> str:  # noqa: ANN401 - any type annotation
    return str(kind) if isinstance(kind, types.GenericAlias) or typing.get_origin(kind) else f"{kind.__name__}"


def _operation(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": {
            **{str(reply.status): _reply(reply, schema_of) for reply in operation.replies},
            **{str(each.status): _problem(each, operation) for each in (*operation.problems, _DEFECT)},
        },
    }
    if operation.description:
        described["description"] = operation.description
    if operation.parameters:
        described["parameters"] = [_parameter(each) for each in operation.parameters]
    if operation.body is not None:
        content = {"schema": schema_of[_key(operation.body)]}
        if operation.example is not None:
            content["example"] = operation.example
        described["requestBody"] = {"required": operation.body_required, "content": {"application/json": content}}
    return described


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.where,
        **_header(parameter),
        "required": parameter.required or parameter.where == "path",
    }


def _header(parameter: Parameter) -> dict[str, Any]:
    described = {"description": parameter.description, "required": parameter.required, "schema": parameter.schema}
    return described if parameter.example is None else {**described, "example": parameter.example}


def _reply(reply: Reply, schema_of: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": _schema(reply, schema_of)}
    if reply.example is not None:
        content["example"] = msgspec.to_builtins(reply.example)
    return {
        "description": reply.description,
        **({"content": {reply.media_type: content}} if reply.media_type else {}),
        **({"headers": {each.name: _header(each) for each in reply.headers}} if reply.headers else {}),
        **({"links": {each.name: _link(each) for each in reply.links}} if reply.links else {}),
    }


def _schema(reply: Reply, schema_of: dict[str, Any]) -> dict[str, Any]:
    """Of a stream: of each of its events, in the words of OpenAPI 3.2, as 3.1 has none."""
    if reply.events:
        return {"oneOf": [_event(name, schema_of[_key(kind)]) for name, kind in reply.events.items()]}
    return {"type": "string"} if reply.body is None else schema_of[_key(reply.body)]


def _event(name: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "title": name,
        "required": ["event", "data"],
        "properties": {
            "event": {"const": name},
            "id": {"type": "string"},
            "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": data},
        },
    }


def _link(link: Link) -> dict[str, Any]:
    return {"operationId": link.operation, "parameters": dict(link.parameters)}


def _problem(failure: Failure, operation: Operation) -> dict[str, Any]:
    status = failure.status
    headers = [*operation.problem_headers, *([_RETRY_AFTER] if status in _WITH_RETRY_AFTER else [])]
    shown = {reason: {"value": msgspec.to_builtins(examples.problem(status, reason))} for reason in failure.reasons}
    content = {"schema": {"$ref": _REF.format(name="Problem")}, "examples": shown}
    return {
        "description": failure.when,
        "content": {"application/problem+json": content},
        **({"headers": {each.name: _header(each) for each in headers}} if headers else {}),
    }
