"""The kinds of load: what a client asks in a closed loop, over HTTP or gRPC, and what it was told."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import uvloop

from benchmarks import closed_loop, grpc_loop
from benchmarks.arms import ENERGY_KWH, ENVOY, POWER_KW, Arm
from benchmarks.closed_loop import Reply, Run
from benchmarks.envoy_proxy import SERVICE
from benchmarks.grpc_loop import Answer
from gridmesh.v1 import charging_pb2

if TYPE_CHECKING:
    from gridmesh.v1.charging_pb2_grpc import ChargingServiceAsyncStub as Stub

BATCH = 100
# Fixed widths, so that all requests of a kind are of one length.
_KEY = b"charge-%012d"
_CAR = b'"vehicle_id":"EV-%%012d","max_power_kw":%d,"energy_kwh":%g'
_HEAD = b"%s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n"


class Told(NamedTuple):
    """What a client was told of one charge."""

    request_id: str
    session_id: str


class Time(NamedTuple):
    """When a call was sent and answered."""

    sent_s: float
    came_s: float


@dataclass(frozen=True)
class Asked:
    """What a closed loop saw. `read` checks the answers and tells of each charge, for when the clock has stopped."""

    times: Sequence[Time]
    began_s: float
    ends_s: float
    charges_per_call: int
    read: Callable[[], Iterator[Told]]


class WrongAnswerError(Exception):
    """A client was told something else than that its charge was admitted, and where."""


# Asks so many calls at a time, for so many seconds, for so many kWh each.
Load = Callable[[Arm, int, float, float], Asked]


def key(number: int) -> str:
    """The request id of the charge of that number."""
    return (_KEY % number).decode()


def _asked(made: Run[Reply] | Run[Answer[Any]], charges: int, read: Callable[[], Iterator[Told]]) -> Asked:
    times = [Time(reply.sent_s, reply.came_s) for reply in made.replies]
    return Asked(times, made.began_s, made.ends_s, charges, read)


def _right(right: bool, answer: object, number: int) -> None:
    if not right:
        raise WrongAnswerError(f"to {key(number)}: {answer}")


# --- HTTP -------------------------------------------------------------------------------------------


def http_single(arm: Arm, in_flight: int, for_s: float, energy_kwh: float = ENERGY_KWH) -> Asked:
    """POST one charge."""
    request = _single(_car(energy_kwh), by_transcoder=arm.name == ENVOY)
    made = closed_loop.run(arm.http, request, in_flight, for_s, arm.asked)
    arm.asked += len(made.replies)
    status = 200 if arm.name == ENVOY else 201
    return _asked(made, 1, lambda: (_read_single(reply, status) for reply in made.replies))


def http_batch(arm: Arm, in_flight: int, for_s: float, energy_kwh: float = ENERGY_KWH) -> Asked:
    """POST a hundred charges as one batch."""
    first = arm.asked // BATCH + 1
    made = closed_loop.run(arm.http, _batch(_car(energy_kwh)), in_flight, for_s, first)
    arm.asked = (first + len(made.replies)) * BATCH
    return _asked(made, BATCH, lambda: (told for reply in made.replies for told in _read_batch(reply)))


def _car(energy_kwh: float) -> bytes:
    return _CAR % (POWER_KW, energy_kwh)


def _single(car: bytes, *, by_transcoder: bool) -> closed_loop.Request:
    """The gateway takes the key from a header, the transcoder has only the message's fields."""
    if by_transcoder:
        line, header, body = f"POST /{SERVICE}/Charge", b"", b'{"request_id":"%s",%s}' % (_KEY, car)
        return _template(line, header, body, length=len(body % (0, 0)))
    body = b"{%s}" % car
    return _template("POST /v1/charges", b"idempotency-key: %s\r\n" % _KEY, body, length=len(body % 0))


def _template(line: str, header: bytes, body: bytes, length: int) -> closed_loop.Request:
    template = _HEAD % (line.encode(), header, length) + body
    return lambda number: template % (number, number)


def _batch(car: bytes) -> closed_loop.Request:
    body = b"[%s]" % b",".join([b'{"request_id":"%s",%s}' % (_KEY, car)] * BATCH)
    template = _HEAD % (b"POST /v1/charges:batch", b"", len(body % ((0,) * (2 * BATCH)))) + body
    return lambda number: template % tuple(each for one in _numbers(number) for each in (one, one))


def _numbers(batch: int) -> range:
    return range(batch * BATCH, (batch + 1) * BATCH)


def _read_single(reply: Reply, status: int) -> Told:
    _right(reply.status == status, reply.raw, reply.number)
    return _read_charge(msgspec.json.decode(reply.body), reply.number)


def _read_charge(charge: dict[str, Any], number: int) -> Told:
    session = charge["session"]
    placed = session["session_id"].startswith(charge["placement"]["substation_id"] + ".")
    _right(placed and session["request_id"] == key(number), charge, number)
    return Told(session["request_id"], session["session_id"])


def _read_batch(reply: Reply) -> Iterator[Told]:
    _right(reply.status == 200, reply.raw, reply.number)
    for number, outcome in zip(_numbers(reply.number), msgspec.json.decode(reply.body), strict=True):
        _right(outcome["status"] == 201 and outcome["request_id"] == key(number), outcome, number)
        yield _read_charge(outcome["charge"], number)


# --- gRPC -------------------------------------------------------------------------------------------


def grpc_single(arm: Arm, in_flight: int, for_s: float, energy_kwh: float = ENERGY_KWH) -> Asked:
    """Charge."""

    async def call(stub: "Stub", number: int) -> charging_pb2.ChargeResponse:
        response: charging_pb2.ChargeResponse = await stub.Charge(_request(number, energy_kwh))
        return response

    made = uvloop.run(grpc_loop.run(arm.grpc, call, in_flight, for_s, arm.asked))
    arm.asked += len(made.replies)
    return _asked(made, 1, lambda: (_read_response(answer.message, answer.number) for answer in made.replies))


def grpc_batch(arm: Arm, in_flight: int, for_s: float, energy_kwh: float = ENERGY_KWH) -> Asked:
    """ChargeBatch of a hundred."""

    async def call(stub: "Stub", number: int) -> list[charging_pb2.ChargeBatchResponse]:
        requests = [_request(each, energy_kwh) for each in _numbers(number)]
        batch = charging_pb2.ChargeBatchRequest(items=[charging_pb2.ChargeBatchItem(request=one) for one in requests])
        return [message async for message in stub.ChargeBatch(batch)]

    first = arm.asked // BATCH + 1
    made = uvloop.run(grpc_loop.run(arm.grpc, call, in_flight, for_s, first))
    arm.asked = (first + len(made.replies)) * BATCH
    return _asked(made, BATCH, lambda: (told for answer in made.replies for told in _read_outcomes(answer)))


def _request(number: int, energy_kwh: float) -> charging_pb2.ChargeRequest:
    return charging_pb2.ChargeRequest(
        request_id=key(number), vehicle_id=f"EV-{number:012}", max_power_kw=POWER_KW, energy_kwh=energy_kwh
    )


def _read_response(response: charging_pb2.ChargeResponse, number: int) -> Told:
    session = response.session
    placed = session.session_id.startswith(response.placement.substation_id + ".")
    _right(placed and session.request_id == key(number), response, number)
    return Told(session.request_id, session.session_id)


def _read_outcomes(answer: Answer[list[charging_pb2.ChargeBatchResponse]]) -> Iterator[Told]:
    for outcome in (outcome for message in answer.message for outcome in message.outcomes):
        yield _read_response(outcome.response, answer.number * BATCH + outcome.index)
