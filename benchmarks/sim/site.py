"""One substation: the production station and its cars, on the loop's clock."""

from collections.abc import Callable
from random import Random

from benchmarks.sim.cars import Car, CarEvent, Cars, Manners
from benchmarks.sim.loop import Loop
from mesh.charge import Charge
from mesh.model import StopReason
from substation import events as ev
from substation.cars import Confirmed, Full, Reading
from substation.sessions import Session
from substation.sharing import SharingPolicy
from substation.station import Memory, Station, StationConfig


class Site:
    """`on_change` is called after anything that may have changed its load; `on_end` when a session ended."""

    def __init__(
        self,
        loop: Loop,
        config: StationConfig,
        policy: SharingPolicy,
        rng: Random,
        manners: Manners | None = None,
    ) -> None:
        self.config = config
        self.loop = loop
        self._policy = policy
        self._rng = rng
        self.station: Station | None = Station(config, rng, loop.now, policy=policy)
        self.cars = Cars(manners or Manners(), rng, self._wake_cars_at)
        self.epoch = loop.now
        self.on_change: Callable[[], None] = _nothing
        self.on_end: Callable[[Session], None] = _ignore
        self._needs_mj: dict[str, int] = {}
        # When the station wants to be woken; what was planned for another time is void.
        self._station_at: int | None = None
        self._car_wakes: set[int] = set()

    def charge(self, charge: Charge, need_mj: int) -> Session:
        """Admits a car that can take `need_mj`. Refused, as the station says, or ConnectionError while it is down."""
        station = self._up()
        self._needs_mj[charge.key.request_id] = need_mj
        events = station.charge(charge, self.loop.now)
        outcome = next(event for event in events if isinstance(event, ev.Admitted | ev.Repeated))
        self._take(events)
        self._settle()
        return outcome.session

    def unplug(self, session_id: str) -> None:
        """The car drives away."""
        if self.station is None:
            self.cars.open(session_id)
            return
        self._take(self.station.stop(session_id, StopReason.EV_DISCONNECTED, self.loop.now))
        self._settle()

    def crash(self) -> None:
        """The process dies; its ledger and its cars remain."""
        station = self._up()
        for session in station.sessions():
            session.meter(self.loop.now, self.config.time_scale)
        self._memory = Memory(list(station.sessions(include_ended=True)), station.limits(), station.draining)
        self.station = None

    def restart(self) -> None:
        """The process is back with what its ledger remembers, in a new epoch."""
        self.epoch = max(self.epoch + 1, self.loop.now)
        self.station = Station(self.config, self._rng, self.loop.now, self._memory, self._policy)
        self._settle()

    def drawn_w(self) -> int:
        """What its cars draw at this moment."""
        return sum(car.power_w for car in self.cars)

    def _up(self) -> Station:
        if self.station is None:
            raise ConnectionError(self.config.substation_id)
        return self.station

    def _wake_cars_at(self, time: int) -> None:
        if time not in self._car_wakes:
            self._car_wakes.add(time)
            self.loop.at(time, self._wake_cars)

    def _wake_cars(self) -> None:
        self._car_wakes.discard(self.loop.now)
        said = self.cars.advance(self.loop.now)
        if said and self.station is not None:
            self._tell(said)
            self._settle()

    def _plan(self) -> None:
        at = self._up().next_event()
        if at is not None and at != self._station_at:
            self.loop.at(at, self._wake)
        self._station_at = at

    def _wake(self) -> None:
        if self.station is None or self._station_at is None or self._station_at > self.loop.now:
            return
        self._station_at = None
        self._take(self.station.advance(self.loop.now))
        self._settle()

    def _settle(self) -> None:
        """Shares the power until nothing changes any more: what one car leaves at once, another gets at once."""
        station = self._up()
        offered = True
        while offered:
            events = station.settle()
            offered = any(isinstance(event, ev.Offered) for event in events)
            self._take(events)
        self._plan()
        self.on_change()

    def _take(self, events: list[ev.Event]) -> None:
        for event in events:
            match event:
                case ev.Offered(name, offer):
                    self._tell(self.cars.offer(name, offer, self.loop.now))
                case ev.Admitted(session):
                    self._plug_in(session)
                case ev.Opened(name):
                    self.cars.open(name)
                case ev.Ended(session):
                    self.on_end(session)

    def _plug_in(self, session: Session) -> None:
        need_mj = self._needs_mj.pop(session.charge.key.request_id)
        self.cars.plug_in(Car(session.session_id, session.charge.max_w, need_mj, self.loop.now))

    def _tell(self, said: list[CarEvent]) -> None:
        """What cars say reaches the station at once."""
        station = self._up()
        for event in said:
            match event:
                case Confirmed(name, number):
                    self._take(station.confirmed(name, number, self.loop.now))
                case Reading(name, power_w, register_mj):
                    self._take(station.measured(name, power_w, register_mj, self.loop.now))
                case Full(name):
                    self._take(station.full(name, self.loop.now))


def _nothing() -> None:
    """Nobody listens."""


def _ignore(_: Session) -> None:
    """Nobody listens."""
