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

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from msgspec import Struct

from balancer.rate import Rate
from mesh.charge import Key
from mesh.model import LimitSource, NotAccepting, ReportState
from mesh.outlook import FLAT, Curve, Need, Outlook, added, less, lost_mj

FRESH_INTERVALS = 3
# Longer than any restart: what has been silent for so long is not asked at all.
GONE_INTERVALS = 10
# Admissions leave with the reply and reach a balancer within milliseconds; a slow link must not blind it.
HOLD_MS = 250
HELD_MOST = 64
# Reports that are not pushed come as rarely as once a minute, and no one minute is like the next.
FOREIGN_MEMORY_MS = 120_000


class Load(Struct, frozen=True):
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
    # None when it does not say, as one of an older version.
    ahead: Outlook | None = None
    # When a charge point should become free, by the substation's clock, where none is and it knows.
    next_free_ms: int | None = None


class Received(Enum):
    """What became of a report; the value is the metric's label."""

    ACCEPTED = "accepted"
    # Of an older epoch, or older than the one that is known.
    STALE = "stale"
    DUPLICATE = "duplicate"


# What becomes of nearly every reply's. Python 3.11 looks a member of an Enum up by a call, each time.
_DUPLICATE = Received.DUPLICATE


class Reservation(Struct, eq=False):
    """One placement of ours. `epoch` is None while it is in flight or in doubt.

    Once its session is known to exist, it waits for the report that contains it: one of a later
    epoch, or of this epoch and at least this `sequence` or `admission_sequence`.
    """

    address: str
    key: Key
    demand_w: int
    # None where it is not known what it asks of the hours ahead.
    need: Need | None = None
    # Its part of what is reserved there, once somebody asked of it.
    evenly_mj: Curve = FLAT
    epoch: int | None = None
    sequence: int | None = None
    admission_sequence: int | None = None

    def is_in(self, load: Load) -> bool:
        """Whether that report contains the session of this reservation, as far as is known."""
        if self.epoch is None:
            return False
        if load.epoch != self.epoch:
            return load.epoch > self.epoch
        return (self.sequence is not None and load.sequence >= self.sequence) or (
            self.admission_sequence is not None and load.admission_sequence >= self.admission_sequence
        )


