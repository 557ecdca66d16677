"""Cars that do exactly as told, late or not: the tables compare rules, not batteries.

Power in watts, registers in millijoules, time in milliseconds. Their draw is constant between events,
so registers are exact.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from msgspec.structs import replace

from substation.events import Confirmed, Full, Reading
from substation.sessions import Offer

CarEvent = Confirmed | Full | Reading


@dataclass(frozen=True, slots=True)
class Manners:
    """How cars act: `obedience_ms` after an offer at most; of it they draw the share `efficiency`."""

    obedience_ms: int = 0
    efficiency: float = 1.0
    # Below these shares of its need left a car takes at most that share of its power: (left, share), ascending.
    taper: tuple[tuple[float, float], ...] = ()


@dataclass(slots=True)
class Car:
    """One car at a plug. `need_mj` is what it can take, whatever it asked for."""

    session_id: str
    max_w: int
    need_mj: int
    at_ms: int
    register_mj: int = 0
    power_w: int = 0
    grant_w: int = 0
    lease_until_ms: int = 0
    seen: int = 0
    waiting: list[tuple[int, Offer]] = field(default_factory=list)
    # When it does something by itself next.
    due_ms: int | None = None


class Cars:
    """All cars of one substation. `later` plans a call back at a time, for what they do by themselves."""

    def __init__(self, manners: Manners, rng: Random, later: Callable[[int], None]) -> None:
        self._manners = manners
        self._rng = rng
        self._later = later
        self._cars: dict[str, Car] = {}
        # Session ids of cars that hear nothing.
        self.deaf: set[str] = set()

    def __iter__(self) -> Iterator[Car]:
        return iter(self._cars.values())

    def plug_in(self, car: Car) -> None:
        """A car is there; it draws nothing until offered."""
        self._cars[car.session_id] = car

    def open(self, session_id: str) -> Car | None:
        """The contactor opens: nothing more is drawn, and the car is forgotten."""
        return self._cars.pop(session_id, None)

    def offer(self, session_id: str, offer: Offer, now: int) -> list[CarEvent]:
        """What the car does at once; what it does later it says in `advance`."""
        car = self._cars.get(session_id)
        if car is None or session_id in self.deaf or offer.number <= car.seen:
            return []
        car.seen = offer.number
        delay = round(self._rng.uniform(0, self._manners.obedience_ms)) if self._manners.obedience_ms else 0
        due = max([now + delay, *(at for at, _ in car.waiting)])
        car.waiting.append((due, offer))
        if due <= now:
            return self._step(car, now)
        self._plan(car)
        return []

    def advance(self, now: int) -> list[CarEvent]:
        """What all of them did by themselves up to `now`."""
        events: list[CarEvent] = []
        for car in list(self._cars.values()):
            if car.due_ms is not None and car.due_ms <= now:
                events += self._step(car, now)
        return events

    def read(self, now: int) -> None:
        """Carries all registers to `now`; who has something to say has said it in `advance`."""
        for car in self._cars.values():
            _pass(car, now)

    def cut_leases(self, until: int) -> None:
        """Nobody renews them any more: what was offered lapses then, if not before."""
        for car in self._cars.values():
            car.lease_until_ms = min(car.lease_until_ms, until)
            car.waiting = [(at, replace(offer, valid_until_ms=until)) for at, offer in car.waiting]
            self._plan(car)

    def _step(self, car: Car, now: int) -> list[CarEvent]:
        _pass(car, now)
        events: list[CarEvent] = []
        while car.waiting and car.waiting[0][0] <= now:
            _, offer = car.waiting.pop(0)
            car.grant_w, car.lease_until_ms = offer.power_w, offer.valid_until_ms
            events.append(Confirmed(car.session_id, offer.number))
        wants = self._wants(car)
        if wants != car.power_w:
            car.power_w = wants
            events.append(Reading(car.session_id, wants, car.register_mj))
            if car.register_mj >= car.need_mj:
                events.append(Full(car.session_id))
        self._plan(car)
        return events

    def _wants(self, car: Car) -> int:
        if car.register_mj >= car.need_mj or car.at_ms >= car.lease_until_ms:
            return 0
        left = (car.need_mj - car.register_mj) / car.need_mj
        share = next((share for below, share in self._manners.taper if left <= below), 1.0)
        return int(min(car.grant_w * self._manners.efficiency, car.max_w * share))

    def _plan(self, car: Car) -> None:
        """Asks for a call when it acts by itself: on an offer, full, tapering, or out of its lease."""
        times = [at for at, _ in car.waiting]
        if car.power_w > 0:
            marks = [car.need_mj, *(int(car.need_mj * (1 - below)) + 1 for below, _ in self._manners.taper)]
            ahead = min(mark for mark in marks if mark > car.register_mj)
            times += [car.at_ms - (car.register_mj - ahead) // car.power_w, car.lease_until_ms]
        car.due_ms = min(times, default=None)
        if car.due_ms is not None:
            self._later(car.due_ms)


def _pass(car: Car, now: int) -> None:
    """Carries the register to `now`."""
    drawn = car.power_w * (now - car.at_ms)
    car.register_mj = max(car.register_mj, min(car.register_mj + drawn, car.need_mj))
    car.at_ms = now
