"""Charges that wait for a plug: each tries when the line says so, until it is served, late, or its client has left."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from gateway.line import NEWS_MS, Line, Place
from gateway.problems import IN_DOUBT, ProblemError, stopping
from gateway.schemas import Problem
from mesh.admission import expired
from mesh.charge import Charge
from mesh.clock import seconds
from mesh.coalescing import Charged
from mesh.model import ErrorReason

Gone: TypeAlias = asyncio.Future[Any]

MOST_WAITING = 1_000
# A round that takes longer than this does not hold up who comes.
_ROUND_S = 1.0
# What a session that ends, a limit that is raised or an operator cures. Not NO_SUBSTATION, the ledger or OVERLOADED:
# there waiting would hide a failure, or add to it.
_CURABLE = {
    each.name
    for each in (
        ErrorReason.NO_CHARGE_POINT,
        ErrorReason.FLOOR_ABOVE_LIMIT,
        ErrorReason.TOO_MANY_WAITING,
        ErrorReason.NOT_ACCEPTING,
    )
}


def may_wait(problem: Problem) -> bool:
    """Whether time alone may cure a refusal."""
    return problem.reason in _CURABLE


@dataclass(frozen=True, slots=True)
class Tries:
    """What one call can do."""

    # Tries once. ProblemError.
    attempt: Callable[[], Awaitable[Charged]]
    # Whether its key has a session; nothing is admitted for the asking. ProblemError where that cannot be said.
    known: Callable[[], Awaitable[bool]]
    # Returns when the client has gone.
    left: Callable[[], Awaitable[None]]


class Waiting:
    """All that wait at this gateway."""

    def __init__(self, stopping: asyncio.Event, most: int = MOST_WAITING) -> None:
        self._stopping = stopping
        self._most = most
        self._line = Line()
        # Each hears that it is its turn (True), or where it has not tried yet that another stands in its way (False).
        self._turns: dict[Place, asyncio.Future[bool]] = {}
        self._came: set[Place] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._line)

    @property
    def full(self) -> bool:
        """Whether nobody else may wait."""
        return len(self._line) >= self._most

    def freed(self) -> None:
        """Something was given up through this gateway."""
        if self._line:
            self._line.hurry(_now_ms() + NEWS_MS)
            self._go_on()

    async def charge(self, charge: Charge, wait_s: float, tries: Tries, refused: ProblemError | None = None) -> Charged:
        """The charge, once it is served. ProblemError: what refuses it, when the time is over.

        Not `refused` yet: it came while others waited. It tries after them, and not at all where one of them that was
        refused stands in its way, unless its key has a session. Its place is given up when the client has gone.
        """
        if self.full:
            wait_s = 0
        until = seconds() + wait_s
        place = self._line.join(charge, _now_ms(), refused)
        gone, stop = asyncio.ensure_future(tries.left()), asyncio.ensure_future(self._stopping.wait())
        try:
            if refused is None and (charged := await self._come(place, tries, gone, stop)) is not None:
                return charged
            while wait_s and await self._turn(place, until, gone, stop):
                if (charged := await self._try(place, tries)) is not None:
                    return charged
            raise _refusal(place)
        finally:
            gone.cancel()
            stop.cancel()
            self._turns.pop(place, None)
            self._came.discard(place)
            self._line.leave(place)
            self._go_on()

    async def _come(self, place: Place, tries: Tries, gone: Gone, stop: Gone) -> Charged | None:
        self._came.add(place)
        if await self._turn(place, seconds() + _ROUND_S, gone, stop):
            return await self._try(place, tries)
        self._came.discard(place)
        return await tries.attempt() if place.why is None or await tries.known() else None

    async def _try(self, place: Place, tries: Tries) -> Charged | None:
        try:
            return await tries.attempt()
        except ProblemError as error:
            if not _keeps_its_place(error.problem):
                raise
            self._line.refused(place, error)
            return None

    async def _turn(self, place: Place, until: float, gone: Gone, stop: Gone) -> bool:
        """Whether it is its turn; False when the time is over."""
        turn = self._turns[place] = asyncio.get_running_loop().create_future()
        if self._line.trying is place:
            # Its turn came while it heard something else: whether its key is known.
            turn.set_result(True)
        self._go_on()
        await asyncio.wait({turn, gone, stop}, timeout=until - seconds(), return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise expired()
        if stop.done():
            raise ProblemError(stopping())
        return turn.done() and turn.result()

    def _go_on(self) -> None:
        """Gives the next one its turn, or sets the time for it."""
        now_ms = _now_ms()
        if (place := self._line.next(now_ms)) is not None:
            self._came.discard(place)
            if not self._turns[place].done():
                self._turns[place].set_result(True)
        for barred in [each for each in self._came if each.why is not None]:
            self._came.discard(barred)
            self._turns[barred].set_result(False)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (due_ms := self._line.due_ms()) is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0, due_ms - now_ms) / 1000, self._go_on)


def _keeps_its_place(problem: Problem) -> bool:
    """Who has waited loses nothing to a balancer that is gone or busy for a moment; but what is in doubt is told."""
    return problem.status == 503 and problem.reason not in IN_DOUBT | {"GATEWAY_STOPPING"}


def _now_ms() -> int:
    return int(seconds() * 1000)


def _refusal(place: Place) -> ProblemError:
    """Its own has a log line from who said it; another's that stands for it has none."""
    assert isinstance(place.why, ProblemError)
    return ProblemError(place.why.problem, told=place.tried and place.why.told)
