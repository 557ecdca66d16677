"""The table of operations: what is served, and what the document says of it."""

from dataclasses import replace
from typing import Any

import msgspec

from gateway import assets, examples, openapi, pages, schemas
from gateway.asgi import HTML, JSON, Request, Response
from gateway.operation import EVENT_STREAM, Failure, Handler, Link, Operation, Parameter, Reply
from gateway.routes import APPLIED, KEY, PREFER, Api


def _any_case(word: str) -> str:
    """A pattern: an enum of words that differ in case only would give generated clients the same name twice."""
    return "".join(f"[{letter.lower()}{letter.upper()}]" for letter in word)


_PRINTABLE_SCHEMA = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[ -~]*$"}
_SESSION_ID = Parameter(
    "session_id",
    "path",
    "The session, as its reply named it.",
    {"type": "string", "minLength": 1},
    example=examples.SESSION_ID,
)
_SUBSTATION_ID = Parameter(
    "substation_id", "path", "The substation.", {"type": "string", "minLength": 1}, example="north"
)
_SOURCE = Parameter(
    "source",
    "path",
    "Whose limit, in any case: energy management, system operator, charging station operator, other.",
    {"type": "string", "pattern": f"^({'|'.join(map(_any_case, schemas.LimitSource))})$"},
    example="cso",
)
_LAST_EVENT_ID = Parameter(
    "Last-Event-ID",
    "header",
    "The id of the last event seen. Each event is a whole state, the first of them that of now; ids go on from there.",
    {"type": "string"},
)
_LAST_EVENT_SEEN = Parameter(
    "Last-Event-ID",
    "header",
    "The id of the last event seen: those after it follow, or `gap` where some of them are forgotten.",
    {"type": "string"},
)
_KEY_GIVEN = Parameter(
    KEY,
    "header",
    "Makes a repeat safe: the same key with the same body is answered with the session it made the first time. "
    "One that comes while the first is under way waits for its answer, and has the same. "
    "In quotes, as the IETF's draft has it, or bare is the same. "
    "Absent: the gateway makes one and says it in the reply.",
    _PRINTABLE_SCHEMA,
    example=examples.KEY,
)
_KEY_ECHO = Parameter(
    KEY, "header", "The key of this request: repeat with it.", _PRINTABLE_SCHEMA, example=examples.KEY
)
_PREFER = Parameter(
    PREFER,
    "header",
    "`wait=N` (RFC 7240): where every plug is taken, or the power or the operator does not allow one more car, wait "
    "up to N seconds, 60 at most, for that to change. Those that wait are served in the order in which they came; who "
    "leaves gives its place up. After N seconds, or where too many wait, the refusal is told.",
    {"type": "string"},
    example="wait=1",
)
_APPLIED = Parameter(
    APPLIED,
    "header",
    "The wait that counted. Absent: none was asked for, or too many wait already.",
    {"type": "string", "pattern": "^wait=[1-9][0-9]?$"},
    example="wait=1",
)
_LOCATION = Parameter(
    "Location",
    "header",
    "The session's path.",
    {"type": "string"},
    required=True,
    example=f"/v1/charges/{examples.SESSION_ID}",
)
_NOT_NOW = (
    *("NO_CHARGE_POINT", "FLOOR_ABOVE_LIMIT", "TOO_MANY_WAITING", "NOT_ACCEPTING", "NO_SUBSTATION", "OVERLOADED"),
    *("LEDGER_UNAVAILABLE", "SUBSTATION_UNREACHABLE", "BALANCER_UNREACHABLE", "OUTCOME_UNKNOWN", "GATEWAY_STOPPING"),
)
_ALSO_ENDED = "also those that ended within 24 hours"

_UPSTREAM = (
    Failure(
        503,
        "The balancer or the substation cannot be reached, there are too many requests, or this gateway stops.",
        ("BALANCER_UNREACHABLE", "SUBSTATION_UNREACHABLE", "OVERLOADED", "GATEWAY_STOPPING", "STREAM_BROKEN"),
    ),
    Failure(504, "No answer in time.", ("DEADLINE_EXCEEDED",)),
)
_OPERATORS = (
    Failure(
        503,
        "The balancer or the substation cannot be reached, or its ledger cannot be written.",
        ("BALANCER_UNREACHABLE", "SUBSTATION_UNREACHABLE", "LEDGER_UNAVAILABLE", "OVERLOADED"),
    ),
    Failure(504, "No answer in time.", ("DEADLINE_EXCEEDED",)),
)
_BODY = (
    Failure(408, "The body came too slowly.", ("BODY_TOO_SLOW",)),
    Failure(413, "The body is above 4 MiB.", ("BODY_TOO_LARGE",)),
    Failure(415, "The body does not say that it is application/json.", ("UNSUPPORTED_MEDIA_TYPE",)),
)
_WRONG = "Something in the request is wrong; `errors` names it."
_BAD = (Failure(400, _WRONG, ("INVALID_REQUEST",)),)
_BAD_BODY = (Failure(400, _WRONG, ("INVALID_REQUEST", "INVALID_JSON")), *_BODY)
_NO_SESSION = (Failure(404, "No such session.", ("SESSION_NOT_FOUND",)),)
_NO_SUBSTATION = (Failure(404, "No such substation.", ("SUBSTATION_NOT_FOUND",)),)


