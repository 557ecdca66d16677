"""What the ledgers of a mesh hold, read beside the processes that write them: the judge of what clients were told."""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from statistics import fmean, pstdev
from typing import NamedTuple

import msgspec

from substation.ledger import LEDGER
from substation.records import SessionRecord

_decode = msgspec.msgpack.Decoder(SessionRecord).decode
# How far apart the moments are at which utilisation is compared.
_STEP_MS = 20


class Kept(NamedTuple):
    """One session that has ended."""

    session_id: str
    request_id: str
    max_w: int
    started_ms: int
    ended_ms: int


class Ledgers:
    """The ledgers of some substations, by id, of each what has come since the last look."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._paths = {name: folder / LEDGER for name, folder in folders.items()}
        # Session ids begin with the substation's and go on with the time: the greatest is the last one seen.
        self._seen = dict.fromkeys(self._paths, "")

    def live(self) -> int:
        """How many sessions live."""
        return sum(self._live(path) for path in self._paths.values())

    @staticmethod
    def _live(path: Path) -> int:
        with closing(_open(path)) as db:
            return int(db.execute("SELECT count(*) FROM sessions WHERE ended_ms IS NULL").fetchone()[0])

    def news(self) -> dict[str, list[Kept]]:
        """Sessions that were not there at the last look, by substation. All must have ended."""
        return {name: self._news(name, path) for name, path in self._paths.items()}

    def row(self, session_id: str) -> bytes:
        """A session as it is kept."""
        with closing(_open(self._paths[session_id.partition(".")[0]])) as db:
            (body,) = db.execute("SELECT body FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
            return bytes(body)

    def _news(self, name: str, path: Path) -> list[Kept]:
        query = "SELECT body FROM sessions WHERE session_id > ? ORDER BY session_id"
        with closing(_open(path)) as db:
            rows = [_kept(_decode(body)) for (body,) in db.execute(query, (self._seen[name],))]
        if rows:
            self._seen[name] = rows[-1].session_id
        return rows


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _kept(record: SessionRecord) -> Kept:
    assert record.ended_ms is not None, f"{record.session_id} lives"
    return Kept(record.session_id, record.request_id, record.max_w, record.started_ms, record.ended_ms)


def peak_live(sessions: Sequence[Kept]) -> int:
    """The most of them that lived at any moment."""
    changes = sorted([(one.started_ms, 1) for one in sessions] + [(one.ended_ms, -1) for one in sessions])
    return max(accumulate(change for _, change in changes), default=0)


def spread(by_substation: Mapping[str, Sequence[Kept]]) -> float:
    """Coefficient of variation of utilisation over equal substations: mean over the middle half of the time."""
    times = sorted(one.started_ms for sessions in by_substation.values() for one in sessions)
    if not times:
        return 0.0
    quarter = (times[-1] - times[0]) // 4
    moments = range(times[0] + quarter, times[-1] - quarter + 1, _STEP_MS)
    loads = zip(*(_loads(sessions, moments) for sessions in by_substation.values()), strict=True)
    return fmean([pstdev(at) / fmean(at) for at in loads if any(at)] or [0.0])


def _loads(sessions: Sequence[Kept], moments: Sequence[int]) -> list[int]:
    """What the sessions that live at each moment could take, in watts."""
    changes = sorted(
        [(one.started_ms, one.max_w) for one in sessions] + [(one.ended_ms, -one.max_w) for one in sessions]
    )
    loads, now_w, at = [], 0, 0
    for moment in moments:
        while at < len(changes) and changes[at][0] <= moment:
            now_w += changes[at][1]
            at += 1
        loads.append(now_w)
    return loads
