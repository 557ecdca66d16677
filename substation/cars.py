"""Simulated cars: they obey late, draw a little less than offered, taper near full, and stop when a lease lapses.

Pure, on the same clock as the station. Their draw is constant between events, so the register is exact.
A car's character comes from its session id: the same after a restart.
"""

from collections.abc import Iterable
from heapq import heappop, heappush
from zlib import crc32

from msgspec import Struct, field

from mesh.units import JOULES_PER_KWH
from substation.events import CarEvent, Confirmed, Full, Reading
from substation.sessions import Offer

# Of charging: how long a car may take to act on an offer.
OBEDIENCE_S = 5.0
# A car that charges until full: below this share of its need left it takes at most that share of its power.
_TAPER = ((0.03, 0.25), (0.10, 0.50))
_NEED_KWH = (8.0, 40.0)
_EFFICIENCY = (0.97, 1.0)


class Plugged(Struct, frozen=True, gc=False):
    """A car at its plug, new or found again after a restart. `need_mj` None: until full."""

    session_id: str
    max_w: int
    need_mj: int | None
    leaves_ms: int | None
    # As of `at_ms`, and under a lease that it still holds: 0 for a new one.
    at_ms: int
    register_mj: int = 0
    power_w: int = 0
    held_w: int = 0
    lease_until_ms: int = 0


