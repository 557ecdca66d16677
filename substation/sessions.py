"""One charging session: its legal moves, its energy register, and the power that it may hold.

States move only along `_TRANSITIONS`; a pair that is not there is a defect, not a case. Power is whole
watts, energy whole millijoules, time wall milliseconds. `scale` is how many seconds of charging pass
in one second.
"""

from copy import copy
from enum import IntEnum, auto

from msgspec import Struct

from mesh.charge import Charge
from mesh.model import LimitReason, LimitSource, SessionState, StopReason

S = SessionState
# A name of the module costs a quarter of a look at the class.
_ENDED, _EV_CONNECTED = S.ENDED, S.EV_CONNECTED


class Trigger(IntEnum):
    """What can happen to a session. Numbers, as they are looked up faster."""

    GRANT = auto()  # offered at least its floor
    SUSPEND = auto()  # offered nothing for now
    IDLE = auto()  # the car leaves its grant undrawn
    DRAW = auto()  # the car draws again
    SATISFY = auto()  # has all it wanted, holds its plug
    END = auto()


_TRANSITIONS: dict[tuple[SessionState, Trigger], SessionState] = {
    (S.SUSPENDED_EVSE, Trigger.GRANT): S.CHARGING,
    (S.CHARGING, Trigger.SUSPEND): S.SUSPENDED_EVSE,
    (S.SUSPENDED_EV, Trigger.SUSPEND): S.SUSPENDED_EVSE,
    (S.CHARGING, Trigger.IDLE): S.SUSPENDED_EV,
    (S.SUSPENDED_EV, Trigger.DRAW): S.CHARGING,
    (S.CHARGING, Trigger.SATISFY): S.EV_CONNECTED,
    (S.SUSPENDED_EV, Trigger.SATISFY): S.EV_CONNECTED,
    (S.SUSPENDED_EVSE, Trigger.SATISFY): S.EV_CONNECTED,
    (S.EV_CONNECTED, Trigger.END): S.ENDED,
    (S.CHARGING, Trigger.END): S.ENDED,
    (S.SUSPENDED_EV, Trigger.END): S.ENDED,
    (S.SUSPENDED_EVSE, Trigger.END): S.ENDED,
}


class IllegalMove(Exception):
    """A trigger in a state that has no such move: a defect in the station."""


class Offer(Struct, frozen=True):
    """A grant on its way to the car. It is a lease: from `valid_until_ms` on the car may draw nothing of it."""

    number: int
    power_w: int
    valid_until_ms: int


