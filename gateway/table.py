"""The table of operations: what is served, and what the document says of it."""

from typing import Any

import msgspec

from gateway import assets, openapi, pages, schemas
from gateway.asgi import HTML, JSON, Request, Response
from gateway.operation import EVENT_STREAM, Operation, Parameter, Reply
from gateway.routes import KEY, Api

_PRINTABLE_SCHEMA = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[ -~]*$"}
_SESSION_ID = Parameter(
    "session_id",
    "path",
    "The session, as its reply named it.",
    {"type": "string", "minLength": 1},
    example="north.0192f0c1-2a3b-7c4d-8e5f-0123456789ab",
)
_SUBSTATION_ID = Parameter(
    "substation_id", "path", "The substation.", {"type": "string", "minLength": 1}, example="north"
)
_SOURCE = Parameter(
    "source",
    "path",
    "Whose limit, in any case: energy management, system operator, charging station operator, other.",
    {"type": "string", "enum": [*(s.lower() for s in schemas.LimitSource), *schemas.LimitSource]},
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
    "Absent: the gateway makes one and says it in the reply.",
    _PRINTABLE_SCHEMA,
    example="order-4711",
)
_KEY_ECHO = Parameter(KEY, "header", "The key of this request: repeat with it.", _PRINTABLE_SCHEMA)
_LOCATION = Parameter("Location", "header", "The session's path.", {"type": "string"}, required=True)
_ALSO_ENDED = "also those that ended within 24 hours"

_UPSTREAM = (
    (503, "The balancer or the substation cannot be reached, there are too many requests, or this gateway stops."),
    (504, "No answer in time."),
)
_BODY = (
    (408, "The body came too slowly."),
    (413, "The body is above 4 MiB."),
    (415, "The body does not say that it is application/json."),
)
_BAD = ((400, "Something in the request is wrong; `errors` names it."),)
_NO_SESSION = ((404, "No such session."),)
_NO_SUBSTATION = ((404, "No such substation."),)
_EXAMPLE_CHARGE = {"vehicle_id": "EV-001", "energy_kwh": 20, "max_power_kw": 11}


def operations(api: Api, version: str) -> list[Operation]:
    """Every operation, with those of the document itself."""
    table = [*_charges(api), *_substations(api), *_itself(api)]
    document: list[bytes] = []
    docs: list[bytes] = []

    async def show_document(request: Request) -> Response:
        del request
        return Response(document[0], JSON)

    async def show_docs(request: Request) -> Response:
        del request
        return Response(docs[0], HTML)

    html = HTML.decode()
    table += [
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
    described = openapi.document(table, version)
    document.append(msgspec.json.encode(described))
    docs.append(pages.docs(described).encode())
    return [*table, *assets.parts()]


def _charges(api: Api) -> list[Operation]:
    charge_problems = (
        *_BAD,
        *_BODY,
        (409, "The attempt was given up before it arrived; repeat it."),
        (422, "KEY_REUSED: the key belongs to another request."),
        (429, "Too many requests."),
        (
            503,
            "No power or plug now (NO_CHARGE_POINT, FLOOR_ABOVE_LIMIT, TOO_MANY_WAITING, NOT_ACCEPTING), more requests "
            "than can be served in time (OVERLOADED: nothing was done), nobody could "
            "be asked (NO_SUBSTATION, BALANCER_UNREACHABLE), or OUTCOME_UNKNOWN: repeat with the same key.",
        ),
        (504, "No answer in time; OUTCOME_UNKNOWN: repeat with the same key."),
    )
    return [
        Operation(
            "charge",
            "POST",
            "/v1/charges",
            "charges",
            "Charges one car.",
            api.charge,
            (
                Reply(201, "Admitted; on the substation's disk.", schemas.ChargeReply, headers=(_LOCATION, _KEY_ECHO)),
                Reply(200, "The key was known: its session.", schemas.ChargeReply, headers=(_LOCATION, _KEY_ECHO)),
            ),
            parameters=(_KEY_GIVEN,),
            body=schemas.ChargeBody,
            example=_EXAMPLE_CHARGE,
            problems=charge_problems,
            problem_headers=(_KEY_ECHO,),
        ),
        Operation(
            "charge_batch",
            "POST",
            "/v1/charges:batch",
            "charges",
            "Charges up to 1,000 cars.",
            api.charge_batch,
            (Reply(200, "One outcome per item, in order. Each has its own status.", list[schemas.BatchOutcome]),),
            "A bad or late item holds back no other.",
            body=list[schemas.BatchItem],
            example=[{"request_id": "order-4711", **_EXAMPLE_CHARGE}],
            problems=(*_BAD, *_BODY, *_UPSTREAM),
        ),
        Operation(
            "list_charges",
            "GET",
            "/v1/charges",
            "charges",
            "Pages through sessions.",
            api.list_charges,
            (Reply(200, "One page, in order of session_id within a substation.", schemas.SessionList),),
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
            problems=(*_BAD, *_UPSTREAM),
        ),
        Operation(
            "get_charge",
            "GET",
            "/v1/charges/{session_id}",
            "charges",
            "One session.",
            api.get_charge,
            (Reply(200, "The session as it is now.", schemas.SessionReply),),
            parameters=(_SESSION_ID,),
            problems=(*_BAD, *_NO_SESSION, *_UPSTREAM),
        ),
        Operation(
            "stop_charge",
            "POST",
            "/v1/charges/{session_id}/stop",
            "charges",
            "Ends a session.",
            api.stop_charge,
            (Reply(200, "The session as it ended.", schemas.SessionReply),),
            "Its power is free at once. A second stop changes nothing. The body may be absent.",
            parameters=(_SESSION_ID,),
            body=schemas.StopBody,
            body_required=False,
            example={"reason": "REMOTE"},
            problems=(*_BAD, *_NO_SESSION, *_BODY, *_UPSTREAM),
        ),
        Operation(
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
                    None,
                    EVENT_STREAM,
                ),
                Reply(204, "`Last-Event-ID` is that of `end`: there is nothing to come back for.", media_type=""),
            ),
            parameters=(_SESSION_ID, _LAST_EVENT_ID),
            problems=(*_BAD, *_NO_SESSION, *_UPSTREAM),
        ),
    ]