def _links(expression: str) -> tuple[Link, ...]:
    """What can be done with a session."""
    named = {"session_id": expression}
    return tuple(Link(name, name, named) for name in ("get_charge", "stop_charge", "watch_charge"))


_OF_SESSION = _links("$response.body#/session/session_id")
_CHARGED = Reply(
    201,
    "Admitted; on the substation's disk.",
    schemas.ChargeReply,
    headers=(_LOCATION, _KEY_ECHO, _APPLIED),
    example=examples.CHARGE,
    links=_OF_SESSION,
)
_NOT_CHARGED = (
    *_BAD_BODY,
    Failure(409, "The attempt was given up before it arrived; repeat it.", ("ATTEMPT_FENCED",)),
    Failure(422, "KEY_REUSED: the key belongs to another request.", ("KEY_REUSED",)),
    Failure(429, "Too many requests.", ()),
    Failure(
        503,
        "No power or plug now (NO_CHARGE_POINT, FLOOR_ABOVE_LIMIT, TOO_MANY_WAITING, NOT_ACCEPTING), more requests "
        "than can be served in time (OVERLOADED: nothing was done), nobody could "
        "be asked (NO_SUBSTATION, BALANCER_UNREACHABLE), or OUTCOME_UNKNOWN: repeat with the same key.",
        _NOT_NOW,
    ),
    Failure(
        504, "No answer in time; OUTCOME_UNKNOWN: repeat with the same key.", ("OUTCOME_UNKNOWN", "ATTEMPT_EXPIRED")
    ),
)
_DRAINED = (Reply(200, "The load after it.", schemas.LoadReply, example=schemas.LoadReply(examples.LOAD)),)
_LIMITS = (
    Reply(
        200,
        "All that are set, and the load after it.",
        schemas.LimitsReply,
        example=schemas.LimitsReply(examples.LOAD, [examples.LIMIT]),
    ),
)
_VIEW = schemas.SubstationList([examples.SUBSTATION])


def operations(api: Api, version: str) -> list[Operation]:
    """Every operation, with those of the document itself."""
    document: list[bytes] = []
    docs: list[bytes] = []

    async def show_document(request: Request) -> Response:
        del request
        return Response(document[0], JSON)

    async def show_docs(request: Request) -> Response:
        del request
        return Response(docs[0], HTML)

    table = [*(declared(api) for declared in _DECLARED), *_pages(show_document, show_docs)]
    described = openapi.document(table, version)
    document.append(msgspec.json.encode(described))
    docs.append(pages.docs(described).encode())
    return [*table, *assets.parts()]


def _charge(api: Api) -> Operation:
    return Operation(
        "charge",
        "POST",
        "/v1/charges",
        "charges",
        "Charges one car.",
        api.charge,
        (_CHARGED, replace(_CHARGED, status=200, description="The key was known: its session.")),
        parameters=(_KEY_GIVEN, _PREFER),
        body=schemas.ChargeBody,
        example=examples.CAR,
        problems=_NOT_CHARGED,
        problem_headers=(_KEY_ECHO, _APPLIED),
    )


def _charge_batch(api: Api) -> Operation:
    return Operation(
        "charge_batch",
        "POST",
        "/v1/charges:batch",
        "charges",
        "Charges up to 1,000 cars.",
        api.charge_batch,
        (
            Reply(
                200,
                "One outcome per item, in order. Each has its own status.",
                list[schemas.BatchOutcome],
                example=examples.OUTCOMES,
            ),
        ),
        "A bad or late item holds back no other. None waits for a plug, nor is served before those that do.",
        body=list[schemas.BatchItem],
        example=[{"request_id": examples.KEY, **examples.CAR}],
        problems=(*_BAD_BODY, *_UPSTREAM),
    )


