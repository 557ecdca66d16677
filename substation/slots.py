"""Which folder a substation owns: its own id's, or the first one that nobody has locked."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mesh.settings import StartupError

_SLOTS = 1000


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
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return Slot(folder, lock)
    raise StartupError(f"the data folder {data / substation_id} is used by another substation")


def _slots() -> Iterator[str]:
    return (f"slot-{number}" for number in range(1, _SLOTS))
