"""What each operation of the API does. `gateway.table` names and documents them."""

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from random import Random
from typing import Any, TypeAlias

import msgspec

from gateway import bodies, preferences, problems, queries, schemas, translate
from gateway.asgi import JSON, Header, Request, Response, empty
from gateway.balancers import Balancers
from gateway.batch import Batch, has_none, has_session
from gateway.events import END, Event, EventStream, Relayed, Source
from gateway.live import Live
from gateway.problems import Naming, ProblemError
from gateway.queries import Query
from gateway.waiting import Tries, Waiting, may_wait
from gridmesh.v1 import charging_pb2, load_pb2, operations_pb2
from mesh.admission import Admission, Bound, expired
from mesh.charge import Charge
from mesh.clock import Clock, seconds
from mesh.coalescing import Charged
from mesh.errors import InvalidRequest, MeshError
from mesh.ids import is_printable, uuid7
from mesh.model import ErrorReason
from mesh.requests import CLOCK_TOLERANCE_MS, key_of, parse_charge

# The request, anew for each time it is sent.
Attempt: TypeAlias = Callable[[], charging_pb2.ChargeRequest]

MAX_BATCH = 1_000
# Of 4 MiB each.
MAX_LARGE_BODIES = 64
# Readiness is asked often and must not hang.
_READY_TIMEOUT_S = 1.0

_encode = msgspec.json.Encoder().encode
_CHARGE = bodies.Reader(schemas.ChargeBody)
_BATCH = bodies.ArrayReader(schemas.BatchItem)
_STOP = bodies.Reader(schemas.StopBody)
_LIMIT = bodies.Reader(schemas.LimitBody)

_NO_CAR = schemas.ChargeBody(vehicle_id="", max_power_kw=0)

KEY = "Idempotency-Key"
PREFER = "Prefer"
APPLIED = "Preference-Applied"
_KEY = KEY.lower().encode()
_LAST_EVENT_ID = b"last-event-id"
_PREFER = PREFER.lower().encode()
_APPLIED = APPLIED.lower().encode()
# The IETF's draft has the key as a string of RFC 9651, in quotes; most clients send it bare.
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])+)"')
_OF_CHARGE = Naming("#", {"request_id": KEY})
_OF_LIST = Naming(parameters={"states": "state"})
_OF_SESSION = Naming("#", {"session_id": "session_id"})
_OF_LIMIT = Naming("#", {"substation_id": "substation_id", "source": "source"}, prefix="limit.")
_OF_SUBSTATION = Naming(parameters={"substation_id": "substation_id"})


def _json(body: msgspec.Struct | list[Any], status: int = 200, headers: Sequence[Header] = ()) -> Response:
    return Response(_encode(body), JSON, status, headers)


