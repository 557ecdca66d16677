"""Which request has which session: every balancer's copy of what the substations' ledgers say.

Fed by one admissions stream per substation: a snapshot in chunks, its end mark, then changes. A
snapshot replaces what was known of that substation at its end mark, not before, so that no key is
forgotten while it is under way; one with entries that could not be read only adds. Own replies are
noted too: they may be ahead of the stream.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from mesh.charge import Key
from mesh.ids import substation_of
from mesh.model import StopReason

REMEMBERED_MS = 24 * 3_600_000


class Entry(Struct, frozen=True, gc=False):
    """One key's session on one substation. `ended_at_ms` is wall time, None while it lives."""

    key: Key
    session_id: str
    substation_id: str
    attempt_id: str
    epoch: int
    sequence: int
    ended_at_ms: int | None = None
    stop_reason: StopReason = StopReason.UNSPECIFIED
    duplicate_of: str = ""
    # From an own reply: the session's real sequence is this one or lower.
    noted: bool = False

    @property
    def live(self) -> bool:
        return self.ended_at_ms is None


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Two live sessions of one key: this one is to be ended, the survivor is what the client was last told."""

    key: Key
    session_id: str
    substation_id: str
    survivor_session_id: str
    survivor_attempt_id: str


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """The session that answers a repeat."""

    session_id: str
    substation_id: str


@dataclass(eq=False, slots=True)
class _Substation:
    entries: dict[Key, Entry] = field(default_factory=dict)
    # The snapshot under way.
    chunks: dict[Key, Entry] = field(default_factory=dict)
    # (epoch, sequence) of the last entry, once a snapshot is complete.
    position: tuple[int, int] | None = None


class AdmissionIndex:
    """Entries by key and by substation id."""

    def __init__(self) -> None:
        self._substations: dict[str, _Substation] = {}
        self._by_key: dict[Key, tuple[Entry, ...]] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def position(self, substation_id: str) -> tuple[int, int] | None:
        """(epoch, sequence) to resume from, or None: a snapshot is needed."""
        known = self._substations.get(substation_id)
        return known.position if known else None

    def knows(self, substation_id: str) -> bool:
        """Whether that substation was ever heard of."""
        return substation_id in self._substations

    def with_live_sessions(self, but: Container[str]) -> list[str]:
        """Other substations than those, which had live sessions when they were last heard of."""
        others = [(i, known.entries.values()) for i, known in self._substations.items() if i not in but]
        return [i for i, entries in others if any(entry.live for entry in entries)]

    def begin(self, substation_id: str) -> None:
        """A new stream begins: what came of a snapshot that was cut off is worth nothing."""
        self._at(substation_id).chunks.clear()

    def snapshot(self, substation_id: str, entries: Iterable[Entry]) -> None:
        """A chunk of the snapshot under way."""
        self._at(substation_id).chunks.update((entry.key, entry) for entry in entries)

    def snapshot_end(self, substation_id: str, epoch: int, sequence: int, *, whole: bool = True) -> list[Key]:
        """The snapshot is complete up to there and replaces what was known. Returns its keys.

        Not `whole`: entries of it could not be read, so what it does not show may exist all the same.
        """
        known = self._at(substation_id)
        unshown = self.unshown(substation_id, epoch, sequence) if whole else []
        chunks, known.chunks = known.chunks, {}
        if known.position is not None and known.position > (epoch, sequence):
            return []
        known.position = (epoch, sequence)
        for entry in unshown:
            self._remove(entry)
        for entry in chunks.values():
            self._put(entry, known)
        return list(chunks)

    def unshown(self, substation_id: str, epoch: int, sequence: int) -> list[Entry]:
        """What was known and is not in the snapshot under way, were it complete up to there.

        What is live of it its ledger has lost: only what ended 24 h ago is forgotten.
        """
        known, position = self._at(substation_id), (epoch, sequence)
        if known.position is not None and known.position > position:
            return []
        # An own reply may be ahead of the stream.
        return [e for e in known.entries.values() if e.key not in known.chunks and (e.epoch, e.sequence) <= position]

    def change(self, substation_id: str, epoch: int, sequence: int, entries: Iterable[Entry]) -> list[Entry]:
        """News after the snapshot. Returns the entries that tell something new."""
        known = self._at(substation_id)
        if known.position is None or epoch != known.position[0]:
            return []
        known.position = max(known.position, (epoch, sequence))
        return [entry for entry in entries if self._put(entry, known)]

    def replied(self, entry: Entry) -> None:
        """An own reply shows this session. What the stream said of it stays, unless it has ended since."""
        if self.is_news(entry.substation_id, entry.key, entry.session_id, live=entry.live):
            self.note(entry)

    def note(self, entry: Entry) -> None:
        """The same of one that `is_news`."""
        self._put(entry, self._at(entry.substation_id))

    def is_news(self, substation_id: str, key: Key, session_id: str, *, live: bool) -> bool:
        """Whether an own reply that shows this session tells something. The stream is mostly faster."""
        known = self._at(substation_id).entries.get(key)
        return known is None or known.session_id != session_id or (known.live and not live)

    def entries(self, substation_id: str) -> Mapping[Key, Entry]:
        """What is known of that substation."""
        return self._at(substation_id).entries

    def holds(self, substation_id: str, key: Key) -> bool:
        """Whether that substation has a session of this key, live or remembered."""
        known = self._substations.get(substation_id)
        return known is not None and key in known.entries

    def find(self, key: Key) -> Whereabouts | None:
        """Where a repeat is to be sent: to the live session, or to the one that it ended as."""
        entries = self._by_key.get(key)
        if not entries:
            return None
        best = max(entries, key=_rank)
        survivor = substation_of(best.duplicate_of)
        if best.stop_reason is StopReason.DUPLICATE and survivor is not None:
            return Whereabouts(best.duplicate_of, survivor)
        return Whereabouts(best.session_id, best.substation_id)

    def duplicates(self, keys: Iterable[Key]) -> Iterator[Duplicate]:
        """For each of these keys with several live sessions: all but the one with the highest attempt."""
        for key in keys:
            if len(self._by_key.get(key, ())) < 2:
                continue
            live = sorted((e for e in self._by_key.get(key, ()) if e.live), key=_rank)
            for entry in live[:-1]:
                yield Duplicate(key, entry.session_id, entry.substation_id, live[-1].session_id, live[-1].attempt_id)

    def forget(self, now: int) -> int:
        """Drops what ended more than 24 h ago. Returns how many."""
        old = [
            entry
            for known in self._substations.values()
            for entry in known.entries.values()
            if entry.ended_at_ms is not None and entry.ended_at_ms <= now - REMEMBERED_MS
        ]
        for entry in old:
            self._remove(entry)
        return len(old)

    def _at(self, substation_id: str) -> _Substation:
        known = self._substations.get(substation_id)
        if known is None:
            known = self._substations[substation_id] = _Substation()
        return known

    def _put(self, entry: Entry, at: _Substation) -> bool:
        """Whether it is news. `at`: its substation."""
        key, entries = entry.key, at.entries
        before = entries.get(key)
        if before is not None and not before.noted and (before.epoch, before.sequence) > (entry.epoch, entry.sequence):
            return False
        entries[key] = entry
        known = self._by_key.get(key)
        if known is None or (len(known) == 1 and known[0] is before):  # as nearly always
            self._by_key[key] = (entry,)
        else:
            others = [e for e in known if e.substation_id != entry.substation_id]
            self._by_key[key] = (*others, entry)
        return True

    def _remove(self, entry: Entry) -> None:
        del self._substations[entry.substation_id].entries[entry.key]
        left = tuple(e for e in self._by_key[entry.key] if e is not entry)
        if left:
            self._by_key[entry.key] = left
        else:
            del self._by_key[entry.key]


def _rank(entry: Entry) -> tuple[bool, bool, str, str]:
    """Live before ended, duplicates last, then the highest attempt; the id breaks ties alike on every balancer."""
    return entry.live, entry.stop_reason is not StopReason.DUPLICATE, entry.attempt_id, entry.session_id
