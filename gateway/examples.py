"""What replies and problems look like: of the very types that encode them, so that an example cannot be wrong."""

from gateway import problems, schemas
from gateway.schemas import FieldError, Problem

SESSION_ID = "north.0192f0c1-2a3b-7c4d-8e5f-0123456789ab"
KEY = "order-4711"
CAR = {"vehicle_id": "EV-001", "energy_kwh": 20, "max_power_kw": 11}

SESSION = schemas.Session(
    session_id=SESSION_ID,
    substation_id="north",
    owner="anonymous",
    request_id=KEY,
    vehicle_id="EV-001",
    max_power_kw=11.0,
    phases=3,
    min_power_kw=4.14,
    departure_assumed=True,
    state=schemas.SessionState.CHARGING,
    granted_power_kw=11.0,
    measured_power_kw=10.4,
    delivered_kwh=1.5,
    attempt_id="0192f0c1-2a30-7c4d-8e5f-0123456789ab",
    energy_kwh=20.0,
    started_at="2026-03-01T12:00:00.000Z",
    expected_end_at="2026-03-01T13:49:05.454Z",
)
LOAD = schemas.LoadReport(
    substation_id="north",
    epoch=1_772_366_400_000,
    sequence=42,
    admission_sequence=7,
    generated_at="2026-03-01T12:00:00.020Z",
    rated_power_kw=100.0,
    limit_power_kw=50.0,
    limit_source=schemas.LimitSource.CSO,
    demand_kw=11.0,
    required_kw=5.0,
    floor_kw=4.14,
    committed_kw=11.0,
    granted_kw=11.0,
    measured_kw=10.4,
    active_sessions=1,
    charge_points=120,
    free_charge_points=119,
    accepting=True,
    time_scale=1.0,
    over_limit_seconds=0.0,
)
PLACEMENT = schemas.Placement(
    substation_id="north",
    policy="least_load_ahead",
    score=0.11,
    utilisation_before=0.0,
    utilisation_after=0.22,
    eligible=3,
    tried=1,
)
CHARGE = schemas.ChargeReply(SESSION, PLACEMENT, LOAD)
LIMIT = schemas.Limit(schemas.LimitSource.CSO, grid_critical=False, limit_kw=50.0, reason="evening peak")
SUBSTATION = schemas.Substation(
    address="10.0.0.7:50061",
    state=schemas.ReportState.FRESH,
    reserved_kw=0.0,
    reservations=0,
    ejected=False,
    substation_id="north",
    report_age="0.120s",
    report=LOAD,
)

# What `detail` says; for the others it is their title.
_DETAILS = {
    "NO_CHARGE_POINT": "every charge point is taken",
    "NO_SUBSTATION": "no allowed substation has ever reported: z",
    "INVALID_JSON": "the body is not JSON: Expecting value at line 1, column 17",
    "KEY_REUSED": f"request_id '{KEY}' was used for another request",
    "OUTCOME_UNKNOWN": "the balancer did not answer in time; the charge may have been admitted: "
    f"repeat it with the same Idempotency-Key, {KEY}, to learn its session",
}


def problem(status: int, reason: str) -> Problem:
    """The problem of that reason, as it may be told."""
    if reason == "INVALID_REQUEST":
        return problems.invalid(FieldError("max_power_kw", "must be above 0 and at most 4000", "#/max_power_kw"))
    told = problems.problem(status, reason, "")
    told.detail = _DETAILS.get(reason, told.title[0].lower() + told.title[1:])
    return told


OUTCOMES = [
    schemas.BatchOutcome(0, 201, KEY, CHARGE),
    schemas.BatchOutcome(1, 503, "order-4712", problem=problem(503, "NO_CHARGE_POINT")),
]
