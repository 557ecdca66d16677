"""One substation: the production station and its cars, on the loop's clock."""

from collections.abc import Callable
from random import Random

from msgspec.structs import replace

from benchmarks.sim.cars import Car, CarEvent, Cars, Manners
from benchmarks.sim.loop import Loop
from mesh.charge import Charge, Key
from mesh.model import StopReason
from substation import events as ev
from substation import records
from substation.events import Full
from substation.keys import REMEMBER_MS
from substation.sessions import Session
from substation.sharing import SharingPolicy
from substation.station import Memory, Station, StationConfig


class Site:
    """`on_change` is called after anything that may have changed its load; `on_end` when a session ended.

    `on_admission` is called with each entry in the stream of admissions: a session admitted, raised or ended.
    """

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
        self.on_admission: Callable[[Session], None] = _ignore
        self.on_end: Callable[[Session], None] = _ignore
        self._needs_mj: dict[str, int] = {}
        # When the station wants to be woken; what was planned for another time is void.
        self._station_at: int | None = None
        self._car_wakes: set[int] = set()
        # What a restart finds: fences are kept as they come, all else as of the crash.
        self._fences: dict[Key, tuple[str, int]] = {}
        self._memory = Memory()
        # Session ids of cars that drove away while nobody looked.
        self._gone: list[str] = []
        self._over_limit_ms = 0

    @property
    def over_limit_ms(self) -> int:
        """How long committed power was over the limit, in all its lives."""
        return self._over_limit_ms + (self.station.load().over_limit_ms if self.station is not None else 0)

    def charge(self, charge: Charge, need_mj: int) -> Session:
        """Admits a car that can take `need_mj`. Refused, as the station says, or ConnectionError while it is down."""
        return self.admit(charge, need_mj)[0]

    def admit(self, charge: Charge, need_mj: int) -> tuple[Session, bool]:
        """As `charge`; also whether the key was known."""
        station = self.up()
        self._needs_mj[charge.key.request_id] = need_mj
        events = station.charge(charge, self.loop.now)
        outcome = next(event for event in events if isinstance(event, ev.Admitted | ev.Repeated))
        self._take(events)
        self._settle()
        return outcome.session, isinstance(outcome, ev.Repeated)

    def resolve(self, key: Key, attempt_id: str) -> Session | None:
        """The key's session, or None: that attempt and all before it are refused from now on."""
        events = self.up().resolve(key, attempt_id, self.loop.now)
        self._take(events)
        self._settle()
        return next((event.session for event in events if isinstance(event, ev.Repeated)), None)

    def end_duplicate(self, session_id: str, survivor_id: str, survivor_attempt: str) -> None:
        """Ends a session whose key has another one elsewhere. PreconditionFailed when its own attempt is higher."""
        self._take(self.up().end_duplicate(session_id, survivor_id, survivor_attempt, self.loop.now))
        self._settle()

    def unplug(self, session_id: str) -> None:
        """The car drives away."""
        if self.station is None:
            self.cars.open(session_id)
            self._gone.append(session_id)
            return
        self._take(self.station.stop(session_id, StopReason.EV_DISCONNECTED, self.loop.now))
        self._settle()

    def crash(self, lease_ms: int | None = None) -> None:
        """The process dies; its ledger and its cars remain.

        `lease_ms`: what the station's own leases stand for, which are then so long that they need no renewal. What
        the cars hold lapses so soon after the crash as if it had been renewed three times as often.
        """
        station = self.up()
        now = self.loop.now
        for session in station.sessions():
            session.meter(now, self.config.time_scale)
        if lease_ms is not None:
            self._cut_leases(now + self._rng.randint(lease_ms * 2 // 3, lease_ms))
        self._over_limit_ms += station.load().over_limit_ms
        self._fences = {key: fence for key, fence in self._fences.items() if fence[1] > now - REMEMBER_MS}
        self._memory = Memory(_written(station), station.limits(), station.draining, _listed(self._fences))
        self.station = self._station_at = None

    def _cut_leases(self, until: int) -> None:
        for session in self.up().sessions():
            session.offers = tuple([replace(offer, valid_until_ms=until) for offer in session.offers])
            session.confirmed_until_ms = min(session.confirmed_until_ms, until)
        self.cars.cut_leases(until)

    def restart(self) -> None:
        """The process is back with what its ledger remembers, in a new epoch."""
        now = self.loop.now
        self.epoch = max(self.epoch + 1, now)
        cars = {car.session_id: car for car in self.cars}
        self.cars.read(now)
        for session in self._memory.sessions:
            if session.live:
                _read_meter(session, cars.get(session.session_id), now)
        self.station = Station(self.config, self._rng, now, self._memory, self._policy)
        self._take(self.station.advance(now))
        self._tell([Full(car.session_id) for car in cars.values() if car.register_mj >= car.need_mj])
        gone, self._gone = self._gone, []
        for session_id in gone:
            self._take(self.station.stop(session_id, StopReason.EV_DISCONNECTED, now))
        self._settle()

    def drawn_w(self) -> int:
        """What its cars draw at this moment."""
        return sum(car.power_w for car in self.cars)

    def up(self) -> Station:
        """The station. ConnectionError while it is down."""
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
        at = self.up().next_event()
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
        station = self.up()
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
                    self.on_admission(session)
                case ev.Repeated(session, raised=True):
                    self.on_admission(session)
                case ev.Opened(name):
                    self.cars.open(name)
                case ev.Ended(session):
                    self.on_admission(session)
                    self.on_end(session)
                case ev.Fenced(key, attempt_id):
                    self._fences[key] = (attempt_id, self.loop.now)

    def _plug_in(self, session: Session) -> None:
        need_mj = self._needs_mj.pop(session.charge.key.request_id)
        self.cars.plug_in(Car(session.session_id, session.charge.max_w, need_mj, self.loop.now))

    def _tell(self, said: list[CarEvent]) -> None:
        """What cars say reaches the station at once."""
        self._take(self.up().heard(said, self.loop.now))


def _written(station: Station) -> list[Session]:
    """The sessions as a restart reads them from the ledger."""
    bodies = [records.session_body(session) for session in station.sessions(include_ended=True)]
    return records.read_sessions(bodies, records.live_body(station.sessions()))


def _listed(fences: dict[Key, tuple[str, int]]) -> list[tuple[Key, str, int]]:
    return [(key, attempt_id, at) for key, (attempt_id, at) in fences.items()]


def _read_meter(session: Session, car: Car | None, now: int) -> None:
    """What a car drew while nobody looked."""
    if car is not None:
        session.delivered_mj = max(session.delivered_mj, car.register_mj)
        session.measured_w = car.power_w
    session.metered_ms = now
    session.lapse(now)


def _nothing() -> None:
    """Nobody listens."""


def _ignore(_: Session) -> None:
    """Nobody listens."""
