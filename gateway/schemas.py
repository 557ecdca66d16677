"""Every JSON body of the HTTP API. These types decode, encode, and make the OpenAPI document.

Names are those of `protos/`. Requests refuse unknown fields; null counts as absent. Replies print
zeros and leave out what is absent, never null. Ranges stand here for the reader of the document
only: `mesh.requests` checks them, for HTTP and gRPC alike.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from mesh.requests import MAX_ALLOWED, MAX_ENERGY_KWH, MAX_LIMIT_KW, MAX_POWER_KW

_EXAMPLE_SESSION_ID = "north.0192f0c1-2a3b-7c4d-8e5f-0123456789ab"
_EXAMPLE_TIME = "2026-03-01T12:00:00.000Z"


def _range(most: float) -> dict[str, Any]:
    return {"exclusiveMinimum": 0, "maximum": most}


_PRINTABLE = {"minLength": 1, "maxLength": 128, "pattern": "^[ -~]*$"}

# --- words of the contract -------------------------------------------------------------------------


class SessionState(StrEnum):
    """What a session is doing, in the words of OCPP 2.0.1."""

    EV_CONNECTED = "EV_CONNECTED"
    CHARGING = "CHARGING"
    SUSPENDED_EV = "SUSPENDED_EV"
    SUSPENDED_EVSE = "SUSPENDED_EVSE"
    ENDED = "ENDED"


class StopReason(StrEnum):
    """Why a session ended, in the words of OCPP 2.0.1, and DUPLICATE."""

    ENERGY_LIMIT_REACHED = "ENERGY_LIMIT_REACHED"
    REMOTE = "REMOTE"
    LOCAL = "LOCAL"
    EV_DISCONNECTED = "EV_DISCONNECTED"
    SOC_LIMIT_REACHED = "SOC_LIMIT_REACHED"
    OVERCURRENT_FAULT = "OVERCURRENT_FAULT"
    EMERGENCY_STOP = "EMERGENCY_STOP"
    OTHER = "OTHER"
    DUPLICATE = "DUPLICATE"


class LimitReason(StrEnum):
    """Why a session's grant is below what its car can take."""

    SHARED = "SHARED"
    WAITING_TURN = "WAITING_TURN"
    LIMIT_CUT = "LIMIT_CUT"
    RAMP = "RAMP"
    UNDRAWN = "UNDRAWN"


class LimitSource(StrEnum):
    """Who set a limit: energy management, system operator, charging station operator, other."""

    EMS = "EMS"
    SO = "SO"
    CSO = "CSO"
    OTHER = "OTHER"


class NotAcceptingReason(StrEnum):
    """Why a substation takes no new sessions."""

    DRAINING = "DRAINING"
    LEDGER = "LEDGER"
    SHUTTING_DOWN = "SHUTTING_DOWN"


class ReportState(StrEnum):
    """How current the balancer's knowledge of a substation is."""

    NEVER_REPORTED = "NEVER_REPORTED"
    FRESH = "FRESH"
    STALE = "STALE"
    GONE = "GONE"


# --- kinds of values -------------------------------------------------------------------------------

Time = Annotated[
    str,
    Meta(
        description="RFC 3339, UTC, milliseconds.", examples=[_EXAMPLE_TIME], extra_json_schema={"format": "date-time"}
    ),
]
Seconds = Annotated[
    str, Meta(description='Seconds with an "s".', pattern=r"^-?[0-9]+(\.[0-9]+)?s$", examples=["0.120s"])
]
SessionId = Annotated[
    str,
    Meta(description="`<substation_id>.<uuid7>`: names the substation that holds it.", examples=[_EXAMPLE_SESSION_ID]),
]
Kilowatts = Annotated[float, Meta(description="Power in kW.", examples=[11.0])]

# --- requests --------------------------------------------------------------------------------------


