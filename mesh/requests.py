"""Reads the contract's ChargeRequest: the key first, the rest only for a key that nobody knows.

The one validator of the mesh. Balancers call it before they route and substations before they admit;
the gateway hands its violations on, so that HTTP and gRPC say the same.
"""

import hashlib
from collections.abc import Iterable
from sys import intern

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from gridmesh.v1 import charging_pb2
from mesh.charge import Charge, Key
from mesh.errors import AttemptExpired, InvalidRequest, Violation
from mesh.ids import SUBSTATION_ID, is_printable, is_uuid7
from mesh.model import ErrorReason
from mesh.units import joules, watts

ANONYMOUS = "anonymous"
_ANY: frozenset[str] = frozenset()
MAX_ENERGY_KWH = 1_000.0
MAX_POWER_KW = 4_000.0
MAX_LIMIT_KW = 1_000_000.0
MAX_STAY_MS = 30 * 24 * 3_600_000
MAX_ALLOWED = 64
# Clocks of the mesh agree within this: the first hop adds it to not_after.
CLOCK_TOLERANCE_MS = 2_000
_SUSPICIOUS_MS = 30_000
THREE_PHASE_ABOVE_KW = 7.4
# IEC 61851: a car charges with 6 A or not at all.
FLOOR_W_PER_PHASE = 6 * 230
# protobuf's range for Timestamp, so that no sum below can overflow it.
_MAX_TIME_S = 253_402_300_799


def key_of(request: charging_pb2.ChargeRequest) -> Key:
    """The request's key. InvalidRequest when it cannot be one."""
    # Read once: each look into a message makes a string anew.
    request_id, owner, attempt_id = request.request_id, request.owner, request.attempt_id
    violations = []
    if not is_printable(request_id):
        violations.append(Violation("request_id", "must be 1 to 128 printable ASCII characters"))
    if owner and not is_printable(owner):
        violations.append(Violation("owner", "must be at most 128 printable ASCII characters"))
    if attempt_id and not is_uuid7(attempt_id):
        violations.append(Violation("attempt_id", "must be a UUIDv7, or absent"))
    if violations:
        raise InvalidRequest(*violations)
    # Many keys are kept for a day, and few owners have them all.
    return Key(intern(owner) if owner else ANONYMOUS, request_id)


def body_of(request: charging_pb2.ChargeRequest) -> bytes:
    """Digest of what the client said, without the key and what the mesh fills in."""
    said = charging_pb2.ChargeRequest()
    said.CopyFrom(request)
    said.ClearField("request_id")
    said.ClearField("owner")
    said.ClearField("attempt_id")
    said.ClearField("not_after")
    return hashlib.blake2b(said.SerializeToString(deterministic=True), digest_size=16).digest()


def check_not_after(request: charging_pb2.ChargeRequest, now_ms: int) -> None:
    """AttemptExpired when the attempt comes later than its sender still waits for it."""
    if request.HasField("not_after") and (late_ms := now_ms - _millis(request.not_after)) > 0:
        # Minutes late is no slow network: a clock was set while a process ran, or clocks differ.
        doubt = "; do the clocks agree?" if late_ms > _SUSPICIOUS_MS else ""
        message = f"the attempt arrived {late_ms / 1000:.1f} s after its not_after{doubt}"
        raise AttemptExpired(ErrorReason.ATTEMPT_EXPIRED, message)


def parse_charge(request: charging_pb2.ChargeRequest, key: Key, now_ms: int, *, with_body: bool = True) -> Charge:
    """The request with defaults filled in. InvalidRequest names every wrong field at once.

    Not `with_body`: for who does not compare it, its digest is empty.
    """
    vehicle_id, max_kw = request.vehicle_id, request.max_power_kw
    energy_kwh = request.energy_kwh if request.HasField("energy_kwh") else None
    right = is_printable(vehicle_id) and _within(max_kw, MAX_POWER_KW)
    right = right and (energy_kwh is None or _within(energy_kwh, MAX_ENERGY_KWH))
    plain = right and _says_no_more(request)
    if not plain:
        violations = [*_check_ids(request), *_check_numbers(request), *_check_departure(request, now_ms)]
        if violations:
            raise InvalidRequest(*violations)
    phases = _default_phases(max_kw) if plain or not request.HasField("phases") else request.phases
    # At least a watt, and a joule, of what is above 0.
    max_w = watts(max_kw) or 1
    given_floor = not plain and request.HasField("min_power_kw")
    floor_w = watts(request.min_power_kw) or 1 if given_floor else phases * FLOOR_W_PER_PHASE
    return Charge(
        key,
        vehicle_id,
        None if energy_kwh is None else joules(energy_kwh) or 1,
        max_w,
        min(floor_w, max_w),
        phases,
        None if plain else _departure_ms(request, now_ms),
        _ANY if plain else frozenset(request.allowed_substation_ids),
        "" if plain else request.evse_id,
        request.attempt_id,
        body_of(request) if with_body else b"",
    )


