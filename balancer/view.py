"""What a balancer knows of its substations: their last report, and its own placements not yet in it.

    load = last report + reservations that it does not contain

Silence is not idleness: never reported, fresh, stale and gone are four states, computed from `now`
whenever somebody asks; reading changes nothing.

A reservation is taken before the first await of a placement and is counted until a report that
contains its session is applied, or until it is certain that there is no session. Which sessions a
report contains is known from the admissions stream: a report with admission sequence s contains the
entries up to s. A report that is ahead of that stream would count sessions twice, once in itself and
once in the reservations of calls whose replies are still on their way; it is held back until the
stream has caught up, at most HOLD_MS. Without that, 300 cars at once come out uneven.

Times are wall milliseconds, power is whole watts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from mesh.charge import Key
from mesh.model import LimitSource, NotAccepting, ReportState

FRESH_INTERVALS = 3
# Longer than any restart: what has been silent for so long is not asked at all.
GONE_INTERVALS = 10
# Admissions leave with the reply and reach a balancer within milliseconds; a slow link must not blind it.
HOLD_MS = 250
HELD_MOST = 64


@dataclass(frozen=True, slots=True)
class Load:
    """One load report, in whole watts. `generated_at_ms` is the substation's wall clock."""

    substation_id: str
    epoch: int
    sequence: int
    admission_sequence: int
    generated_at_ms: int
    rated_w: int
    limit_w: int
    limit_source: LimitSource
    demand_w: int
    required_w: int
    floor_w: int
    committed_w: int
    granted_w: int
    measured_w: int
    active_sessions: int
    charge_points: int
    free_charge_points: int
    accepting: bool
    not_accepting: NotAccepting = NotAccepting.UNSPECIFIED
    time_scale: float = 1.0
    over_limit_s: float = 0.0


class Received(Enum):
    """What became of a report; the value is the metric's label."""

    ACCEPTED = "accepted"
    # Of an older epoch, or older than the one that is known.
    STALE = "stale"
    DUPLICATE = "duplicate"


@dataclass(eq=False, slots=True)
class Reservation:
    """One placement of ours. `epoch` is None while it is in flight or in doubt.

    Once its session is known to exist, it waits for the report that contains it: one of a later
    epoch, or of this epoch and at least this `sequence` or `admission_sequence`.
    """

    address: str
    key: Key
    demand_w: int
    epoch: int | None = None
    sequence: int | None = None
    admission_sequence: int | None = None

    def is_in(self, load: Load) -> bool:
        """Whether that report contains the session of this reservation, as far as is known."""
        if self.epoch is None or load.epoch < self.epoch:
            return False
        return (
            load.epoch > self.epoch
            or (self.sequence is not None and load.sequence >= self.sequence)
            or (self.admission_sequence is not None and load.admission_sequence >= self.admission_sequence)
        )


@dataclass(eq=False, slots=True)
class Known:
    """One substation in the view. Everything here is changed by `LoadView` only."""

    address: str
    # The report that is counted with, and when any report last arrived.
    load: Load | None = None
    received_ms: int | None = None
    reserved_w: int = 0
    reservations: dict[Key, Reservation] = field(default_factory=dict)
    # Reports ahead of the admissions stream, oldest first, with their arrival.
    held: list[tuple[Load, int]] = field(default_factory=list)
    # (epoch, sequence) up to which admissions were processed; None while that stream is down.
    caught_up: tuple[int, int] | None = None

    @property
    def substation_id(self) -> str:
        """Empty until it has reported."""
        return self.load.substation_id if self.load else ""

    @property
    def demand_w(self) -> int:
        """Demand in watts, own reservations included; 0 means nothing before the first report."""
        return (self.load.demand_w if self.load else 0) + self.reserved_w

    @property
    def free_charge_points(self) -> int:
        """Plugs that neither a session nor a reservation holds."""
        return (self.load.free_charge_points if self.load else 0) - len(self.reservations)