def _list_charges(api: Api) -> Operation:
    return Operation(
        "list_charges",
        "GET",
        "/v1/charges",
        "charges",
        "Pages through sessions.",
        api.list_charges,
        (
            Reply(
                200,
                "One page, in order of session_id within a substation.",
                schemas.SessionList,
                example=schemas.SessionList([examples.SESSION], "bm9ydGg"),
                links=(
                    *_links("$response.body#/sessions/0/session_id"),
                    Link("next_page", "list_charges", {"page_token": "$response.body#/next_page_token"}),
                ),
            ),
        ),
        parameters=(
            Parameter(
                "page_size",
                "query",
                "1 to 1,000. Absent or 0: 100.",
                {"type": "integer", "minimum": 0, "maximum": 1000},
            ),
            Parameter("page_token", "query", "next_page_token of the page before.", {"type": "string"}),
            Parameter("include_ended", "query", f"true: {_ALSO_ENDED}.", {"type": "boolean"}),
            Parameter(
                "state",
                "query",
                "Only this state; may be given several times.",
                {"type": "array", "items": {"$ref": "#/components/schemas/SessionState"}},
            ),
            Parameter("vehicle_id", "query", "Only this car.", {"type": "string"}),
            Parameter("substation_id", "query", "Only this substation.", {"type": "string"}),
        ),
        problems=(*_BAD, *_NO_SUBSTATION, *_UPSTREAM),
    )


def _get_charge(api: Api) -> Operation:
    return Operation(
        "get_charge",
        "GET",
        "/v1/charges/{session_id}",
        "charges",
        "One session.",
        api.get_charge,
        (
            Reply(
                200,
                "The session as it is now.",
                schemas.SessionReply,
                example=schemas.SessionReply(examples.SESSION),
                links=_OF_SESSION[1:],
            ),
        ),
        parameters=(_SESSION_ID,),
        problems=(*_BAD, *_NO_SESSION, *_UPSTREAM),
    )


def _stop_charge(api: Api) -> Operation:
    return Operation(
        "stop_charge",
        "POST",
        "/v1/charges/{session_id}/stop",
        "charges",
        "Ends a session.",
        api.stop_charge,
        (
            Reply(
                200,
                "The session as it ended.",
                schemas.SessionReply,
                example=schemas.SessionReply(examples.SESSION),
                links=_OF_SESSION[:1],
            ),
        ),
        "Its power is free at once. A second stop changes nothing. The body may be absent.",
        parameters=(_SESSION_ID,),
        body=schemas.StopBody,
        body_required=False,
        example={"reason": "REMOTE"},
        problems=(*_BAD_BODY, *_NO_SESSION, *_UPSTREAM),
    )


def _watch_charge(api: Api) -> Operation:
    return Operation(
        "watch_charge",
        "GET",
        "/v1/charges/{session_id}/events",
        "charges",
        "A session as server-sent events.",
        api.watch_charge,
        (
            Reply(
                200,
                "`session` with a Session now, on every change and each second while it charges; last "
                "`end` with a StreamEnd, or `error` with a Problem.",
                media_type=EVENT_STREAM,
                events={"session": schemas.Session, "end": schemas.StreamEnd, "error": schemas.Problem},
            ),
            Reply(204, "`Last-Event-ID` is that of `end`: there is nothing to come back for.", media_type=""),
        ),
        parameters=(_SESSION_ID, _LAST_EVENT_ID),
        problems=(*_BAD, *_NO_SESSION, *_UPSTREAM),
    )


def _list_substations(api: Api) -> Operation:
    return Operation(
        "list_substations",
        "GET",
        "/v1/substations",
        "substations",
        "Every substation as the balancer knows it.",
        api.list_substations,
        (Reply(200, "The load view.", schemas.SubstationList, example=_VIEW),),
        problems=(*_BAD, *_UPSTREAM),
    )


def _watch_substations(api: Api) -> Operation:
    return Operation(
        "watch_substations",
        "GET",
        "/v1/substations/events",
        "substations",
        "The load view as server-sent events.",
        api.watch_substations,
        (
            Reply(
                200,
                "`substations` with a SubstationList now, on every change and each second; "
                "last `error` with a Problem.",
                media_type=EVENT_STREAM,
                events={"substations": schemas.SubstationList, "error": schemas.Problem},
            ),
        ),
        parameters=(_LAST_EVENT_ID,),
        problems=(*_BAD, *_UPSTREAM),
    )


def _set_limit(api: Api) -> Operation:
    return Operation(
        "set_limit",
        "PUT",
        "/v1/substations/{substation_id}/limits/{source}",
        "substations",
        "Limits a substation's power.",
        api.set_limit,
        _LIMITS,
        "One limit per source; the lowest active one counts. On disk before the reply; the cars follow "
        "within their obedience time.",
        parameters=(_SUBSTATION_ID, _SOURCE),
        body=schemas.LimitBody,
        example={"limit_kw": 50, "reason": "evening peak"},
        problems=(*_BAD_BODY, *_NO_SUBSTATION, *_OPERATORS),
    )


