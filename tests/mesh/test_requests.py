import math

import pytest

from gridmesh.v1 import charging_pb2
from mesh.charge import Charge, Key
from mesh.errors import AttemptExpired, InvalidRequest
from mesh.requests import body_of, check_not_after, key_of, parse_charge

NOW = 1_700_000_000_000
KEY = Key("anonymous", "r1")


def a_request(**fields: object) -> charging_pb2.ChargeRequest:
    values: dict[str, object] = {"request_id": "r1", "vehicle_id": "EV-1", "max_power_kw": 11.0, **fields}
    return charging_pb2.ChargeRequest(**values)  # type: ignore[arg-type]


def parsed(**fields: object) -> Charge:
    return parse_charge(a_request(**fields), KEY, NOW)


def wrong_fields(**fields: object) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        parsed(**fields)
    return [violation.field for violation in caught.value.violations]


def test_defaults_are_filled_in() -> None:
    charge = parsed()
    assert (charge.key, charge.phases, charge.max_w, charge.floor_w) == (KEY, 3, 11_000, 4_140)
    assert (charge.energy_j, charge.departure_ms, charge.allowed) == (None, None, frozenset())
    assert (parsed(max_power_kw=7.4).phases, parsed(max_power_kw=7.4).floor_w) == (1, 1_380)
    assert parsed(max_power_kw=7.41).phases == 3


def test_a_default_floor_is_never_above_what_the_car_can_take() -> None:
    assert parsed(max_power_kw=1.0).floor_w == 1_000
    assert parsed(max_power_kw=3.7, phases=3).floor_w == 3_700


def test_everything_is_whole_watts_joules_and_milliseconds() -> None:
    charge = parsed(energy_kwh=1.5, min_power_kw=2.0, allowed_substation_ids=["a"], evse_id="e", attempt_id="x")
    assert (charge.energy_j, charge.floor_w, charge.allowed, charge.evse_id) == (
        5_400_000,
        2_000,
        frozenset({"a"}),
        "e",
    )
    assert parsed(energy_kwh=1e-12).energy_j == 1


def test_a_departure_is_a_time_or_a_duration() -> None:
    request = a_request()
    request.departure_in.FromMilliseconds(1_500)
    assert parse_charge(request, KEY, NOW).departure_ms == NOW + 1_500
    request.departure_time.FromMilliseconds(NOW + 7)
    assert parse_charge(request, KEY, NOW).departure_ms == NOW + 7


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e6])
@pytest.mark.parametrize("field", ["energy_kwh", "max_power_kw", "min_power_kw"])
def test_absurd_numbers_are_named(field: str, value: float) -> None:
    assert field in wrong_fields(**{field: value})


def test_every_wrong_field_is_named_at_once() -> None:
    assert wrong_fields(vehicle_id="", energy_kwh=-1, phases=2, evse_id="\n", allowed_substation_ids=["a", "B!"]) == [
        "vehicle_id",
        "allowed_substation_ids[1]",
        "evse_id",
        "energy_kwh",
        "phases",
    ]
    assert wrong_fields(min_power_kw=12.0) == ["min_power_kw"]
    assert wrong_fields(allowed_substation_ids=["a"] * 65) == ["allowed_substation_ids"]
    assert wrong_fields(vehicle_id="x" * 1_000_000) == ["vehicle_id"]


@pytest.mark.parametrize("ms", [0, -1, 31 * 24 * 3_600_000])
def test_a_departure_that_cannot_be_is_named(ms: int) -> None:
    request = a_request()
    request.departure_in.FromMilliseconds(ms)
    with pytest.raises(InvalidRequest, match="departure_in"):
        parse_charge(request, KEY, NOW)
    request.departure_time.FromMilliseconds(NOW + ms)
    with pytest.raises(InvalidRequest, match="departure_time"):
        parse_charge(request, KEY, NOW)


def test_times_beyond_what_protobuf_allows_are_bad_input_not_a_crash() -> None:
    request = a_request()
    request.departure_time.seconds = 2**62
    with pytest.raises(InvalidRequest, match="departure_time"):
        parse_charge(request, KEY, NOW)


def test_the_key_is_read_first_and_names_what_is_wrong_with_it() -> None:
    assert key_of(a_request(owner="me")) == Key("me", "r1")
    assert key_of(a_request(vehicle_id="")) == KEY
    for fields in ({"request_id": ""}, {"request_id": "x" * 129}, {"owner": "\t"}, {"attempt_id": "7"}):
        with pytest.raises(InvalidRequest, match=next(iter(fields))):
            key_of(a_request(**fields))


def test_the_body_is_what_the_client_said_and_nothing_of_the_mesh() -> None:
    same = a_request(request_id="other", owner="me", attempt_id="x")
    same.not_after.FromMilliseconds(NOW)
    assert body_of(same) == body_of(a_request())
    assert body_of(a_request(vehicle_id="EV-2")) != body_of(a_request())


def test_an_attempt_that_arrives_too_late_is_expired() -> None:
    request = a_request()
    check_not_after(request, NOW)
    request.not_after.FromMilliseconds(NOW)
    check_not_after(request, NOW)
    with pytest.raises(AttemptExpired, match=r"1\.5 s after its not_after$"):
        check_not_after(request, NOW + 1_500)
    with pytest.raises(AttemptExpired, match="do the clocks agree"):
        check_not_after(request, NOW + 3_600_000)