class LoadView:
    """The substations in the order in which they were given. `interval_ms` is the longest silence asked for."""

    def __init__(self, addresses: Iterable[str], interval_ms: int) -> None:
        self._fresh_ms = FRESH_INTERVALS * interval_ms
        self._gone_ms = GONE_INTERVALS * interval_ms
        self.substations = [Known(address) for address in addresses]
        self._by_address = {known.address: known for known in self.substations}
        self._addresses: dict[str, str] = {}
        # Those with reports that are held back.
        self._holding: set[Known] = set()

    def __getitem__(self, address: str) -> Known:
        return self._by_address[address]

    def __iter__(self) -> Iterator[Known]:
        return iter(self.substations)

    def __len__(self) -> int:
        return len(self.substations)

    def address_of(self, substation_id: str) -> str | None:
        """Where that substation last reported from, or None when it never did."""
        return self._addresses.get(substation_id)

    def state(self, known: Known, now: int) -> ReportState:
        """How current the knowledge of a substation is."""
        if known.received_ms is None:
            return ReportState.NEVER_REPORTED
        age = now - known.received_ms
        if age <= self._fresh_ms:
            return ReportState.FRESH
        return ReportState.STALE if age <= self._gone_ms else ReportState.GONE

    def report(self, address: str, load: Load, now: int) -> Received:
        """Takes a report, pushed or carried by a reply."""
        known = self._by_address[address]
        verdict = _judge(known, load)
        if verdict is Received.ACCEPTED:
            known.received_ms = now
            self._take(known, load, now)
        _flush(known, now)
        return verdict

    def tick(self, now: int) -> None:
        """Applies what was held back long enough. To be called before the view is read to decide."""
        for known in list(self._holding):
            _flush(known, now)
            if not known.held:
                self._holding.discard(known)

    def _take(self, known: Known, load: Load, now: int) -> None:
        if self._addresses.get(load.substation_id) != known.address:
            self._moved(known, load)
        if known.load is not None and _same_life(known.load, load) and _is_ahead(known, load):
            known.held.append((load, now))
            self._holding.add(known)
        else:
            known.held.clear()
            _apply(known, load)

    def _moved(self, known: Known, load: Load) -> None:
        """Another substation answers at this address: what is known of sessions there is not about it."""
        self._addresses[load.substation_id] = known.address
        if known.load is not None and self._addresses.get(known.substation_id) == known.address:
            del self._addresses[known.substation_id]
        for reservation in [r for r in known.reservations.values() if r.epoch is not None]:
            _drop(known, reservation)

    def reserve(self, address: str, key: Key, demand_w: int, now: int) -> Reservation:
        """Counts a placement from now on. One key has at most one reservation at an address."""
        known = self._by_address[address]
        if key in known.reservations:
            raise ValueError(f"{key} is reserved at {address} already")
        _flush(known, now)
        reservation = Reservation(address, key, demand_w)
        known.reservations[key] = reservation
        known.reserved_w += demand_w
        return reservation

    def release(self, reservation: Reservation) -> None:
        """Ends a reservation that certainly has no session: refused, never sent, or fenced."""
        _drop(self._by_address[reservation.address], reservation)

    def replied(self, reservation: Reservation, load: Load, now: int) -> Received:
        """Ends a reservation with its reply, whose load contains the session."""
        reservation.epoch, reservation.sequence = load.epoch, load.sequence
        verdict = self.report(reservation.address, load, now)
        _settle(self._by_address[reservation.address])
        return verdict

    def admitted(self, address: str, epoch: int, shown: Iterable[tuple[Key, int]]) -> None:
        """The admissions stream shows these keys, each at its sequence."""
        known = self._by_address[address]
        for key, sequence in shown:
            reservation = known.reservations.get(key)
            if reservation is not None and reservation.admission_sequence is None:
                reservation.epoch, reservation.admission_sequence = epoch, sequence

    def caught_up(self, address: str, epoch: int, sequence: int, now: int) -> None:
        """Every admission up to there was passed to `admitted`."""
        known = self._by_address[address]
        known.caught_up = (epoch, sequence)
        _flush(known, now)
        _settle(known)

    def lost_track(self, address: str, now: int) -> None:
        """The admissions stream is down: nothing is held back for it."""
        known = self._by_address[address]
        known.caught_up = None
        _flush(known, now)


def _order(load: Load) -> tuple[int, int, int]:
    # A report that only says that nothing changed has the sequence of the one before.
    return load.epoch, load.sequence, load.generated_at_ms


def _judge(known: Known, load: Load) -> Received:
    last = known.held[-1][0] if known.held else known.load
    if last is None:
        return Received.ACCEPTED
    if last.substation_id != load.substation_id:
        # Epochs of two substations cannot be compared.
        return Received.ACCEPTED if load.generated_at_ms > last.generated_at_ms else Received.STALE
    if _order(load) == _order(last):
        return Received.DUPLICATE
    return Received.ACCEPTED if _order(load) > _order(last) else Received.STALE


def _same_life(one: Load, other: Load) -> bool:
    return one.substation_id == other.substation_id and one.epoch == other.epoch


def _is_ahead(known: Known, load: Load) -> bool:
    """Whether the report contains admissions that the stream has not shown yet."""
    if known.caught_up is None or not known.reservations or len(known.held) >= HELD_MOST:
        return False
    epoch, sequence = known.caught_up
    return load.epoch == epoch and load.admission_sequence > sequence


def _flush(known: Known, now: int) -> None:
    """Applies what need not be held back any longer."""
    while known.held and (not _is_ahead(known, known.held[0][0]) or now - known.held[0][1] >= HOLD_MS):
        _apply(known, known.held.pop(0)[0])


def _apply(known: Known, load: Load) -> None:
    known.load = load
    _settle(known)


def _settle(known: Known) -> None:
    """Drops the reservations that the report in use contains."""
    load = known.load
    if load is not None:
        for reservation in [r for r in known.reservations.values() if r.is_in(load)]:
            _drop(known, reservation)


def _drop(known: Known, reservation: Reservation) -> None:
    # A reply may end what the admissions stream has ended before it.
    if known.reservations.get(reservation.key) is reservation:
        del known.reservations[reservation.key]
        known.reserved_w -= reservation.demand_w
