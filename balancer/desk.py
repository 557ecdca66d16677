"""All that a balancer knows: its view, who is ejected, which request has which session, and its doubts.

Reports, admissions and the outcomes of calls come in; settled doubts and duplicates go out. Pure, so
that a simulator and a model test use it as the router and the subscriptions do.

Times are wall milliseconds.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from msgspec import Struct

from balancer.admissions import AdmissionIndex, Duplicate, Entry
from balancer.ejection import Ejections, RetryBudget
from balancer.pick import PUSHED_LAG_MS, Picker
from balancer.view import Load, LoadView, Received, Reservation
from mesh.charge import Key
from mesh.ids import substation_of
from mesh.model import StopReason


class Replied(Struct, frozen=True):
    """The substation answered with a session. `reply` is the caller's own, handed back in `Answer`.

    `duplicate_of`: the other session of the key for which this one was ended; empty when it was not.
    """

    load: Load
    session_id: str
    attempt_id: str
    ended_at_ms: int | None
    repeated: bool
    reply: Any = None
    duplicate_of: str = ""


@dataclass(eq=False, slots=True)
class Doubt:
    """An attempt that was sent and whose outcome is not known.

    `epoch` is the substation's when it was sent, or None when that is not certain: a complete snapshot
    of a later epoch without the key then proves nothing.
    """

    key: Key
    address: str
    substation_id: str
    attempt_id: str
    epoch: int | None
    reservation: Reservation


class Found(Struct, frozen=True):
    """The doubt is settled: the key has a session there. `attempt_id` is empty when only the index shows it.

    `duplicate_of`: as in `Replied`.
    """

    load: Load | None
    session_id: str
    attempt_id: str = ""
    ended_at_ms: int | None = None
    reply: Any = None
    duplicate_of: str = ""


@dataclass(frozen=True, slots=True)
class Fenced:
    """The doubt is settled: not admitted there, and never will be by that attempt."""


class Settled(Struct, frozen=True):
    """A doubt that the admissions stream has ended."""

    doubt: Doubt
    outcome: Found | Fenced


class Desk:
    """All that a balancer knows. Reports and admissions come in, picks and duplicates go out."""

    def __init__(self, addresses: Iterable[str], interval_ms: int, rng: Random, lag_ms: int = PUSHED_LAG_MS) -> None:
        self.view = LoadView(addresses, interval_ms)
        self.ejections = Ejections()
        self.picker = Picker(self.view, self.ejections, rng, lag_ms)
        self.budget = RetryBudget()
        self.index = AdmissionIndex()
        self.doubts: dict[Key, Doubt] = {}
        # Addresses whose report stream is up: what is sent now goes to the life that it tells of.
        self._connected: set[str] = set()

    def add(self, address: str) -> None:
        """Substations are looked for at one address more."""
        self.view.add(address)

    def removable(self, address: str, now: int) -> bool:
        """Whether nothing is lost by forgetting it: nobody reports from there, and no doubt can be settled there."""
        return self.view.idle(address, now) and not any(doubt.address == address for doubt in self.doubts.values())

    def remove(self, address: str) -> None:
        """Forgets an address that is `removable`. What is known of its substation's sessions stays in the index."""
        self.view.remove(address)
        self.ejections.forget(address)
        self._connected.discard(address)

    def reported(self, address: str, load: Load, now: int) -> Received:
        """A report came in over its stream, which is therefore up."""
        before = self.view[address].load
        self._connected.add(address)
        if before is not None and load.epoch > before.epoch:
            self.ejections.restarted(address, now)
        return self.view.report(address, load, now)

    def disconnected(self, address: str) -> None:
        """The report stream ended."""
        self._connected.discard(address)

    def epoch_of(self, address: str) -> int | None:
        """The life of the substation that a call sent now would reach; None when that is not certain."""
        load = self.view[address].load
        return load.epoch if load is not None and address in self._connected else None

    def admissions_begin(self, address: str, substation_id: str, now: int) -> None:
        """A new stream of admissions begins there."""
        self.index.begin(substation_id)
        self.view.lost_track(address, now)

    def admissions_end(self, address: str, now: int) -> None:
        """The stream of admissions broke."""
        self.view.lost_track(address, now)

    def snapshot(self, substation_id: str, entries: Iterable[Entry]) -> None:
        """A chunk of a snapshot."""
        self.index.snapshot(substation_id, entries)

    def snapshot_end(
        self, address: str, substation_id: str, epoch: int, sequence: int, now: int, *, whole: bool = True
    ) -> tuple[list[Settled], list[Key]]:
        """A snapshot is complete. Settles doubts both ways: the key is there, or it never will be.

        One that is not `whole`, because entries of it could not be read, proves no absence. Returns the
        doubts that it settles and the keys that it tells of, as `changes` does.
        """
        keys = self.index.snapshot_end(substation_id, epoch, sequence, whole=whole)
        shown = [(key, sequence) for key in keys]
        settled = self._shown(address, substation_id, shown, (epoch, sequence), now)
        for doubt in [d for d in self.doubts.values() if whole and d.substation_id == substation_id]:
            if doubt.epoch is not None and doubt.epoch < epoch and not self.index.holds(substation_id, doubt.key):
                settled.append(self.settle(doubt, Fenced(), now))
        return settled, keys

    def changes(
        self, address: str, substation_id: str, epoch: int, sequence: int, entries: Iterable[Entry], now: int
    ) -> tuple[list[Settled], list[Key]]:
        """Admissions and endings. Returns the doubts that they settle and the keys that they tell of."""
        told = self.index.change(substation_id, epoch, sequence, entries)
        keys = [entry.key for entry in told]
        shown = [(entry.key, entry.sequence) for entry in told]
        return self._shown(address, substation_id, shown, (epoch, sequence), now), keys

    def _shown(
        self, address: str, substation_id: str, shown: list[tuple[Key, int]], position: tuple[int, int], now: int
    ) -> list[Settled]:
        epoch, sequence = position
        self.view.admitted(address, epoch, shown)
        self.view.caught_up(address, epoch, sequence, now)
        if not self.doubts:  # as nearly always
            return []
        doubts = [d for key, _ in shown if (d := self.doubts.get(key)) and d.substation_id == substation_id]
        return [self.settle(doubt, self._found(doubt), now) for doubt in doubts]

    def _found(self, doubt: Doubt) -> Found:
        where = self.index.find(doubt.key)
        return Found(None, where.session_id if where else "")

    def duplicates(self, keys: Iterable[Key]) -> Iterator[Duplicate]:
        """Sessions to be ended because their key has another one."""
        return self.index.duplicates(keys)

    def settle(self, doubt: Doubt, outcome: Found | Fenced, now: int) -> Settled:
        """The doubt is over. A reservation whose session was found waits for the report that contains it."""
        if self.doubts.get(doubt.key) is doubt:
            del self.doubts[doubt.key]
        if isinstance(outcome, Fenced):
            self.view.release(doubt.reservation)
        elif outcome.load is not None:
            self.view.replied(doubt.reservation, outcome.load, now)
            self._note(doubt.key, outcome, outcome.load)
        return Settled(doubt, outcome)

    def _note(self, key: Key, shown: Replied | Found, load: Load) -> None:
        substation_id = load.substation_id
        if not shown.session_id.startswith(f"{substation_id}."):
            substation_id = substation_of(shown.session_id) or substation_id
        # Asked before the entry is made, as the stream is mostly faster.
        if not self.index.is_news(substation_id, key, shown.session_id, live=shown.ended_at_ms is None):
            return
        # Of the reasons only this one matters here.
        reason = StopReason.DUPLICATE if shown.duplicate_of else StopReason.UNSPECIFIED
        # In order: names take as long as the rest of it.
        entry = Entry(
            key, shown.session_id, substation_id, shown.attempt_id, load.epoch, load.admission_sequence,
            shown.ended_at_ms, reason, shown.duplicate_of, True,
        )  # fmt: skip
        self.index.note(entry)

    def replied(self, key: Key, address: str, reservation: Reservation | None, outcome: Replied, now: int) -> None:
        """A substation answered with a session."""
        if reservation is None:
            self.view.report(address, outcome.load, now)
        else:
            self.view.replied(reservation, outcome.load, now)
        self._note(key, outcome, outcome.load)
