"""What a substation tells balancers of its load, and when: pushed on change, or only every so often."""

from collections.abc import Callable
from functools import partial

from balancer.view import Load
from benchmarks.sim.loop import Loop
from benchmarks.sim.site import Site
from mesh.model import NotAccepting
from mesh.outlook import Outlook
from substation.load import Load as StationLoad

# Changes that follow one another so soon leave together.
COALESCE_MS = 20
# Promises shift as time passes: they are made anew after so long.
_AHEAD_MS = 1_000


class Reports:
    """The reports of one site. `send` is called with each; `ahead`: whether they say what is promised for later."""

    def __init__(self, loop: Loop, site: Site, send: Callable[[Load], None], *, pushed: bool, ahead: bool) -> None:
        self._loop = loop
        self._site = site
        self._send = send
        self._pushed = pushed
        self._says_ahead = ahead
        self._pushing = False
        # Epoch and sequence of the last one: a push that says nothing new is none.
        self._said: tuple[int, int] | None = None
        # As of the last change.
        self._load: StationLoad | None = None
        self._ahead: tuple[Outlook, int] | None = None

    def load(self) -> Load:
        """The report that the substation would send now. ConnectionError while it is down."""
        station = self._site.up()
        load = self._load = self._load or station.load()
        return Load(
            substation_id=station.config.substation_id,
            epoch=self._site.epoch,
            sequence=load.sequence,
            admission_sequence=load.admission_sequence,
            generated_at_ms=self._loop.now,
            rated_w=load.rated_w,
            limit_w=load.limit_w,
            limit_source=load.limit_source,
            demand_w=load.demand_w,
            required_w=load.required_w,
            floor_w=load.floor_w,
            committed_w=load.committed_w,
            granted_w=load.granted_w,
            measured_w=load.measured_w,
            active_sessions=load.active_sessions,
            charge_points=load.charge_points,
            free_charge_points=load.free_charge_points,
            accepting=load.not_accepting is NotAccepting.UNSPECIFIED,
            not_accepting=load.not_accepting,
            ahead=self._outlook() if self._says_ahead else None,
        )

    def _outlook(self) -> Outlook:
        now = self._loop.now
        if self._ahead is None or now - self._ahead[1] >= _AHEAD_MS:
            self._ahead = (self._site.up().outlook(now), now)
        return self._ahead[0]

    def changed(self) -> None:
        """Something happened at the site."""
        self._load = self._ahead = None
        if self._pushed and not self._pushing:
            self._pushing = True
            self._loop.at(self._loop.now + COALESCE_MS, self._push)

    def every(self, period_ms: int, first_ms: int) -> None:
        """A report every `period_ms`, whatever happens, from `first_ms` on."""
        self._loop.at(first_ms, partial(self._tick, period_ms))

    def report(self) -> None:
        """A report now, unless the substation is down."""
        if self._site.station is not None:
            self._say(self.load())

    def _say(self, load: Load) -> None:
        self._said = (load.epoch, load.sequence)
        self._send(load)

    def _tick(self, period_ms: int) -> None:
        self.report()
        self._loop.at(self._loop.now + period_ms, partial(self._tick, period_ms))

    def _push(self) -> None:
        self._pushing = False
        if self._site.station is None:
            return
        load = self._load = self._load or self._site.station.load()
        if (self._site.epoch, load.sequence) != self._said:
            self.report()