class _Car(Struct, gc=False):
    number: int
    plugged: Plugged
    need_mj: int
    efficiency: float
    at_ms: int
    register_mj: int
    power_w: int
    grant_w: int
    lease_until_ms: int
    seen: int = 0
    # Offers it has not acted on yet, with when it will: in order.
    waiting: list[tuple[int, Offer]] = field(default_factory=list)

    def ceiling_w(self) -> int:
        """What it takes when offered enough: less near full."""
        if self.plugged.need_mj is not None:
            return self.plugged.max_w
        left = (self.need_mj - self.register_mj) / self.need_mj
        return round(self.plugged.max_w * next((share for below, share in _TAPER if left <= below), 1.0))

    def wants_w(self) -> int:
        if self.register_mj >= self.need_mj or self.at_ms >= self.lease_until_ms or self.gone():
            return 0
        return int(min(self.grant_w * self.efficiency, self.ceiling_w()))

    def gone(self) -> bool:
        return self.plugged.leaves_ms is not None and self.at_ms >= self.plugged.leaves_ms

    def marks_mj(self) -> Iterable[int]:
        """Registers at which the draw of a car that charges until full changes by itself."""
        yield from (int(self.need_mj * (1 - below)) + 1 for below, _ in _TAPER)
        yield self.need_mj

    def next_event(self, scale: int) -> int | None:
        acts = self.waiting[0][0] if self.waiting else None
        if self.power_w <= 0:
            return acts
        ahead = self.need_mj
        if self.plugged.need_mj is None:
            ahead = min((mark for mark in self.marks_mj() if mark > self.register_mj), default=ahead)
        at = min(self.at_ms - (self.register_mj - ahead) // (self.power_w * scale), self.lease_until_ms)
        if self.plugged.leaves_ms is not None:
            at = min(at, self.plugged.leaves_ms)
        return at if acts is None else min(at, acts)

    def pass_to(self, now: int, scale: int) -> None:
        if now <= self.at_ms:
            return
        if self.power_w and self.register_mj < self.need_mj:
            self.register_mj = min(self.register_mj + self.power_w * (now - self.at_ms) * scale, self.need_mj)
        self.at_ms = now


class SimulatedCars:
    """All cars of one substation."""

    def __init__(self, scale: int, obedience_s: float = OBEDIENCE_S) -> None:
        self._scale = scale
        self._obedience_ms = obedience_s * 1000 / scale
        self._cars: dict[str, _Car] = {}
        # When each does something next, also in order (with entries of the past), and as of when the meters are read.
        self._due: dict[str, int] = {}
        self._queue: list[tuple[int, int, str]] = []
        self._count = 0
        self._now = 0

    def plug_in(self, plugged: Plugged) -> None:
        """A car is there; it draws nothing until offered, but for what it still holds after a restart."""
        self._count += 1
        self._cars[plugged.session_id] = _Car(
            self._count,
            plugged,
            need_mj=_need_mj(plugged) if plugged.need_mj is None else plugged.need_mj,
            efficiency=_drawn(plugged.session_id, "efficiency", *_EFFICIENCY),
            at_ms=plugged.at_ms,
            register_mj=plugged.register_mj,
            power_w=plugged.power_w,
            grant_w=plugged.held_w,
            lease_until_ms=plugged.lease_until_ms,
        )
        if plugged.power_w > 0:
            self._look_ahead(plugged.session_id)

    def offer(self, session_id: str, offer: Offer, now: int) -> None:
        """The car will act on it within its obedience time; at once when nothing changes but the lease."""
        car = self._cars.get(session_id)
        if car is None or offer.number <= car.seen:
            return
        car.seen = offer.number
        renewal = offer.power_w == car.grant_w and now < car.lease_until_ms and not car.waiting
        delay = 0 if renewal else round(_drawn(session_id, str(offer.number), 0, self._obedience_ms))
        due = now + delay
        if car.waiting:
            due = max(due, car.waiting[-1][0])
        car.waiting.append((due, offer))
        self._look_ahead(session_id)

    def open(self, session_id: str) -> None:
        """The contactor opens and the car is forgotten: nothing more is drawn."""
        self._cars.pop(session_id, None)
        self._due.pop(session_id, None)

    def advance(self, now: int) -> list[CarEvent]:
        """What the cars did up to `now`, in order for each car."""
        events: list[CarEvent] = []
        self._now = max(self._now, now)
        for _, name, due in self._take_due(now):
            car = self._cars[name]
            at: int | None = due
            while at is not None and at <= now:
                self._step(car, at, events)
                at = car.next_event(self._scale)
            self._note_due(car, at)
        return events

    def _look_ahead(self, session_id: str) -> None:
        """Between its events a car changes nothing, so it is not asked again."""
        car = self._cars[session_id]
        self._note_due(car, car.next_event(self._scale))

    def _note_due(self, car: _Car, at: int | None) -> None:
        session_id = car.plugged.session_id
        if at is None:
            self._due.pop(session_id, None)
        elif self._due.get(session_id) != at:
            self._due[session_id] = at
            heappush(self._queue, (at, car.number, session_id))

    def next_event(self) -> int | None:
        """When a car does something next, in wall milliseconds."""
        queue, due = self._queue, self._due
        while queue:
            at, _, name = queue[0]
            if due.get(name) == at:
                return at
            heappop(queue)
        return None

    def _take_due(self, now: int) -> list[tuple[int, str, int]]:
        """Those that do something by then, as they were plugged in: number, session id, and when it is."""
        taken = []
        while self._queue and self._queue[0][0] <= now:
            at, number, name = heappop(self._queue)
            if self._due.get(name) == at:
                del self._due[name]
                taken.append((number, name, at))
        return sorted(taken)

    def readings(self) -> list[Reading]:
        """All meters as of the last advance."""
        for car in self._cars.values():
            car.pass_to(self._now, self._scale)
        return [Reading(name, car.power_w, car.register_mj) for name, car in self._cars.items()]

    def _step(self, car: _Car, at: int, events: list[CarEvent]) -> None:
        """What it does at that moment, added to what happened before."""
        car.pass_to(at, self._scale)
        name = car.plugged.session_id
        while car.waiting and car.waiting[0][0] <= at:
            _, offer = car.waiting.pop(0)
            car.grant_w, car.lease_until_ms = offer.power_w, offer.valid_until_ms
            events.append(Confirmed(name, offer.number))
        wants = car.wants_w()
        if wants != car.power_w:
            car.power_w = wants
            events.append(Reading(name, wants, car.register_mj))
            if car.register_mj >= car.need_mj and car.plugged.need_mj is None:
                events.append(Full(name))


def _need_mj(plugged: Plugged) -> int:
    """Of a car that charges until it is full."""
    return round(_drawn(plugged.session_id, "need", *_NEED_KWH) * JOULES_PER_KWH) * 1000


def _drawn(session_id: str, what: str, least: float, most: float) -> float:
    """A part of a car's character, evenly distributed: a generator of its own for each car takes longer to seed."""
    return least + (most - least) * crc32(f"{what} {session_id}".encode()) / 2**32
