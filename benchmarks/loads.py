"""The kinds of load: what a client asks of an arm in a closed loop, and what it was told."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from benchmarks import closed_loop
from benchmarks.arms import ENERGY_KWH, ENVOY, POWER_KW, Arm
from benchmarks.closed_loop import Reply

BATCH = 100
# Fixed widths, so that all requests of a kind are of one length.
_KEY = b"charge-%012d"
_CAR = b'"vehicle_id":"EV-%%012d","max_power_kw":%d,"energy_kwh":%g' % (POWER_KW, ENERGY_KWH)
_HEAD = b"%s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n"


class Time(NamedTuple):
    """When a call was sent and answered."""

    sent_s: float
    came_s: float


@dataclass(frozen=True)
class Asked:
    """What a closed loop saw. `read` gives (request id, session id) of each charge, when the clock has stopped."""

    times: Sequence[Time]
    began_s: float
    ends_s: float
    charges_per_call: int
    read: Callable[[], Iterator[tuple[str, str]]]


class WrongAnswerError(Exception):
    """A client was told something else than that its charge was admitted."""


# Asks so many at a time for so many seconds.
Load = Callable[[Arm, int, float], Asked]


def http_single(arm: Arm, in_flight: int, for_s: float) -> Asked:
    """POST one charge."""
    made = closed_loop.run(arm.http, _single_request(arm), in_flight, for_s, arm.asked)
    arm.asked += len(made.replies)
    return _asked(made, 1, lambda: _read_singles(arm, made.replies))


def http_batch(arm: Arm, in_flight: int, for_s: float) -> Asked:
    """POST a hundred charges as one batch."""
    first = arm.asked // BATCH + 1
    made = closed_loop.run(arm.http, _batch_request(), in_flight, for_s, first)
    arm.asked = (first + len(made.replies)) * BATCH
    return _asked(made, BATCH, lambda: _read_batches(made.replies))


def _asked(made: closed_loop.Run, charges: int, read: Callable[[], Iterator[tuple[str, str]]]) -> Asked:
    times = [Time(reply.sent_s, reply.came_s) for reply in made.replies]
    return Asked(times, made.began_s, made.ends_s, charges, read)


def key(number: int) -> str:
    """The request id of the charge of that number."""
    return (_KEY % number).decode()


# --- HTTP -------------------------------------------------------------------------------------------


def _single_request(arm: Arm) -> closed_loop.Request:
    header, in_body = (
        (b"", b'"request_id":"%s",' % _KEY) if arm.name == ENVOY else (b"idempotency-key: %s\r\n" % _KEY, b"")
    )
    body = b"{%s%s}" % (in_body, _CAR)
    template = _HEAD % (arm.head().encode(), header, len(body % ((0, 0) if in_body else 0))) + body
    return lambda number: template % (number, number)


def _read_singles(arm: Arm, replies: Sequence[Reply]) -> Iterator[tuple[str, str]]:
    admitted = 200 if arm.name == ENVOY else 201
    for reply in replies:
        if reply.status != admitted:
            raise WrongAnswerError(f"{arm.name}: {reply.raw.decode()}")
        session = msgspec.json.decode(reply.body)["session"]
        if session["request_id"] != key(reply.number):
            raise WrongAnswerError(f"{arm.name}: {session} to {key(reply.number)}")
        yield session["request_id"], session["session_id"]


def _batch_request() -> closed_loop.Request:
    body = b"[%s]" % b",".join([b'{"request_id":"%s",%s}' % (_KEY, _CAR)] * BATCH)
    template = _HEAD % (b"POST /v1/charges:batch", b"", len(body % ((0,) * (2 * BATCH)))) + body

    def request(number: int) -> bytes:
        return template % tuple(each for at in range(number * BATCH, (number + 1) * BATCH) for each in (at, at))

    return request


def _read_batches(replies: Sequence[Reply]) -> Iterator[tuple[str, str]]:
    for reply in replies:
        if reply.status != 200:
            raise WrongAnswerError(reply.raw.decode())
        outcomes = msgspec.json.decode(reply.body)
        for position, outcome in enumerate(outcomes):
            if outcome["status"] != 201 or outcome["request_id"] != key(reply.number * BATCH + position):
                raise WrongAnswerError(f"{outcome} to {key(reply.number * BATCH + position)}")
            session = outcome["charge"]["session"]
            yield session["request_id"], session["session_id"]