@dataclass(frozen=True)
class Api:
    """What the handlers work with."""

    balancers: Balancers
    clock: Clock
    rng: Random
    stopping: asyncio.Event
    heartbeat_s: float
    # What customers ask and what they watch. Operators, stops and the gateway itself are not counted.
    admission: Admission
    streams: Bound
    large_bodies: Bound
    # Called for each event stream whose reader is given up.
    on_drop: Callable[[], None]
    # Is told what is placed and refused, and tells whoever watches.
    live: Live
    waiting: Waiting

    # --- charges -----------------------------------------------------------------------------------

    async def charge(self, request: Request) -> Response:
        """Admits one car."""
        queries.none(request)
        key = self._key(request)
        vehicle_id: str | None = None
        prefer = request.given(_PREFER)
        wait_s = preferences.wait_s(prefer) if prefer and not self.waiting.full else 0
        try:
            body = request.arrived or await bodies.read(request, self.balancers.timeout_s, self.large_bodies)
            with self._admitted:
                bodies.require_json(request, body)
                car = _CHARGE.decode(body)
                vehicle_id = car.vehicle_id
                if self.admission.wait_s:
                    await _still_there(request)
                attempt = partial(self._attempt, car, key)
                if wait_s or self.waiting:
                    answer = await self._at_once(attempt, wait_s)
                else:  # as nearly always
                    answer = await self.balancers.charge(attempt, _OF_CHARGE)
            if not isinstance(answer, Charged):
                answer = await self._in_line(request, key, attempt, wait_s, answer)
        except MeshError as error:
            problem = problems.of_mesh(error, _OF_CHARGE)
            problems.log_charge(key, problem)
            self.live.refused(key, vehicle_id, problem)
            raise ProblemError(problem, _echo(key, wait_s)) from None
        except ProblemError as error:
            if not error.told:
                problems.log_charge(key, error.problem)
            self.live.refused(key, vehicle_id, error.problem)
            raise ProblemError(error.problem, {**error.headers, **_echo(key, wait_s)}) from None
        reply = translate.charge_reply(answer.response, answer.load)
        location = f"/v1/charges/{reply.session.session_id}".encode()
        headers = [(b"location", location), (_KEY, key.encode())]
        if wait_s:
            headers.append((_APPLIED, b"wait=%d" % wait_s))
        if answer.response.repeated:
            return _json(reply, 200, headers)
        self.live.placed(reply)
        return _json(reply, 201, headers)

    def _attempt(self, car: schemas.ChargeBody, key: str) -> charging_pb2.ChargeRequest:
        now = self.clock.now_ms()
        return translate.charge_request(car, key, uuid7(now, self.rng), now + self._attempt_ms)

    async def _at_once(self, attempt: Attempt, wait_s: int) -> Charged | ProblemError | None:
        """The charge; or what refused it, if its client would rather wait; or None: others wait already."""
        if self.waiting and self._placeable(attempt()):
            return None
        try:
            return await self.balancers.charge(attempt, _OF_CHARGE)
        except ProblemError as error:
            if not (wait_s and may_wait(error.problem)):
                raise
            return error

    async def _in_line(
        self, request: Request, key: str, attempt: Attempt, wait_s: int, refused: ProblemError | None
    ) -> Charged:
        charge = self._placeable(attempt())
        if charge is None:  # it left just now
            return await self._tried(attempt)
        started = seconds()
        tries = Tries(partial(self._tried, attempt), partial(self._known, key), request.left)
        try:
            return await self.waiting.charge(charge, wait_s, tries, refused)
        finally:
            request.waited_s = seconds() - started

    def _placeable(self, request: charging_pb2.ChargeRequest) -> Charge | None:
        """What it asks for; None where that is wrong, also for a repeat of what was right when it was said."""
        try:
            return parse_charge(request, key_of(request), self.clock.now_ms(), with_body=False)
        except InvalidRequest:
            return None

    async def _tried(self, attempt: Attempt) -> Charged:
        try:
            with self._admitted:
                return await self.balancers.charge(attempt, _OF_CHARGE)
        except MeshError as error:
            raise ProblemError(problems.of_mesh(error, _OF_CHARGE)) from None

    async def _known(self, key: str) -> bool:
        """Whether the key has a session. A request with nothing but a key is wrong, which the mesh looks at second."""
        try:
            await self._tried(partial(self._attempt, _NO_CAR, key))
        except ProblemError as error:
            if error.problem.reason == ErrorReason.INVALID_REQUEST.name:
                return False
            if error.problem.reason != ErrorReason.KEY_REUSED.name:
                raise
        return True

    async def charge_batch(self, request: Request) -> Response:
        """Admits many cars; each has its own outcome."""
        queries.none(request)
        body = await bodies.read(request, self.balancers.timeout_s, self.large_bodies)
        bodies.require_json(request, body)
        batch = Batch()
        with self._admitted:
            not_after_ms = self.clock.now_ms() + self._attempt_ms
            for item in _BATCH.decode(body, MAX_BATCH):
                batch.add(item, self._new_id, not_after_ms)
            if self.admission.wait_s:
                await _still_there(request)
            behind = batch.apart(self._placeable) if self.waiting else []
            await batch.run(self.balancers)
        await asyncio.gather(*(self._behind(request, *each) for each in behind))
        self.live.batch(batch.outcomes)
        return _json(batch.outcomes)

    async def _behind(self, request: Request, asked: charging_pb2.ChargeRequest, outcome: schemas.BatchOutcome) -> None:
        """An item of a batch that came while others wait: as a charge of its own that came then."""

        def attempt() -> charging_pb2.ChargeRequest:
            again = charging_pb2.ChargeRequest()
            again.CopyFrom(asked)
            again.attempt_id = self._new_id()
            again.not_after.FromMilliseconds(self.clock.now_ms() + self._attempt_ms)
            return again

        try:
            has_session(outcome, await self._in_line(request, asked.request_id, attempt, 0, None))
        except ProblemError as error:
            has_none(outcome, error)

    async def list_charges(self, request: Request) -> Response:
        """One page of sessions."""
        query = Query(request)
        asked = charging_pb2.ListSessionsRequest(
            page_size=query.number("page_size"),
            page_token=query.text("page_token"),
            include_ended=query.flag("include_ended"),
            states=translate.states(query.states("state")),
            vehicle_id=query.text("vehicle_id"),
            substation_id=query.text("substation_id"),
        )
        query.done()
        with self._admitted:
            answer = await self.balancers.call(lambda to: to.charging.ListSessions, asked, _OF_LIST)
        return _json(translate.session_list(answer))

    async def get_charge(self, request: Request) -> Response:
        """One session."""
        queries.none(request)
        asked = charging_pb2.GetSessionRequest(session_id=request.params["session_id"])
        with self._admitted:
            answer = await self.balancers.call(lambda to: to.charging.GetSession, asked, _OF_SESSION)
        return _json(schemas.SessionReply(translate.session(answer.session)))

    async def stop_charge(self, request: Request) -> Response:
        """Ends a session."""
        queries.none(request)
        body = await bodies.read(request, self.balancers.timeout_s, self.large_bodies)
        reason = None
        if body:
            bodies.require_json(request, body)
            reason = _STOP.decode(body).reason
        asked = charging_pb2.StopSessionRequest(
            session_id=request.params["session_id"],
            reason=charging_pb2.StopReason.Value(f"STOP_REASON_{reason or 'UNSPECIFIED'}"),
        )
        answer = await self.balancers.call(lambda to: to.charging.StopSession, asked, _OF_SESSION)
        self.waiting.freed()
        return _json(schemas.SessionReply(translate.session(answer.session)))

    async def watch_charge(self, request: Request) -> Response:
        """A session as events."""
        queries.none(request)
        if request.header(_LAST_EVENT_ID) == END:
            return empty(204)
        asked = charging_pb2.WatchSessionRequest(session_id=request.params["session_id"])

        async def begin() -> Source:
            call, first = await self.balancers.open(lambda to: to.charging.WatchSession, asked)
            return Relayed(call, first, _session_events, _last_id(request))

        return await self._stream(begin())

    # --- substations -------------------------------------------------------------------------------

    async def list_substations(self, request: Request) -> Response:
        """The balancer's load view."""
        queries.none(request)
        answer = await self.balancers.call(
            lambda to: to.operations.ListSubstations, operations_pb2.ListSubstationsRequest()
        )
        return _json(translate.substation_list(answer))

    async def watch_substations(self, request: Request) -> Response:
        """The load view as events."""
        queries.none(request)
        return await self._stream(self.live.watch_substations(_last_id(request)))

    async def watch_grid(self, request: Request) -> Response:
        """The load view, and what this gateway placed and refused, as events."""
        queries.none(request)
        return await self._stream(self.live.watch(request.header(_LAST_EVENT_ID)))

    async def set_limit(self, request: Request) -> Response:
        """Sets one source's limit."""
        queries.none(request)
        source = _source(request)
        body = await self._body(request, _LIMIT)
        asked = translate.limit_request(request.params["substation_id"], source, body)
        answer = await self.balancers.call(lambda to: to.operations.SetLimit, asked, _OF_LIMIT)
        self.waiting.freed()
        return _json(translate.limits_reply(answer))

    async def clear_limit(self, request: Request) -> Response:
        """Removes one source's limit."""
        queries.none(request)
        asked = operations_pb2.ClearLimitRequest(
            substation_id=request.params["substation_id"],
            source=load_pb2.LimitSource.Value(f"LIMIT_SOURCE_{_source(request)}"),
        )
        answer = await self.balancers.call(lambda to: to.operations.ClearLimit, asked, _OF_LIMIT)
        self.waiting.freed()
        return _json(translate.limits_reply(answer))

    async def drain(self, request: Request) -> Response:
        """Stops admissions on one substation."""
        queries.none(request)
        asked = operations_pb2.DrainRequest(substation_id=request.params["substation_id"])
        answer = await self.balancers.call(lambda to: to.operations.Drain, asked, _OF_SUBSTATION)
        return _json(schemas.LoadReply(translate.load(answer.load)))

    async def undrain(self, request: Request) -> Response:
        """Lets one substation admit again."""
        queries.none(request)
        asked = operations_pb2.UndrainRequest(substation_id=request.params["substation_id"])
        answer = await self.balancers.call(lambda to: to.operations.Undrain, asked, _OF_SUBSTATION)
        self.waiting.freed()
        return _json(schemas.LoadReply(translate.load(answer.load)))

    # --- the gateway itself ------------------------------------------------------------------------

    async def healthz(self, request: Request) -> Response:
        """The process runs."""
        del request
        return _json(schemas.Health())

    async def readyz(self, request: Request) -> Response:
        """Whether a charge could be placed now, and if not, why."""
        del request
        if self.stopping.is_set():
            raise ProblemError(problems.stopping())
        answer = await self.balancers.call(
            lambda to: to.operations.ListSubstations,
            operations_pb2.ListSubstationsRequest(),
            timeout_s=min(_READY_TIMEOUT_S, self.balancers.timeout_s),
        )
        known = translate.substation_list(answer).substations
        placeable = sum(_why_not(each) is None for each in known)
        if not placeable:
            why = "; ".join(f"{each.substation_id or each.address}: {_why_not(each)}" for each in known)
            raise ProblemError(
                problems.problem(
                    503, "NO_SUBSTATION", f"no substation is fresh and accepting: {why or 'the balancer knows none'}"
                )
            )
        return _json(schemas.Readiness(len(known), placeable))

    # --- what several need -------------------------------------------------------------------------

    async def _body(self, request: Request, reader: bodies.Reader[bodies.T]) -> bodies.T:
        body = await bodies.read(request, self.balancers.timeout_s, self.large_bodies)
        bodies.require_json(request, body)
        return reader.decode(body)

    @cached_property
    def _admitted(self) -> "_Admitted":
        """The same for all: it holds nothing of a call."""
        return _Admitted(self.admission, self.balancers.timeout_s)

    async def _stream(self, beginning: Coroutine[Any, Any, Source]) -> Response:
        with ExitStack() as held:
            held.callback(beginning.close)  # nothing, once it was awaited
            held.enter_context(self.streams)
            return EventStream(
                await beginning,
                stopping=self.stopping,
                heartbeat_s=self.heartbeat_s,
                done=held.pop_all().close,
                on_drop=self.on_drop,
            )

    def _key(self, request: Request) -> str:
        """The client's key, in quotes or bare, or one of our making."""
        given = request.given(_KEY)
        if len(given) > 1:
            raise ProblemError(problems.invalid(schemas.FieldError(KEY, "must be given once")))
        return _unquoted(given[0]) if given else self._new_id()

    def _new_id(self) -> str:
        return uuid7(self.clock.now_ms(), self.rng)

    @cached_property
    def _attempt_ms(self) -> int:
        """How long an attempt counts."""
        return round(self.balancers.timeout_s * 1000) + CLOCK_TOLERANCE_MS


