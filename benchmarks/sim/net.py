"""The network between clients, balancers and substations: seeded delays, and messages that are lost or late."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from benchmarks.sim.loop import Loop

Action = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Weather:
    """How messages fare. Milliseconds one way; shares from 0 to 1.

    A late message takes up to `late_ms` longer than others, so that later ones overtake it. Admissions are one ordered
    stream: where a message of theirs is lost, the stream breaks.
    """

    least_ms: int = 1
    most_ms: int = 5
    reports_lost: float = 0.0
    reports_late: float = 0.0
    calls_lost: float = 0.0
    calls_late: float = 0.0
    late_ms: int = 5_000


CALM = Weather()


class Net:
    """Does things on the other side, a moment later. Nothing random is drawn for what cannot happen."""

    def __init__(self, loop: Loop, rng: Random, weather: Weather = CALM) -> None:
        self._loop = loop
        self._rng = rng
        self.weather = weather

    def delay_ms(self) -> int:
        """How long one message takes."""
        return self._rng.randint(self.weather.least_ms, self.weather.most_ms)

    def later(self, action: Action) -> None:
        """A message that always arrives."""
        self._loop.at(self._loop.now + self.delay_ms(), action)

    def report(self, action: Action) -> bool:
        """A report; False when it is lost or late."""
        return self._send(action, self.weather.reports_lost, self.weather.reports_late)

    def call(self, action: Action) -> bool:
        """A request or a reply; False when it is lost or late."""
        return self._send(action, self.weather.calls_lost, self.weather.calls_late)

    def breaks(self) -> bool:
        """Whether a stream breaks over its next message."""
        return self._chance(self.weather.calls_lost)

    def _send(self, action: Action, lost: float, late: float) -> bool:
        if self._chance(lost):
            return False
        is_late = self._chance(late)
        more_ms = self._rng.randint(0, self.weather.late_ms) if is_late else 0
        self._loop.at(self._loop.now + self.delay_ms() + more_ms, action)
        return not is_late

    def _chance(self, share: float) -> bool:
        return share > 0 and self._rng.random() < share