@dataclass(eq=False, slots=True)
class Known:
    """One substation in the view. Everything here is changed by `LoadView` only."""

    address: str
    # Empty until it has reported.
    substation_id: str = ""
    # The report that is counted with, and when any report last arrived.
    load: Load | None = None
    received_ms: int | None = None
    reserved_w: int = 0
    # The curves of the reservations; the first as of when it was asked of, as most often all that came since have left
    # before it is asked again, and the second lacks those of which it was not asked yet, as few picks ask.
    _reserved_evenly_mj: Curve = FLAT
    _come_mj: list[Curve] = field(default_factory=list)
    _left_mj: list[Curve] = field(default_factory=list)
    _reserved_at_latest_mj: Curve = FLAT
    _uncounted: dict[Key, Need] = field(default_factory=dict)
    # Those that are in neither `_come_mj` nor `evenly_mj`, as their curves were not made yet.
    undrawn: dict[Key, Reservation] = field(default_factory=dict)
    reservations: dict[Key, Reservation] = field(default_factory=dict)
    # The report and the reservations together, kept ready because every placement compares them. Before the first
    # report they mean nothing.
    demand_w: int = 0
    limit_w: int = 0
    # Plugs that neither a session nor a reservation holds.
    free_charge_points: int = 0
    # The highest floor that fits: the limit, or -1 where nobody is admitted.
    admits_w: int = -1
    # The promises, charged evenly, but for those `undrawn`; empty until somebody asks.
    evenly_mj: Curve = ()
    # What `promised_mj` said last, with its index of the grid, kept as reservations come.
    _around: tuple[int, float, float] | None = None
    # What they leave of the limit; None until somebody asks.
    slack_mj: list[float] | None = None
    # None where it does not tell what is ahead of it.
    time_scale: float | None = None
    # Reports ahead of the admissions stream, oldest first, with their arrival.
    held: list[tuple[Load, int]] = field(default_factory=list)
    # (epoch, sequence) up to which admissions were processed; None while that stream is down.
    caught_up: tuple[int, int] | None = None

    @property
    def reserved(self) -> Outlook:
        """The curves of the reservations."""
        for need in self._uncounted.values():
            self._reserved_at_latest_mj = added(self._reserved_at_latest_mj, need.at_latest_mj())
        self._uncounted.clear()
        return Outlook(self._reserved_evenly(), self._reserved_at_latest_mj)

    def _reserved_evenly(self) -> Curve:
        self._draw()
        for come_mj in self._come_mj:
            self._reserved_evenly_mj = added(self._reserved_evenly_mj, come_mj)
        self._come_mj.clear()
        for left_mj in self._left_mj:
            self._reserved_evenly_mj = less(self._reserved_evenly_mj, left_mj)
        self._left_mj.clear()
        return self._reserved_evenly_mj

    def _draw(self) -> None:
        for reservation in self.undrawn.values():
            assert reservation.need is not None
            reservation.evenly_mj = evenly_mj = reservation.need.evenly_mj()
            self._come_mj.append(evenly_mj)
            if self.evenly_mj:
                self.evenly_mj = added(self.evenly_mj, evenly_mj)
        self.undrawn.clear()

    def reserve(self, reservation: Reservation) -> None:
        """One more."""
        self.reservations[reservation.key] = reservation
        self.reserved_w += reservation.demand_w
        self.add_up()
        if (need := reservation.need) is not None:
            self.undrawn[reservation.key] = reservation
            self._uncounted[reservation.key] = need
            if self._around is not None:
                at, before_mj, by_then_mj = self._around
                more_before_mj, more_by_then_mj = need.evenly_around_mj(at)
                self._around = at, before_mj + more_before_mj, by_then_mj + more_by_then_mj

    def release(self, reservation: Reservation) -> None:
        """One less. To be followed by `add_up`."""
        del self.reservations[reservation.key]
        self.reserved_w -= reservation.demand_w
        self.evenly_mj, self._around = (), None
        if not self.reservations:
            self._forget_curves()
        elif reservation.need is not None:
            if self.undrawn.pop(reservation.key, None) is None:
                self._left_mj.append(reservation.evenly_mj)
            if self._uncounted.pop(reservation.key, None) is None:
                self._reserved_at_latest_mj = less(self._reserved_at_latest_mj, reservation.need.at_latest_mj())

    def _forget_curves(self) -> None:
        self._reserved_evenly_mj = self._reserved_at_latest_mj = FLAT
        self._come_mj.clear()
        self._left_mj.clear()
        self._uncounted.clear()
        self.undrawn.clear()

    def lost_mj(self, need: Need) -> float:
        """What that car would cost there in energy, its own or that of others; 0 where no report tells."""
        # With full power for all at once nobody is late.
        if self.demand_w + need.max_w <= self.limit_w and need.need_mj <= need.left_ms * need.max_w:
            return 0
        if self.load is None or self.load.ahead is None:
            return 0
        if self.slack_mj is None:
            self.slack_mj = (self.load.ahead + self.reserved).slack_mj(self.limit_w)
        return lost_mj(need, self.slack_mj, self.limit_w)

    def vacate(self) -> None:
        """The substation that reported from here does so no longer; its reservations are not here either."""
        self.substation_id, self.load, self.received_ms = "", None, None
        self.reserved_w = 0
        self.reservations.clear()
        self._forget_curves()
        self.held.clear()
        self.admits_w, self.time_scale, self.slack_mj, self.caught_up = -1, None, None, None
        self.evenly_mj, self._around = (), None

    def report(self, load: Load) -> None:
        """The report that is counted with from now on."""
        self.load = load
        self.substation_id = load.substation_id
        self.limit_w = load.limit_w
        self.time_scale = None if load.ahead is None else load.time_scale
        self.evenly_mj, self._around = (), None
        self.add_up()

    def add_up(self) -> None:
        """After the report or the reservations changed."""
        self.slack_mj = None
        if (load := self.load) is not None:
            self.demand_w = load.demand_w + self.reserved_w
            self.free_charge_points = load.free_charge_points - len(self.reservations)
            self.admits_w = load.limit_w if load.accepting and self.free_charge_points > 0 else -1

    def promised_mj(self, at: int) -> tuple[float, float]:
        """Two points of `promise`: the one before, and that one.

        Most cars ask for the same two, as nobody says when they leave. Then no curve is made of those that come.
        """
        if self._around is None or self._around[0] != at:
            evenly_mj = self.promise()
            self._around = at, evenly_mj[at - 1], evenly_mj[at]
        _, before_mj, by_then_mj = self._around
        return before_mj, by_then_mj

    def promise(self) -> Curve:
        """All that is promised, charged evenly; of a report that does not tell, as `time_scale` says, nothing."""
        self._draw()
        if not self.evenly_mj:
            reserved_mj = self._reserved_evenly()
            ahead = None if self.load is None else self.load.ahead
            if ahead is None:
                self.evenly_mj = reserved_mj
            else:
                self.evenly_mj = ahead.evenly_mj if reserved_mj is FLAT else added(ahead.evenly_mj, reserved_mj)
        return self.evenly_mj