async def _still_there(request: Request) -> None:
    """AttemptExpired for a client that left while others were served."""
    await asyncio.sleep(0)  # now all is read that has come
    if request.gone:
        raise expired()


def _unquoted(key: str) -> str:
    quoted = _QUOTED.fullmatch(key) if key.startswith('"') else None
    return re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else key


def _echo(key: str, wait_s: int) -> dict[str, str]:
    """Also on errors, so that a client whose key we made can repeat with it."""
    said = {KEY: key} if is_printable(key) else {}
    return {**said, APPLIED: f"wait={wait_s}"} if wait_s else said


class _Admitted:
    """Counts a call while the balancer has it. MeshError when there are too many."""

    __slots__ = ("_admission", "_timeout_s")

    def __init__(self, admission: Admission, timeout_s: float) -> None:
        self._admission = admission
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        self._admission.enter(self._timeout_s)

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        served = error is None or (isinstance(error, ProblemError) and error.problem.reason not in problems.UNANSWERED)
        self._admission.leave(seconds(), served=served)


def _session_events(message: charging_pb2.WatchSessionResponse) -> list[Event]:
    session = translate.session(message.session)
    events = [Event("session", _encode(session))]
    if session.state is schemas.SessionState.ENDED:
        end = schemas.StreamEnd(session.session_id, session.stop_reason)
        events.append(Event("end", _encode(end), last=True))
    return events


def _last_id(request: Request) -> int:
    """The number to go on from, where events carry a whole state: any will do."""
    last = request.header(_LAST_EVENT_ID)
    return int(last) if last.isascii() and last.isdigit() and len(last) < 16 else 0


def _source(request: Request) -> schemas.LimitSource:
    try:
        return schemas.LimitSource(request.params["source"].upper())
    except ValueError:
        known = ", ".join(source.lower() for source in schemas.LimitSource)
        raise ProblemError(problems.invalid(schemas.FieldError("source", f"must be one of {known}"))) from None


def _why_not(substation: schemas.Substation) -> str | None:
    """Why nothing can be placed there, or None."""
    if substation.state is not schemas.ReportState.FRESH:
        return str(substation.state or "unknown").lower().replace("_", " ")
    if substation.ejected:
        return "left out after failures"
    report = substation.report
    if not report or not report.accepting:
        return f"not accepting ({(report and report.not_accepting_reason) or 'no reason given'})".lower()
    return None
