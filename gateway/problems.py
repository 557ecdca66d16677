"""Every error as an RFC 9457 problem: one from the mesh, one of HTTP itself, and a call that broke.

Raised as `ProblemError`; the body is the same in a response, in a batch outcome and in an event stream.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import grpc
import msgspec

from gateway.asgi import Response
from gateway.schemas import FieldError, Problem
from mesh import logs
from mesh.errors import InvalidRequest, MeshError, Violation
from mesh.model import ErrorReason
from mesh.status import from_rpc_error

MEDIA_TYPE = "application/problem+json"
_ENCODER = msgspec.json.Encoder()

# The usual table between gRPC and HTTP, by the code's name.
_BY_CODE = {
    "CANCELLED": 503,  # 499 is for a client that left, and this client is here
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
}
# Where the reason says more than the code: a full grid is not the client's fault.
_BY_REASON = {
    ErrorReason.NO_CHARGE_POINT: 503,
    ErrorReason.FLOOR_ABOVE_LIMIT: 503,
    ErrorReason.TOO_MANY_WAITING: 503,
    ErrorReason.NOT_ACCEPTING: 503,
    ErrorReason.OVERLOADED: 503,
    ErrorReason.READER_TOO_SLOW: 503,
    ErrorReason.KEY_REUSED: 422,
}
_RETRY_LATER = frozenset({429, 503, 504})

_TITLES = {
    "INVALID_REQUEST": "The request is not valid",
    "NO_CHARGE_POINT": "Every charge point is taken",
    "FLOOR_ABOVE_LIMIT": "The limit in force is below the least this car can charge with",
    "TOO_MANY_WAITING": "Too many sessions wait for a turn",
    "NOT_ACCEPTING": "No substation takes new sessions",
    "NO_SUBSTATION": "No substation can be asked",
    "OVERLOADED": "More calls than can be served",
    "READER_TOO_SLOW": "The stream's reader is too slow",
    "OUTCOME_UNKNOWN": "What became of the request is not known",
    "LEDGER_UNAVAILABLE": "The ledger cannot write",
    "SUBSTATION_UNREACHABLE": "The substation cannot be reached",
    "KEY_REUSED": "The idempotency key belongs to another request",
    "ATTEMPT_EXPIRED": "The request arrived too late",
    "ATTEMPT_FENCED": "The attempt was given up before it arrived",
    "ATTEMPT_NEWER": "The session's own attempt is newer",
    "SESSION_NOT_FOUND": "No such session",
    "SUBSTATION_NOT_FOUND": "No such substation",
    "INTERNAL": "Internal error",
    "BALANCER_UNREACHABLE": "The balancer cannot be reached",
    "DEADLINE_EXCEEDED": "No answer in time",
    "STREAM_BROKEN": "The stream broke",
    "GATEWAY_STOPPING": "The gateway stops",
    "INVALID_JSON": "The body is not JSON",
    "BODY_TOO_LARGE": "The body is too large",
    "BODY_TOO_SLOW": "The body came too slowly",
    "UNSUPPORTED_MEDIA_TYPE": "The body's content type is not supported",
    "PATH_NOT_FOUND": "No such path",
    "METHOD_NOT_ALLOWED": "The path does not take this method",
}


@dataclass
class ProblemError(Exception):
    """Ends a request with a problem."""

    problem: Problem
    headers: Mapping[str, str] = field(default_factory=dict)
    # The mesh said so, and has a line of its own about it.
    told: bool = False


@dataclass(frozen=True)
class Naming:
    """How the contract's field names are said to a client of HTTP."""

    # JSON pointer to where the body's fields are; None when the call has no body.
    root: str | None = None
    # Fields that are no part of the body: the contract's name to that of a parameter or header.
    parameters: Mapping[str, str] = field(default_factory=dict)
    # What the contract puts before the name, as it has the body in a message of its own.
    prefix: str = ""

    def field_error(self, violation: Violation) -> FieldError:
        """The violation by the name that the client used."""
        name = violation.field.removeprefix(self.prefix)
        first, rest = re.fullmatch(r"([^.\[]*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]  # matches all
        if first in self.parameters:
            return FieldError(self.parameters[first] + rest, violation.description)
        pointer = "" if self.root is None else f"{self.root}/" + "/".join(re.findall(r"[^.\[\]]+", name))
        return FieldError(name, violation.description, pointer)


def problem(
    status: int, reason: str, detail: str, retry_after_s: int | None = None, errors: Sequence[FieldError] = ()
) -> Problem:
    """A problem by its reason. Every 429, 503 and 504 says when to try again."""
    if retry_after_s is None and status in _RETRY_LATER:
        retry_after_s = 1
    title = _TITLES.get(reason) or HTTPStatus(status).phrase
    return Problem(f"urn:gridmesh:problem:{reason}", title, status, detail, reason, retry_after_s, list(errors) or None)


def invalid(*errors: FieldError) -> Problem:
    """Wrong fields."""
    return problem(400, "INVALID_REQUEST", "; ".join(f"{e.field}: {e.detail}" for e in errors), errors=errors)


def of_mesh(error: MeshError, naming: Naming) -> Problem:
    """An error of the mesh."""
    if isinstance(error, InvalidRequest):
        return invalid(*(naming.field_error(violation) for violation in error.violations))
    status = _BY_REASON.get(error.reason) or _BY_CODE.get(error.code, 500)
    # Rounded up, so that who waits as told does not come too early.
    seconds = None if error.retry_after_ms is None else max(1, -(-error.retry_after_ms // 1000))
    return problem(status, error.reason.name, error.message, seconds)


def of_call(error: grpc.aio.AioRpcError, naming: Naming) -> Problem:
    """A call that failed: what the mesh says of it, or else what its bare status means."""
    carried = from_rpc_error(error)
    return of_status(error.code(), error.details() or "") if carried is None else of_mesh(carried, naming)


def of_charge(error: MeshError | grpc.aio.AioRpcError, naming: Naming, request_id: str) -> Problem:
    """A charge that had been sent and failed. Only an error of the mesh says for certain what became of it."""
    if isinstance(error, MeshError):
        return of_mesh(error, naming)
    return if_sent(of_status(error.code(), error.details() or ""), request_id)


def of_status(code: grpc.StatusCode, message: str) -> Problem:
    """A status without details of ours: from the transport, or from a server that is not of the mesh."""
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return unreachable()
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return too_late()
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in message:
            return too_large()
        case _:
            status = _BY_CODE.get(code.name, 500)
            return problem(status, code.name if status != 500 else "INTERNAL", "the balancer could not answer")


def unreachable() -> Problem:
    """No connection to the balancer."""
    return problem(503, "BALANCER_UNREACHABLE", "there is no connection to a balancer")


def ended() -> Problem:
    """A stream that is over before its time."""
    return problem(503, "STREAM_BROKEN", "the balancer ended the stream; connect again")


def too_late() -> Problem:
    """The deadline passed without an answer."""
    return problem(504, "DEADLINE_EXCEEDED", "the balancer did not answer in time", 1)


def too_large() -> Problem:
    """More than is read, or more than the mesh passes on."""
    return problem(413, "BODY_TOO_LARGE", "the body must be at most 4 MiB")


# What a broken call leaves open. Anything else says for certain that nothing was admitted.
_BROKEN = frozenset({"BALANCER_UNREACHABLE", "DEADLINE_EXCEEDED", "INTERNAL", "STREAM_BROKEN"})
# All that may be said of a call that nobody answered.
UNANSWERED = _BROKEN | {"OUTCOME_UNKNOWN"}
# After these a charge may stand. Where there is no balancer none was sent; who lost it later says OUTCOME_UNKNOWN.
IN_DOUBT = UNANSWERED - {"BALANCER_UNREACHABLE"}


def if_sent(problem_of_call: Problem, request_id: str) -> Problem:
    """For a charge that had been sent: where its failure leaves open whether it stands, that."""
    if problem_of_call.reason not in _BROKEN:
        return problem_of_call
    return problem(
        504 if problem_of_call.status == 504 else 503,
        "OUTCOME_UNKNOWN",
        f"{problem_of_call.detail}; the charge may have been admitted: repeat it with the same Idempotency-Key, "
        f"{request_id}, to learn its session",
        1,
    )


def too_slow() -> Problem:
    """The last event of a stream whose client stopped reading."""
    return problem(503, ErrorReason.READER_TOO_SLOW.name, "nothing could be written for too long; connect again")


def log_charge(request_id: str, problem: Problem) -> None:
    """The line for a charge that the gateway itself did not let pass, or never heard of again.

    What is wrong with a request stays out of it: that quotes what a client wrote.
    """
    definite = problem.reason not in IN_DOUBT
    why = {} if problem.status < 500 else {"why": problem.detail}
    logs.not_served(request_id, problem.reason, definite=definite, status=problem.status, **why)


def stopping() -> Problem:
    """For whoever still waits when the process ends."""
    return problem(503, "GATEWAY_STOPPING", "this gateway stops; another one, or this one after its restart, goes on")


def internal() -> Problem:
    """A defect."""
    return problem(500, "INTERNAL", "internal error; the log has the details")


def encode(body: Problem) -> bytes:
    """The problem as JSON."""
    return _ENCODER.encode(body)


def response(body: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The problem as a response, Retry-After included."""
    retry = {} if body.retry_after_s is None else {"Retry-After": str(body.retry_after_s)}
    said = [(name.lower().encode(), value.encode("latin-1")) for name, value in {**(headers or {}), **retry}.items()]
    return Response(encode(body), MEDIA_TYPE.encode(), body.status, said, body.reason)
