"""The contract's words as plain enums, with the numbers of `protos/`, for modules that import no protobuf."""

from enum import IntEnum


class SessionState(IntEnum):
    """What a session is doing (OCPP 2.0.1 ChargingStateEnumType)."""

    EV_CONNECTED = 1
    CHARGING = 2
    SUSPENDED_EV = 3
    SUSPENDED_EVSE = 4
    ENDED = 5


class StopReason(IntEnum):
    """Why a session ended (OCPP 2.0.1 ReasonEnumType, and DUPLICATE)."""

    UNSPECIFIED = 0
    ENERGY_LIMIT_REACHED = 1
    REMOTE = 2
    LOCAL = 3
    EV_DISCONNECTED = 4
    SOC_LIMIT_REACHED = 5
    OVERCURRENT_FAULT = 6
    EMERGENCY_STOP = 7
    OTHER = 8
    DUPLICATE = 9


class LimitReason(IntEnum):
    """Why a grant is below what its car can take."""

    UNSPECIFIED = 0
    SHARED = 1
    WAITING_TURN = 2
    LIMIT_CUT = 3
    RAMP = 4
    UNDRAWN = 5


class LimitSource(IntEnum):
    """Who set a limit (OCPP 2.0.1 ChargingLimitSourceEnumType); UNSPECIFIED is the rated power."""

    UNSPECIFIED = 0
    EMS = 1
    SO = 2
    CSO = 3
    OTHER = 4


class NotAccepting(IntEnum):
    """Why a substation admits nothing."""

    UNSPECIFIED = 0
    DRAINING = 1
    LEDGER = 2
    SHUTTING_DOWN = 3


class ReportState(IntEnum):
    """How current a balancer's knowledge of a substation is."""

    NEVER_REPORTED = 1
    FRESH = 2
    STALE = 3
    GONE = 4


class ErrorReason(IntEnum):
    """The name is what ErrorInfo.reason carries."""

    INVALID_REQUEST = 1
    NO_CHARGE_POINT = 2
    FLOOR_ABOVE_LIMIT = 3
    TOO_MANY_WAITING = 4
    NOT_ACCEPTING = 5
    NO_SUBSTATION = 6
    OUTCOME_UNKNOWN = 7
    LEDGER_UNAVAILABLE = 8
    SUBSTATION_UNREACHABLE = 9
    KEY_REUSED = 10
    ATTEMPT_EXPIRED = 11
    ATTEMPT_FENCED = 12
    ATTEMPT_NEWER = 13
    SESSION_NOT_FOUND = 14
    SUBSTATION_NOT_FOUND = 15
    INTERNAL = 16
    OVERLOADED = 17
    READER_TOO_SLOW = 18