def _clear_limit(api: Api) -> Operation:
    return Operation(
        "clear_limit",
        "DELETE",
        "/v1/substations/{substation_id}/limits/{source}",
        "substations",
        "Removes a source's limit.",
        api.clear_limit,
        _LIMITS,
        parameters=(_SUBSTATION_ID, _SOURCE),
        problems=(*_BAD, *_NO_SUBSTATION, *_OPERATORS),
    )


def _drain(api: Api) -> Operation:
    return Operation(
        "drain",
        "POST",
        "/v1/substations/{substation_id}/drain",
        "substations",
        "Admits nothing more there.",
        api.drain,
        _DRAINED,
        "Also after a restart. Live sessions go on.",
        parameters=(_SUBSTATION_ID,),
        problems=(*_BAD, *_NO_SUBSTATION, *_OPERATORS),
    )


def _undrain(api: Api) -> Operation:
    return Operation(
        "undrain",
        "POST",
        "/v1/substations/{substation_id}/undrain",
        "substations",
        "Admits there again.",
        api.undrain,
        _DRAINED,
        parameters=(_SUBSTATION_ID,),
        problems=(*_BAD, *_NO_SUBSTATION, *_OPERATORS),
    )


def _get_health(api: Api) -> Operation:
    return Operation(
        "get_health",
        "GET",
        "/healthz",
        "gateway",
        "Whether the process runs.",
        api.healthz,
        (Reply(200, "It does.", schemas.Health, example=schemas.Health()),),
    )


def _get_readiness(api: Api) -> Operation:
    return Operation(
        "get_readiness",
        "GET",
        "/readyz",
        "gateway",
        "Whether charges can be placed.",
        api.readyz,
        (Reply(200, "They can.", schemas.Readiness, example=schemas.Readiness(3, 3)),),
        problems=(
            Failure(
                503,
                "They cannot; `detail` says why.",
                ("NO_SUBSTATION", "BALANCER_UNREACHABLE", "GATEWAY_STOPPING"),
            ),
            Failure(504, "The balancer did not answer in time.", ("DEADLINE_EXCEEDED",)),
        ),
    )


def _watch_grid(api: Api) -> Operation:
    return Operation(
        "watch_grid",
        "GET",
        "/v1/events",
        "gateway",
        "The grid as server-sent events.",
        api.watch_grid,
        (
            Reply(
                200,
                "`substations` with a SubstationList now, on every change and each second, and without an id, as "
                "it is a state; `placed` (at, request_id, session_id, vehicle_id, max_power_kw, energy_kwh, "
                "placement), `refused` and `in_doubt` (at, request_id, vehicle_id, problem) for what this gateway "
                "itself did; `gap` (missed) where some of these are forgotten; last `error` with a Problem.",
                media_type=EVENT_STREAM,
                events={
                    "substations": schemas.SubstationList,
                    "placed": schemas.Placed,
                    "refused": schemas.Refused,
                    "in_doubt": schemas.Refused,
                    "gap": schemas.Gap,
                    "error": schemas.Problem,
                },
            ),
        ),
        "It begins with the last 50 of what happened, or with all after `Last-Event-ID`, of which 1,000 are kept. "
        "What other gateways placed shows only in `substations`.",
        parameters=(_LAST_EVENT_SEEN,),
        problems=(*_BAD, *_UPSTREAM),
    )


def _pages(show_document: Handler, show_docs: Handler) -> list[Operation]:
    html = HTML.decode()
    return [
        Operation(
            "get_openapi",
            "GET",
            "/openapi.json",
            "gateway",
            "This document.",
            show_document,
            (Reply(200, "OpenAPI 3.1.", dict[str, Any]),),
        ),
        Operation(
            "get_docs",
            "GET",
            "/docs",
            "gateway",
            "This document for people.",
            show_docs,
            (Reply(200, "A page.", None, html),),
        ),
        Operation(
            "get_index",
            "GET",
            "/",
            "gateway",
            "The live page: the grid, and what an operator does with it.",
            assets.index().show,
            (Reply(200, "A page.", None, html),),
        ),
    ]


# In the order of the document.
_DECLARED = (
    _charge,
    _charge_batch,
    _list_charges,
    _get_charge,
    _stop_charge,
    _watch_charge,
    _list_substations,
    _watch_substations,
    _set_limit,
    _clear_limit,
    _drain,
    _undrain,
    _get_health,
    _get_readiness,
    _watch_grid,
)
