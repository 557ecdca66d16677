"""Which folder a substation owns: its own id's, or the first one that nobody has locked; and those that nobody owns."""

import fcntl
import math
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from threading import Event

from mesh.settings import StartupError
from substation.ledger import LEDGER, live_sessions

_SLOTS = 1000
# A look at a slot takes milliseconds; so long a claim waits for those who look.
_PATIENCE_S = 2.0
_PAUSE_S = 0.01


class Slot:
    """A claimed folder. The lock lasts as long as the process: the kernel drops it on any death."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock

    def release(self) -> None:
        os.close(self._lock)


def claim(data: Path, substation_id: str) -> Slot:
    """The folder of that id, or with no id the first unlocked `slot-N`. StartupError says what is in the way."""
    for name in [substation_id] if substation_id else _slots():
        folder = data / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartupError(f"the data folder {folder} cannot be written: {error.strerror}") from None
        if _own(lock):
            return Slot(folder, lock)
        os.close(lock)
    raise StartupError(f"the data folder {data / substation_id} is used by another substation")


def _own(lock: int) -> bool:
    """Takes the lock for good, unless a substation has it. Those who only look share it, for a moment."""
    for _ in range(round(_PATIENCE_S / _PAUSE_S)):
        if _taken(lock, fcntl.LOCK_EX):
            return True
        if not _taken(lock, fcntl.LOCK_SH):
            return False
        fcntl.flock(lock, fcntl.LOCK_UN)
        Event().wait(_PAUSE_S)
    return False


def _taken(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def orphans(data: Path, own: Path) -> Iterator[tuple[str, float]]:
    """The other slots in `data` by name, each with the live sessions in it that nobody owns.

    0 while a substation owns it, infinite where its ledger cannot be read: nobody knows how many.
    """
    for lock in sorted(data.glob("*/lock")):
        if lock.parent != own:
            yield lock.parent.name, _orphaned(lock)


def _orphaned(path: Path) -> float:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return math.inf
    try:
        # Held while reading, so that nobody begins to write.
        return live_sessions(path.parent / LEDGER) if _taken(lock, fcntl.LOCK_SH) else 0
    except (OSError, sqlite3.Error):
        return math.inf
    finally:
        os.close(lock)


def _slots() -> Iterator[str]:
    return (f"slot-{number}" for number in range(1, _SLOTS))