class LoadView:
    """The substations in the order in which they came. `interval_ms` is the longest silence asked for."""

    def __init__(self, addresses: Iterable[str], interval_ms: int) -> None:
        self._fresh_ms = FRESH_INTERVALS * interval_ms
        self._gone_ms = GONE_INTERVALS * interval_ms
        # Replaced whole: a scrape reads it from a thread of its own.
        self.substations = [Known(address) for address in addresses]
        self._by_address = {known.address: known for known in self.substations}
        self._addresses: dict[str, str] = {}
        # Addresses that names lead to no longer: who falls silent there is gone at once.
        self.absent: Container[str] = ()
        # Changes whenever more substations may be fresh than before.
        self.version = 0
        # Admissions that reports show and that are not from here: what other balancers place.
        self.foreign = Rate(FOREIGN_MEMORY_MS)
        # The time scale of all that reported, None where they differ or one does not tell what is ahead of it.
        self.time_scale: float | None = None
        self._time_scales: Counter[float | None] = Counter()
        # Those with reports that are held back.
        self._holding: set[Known] = set()

    def __getitem__(self, address: str) -> Known:
        return self._by_address[address]

    def __iter__(self) -> Iterator[Known]:
        return iter(self.substations)

    def __len__(self) -> int:
        return len(self.substations)

    def add(self, address: str) -> None:
        """One more, of which nothing is known yet."""
        known = self._by_address[address] = Known(address)
        self.substations = [*self.substations, known]
        self.version += 1

    def remove(self, address: str) -> None:
        """Forgets it. To be asked only where `idle` is true."""
        self._vacate(self._by_address.pop(address))
        self.substations = [known for known in self.substations if known.address != address]
        self.version += 1

    def idle(self, address: str, now: int) -> bool:
        """Whether nobody reports from there and no placement there is in flight or in doubt."""
        known = self._by_address[address]
        silent = self.state(known, now) in {ReportState.NEVER_REPORTED, ReportState.GONE}
        return silent and all(reservation.epoch is not None for reservation in known.reservations.values())

    def unheard(self) -> list[str]:
        """Addresses where a substation may be of which nothing is known yet."""
        return [k.address for k in self.substations if k.load is None and k.address not in self.absent]

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
        return ReportState.STALE if age <= self._gone_ms and known.address not in self.absent else ReportState.GONE

    def fresh_since(self, now: int) -> int:
        """What reported then or later is fresh."""
        return now - self._fresh_ms

    def fresh_until(self, fresh: Iterable[Known], now: int) -> int:
        """Until when all of these surely are; `now` when there is none."""
        received = [known.received_ms for known in fresh if known.received_ms is not None]
        return min(received, default=now - self._fresh_ms) + self._fresh_ms

    def report(self, address: str, load: Load, now: int) -> Received:
        """Takes a report, pushed or carried by a reply."""
        known = self._by_address[address]
        verdict = self._judge_elsewhere(known, load, now) or _judge(known, load)
        if verdict is Received.ACCEPTED:
            if self.state(known, now) is not ReportState.FRESH:
                self.version += 1
            known.received_ms = now
            self._take(known, load, now)
        self._flush(known, now)
        return verdict

    def _judge_elsewhere(self, known: Known, load: Load, now: int) -> Received | None:
        """One life of a substation is at one address; None where nothing speaks against its being at this one."""
        address = self._addresses.get(load.substation_id, known.address)
        if address == known.address:
            return None
        other = self._by_address[address]
        if other.load is None or other.load.epoch < load.epoch:
            return None
        if other.load.epoch > load.epoch:
            return Received.STALE
        return Received.DUPLICATE if self.state(other, now) is ReportState.FRESH else None

    def tick(self, now: int) -> None:
        """Applies what was held back long enough. To be called before the view is read to decide."""
        if not self._holding:  # as nearly always
            return
        for known in list(self._holding):
            self._flush(known, now)
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
            self._apply(known, load, now)

    def _moved(self, known: Known, load: Load) -> None:
        """Another substation answers at this address: what is known of sessions there is not about it."""
        left = self._addresses.get(load.substation_id)
        self._addresses[load.substation_id] = known.address
        if known.substation_id != load.substation_id:
            if known.load is not None and self._addresses.get(known.substation_id) == known.address:
                del self._addresses[known.substation_id]
            _drop(known, *[r for r in known.reservations.values() if r.epoch is not None])
        if left is not None and left != known.address:
            self._take_over(self._by_address[left], known)
        self.version += 1

    def _take_over(self, left: Known, known: Known) -> None:
        """It is the substation that was there: what was placed with it stays so, and nobody is there now."""
        reservations = list(left.reservations.values())
        self._vacate(left)
        for reservation in reservations:
            reservation.address = known.address
            if reservation.key not in known.reservations:
                known.reserve(reservation)

    def _vacate(self, known: Known) -> None:
        if self._addresses.get(known.substation_id) == known.address:
            del self._addresses[known.substation_id]
        if known.load is not None:
            self._count_time_scales(-1, known.time_scale)
        self._holding.discard(known)
        known.vacate()

    def reserve(self, address: str, key: Key, demand_w: int, now: int, need: Need | None = None) -> Reservation:
        """Counts a placement from now on. One key has at most one reservation at an address."""
        known = self._by_address[address]
        if key in known.reservations:
            raise ValueError(f"{key} is reserved at {address} already")
        if known.held:
            self._flush(known, now)
        reservation = Reservation(address, key, demand_w, need)
        known.reserve(reservation)
        return reservation

    def release(self, reservation: Reservation) -> None:
        """Ends a reservation that certainly has no session: refused, never sent, or fenced."""
        _drop(self._by_address[reservation.address], reservation)

    def replied(self, reservation: Reservation, load: Load, now: int) -> Received:
        """Ends a reservation with its reply, whose load contains the session."""
        reservation.epoch, reservation.sequence = load.epoch, load.sequence
        # The one that answers may have moved since it was asked, and its address may be another's.
        address = self._addresses.get(load.substation_id, reservation.address)
        known = self._by_address[address]
        # Those that became known together carry one load.
        verdict = _DUPLICATE if load is known.load else self.report(address, load, now)
        if reservation.address != address:
            _drop(self._by_address[reservation.address], reservation)
        elif known.reservations.get(reservation.key) is reservation and known.load and reservation.is_in(known.load):
            self.foreign.count(-1, now)
            known.release(reservation)
            known.add_up()
        return verdict

    def admitted(self, address: str, epoch: int, shown: Iterable[tuple[Key, int]]) -> None:
        """The admissions stream shows these keys, each at its sequence."""
        reservations = self._by_address[address].reservations
        if not reservations:
            return  # all that is shown has been answered, or was placed by others
        for key, sequence in shown:
            reservation = reservations.get(key)
            if reservation is not None and reservation.admission_sequence is None:
                reservation.epoch, reservation.admission_sequence = epoch, sequence

    def caught_up(self, address: str, epoch: int, sequence: int, now: int) -> None:
        """Every admission up to there was passed to `admitted`."""
        known = self._by_address[address]
        known.caught_up = (epoch, sequence)
        self._flush(known, now)
        self._settle(known, now)

    def lost_track(self, address: str, now: int) -> None:
        """The admissions stream is down: nothing is held back for it."""
        known = self._by_address[address]
        known.caught_up = None
        self._flush(known, now)

    def _flush(self, known: Known, now: int) -> None:
        """Applies what need not be held back any longer."""
        while known.held and (not _is_ahead(known, known.held[0][0]) or now - known.held[0][1] >= HOLD_MS):
            self._apply(known, known.held.pop(0)[0], now)

    def _apply(self, known: Known, load: Load, now: int) -> None:
        before = known.load
        same_life = before is not None and _same_life(before, load)
        if before is not None and same_life:
            self.foreign.count(_admissions(before, load), now)
        scale = known.time_scale
        known.report(load)
        if before is None or known.time_scale != scale:
            if before is not None:
                self._count_time_scales(-1, scale)
            self._count_time_scales(+1, known.time_scale)
        self._settle(known, now, counted=same_life)

    def _count_time_scales(self, count: int, scale: float | None) -> None:
        self._time_scales[scale] += count
        if not self._time_scales[scale]:
            del self._time_scales[scale]
        self.time_scale = next(iter(self._time_scales)) if len(self._time_scales) == 1 else None

    def _settle(self, known: Known, now: int, *, counted: bool = True) -> None:
        """Drops the reservations that the report in use contains. `counted`: as admissions, with those of others."""
        load = known.load
        if load is not None and known.reservations:
            contained = [r for r in known.reservations.values() if r.is_in(load)]
            if counted:
                self.foreign.count(-len(contained), now)
            _drop(known, *contained)


def _admissions(before: Load, after: Load) -> int:
    """How many cars were admitted between two reports of one life.

    Each admission has an entry and takes a plug, each ending has an entry and frees one. A repeat with a later
    attempt has an entry too, and counts as half: an error on the side of too few choices.
    """
    entries = after.admission_sequence - before.admission_sequence
    return (entries + before.free_charge_points - after.free_charge_points) // 2


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


def _drop(known: Known, *reservations: Reservation) -> None:
    # A reply may end what the admissions stream has ended before it.
    dropped = [r for r in reservations if known.reservations.get(r.key) is r]
    for reservation in dropped:
        known.release(reservation)
    if dropped:
        known.add_up()