class ChargeBody(Struct, forbid_unknown_fields=True):
    """One car that asks to charge."""

    vehicle_id: Annotated[
        str,
        Meta(
            description="Which car: 1 to 128 printable ASCII characters.",
            examples=["EV-001"],
            extra_json_schema=_PRINTABLE,
        ),
    ]
    max_power_kw: Annotated[
        float,
        Meta(description="The most the car can take, in kW.", examples=[11.0], extra_json_schema=_range(MAX_POWER_KW)),
    ]
    energy_kwh: (
        Annotated[
            float,
            Meta(
                description="Energy wanted, in kWh. Absent: until the car is full.",
                examples=[20.0],
                extra_json_schema=_range(MAX_ENERGY_KWH),
            ),
        ]
        | None
    ) = None
    phases: (
        Annotated[
            int,
            Meta(description="1 or 3. Absent: 3 above 7.4 kW, else 1.", ge=1, le=3, extra_json_schema={"enum": [1, 3]}),
        ]
        | None
    ) = None
    min_power_kw: (
        Annotated[
            float,
            Meta(
                description="The least the car can charge with, in kW; not above max_power_kw. Absent: 6 A x 230 V x "
                "phases, or max_power_kw where that is less.",
                examples=[4.14],
                extra_json_schema=_range(MAX_POWER_KW),
            ),
        ]
        | None
    ) = None
    departure_time: (
        Annotated[
            datetime,
            Meta(
                tz=True,
                description="When the car leaves: in the future, within 30 days. Absent: when it is full. "
                "Not together with departure_in.",
            ),
        ]
        | None
    ) = None
    departure_in: (
        Annotated[
            str,
            Meta(
                description='When the car leaves, from now: seconds with an "s".',
                examples=["5400s"],
                extra_json_schema={"pattern": r"^[0-9]{1,7}(\.[0-9]{1,9})?s$"},
            ),
        ]
        | None
    ) = None
    allowed_substation_ids: (
        Annotated[
            list[Annotated[str, Meta(examples=["north"], extra_json_schema={"pattern": "^[a-z0-9-]{1,40}$"})]],
            Meta(
                description="Only these substations may take it. Absent or empty: any.",
                extra_json_schema={"maxItems": MAX_ALLOWED},
            ),
        ]
        | None
    ) = None
    evse_id: (
        Annotated[
            str,
            Meta(
                description="The charge point's own name for the plug; kept, not interpreted.",
                examples=["A-12"],
                extra_json_schema={"maxLength": 128, "pattern": "^[ -~]*$"},
            ),
        ]
        | None
    ) = None


class BatchItem(ChargeBody, forbid_unknown_fields=True):
    """One car of a batch: a charge with its own idempotency key."""

    request_id: (
        Annotated[
            str,
            Meta(
                description="Idempotency key of this item. Absent: the gateway makes one, see the outcome.",
                examples=["order-4711"],
                extra_json_schema=_PRINTABLE,
            ),
        ]
        | None
    ) = None


class StopBody(Struct, forbid_unknown_fields=True):
    """How a session is stopped."""

    reason: (
        Annotated[
            Literal["REMOTE", "LOCAL", "EV_DISCONNECTED", "EMERGENCY_STOP", "OTHER"],
            Meta(description="Why. Absent: REMOTE.", examples=["REMOTE"]),
        ]
        | None
    ) = None


class LimitBody(Struct, forbid_unknown_fields=True):
    """One source's limit on a substation. The lowest active one counts."""

    limit_kw: Annotated[
        float,
        Meta(
            description="Grid power in kW, 0 or more.",
            examples=[50.0],
            extra_json_schema={"minimum": 0, "maximum": MAX_LIMIT_KW},
        ),
    ]
    start_at: (
        Annotated[datetime, Meta(tz=True, description="From when. Absent: at once.", examples=["2099-03-01T17:00:00Z"])]
        | None
    ) = None
    end_at: (
        Annotated[
            datetime, Meta(tz=True, description="Until when. Absent: until cleared.", examples=["2099-03-01T19:00:00Z"])
        ]
        | None
    ) = None
    reason: (
        Annotated[str, Meta(description="For people.", examples=["evening peak"], extra_json_schema={"maxLength": 256})]
        | None
    ) = None
    grid_critical: Annotated[bool, Meta(description="The grid is in danger, not only an agreed maximum.")] | None = None


# --- replies ---------------------------------------------------------------------------------------