def _substations(api: Api) -> list[Operation]:
    drained = (Reply(200, "The load after it.", schemas.LoadReply),)
    limits = (Reply(200, "All that are set, and the load after it.", schemas.LimitsReply),)
    return [
        Operation(
            "list_substations",
            "GET",
            "/v1/substations",
            "substations",
            "Every substation as the balancer knows it.",
            api.list_substations,
            (Reply(200, "The load view.", schemas.SubstationList),),
            problems=(*_BAD, *_UPSTREAM),
        ),
        Operation(
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
                    None,
                    EVENT_STREAM,
                ),
            ),
            parameters=(_LAST_EVENT_ID,),
            problems=(*_BAD, *_UPSTREAM),
        ),
        Operation(
            "set_limit",
            "PUT",
            "/v1/substations/{substation_id}/limits/{source}",
            "substations",
            "Limits a substation's power.",
            api.set_limit,
            limits,
            "One limit per source; the lowest active one counts. On disk before the reply; the cars follow "
            "within their obedience time.",
            parameters=(_SUBSTATION_ID, _SOURCE),
            body=schemas.LimitBody,
            example={"limit_kw": 50, "reason": "evening peak"},
            problems=(*_BAD, *_NO_SUBSTATION, *_BODY, *_UPSTREAM),
        ),
        Operation(
            "clear_limit",
            "DELETE",
            "/v1/substations/{substation_id}/limits/{source}",
            "substations",
            "Removes a source's limit.",
            api.clear_limit,
            limits,
            parameters=(_SUBSTATION_ID, _SOURCE),
            problems=(*_BAD, *_NO_SUBSTATION, *_UPSTREAM),
        ),
        Operation(
            "drain",
            "POST",
            "/v1/substations/{substation_id}/drain",
            "substations",
            "Admits nothing more there.",
            api.drain,
            drained,
            "Also after a restart. Live sessions go on.",
            parameters=(_SUBSTATION_ID,),
            problems=(*_BAD, *_NO_SUBSTATION, *_UPSTREAM),
        ),
        Operation(
            "undrain",
            "POST",
            "/v1/substations/{substation_id}/undrain",
            "substations",
            "Admits there again.",
            api.undrain,
            drained,
            parameters=(_SUBSTATION_ID,),
            problems=(*_BAD, *_NO_SUBSTATION, *_UPSTREAM),
        ),
    ]


def _itself(api: Api) -> list[Operation]:
    return [
        Operation(
            "get_health",
            "GET",
            "/healthz",
            "gateway",
            "Whether the process runs.",
            api.healthz,
            (Reply(200, "It does.", schemas.Health),),
        ),
        Operation(
            "get_readiness",
            "GET",
            "/readyz",
            "gateway",
            "Whether charges can be placed.",
            api.readyz,
            (Reply(200, "They can.", schemas.Readiness),),
            problems=((503, "They cannot; `detail` says why."), (504, "The balancer did not answer in time.")),
        ),
        Operation(
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
                    None,
                    EVENT_STREAM,
                ),
            ),
            "It begins with the last 50 of what happened, or with all after `Last-Event-ID`, of which 1,000 are kept. "
            "What other gateways placed shows only in `substations`.",
            parameters=(_LAST_EVENT_SEEN,),
            problems=(*_BAD, *_UPSTREAM),
        ),
    ]
