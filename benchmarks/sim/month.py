"""A month of visits over a set of sites: every car is placed on arrival, and stays where it was placed.

Rules ask the sites themselves, without delay. A `Plan` in the place of a rule is a mesh: production balancers
place the cars on what reports have told them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Protocol

from msgspec import structs

from benchmarks.sim.cars import Manners
from benchmarks.sim.loop import Loop
from benchmarks.sim.mesh import Mesh, Plan
from benchmarks.sim.site import Site
from benchmarks.sim.traces import Visit
from mesh import ids
from mesh.charge import Charge, Key
from mesh.errors import MeshError, Refused
from mesh.model import ErrorReason, StopReason
from substation.sessions import Session
from substation.sharing import SharingPolicy
from substation.station import StationConfig

# Nothing is lost here, so leases need no renewal.
LEASE_MS = 400 * 24 * 3_600_000
HOUR_MS = 3_600_000


class Placement(Protocol):
    """Says where a car is asked for, the first choice first."""

    def order(self, charge: Charge, home: str, sites: dict[str, Site], now: int) -> list[str]: ...


@dataclass(slots=True)
class Served:
    """What became of one visit. Energy in joules."""

    visit: Visit
    placed: str | None = None
    got_j: int = 0

    @property
    def share(self) -> float:
        """Of what full service brings, 0 to 1."""
        return min(1.0, self.got_j / self.visit.due_j)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The columns of table b. Percent, but `jain` 0 to 1 and `refused` a count."""

    energy: float
    full: float
    jain: float
    refused: int
    over_limit_ms: int


class Month:
    """Plays visits. `gate`: may refuse a car at a site before the station is asked."""

    def __init__(
        self,
        configs: Sequence[StationConfig],
        policy: Callable[[], SharingPolicy],
        placement: Placement | Plan,
        seed: int,
        gate: Callable[[Site, Charge], bool] | None = None,
        manners: Manners | None = None,
    ) -> None:
        self._rng = Random(seed)
        self.loop = Loop(0)
        self._gate = gate
        self.sites = {
            config.substation_id: Site(self.loop, config, policy(), Random(f"{seed} {config.substation_id}"), manners)
            for config in configs
        }
        for site in self.sites.values():
            site.on_end = self._ended
        # By session id: whose it is.
        self._live: dict[str, Served] = {}
        # By request id: who asked.
        self._asking: dict[str, Served] = {}
        self.served: list[Served] = []
        self._placement: Placement | None = None
        self.mesh: Mesh | None = None
        if isinstance(placement, Plan):
            self.mesh = Mesh(self.loop, self.sites, placement, seed, None if gate is None else self._refuse)
            self.mesh.on_admitted = self._admitted
        else:
            self._placement = placement

    def _refuse(self, site: Site, charge: Charge) -> None:
        assert self._gate is not None
        if not self._gate(site, charge):
            raise Refused(ErrorReason.TOO_MANY_WAITING, "does not fit at full power")

    def play(self, visits: Sequence[Visit]) -> list[Served]:
        """All visits from the first arrival to an hour after the last departure."""
        self.loop.now = visits[0].arrives_ms - HOUR_MS
        self.served = [Served(visit) for visit in visits]
        until = max(visit.leaves_ms for visit in visits) + HOUR_MS
        if self.mesh is not None:
            self.mesh.start(until)
        for served in self.served:
            self.loop.at(served.visit.arrives_ms, partial(self._arrive, served))
            if self.mesh is not None:
                self.mesh.expect(served.visit.arrives_ms)
        self.loop.run(until)
        return self.served

    def _arrive(self, served: Served) -> None:
        charge = self._charge(served.visit, served.visit.name)
        if self._placement is None:
            self._ask_mesh(served, charge)
            return
        home = served.visit.site.lower().replace("_", "-")
        for name in self._placement.order(charge, home, self.sites, self.loop.now):
            if self._ask(served, charge, name):
                return

    def _charge(self, visit: Visit, name: str) -> Charge:
        now = self.loop.now
        return Charge(
            key=Key("bench", name),
            vehicle_id=visit.name,
            energy_j=visit.says_energy_j,
            max_w=visit.max_w,
            floor_w=visit.floor_w,
            phases=1 if visit.floor_w < 4_140 else 3,
            departure_ms=visit.says_leaves_ms,
            allowed=frozenset(),
            evse_id="",
            attempt_id=ids.uuid7(now, self._rng),
            body=b"",
        )

    def _ask(self, served: Served, charge: Charge, name: str) -> bool:
        site = self.sites[name]
        if self._gate is not None and not self._gate(site, charge):
            return False
        try:
            session = site.charge(charge, served.visit.energy_j * 1000 - served.got_j * 1000)
        except MeshError:
            return False
        self._plugged(served, site, session)
        return True

    def _plugged(self, served: Served, site: Site, session: Session) -> None:
        served.placed = site.config.substation_id
        if session.live and session.session_id not in self._live:
            self._live[session.session_id] = served
            self.loop.at(served.visit.leaves_ms, partial(self._unplug, site, session.session_id))

    def _ask_mesh(self, served: Served, charge: Charge) -> None:
        assert self.mesh is not None
        self._asking[charge.key.request_id] = served
        need_mj = served.visit.energy_j * 1000 - served.got_j * 1000
        self.mesh.ask(charge, need_mj, served.visit.leaves_ms, _heard)

    def _admitted(self, site: Site, session: Session) -> None:
        self._plugged(self._asking[session.charge.key.request_id], site, session)

    def _unplug(self, site: Site, session_id: str) -> None:
        if session_id in self._live:
            site.unplug(session_id)

    def _ended(self, session: Session) -> None:
        served = self._live.pop(session.session_id, None)
        # What a duplicate is said to have delivered no car has got: it plugged in where its driver was told to.
        if served is None or session.stop_reason is StopReason.DUPLICATE:
            return
        served.got_j += session.delivered_mj // 1000
        wants_j = served.visit.due_j - served.got_j
        if served.visit.leaves_ms > self.loop.now and wants_j * 100 > served.visit.due_j:
            self.loop.at(self.loop.now, partial(self._stay, served, wants_j))

    def _stay(self, served: Served, wants_j: int) -> None:
        """The driver is later than was said: the same plug again, this time without a departure."""
        assert served.placed is not None
        visit = replace(served.visit, says_leaves_ms=None, says_energy_j=wants_j)
        charge = self._charge(visit, f"{visit.name} again")
        if self._placement is None:
            self._ask_mesh(served, structs.replace(charge, allowed=frozenset([served.placed])))
        else:
            self._ask(served, charge, served.placed)


def _heard(_: str | None) -> None:
    """A car that is placed is seen at its site."""


def outcome(month: Month) -> Outcome:
    """Sums up a month that was played."""
    shares = [served.share for served in month.served]
    due = sum(served.visit.due_j for served in month.served)
    got = sum(min(served.got_j, served.visit.due_j) for served in month.served)
    square = sum(share * share for share in shares)
    return Outcome(
        energy=100 * got / due,
        full=100 * sum(share >= 0.99 for share in shares) / len(shares),
        jain=sum(shares) ** 2 / (len(shares) * square) if square else 0.0,
        refused=sum(served.placed is None for served in month.served),
        over_limit_ms=sum(site.over_limit_ms for site in month.sites.values()),
    )