class Session(Struct):
    """One car on one charge point."""

    session_id: SessionId
    substation_id: str
    owner: str
    request_id: Annotated[str, Meta(description="The idempotency key of the request that made it.")]
    vehicle_id: str
    max_power_kw: Annotated[float, Meta(description="The most the car can take, in kW.")]
    phases: int
    min_power_kw: Annotated[float, Meta(description="The least the car can charge with, in kW.")]
    departure_assumed: Annotated[
        bool, Meta(description="The client gave no departure; sharing plans with an assumed one.")
    ]
    state: SessionState | UnsetType
    granted_power_kw: Annotated[float, Meta(description="What the car may draw now, in kW.")]
    measured_power_kw: Annotated[float, Meta(description="What the car was last seen to draw, in kW.")]
    delivered_kwh: Annotated[float, Meta(description="Energy delivered so far, in kWh. Never goes back.")]
    attempt_id: str
    energy_kwh: Annotated[float, Meta(description="Energy asked for, in kWh. Absent: until full.")] | UnsetType = UNSET
    departure_time: Time | UnsetType = UNSET
    evse_id: str | UnsetType = UNSET
    started_at: Time | UnsetType = UNSET
    expected_end_at: Time | UnsetType = UNSET
    ended_at: Time | UnsetType = UNSET
    stop_reason: StopReason | UnsetType = UNSET
    limit_reason: LimitReason | UnsetType = UNSET
    limit_source: LimitSource | UnsetType = UNSET
    duplicate_of: Annotated[str, Meta(description="For DUPLICATE: the session that survives.")] | UnsetType = UNSET


class Placement(Struct):
    """Why a session is where it is."""

    substation_id: str
    policy: Annotated[
        str,
        Meta(
            description="The rule that chose: least_load_ahead, least_utilisation, direct or repeat.",
            examples=["least_load_ahead"],
        ),
    ]
    score: Annotated[float, Meta(description="The rule's score of the chosen substation; lowest wins.")]
    utilisation_before: Annotated[float, Meta(description="Demand over limit before this session; may exceed 1.")]
    utilisation_after: Annotated[float, Meta(description="Demand over limit with this session; may exceed 1.")]
    eligible: Annotated[int, Meta(description="How many substations could have taken it.")]
    tried: Annotated[int, Meta(description="How many were asked, this one included.")]


class LoadReport(Struct):
    """What a substation says of its load. Absent means not reported, which is not 0.

    Without the promises for the hours ahead, which only balancers read.
    """

    substation_id: str
    epoch: Annotated[int, Meta(description="Larger on every start of the substation.")] | UnsetType = UNSET
    sequence: Annotated[int, Meta(description="Grows with every change within an epoch.")] | UnsetType = UNSET
    admission_sequence: int | UnsetType = UNSET
    generated_at: Time | UnsetType = UNSET
    rated_power_kw: Kilowatts | UnsetType = UNSET
    limit_power_kw: (
        Annotated[float, Meta(description="The lowest of the rating and every active limit, in kW.")] | UnsetType
    ) = UNSET
    limit_source: LimitSource | UnsetType = UNSET
    demand_kw: (
        Annotated[float, Meta(description="Sum of what the cars could take; may be above the limit.")] | UnsetType
    ) = UNSET
    required_kw: Annotated[float, Meta(description="Sum of what the cars need to be done in time.")] | UnsetType = UNSET
    floor_kw: Annotated[float, Meta(description="Sum of the floors.")] | UnsetType = UNSET
    committed_kw: (
        Annotated[float, Meta(description="Granted, or drawn, or not yet taken back: never above the limit.")]
        | UnsetType
    ) = UNSET
    granted_kw: Kilowatts | UnsetType = UNSET
    measured_kw: Kilowatts | UnsetType = UNSET
    active_sessions: int | UnsetType = UNSET
    charge_points: int | UnsetType = UNSET
    free_charge_points: int | UnsetType = UNSET
    accepting: bool | UnsetType = UNSET
    not_accepting_reason: NotAcceptingReason | UnsetType = UNSET
    time_scale: (
        Annotated[float, Meta(description="Seconds of charging that pass in one second. 1 on a real site.")] | UnsetType
    ) = UNSET
    over_limit_seconds: (
        Annotated[float, Meta(description="Seconds over the limit since its start. Stays 0.")] | UnsetType
    ) = UNSET
    next_free_at: (
        Annotated[
            str,
            Meta(
                description="When a charge point should become free, where none is and that is known.",
                examples=[_EXAMPLE_TIME],
                extra_json_schema={"format": "date-time"},
            ),
        ]
        | UnsetType
    ) = UNSET


class ChargeReply(Struct):
    """What became of a charge request."""

    session: Session
    placement: Placement
    load: LoadReport


class SessionReply(Struct):
    """One session."""

    session: Session


class SessionList(Struct):
    """One page of sessions."""

    sessions: list[Session]
    next_page_token: (
        Annotated[str, Meta(description="For the query of the next page. Absent on the last.")] | UnsetType
    ) = UNSET
    unreachable_substation_ids: (
        Annotated[list[str], Meta(description="Substations whose sessions are missing here.")] | UnsetType
    ) = UNSET


