"""A station and its simulated cars on one virtual clock in milliseconds, without any I/O."""

from random import Random

from mesh.charge import Charge, Key
from substation import events as ev
from substation.cars import Plugged, SimulatedCars
from substation.limits import Limit
from substation.sessions import Session
from substation.sharing import SharingPolicy
from substation.station import Memory, Station, StationConfig

NOW = 1_700_000_000_000


def a_charge(
    name: str = "r1",
    *,
    max_w: int = 11_000,
    floor_w: int = 4_140,
    energy_j: int | None = 36_000_000,
    departure_ms: int | None = None,
    attempt: int = 1,
    body: bytes = b"body",
) -> Charge:
    return Charge(
        key=Key("anonymous", name),
        vehicle_id=f"EV-{name}",
        energy_j=energy_j,
        max_w=max_w,
        floor_w=floor_w,
        phases=3,
        departure_ms=departure_ms,
        allowed=frozenset(),
        evse_id="",
        attempt_id=an_attempt(attempt),
        body=body,
    )


def an_attempt(number: int) -> str:
    return f"{number:08x}-0000-7000-8000-000000000000"


def a_config(**changes: int | str) -> StationConfig:
    values: dict[str, int | str] = {"substation_id": "a", "rated_w": 100_000, "charge_points": 120, **changes}
    return StationConfig(**values)  # type: ignore[arg-type]


class Rig:
    """Delivers offers and openings to the cars and what they say to the station, at the exact times."""

    def __init__(
        self,
        config: StationConfig | None = None,
        *,
        memory: Memory | None = None,
        seed: int = 1,
        before: "Rig | None" = None,
        policy: SharingPolicy | None = None,
    ) -> None:
        """`before`: the rig of the process that died; its cars go on."""
        self.config = config or a_config()
        self.now: int = before.now if before else NOW
        self.cars: SimulatedCars = before.cars if before else SimulatedCars(self.config.time_scale)
        # Session ids whose cars take no notice of offers.
        self.deaf: set[str] = before.deaf if before else set()
        self.station = Station(self.config, Random(seed), self.now, memory, policy)
        self.events: list[ev.Event] = []
        self._take(self.station.advance(self.now))

    def charge(self, charge: Charge) -> Session:
        events = self.station.charge(charge, self.now)
        outcome = next(event for event in events if isinstance(event, ev.Admitted | ev.Repeated))
        self._take(events)
        self.settle()
        return outcome.session

    def set_limit(self, limit: Limit) -> None:
        self._take(self.station.set_limit(limit, self.now))
        self.settle()

    def do(self, events: list[ev.Event]) -> list[ev.Event]:
        """Takes the events of a call that the test made itself."""
        self._take(events)
        self.settle()
        return events

    def settle(self) -> None:
        self._take(self.station.settle())

    def run(self, seconds: float) -> None:
        """Lets time pass, event by event."""
        until = self.now + round(seconds * 1000)
        while (at := self._next()) is not None and at <= until:
            self.now = max(self.now, at)
            self._turn()
        self.now = until
        self._turn()

    def stall(self, seconds: float) -> None:
        """The process stands still: the cars go on under the leases that they hold, and are heard only afterwards."""
        self.now += round(seconds * 1000)
        self._turn()
        self._take(self.station.heard(self.cars.readings(), self.now))
        self.settle()

    def registers(self) -> dict[str, int]:
        """What the meters say now, by session."""
        self._take(self.station.heard(self.cars.advance(self.now), self.now))
        return {reading.session_id: reading.register_mj for reading in self.cars.readings()}

    def committed_w(self) -> int:
        return sum(session.committed_w for session in self.station.sessions())

    def drawn_w(self) -> int:
        return sum(reading.power_w for reading in self.cars.readings())

    def of(self, kind: type[ev.Event]) -> list[ev.Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def _next(self) -> int | None:
        return min((at for at in (self.station.next_event(), self.cars.next_event()) if at is not None), default=None)

    def _turn(self) -> None:
        self._take(self.station.advance(self.now))
        self._take(self.station.heard(self.cars.advance(self.now), self.now))
        self.settle()

    def _take(self, events: list[ev.Event]) -> None:
        self.events += events
        for event in events:
            match event:
                case ev.Admitted(session):
                    self.cars.plug_in(plugged(session))
                case ev.Offered(name, offer) if name not in self.deaf:
                    self.cars.offer(name, offer, self.now)
                case ev.Opened(name):
                    self.cars.open(name)


def plugged(session: Session) -> Plugged:
    return Plugged(
        session.session_id, session.charge.max_w, session.target_mj, session.charge.departure_ms, session.metered_ms
    )
