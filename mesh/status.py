"""Errors on the wire: a gRPC status with google.rpc details, both ways."""

from google.protobuf.any_pb2 import Any
from google.rpc import code_pb2, error_details_pb2
from google.rpc.status_pb2 import Status
from grpc.aio import AioRpcError
from grpc_status import rpc_status

from mesh.errors import BY_CODE, InternalError, InvalidRequest, MeshError, Violation
from mesh.model import ErrorReason

DOMAIN = "gridmesh"


def to_status(error: MeshError) -> Status:
    """The error with ErrorInfo, and BadRequest or RetryInfo where it has such data."""
    status = Status(code=code_pb2.Code.Value(error.code), message=error.message)
    _pack(status, error_details_pb2.ErrorInfo(reason=error.reason.name, domain=DOMAIN))
    if isinstance(error, InvalidRequest):
        bad = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad.field_violations.add(field=violation.field, description=violation.description)
        _pack(status, bad)
    if error.retry_after_ms is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(error.retry_after_ms)
        _pack(status, retry)
    return status


def _pack(
    status: Status, detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo
) -> None:
    packed = Any()
    packed.Pack(detail)
    status.details.append(packed)


def from_status(status: Status) -> MeshError | None:
    """The error that a status carries, or None when it is not one of ours (it lacks our ErrorInfo)."""
    reason: ErrorReason | None = None
    violations: list[Violation] = []
    retry_after_ms: int | None = None
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason = ErrorReason.__members__.get(info.reason, ErrorReason.INTERNAL)
        elif detail.Unpack(bad):
            violations = [Violation(v.field, v.description) for v in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after_ms = retry.retry_delay.ToMilliseconds()
    if reason is None:
        return None
    if reason is ErrorReason.INVALID_REQUEST:
        return InvalidRequest(*violations)
    error = BY_CODE.get(code_pb2.Code.Name(status.code))
    return error(reason, status.message, retry_after_ms) if error else InternalError(status.message)


def from_rpc_error(error: AioRpcError) -> MeshError | None:
    """The error that a failed call carries, or None when it is not one of ours."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # its stub knows only the sync Call
    return None if status is None else from_status(status)