class Limit(Struct):
    """One source's limit."""

    source: LimitSource | UnsetType
    grid_critical: bool
    limit_kw: Kilowatts | UnsetType = UNSET
    start_at: Time | UnsetType = UNSET
    end_at: Time | UnsetType = UNSET
    reason: str | UnsetType = UNSET


class LimitsReply(Struct):
    """The substation's load with its limits, also those that have not started."""

    load: LoadReport
    limits: list[Limit]


class LoadReply(Struct):
    """The substation's load after an operator's call."""

    load: LoadReport


class Substation(Struct):
    """One substation as the balancer knows it."""

    address: str
    state: ReportState | UnsetType
    reserved_kw: Annotated[float, Meta(description="Placed here and not yet in the report, in kW.")]
    reservations: int
    ejected: Annotated[bool, Meta(description="Left out for a while after failures.")]
    substation_id: Annotated[str, Meta(description="Absent until it has reported.")] | UnsetType = UNSET
    report_age: Seconds | UnsetType = UNSET
    report: LoadReport | UnsetType = UNSET


class SubstationList(Struct):
    """The balancer's load view."""

    substations: list[Substation]


class StreamEnd(Struct):
    """The last event of a session's stream: it has ended. Do not reconnect."""

    session_id: SessionId
    stop_reason: StopReason | UnsetType = UNSET


class Placed(Struct):
    """An event: this gateway placed a car."""

    at: Time
    request_id: str
    session_id: SessionId
    vehicle_id: str
    max_power_kw: Kilowatts
    placement: Placement
    energy_kwh: Annotated[float, Meta(description="Energy asked for, in kWh. Absent: until full.")] | UnsetType = UNSET


class Refused(Struct):
    """An event: a car was not served, and why. As `in_doubt` it may have been: its client repeats it."""

    at: Time
    request_id: str
    problem: "Problem"
    vehicle_id: Annotated[str, Meta(description="Absent where the request was not read.")] | UnsetType = UNSET


class Gap(Struct):
    """An event: others came before this one that are not known any more."""

    missed: Annotated[int, Meta(description="How many. Absent: nobody knows.")] | UnsetType = UNSET


class Health(Struct):
    """The process runs."""

    status: Literal["ok"] = "ok"


class Readiness(Struct):
    """Charges can be placed."""

    substations: Annotated[int, Meta(description="How many the balancer knows.")]
    placeable: Annotated[int, Meta(description="How many of them are fresh and accepting.")]
    status: Literal["ready"] = "ready"


# --- problems --------------------------------------------------------------------------------------


class FieldError(Struct, omit_defaults=True):
    """One thing that is wrong in the request."""

    field: Annotated[
        str, Meta(description="The body field, query parameter or header by its name.", examples=["max_power_kw"])
    ]
    detail: Annotated[str, Meta(examples=["must be above 0 and at most 4000"])]
    pointer: Annotated[
        str,
        Meta(
            description="JSON pointer into the request body; absent for what is not in it.", examples=["#/max_power_kw"]
        ),
    ] = ""


class Problem(Struct, omit_defaults=True):
    """Every error of this API (RFC 9457)."""

    type: Annotated[
        str, Meta(description="Stable name of the problem.", examples=["urn:gridmesh:problem:NO_CHARGE_POINT"])
    ]
    title: str
    status: Annotated[int, Meta(description="The HTTP status, also inside batches and event streams.", examples=[503])]
    detail: str
    reason: Annotated[str, Meta(description="The last part of `type`, for machines.", examples=["NO_CHARGE_POINT"])]
    retry_after_s: Annotated[int, Meta(description="As in the Retry-After header: seconds.", examples=[1])] | None = (
        None
    )
    errors: Annotated[list[FieldError], Meta(description="Each wrong field, for INVALID_REQUEST.")] | None = None


class BatchOutcome(Struct):
    """What became of one item: `charge` or `problem`."""

    index: Annotated[int, Meta(description="Position of the item in the request.")]
    status: Annotated[int, Meta(description="The HTTP status it would have had alone.", examples=[201])]
    request_id: Annotated[str, Meta(description="Its idempotency key: send it again with this one.")] | UnsetType = (
        UNSET
    )
    charge: ChargeReply | UnsetType = UNSET
    problem: Problem | UnsetType = UNSET
