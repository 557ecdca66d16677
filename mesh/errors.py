"""Every error a caller can get, as it is raised inside. `mesh.status` carries them over gRPC.

    MeshError
    |-- InvalidRequest      INVALID_ARGUMENT     which fields, and what is wrong with each
    |-- Refused             RESOURCE_EXHAUSTED   no power or plug now; when to try again
    |-- Unavailable         UNAVAILABLE          nobody can be asked, or the outcome is not known yet
    |-- PreconditionFailed  FAILED_PRECONDITION  key reused; attempt newer than the survivor's
    |-- AttemptExpired      DEADLINE_EXCEEDED    arrived after its not_after
    |-- AttemptFenced       ABORTED              resolved as "not admitted" before it arrived
    |-- NotFound            NOT_FOUND            no such session or substation
    `-- InternalError       INTERNAL             a defect

The gRPC code is on the class, the reason and data on the instance.
"""

from dataclasses import dataclass
from typing import ClassVar

from mesh.model import ErrorReason


@dataclass(frozen=True)
class Violation:
    """One wrong field, by its name in the contract."""

    field: str
    description: str


class MeshError(Exception):
    """Root of all. `retry_after_ms` is None where a retry would fail in the same way."""

    code: ClassVar[str] = "UNKNOWN"

    def __init__(self, reason: ErrorReason, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_ms = retry_after_ms

    @property
    def definite(self) -> bool:
        """True when the call certainly admitted nothing (design: only then may another be asked)."""
        return self.reason not in {ErrorReason.OUTCOME_UNKNOWN, ErrorReason.INTERNAL}


class InvalidRequest(MeshError):
    """The caller's fault, field by field."""

    code = "INVALID_ARGUMENT"

    def __init__(self, *violations: Violation) -> None:
        super().__init__(ErrorReason.INVALID_REQUEST, "; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


class Refused(MeshError):
    """Not now: no plug, no power, or not accepting."""

    code = "RESOURCE_EXHAUSTED"


class Unavailable(MeshError):
    """Nobody can be asked, or the outcome is not known yet."""

    code = "UNAVAILABLE"


class PreconditionFailed(MeshError):
    """The state of the key or session forbids it."""

    code = "FAILED_PRECONDITION"


class AttemptExpired(MeshError):
    """Arrived after its not_after."""

    code = "DEADLINE_EXCEEDED"


class AttemptFenced(MeshError):
    """Resolved as not admitted before it arrived."""

    code = "ABORTED"


class NotFound(MeshError):
    """No such session or substation."""

    code = "NOT_FOUND"


class InternalError(MeshError):
    """A defect; the log has the details."""

    code = "INTERNAL"

    def __init__(self, message: str = "internal error; the log has the details") -> None:
        super().__init__(ErrorReason.INTERNAL, message)


BY_CODE: dict[str, type[MeshError]] = {
    cls.code: cls for cls in (Refused, Unavailable, PreconditionFailed, AttemptExpired, AttemptFenced, NotFound)
}