def _default_phases(max_power_kw: float) -> int:
    return 3 if max_power_kw > THREE_PHASE_ABOVE_KW else 1


def _says_no_more(request: charging_pb2.ChargeRequest) -> bool:
    """Whether it is as most are, so that no rule needs a closer look: a car, its power, its energy, nothing more."""
    return (
        not request.HasField("phases")
        and not request.HasField("min_power_kw")
        and not request.evse_id
        and request.WhichOneof("departure") is None
        and not request.allowed_substation_ids
    )


def _check_ids(request: charging_pb2.ChargeRequest) -> Iterable[Violation]:
    if not is_printable(request.vehicle_id):
        yield Violation("vehicle_id", "must be 1 to 128 printable ASCII characters")
    if len(request.allowed_substation_ids) > MAX_ALLOWED:
        yield Violation("allowed_substation_ids", f"must be at most {MAX_ALLOWED}")
    for index, substation_id in enumerate(request.allowed_substation_ids[:MAX_ALLOWED]):
        if not SUBSTATION_ID.fullmatch(substation_id):
            yield Violation(f"allowed_substation_ids[{index}]", "must be 1 to 40 of a-z, 0-9 and -")
    if request.evse_id and not is_printable(request.evse_id):
        yield Violation("evse_id", "must be at most 128 printable ASCII characters")


def _check_numbers(request: charging_pb2.ChargeRequest) -> Iterable[Violation]:
    if request.HasField("energy_kwh") and not _within(request.energy_kwh, MAX_ENERGY_KWH):
        yield Violation("energy_kwh", f"must be above 0 and at most {MAX_ENERGY_KWH:g}, or absent")
    if not _within(request.max_power_kw, MAX_POWER_KW):
        yield Violation("max_power_kw", f"must be above 0 and at most {MAX_POWER_KW:g}")
    if request.HasField("phases") and request.phases not in {1, 3}:
        yield Violation("phases", "must be 1 or 3, or absent")
    if request.HasField("min_power_kw"):
        if not _within(request.min_power_kw, MAX_POWER_KW):
            yield Violation("min_power_kw", f"must be above 0 and at most {MAX_POWER_KW:g}, or absent")
        elif request.min_power_kw > request.max_power_kw:
            yield Violation("min_power_kw", "must not be above max_power_kw")


def _within(value: float, most: float) -> bool:
    return 0 < value <= most  # also false of what is no number


def _check_departure(request: charging_pb2.ChargeRequest, now_ms: int) -> Iterable[Violation]:
    match request.WhichOneof("departure"):
        case "departure_time":
            at_ms = _millis(request.departure_time)
            if at_ms <= now_ms:
                yield Violation("departure_time", "must be in the future")
            elif at_ms > now_ms + MAX_STAY_MS:
                yield Violation("departure_time", "must be within 30 days")
        case "departure_in":
            if not 0 < _millis(request.departure_in) <= MAX_STAY_MS:
                yield Violation("departure_in", "must be above 0 and at most 30 days")


def _departure_ms(request: charging_pb2.ChargeRequest, now_ms: int) -> int | None:
    match request.WhichOneof("departure"):
        case "departure_time":
            return _millis(request.departure_time)
        case "departure_in":
            return now_ms + _millis(request.departure_in)
    return None


def _millis(time: Timestamp | Duration) -> int:
    # By hand: ToMilliseconds() refuses what a hostile client can put on the wire.
    seconds = time.seconds
    if not -_MAX_TIME_S <= seconds <= _MAX_TIME_S:
        seconds = max(-_MAX_TIME_S, min(seconds, _MAX_TIME_S))
    return seconds * 1000 + time.nanos // 1_000_000
