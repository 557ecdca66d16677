"""The seam to the cars. What is sent is acted on later or not at all; what the cars say comes back as events."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from mesh.clock import Clock
from substation.cars import Plugged, SimulatedCars
from substation.events import CarEvent, Full, Reading
from substation.sessions import Offer

# Cars that do something within this time are heard together, as a meter's bus is read: each for itself would cost a
# timer and a look at the station. What they did, and their registers, are as of their own times.
HEARD_MS = 30


class Plant(Protocol):
    """The charge points of one substation, with the cars behind them."""

    def start(self, listener: Callable[[list[CarEvent]], None]) -> None:
        """From now on `listener` hears what the cars say."""
        ...

    def recover(self, plugged: Iterable[Plugged], now: int) -> list[Reading]:
        """After a restart: reads the meters of the sessions that were live."""
        ...

    def read(self) -> list[Reading]:
        """All meters as they are now."""
        ...

    def plug_in(self, plugged: Plugged) -> None:
        """A new session's car is to be offered power from now on."""
        ...

    def offer(self, session_id: str, offer: Offer) -> None:
        """Sends an offer; a Confirmed with its number comes when the car acts on it, or never."""
        ...

    def open(self, session_id: str) -> None:
        """Opens the contactor: the charge point's own switch, at once."""
        ...

    def stop(self) -> None:
        """Listens no more."""
        ...


class SimulatedPlant:
    """Simulated cars on the event loop's timers."""

    def __init__(self, cars: SimulatedCars, clock: Clock) -> None:
        self._cars = cars
        self._clock = clock
        self._listener: Callable[[list[CarEvent]], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # When the timer is for, and when the cars were heard last.
        self._armed_ms = self._heard_ms = 0
        self._missed: list[CarEvent] = []

    def start(self, listener: Callable[[list[CarEvent]], None]) -> None:
        self._listener = listener
        listener(self._missed)
        self._arm()

    def recover(self, plugged: Iterable[Plugged], now: int) -> list[Reading]:
        for car in plugged:
            self._cars.plug_in(car)
        self._missed = [event for event in self._cars.advance(now) if isinstance(event, Full)]
        return self._cars.readings()

    def read(self) -> list[Reading]:
        self._wake()
        return self._cars.readings()

    def plug_in(self, plugged: Plugged) -> None:
        self._cars.plug_in(plugged)

    def offer(self, session_id: str, offer: Offer) -> None:
        self._cars.offer(session_id, offer, self._clock.now_ms())
        self._arm()

    def open(self, session_id: str) -> None:
        self._cars.open(session_id)

    def stop(self) -> None:
        self._listener = None
        if self._timer:
            self._timer.cancel()

    def _arm(self) -> None:
        """Wakes for the next event; an earlier timer, for what will not happen any more, does no harm."""
        if not self._listener or (self._timer and self._armed_ms <= self._heard_ms + HEARD_MS):
            return
        at = self._cars.next_event()
        if at is None:
            return
        at = max(at, self._heard_ms + HEARD_MS)
        if self._timer:
            if self._armed_ms <= at:
                return
            self._timer.cancel()
        self._armed_ms = at
        delay_ms = max(0, at - self._clock.now_ms())
        self._timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._heard_ms = self._clock.now_ms()
        events = self._cars.advance(self._heard_ms)
        if events and self._listener:
            self._listener(events)
        self._arm()
