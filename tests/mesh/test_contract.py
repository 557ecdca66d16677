"""mesh/model.py repeats the contract's enums for modules that import no protobuf: they must agree."""

from enum import IntEnum
from random import Random

import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from gridmesh.v1 import charging_pb2, load_pb2, operations_pb2
from mesh import ids, units
from mesh.errors import BY_CODE, InvalidRequest, MeshError, Refused, Unavailable, Violation
from mesh.model import ErrorReason, LimitReason, LimitSource, NotAccepting, ReportState, SessionState, StopReason
from mesh.status import from_status, to_status


@pytest.mark.parametrize(
    ("ours", "prefix", "contract"),
    [
        (SessionState, "SESSION_STATE_", charging_pb2.SessionState),
        (StopReason, "STOP_REASON_", charging_pb2.StopReason),
        (LimitReason, "LIMIT_REASON_", charging_pb2.LimitReason),
        (ErrorReason, "ERROR_REASON_", charging_pb2.ErrorReason),
        (LimitSource, "LIMIT_SOURCE_", load_pb2.LimitSource),
        (NotAccepting, "NOT_ACCEPTING_REASON_", load_pb2.NotAcceptingReason),
        (ReportState, "REPORT_STATE_", operations_pb2.ReportState),
    ],
)
def test_enums_have_the_contracts_names_and_numbers(
    ours: type[IntEnum], prefix: str, contract: EnumTypeWrapper
) -> None:
    theirs = {name.removeprefix(prefix): number for name, number in contract.items()}
    mine = {member.name: member.value for member in ours}
    assert {"UNSPECIFIED": 0, **mine} == theirs


@pytest.mark.parametrize("kind", BY_CODE.values())
def test_errors_cross_the_wire_as_they_are(kind: type[MeshError]) -> None:
    error = from_status(to_status(kind(ErrorReason.NO_CHARGE_POINT, "all taken", 1_500)))
    assert type(error) is kind
    assert (error.reason, error.message, error.retry_after_ms) == (ErrorReason.NO_CHARGE_POINT, "all taken", 1_500)


def test_violations_cross_the_wire_field_by_field() -> None:
    sent = InvalidRequest(Violation("phases", "must be 1 or 3"), Violation("evse_id", "too long"))
    error = from_status(to_status(sent))
    assert isinstance(error, InvalidRequest)
    assert error.violations == sent.violations


def test_a_status_of_somebody_else_is_none_of_ours() -> None:
    status = to_status(Refused(ErrorReason.NO_CHARGE_POINT, "x"))
    del status.details[:]
    assert from_status(status) is None


def test_only_what_certainly_admitted_nothing_is_definite() -> None:
    unsure = {reason for reason in ErrorReason if not Unavailable(reason, "").definite}
    assert unsure == {ErrorReason.OUTCOME_UNKNOWN, ErrorReason.INTERNAL}


def test_a_uuid7_sorts_by_time_and_is_one() -> None:
    rng = Random(1)
    made = [ids.uuid7(now, rng) for now in (1, 2, 1_700_000_000_000)]
    assert made == sorted(made)
    assert all(ids.is_uuid7(text) for text in made)


def test_a_session_id_names_its_substation() -> None:
    uuid = ids.uuid7(1, Random(1))
    assert ids.substation_of(ids.session_id("north-1", uuid)) == "north-1"
    for bad in ("", "a", "a.", f".{uuid}", f"A.{uuid}", "a.123", f"a.b.{uuid}"):
        assert ids.substation_of(bad) is None


def test_units_round_to_whole_numbers_and_back() -> None:
    assert (units.watts(11.0004), units.joules(1.5), units.kilowatts(4_140)) == (11_000, 5_400_000, 4.14)
    assert units.kilowatt_hours(units.joules(20.0) * 1000) == 20.0