class Session(Struct):
    """One car on one charge point. Only the station changes it, and not once it has ended: it is kept for 24 h.

    A struct, as every commit copies those that changed: that takes a third of the time of a dataclass.
    """

    session_id: str
    charge: Charge
    started_ms: int
    # The departure that power sharing plans with: the client's, or an assumed one.
    planned_departure_ms: int
    # The highest attempt at the key that was answered with this session.
    attempt_id: str
    state: SessionState = S.SUSPENDED_EVSE
    granted_w: int = 0
    measured_w: int = 0
    # The register, as of `metered_ms`; between two readings it grows by measured_w.
    delivered_mj: int = 0
    metered_ms: int = 0
    ended_ms: int | None = None
    stop_reason: StopReason = StopReason.UNSPECIFIED
    duplicate_of: str = ""
    limit_reason: LimitReason = LimitReason.UNSPECIFIED
    limit_source: LimitSource = LimitSource.UNSPECIFIED
    # Why it is satisfied, once it is.
    satisfied_by: StopReason = StopReason.UNSPECIFIED
    # Offers that the car may still act on: the last confirmed one and all later.
    offers: tuple[Offer, ...] = ()
    last_offer: int = 0
    # Until then the car may draw, as far as it has confirmed: what was sent after that may never have arrived.
    confirmed_until_ms: int = 0
    # Its last entry in the stream of admissions.
    admission_sequence: int = 0
    # What the car showed that it takes; None while it takes what it gets.
    draws_at_most_w: int | None = None
    # Since when it draws clearly less than granted; None while it does not.
    undrawn_since_ms: int | None = None
    # By when the measured power must be down to `obey_w`, a grant that was lowered; None when it is.
    obey_by_ms: int | None = None
    obey_w: int = 0
    # What the car draws above its grant although it has confirmed it.
    overdraw_w: int = 0
    # When it last had power (or arrived): who waited longest is next in turn.
    last_on_ms: int = 0
    # What its state means, as that is asked far more often than the state changes. Active: wants energy.
    live: bool = True
    active: bool = True

    def __post_init__(self) -> None:
        self.enter(self.state)

    def enter(self, state: SessionState) -> None:
        """Is in that state from now on, wherever it comes from: `move` follows the table."""
        self.state = state
        self.live = state is not _ENDED
        self.active = self.live and state is not _EV_CONNECTED

    @property
    def departure_assumed(self) -> bool:
        return self.charge.departure_ms is None

    @property
    def target_mj(self) -> int | None:
        """What it asked for; None: until full."""
        return None if self.charge.energy_j is None else self.charge.energy_j * 1000

    @property
    def held_w(self) -> int:
        """The most that an offer still allows the car."""
        offers = self.offers
        if len(offers) == 1:  # the usual case, and this is asked more often than anything else
            return offers[0].power_w
        return max([offer.power_w for offer in offers], default=0)

    @property
    def committed_w(self) -> int:
        """What must be kept free for it: granted, still held, or drawn all the same."""
        offers, granted_w, measured_w = self.offers, self.granted_w, self.measured_w
        if not offers:
            return max(granted_w, measured_w) if measured_w else granted_w
        held_w = offers[0].power_w if len(offers) == 1 else self.held_w
        # The usual case: comparing takes a third of the time of `max`, and this is asked again and again.
        return held_w if measured_w <= held_w >= granted_w else max(held_w, granted_w, measured_w)

    @property
    def wanted_w(self) -> int:
        """What its car can take now: all that it said, or what it showed that it takes."""
        max_w, draws_at_most_w = self.charge.max_w, self.draws_at_most_w
        return max_w if draws_at_most_w is None else max(self.charge.floor_w, min(max_w, draws_at_most_w))

    @property
    def unrestricted(self) -> bool:
        """Is granted all that its car said it can take, and wants all of it."""
        return self.granted_w == self.charge.max_w and self.draws_at_most_w is None and not self.limit_reason

    def move(self, trigger: Trigger) -> None:
        """Changes the state along the table. IllegalMove when there is no such move."""
        try:
            state = _TRANSITIONS[self.state, trigger]
        except KeyError:
            raise IllegalMove(f"{self.session_id}: {trigger.name} while {self.state.name}") from None
        self.enter(state)

    @property
    def lease_until_ms(self) -> int:
        """When the last lease ends under which it may draw; 0 when it has none."""
        offers = self.offers
        if len(offers) == 1:
            return offers[0].valid_until_ms
        return max((offer.valid_until_ms for offer in self.offers), default=0)

    @property
    def flowing_w(self) -> int:
        """What it surely draws: as measured, or less when it may have acted on a lower offer since."""
        offers = self.offers
        if len(offers) == 1 and self.measured_w <= offers[0].power_w:  # the usual case
            return self.measured_w
        return min([self.measured_w, *(offer.power_w for offer in offers)])

    def delivered_at(self, now: int, scale: int) -> int:
        """The register at `now` if the car goes on, under its leases; never above what was asked."""
        if self.measured_w == 0:
            return self.delivered_mj
        metered_ms, until_ms = self.metered_ms, self.confirmed_until_ms
        flowing_ms = now - metered_ms if now <= until_ms else until_ms - metered_ms
        if flowing_ms <= 0:
            return self.delivered_mj
        register = self.delivered_mj + self.flowing_w * flowing_ms * scale
        target = self.target_mj
        return register if target is None or register <= target else max(self.delivered_mj, target)

    def meter(self, now: int, scale: int) -> None:
        """Carries the register to `now`."""
        if now > self.metered_ms:
            if self.measured_w:
                self.delivered_mj = self.delivered_at(now, scale)
            self.metered_ms = now

    def satisfied_at(self, scale: int) -> int | None:
        """When the register reaches what was asked; None if it does not while the present leases last."""
        at = self.done_at(scale)
        return None if at is None or (at > self.metered_ms and at > self.confirmed_until_ms) else at

    def done_at(self, scale: int) -> int | None:
        """When the register reaches what was asked if what flows goes on; None if it never does."""
        energy_j = self.charge.energy_j
        if energy_j is None:
            return None
        above_mj = self.delivered_mj - energy_j * 1000
        if above_mj >= 0:
            return self.metered_ms
        flowing = self.flowing_w if self.measured_w else 0
        # Rounded up: at the event the register has reached the target, never before.
        return self.metered_ms - above_mj // (flowing * scale) if flowing else None

    def offer(self, power_w: int, valid_until_ms: int) -> Offer:
        """A new offer, counted until it is replaced by a later one that the car confirmed, or lapses."""
        self.last_offer += 1
        offer = Offer(self.last_offer, power_w, valid_until_ms)
        self.offers = (*self.offers, offer)
        return offer

    def confirm(self, number: int) -> None:
        """The car acts on offer `number`: earlier ones no longer count."""
        if self.offers and self.offers[0].number < number:
            self.offers = tuple([offer for offer in self.offers if offer.number >= number])
        if self.offers and self.offers[0].number == number:
            self.confirmed_until_ms = self.offers[0].valid_until_ms

    def lapse(self, now: int) -> None:
        """Forgets offers whose lease is over."""
        offers = self.offers
        if len(offers) != 1 or offers[0].valid_until_ms <= now:  # one that still counts is the usual case
            self.offers = tuple([offer for offer in offers if offer.valid_until_ms > now])

    def lapses_at(self) -> int | None:
        """When the next lease is over that still counts more than the grant does."""
        offers, granted_w = self.offers, self.granted_w
        if not offers or (len(offers) == 1 and offers[0].power_w <= granted_w):  # the usual cases
            return None
        return min([o.valid_until_ms for o in offers if o.power_w > granted_w], default=None)


def kept(session: Session) -> Session:
    """The session as it is now, whatever becomes of it: one that has ended is not changed any more, but replaced."""
    return copy(session) if session.live else session
