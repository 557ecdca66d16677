"""What happened, in order: the last of it is kept, for readers that come, leave, and come again.

Pure. An id is `<epoch>-<number>`: numbers go on by one, and an epoch is one life of a gateway, so that an id of
another one is known for what it is.
"""

import re
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_ID = re.compile(r"([0-9a-z]{1,16})-([0-9]{1,15})")
# Whoever brings no id begins with so many of the last.
RECENT = 50


class Feed(Generic[T]):
    """At most `keep` things. `encode` gives the lines of one without its id, and is asked once, when somebody reads."""

    def __init__(self, epoch: str, keep: int, encode: Callable[[T], bytes]) -> None:
        self.last = 0
        self._epoch = epoch
        self._encode = encode
        # Each as it came, until it is encoded.
        self._kept: deque[T | bytes] = deque(maxlen=keep)
        # Readers that keep up all ask for the same.
        self._block = (0, 0, b"")

    def add(self, what: T) -> None:
        """The next thing that happened."""
        self.last += 1
        self._kept.append(what)

    def begin(self, last_event_id: str) -> tuple[int, bytes]:
        """After which number a reader with that id goes on, and what to tell it first: a gap, if it has missed any."""
        recent = max(self._forgotten, self.last - RECENT)
        if not last_event_id:
            return recent, b""
        said = _ID.fullmatch(last_event_id)
        if said is None or said[1] != self._epoch or int(said[2]) > self.last:
            return recent, self._gap(recent, b"{}")
        return int(said[2]), b""

    def after(self, number: int) -> bytes:
        """All that came after that number, as events, first a gap where some is forgotten. Empty: nothing came."""
        if number >= self.last:
            return b""
        first, last, block = self._block
        if (first, last) != (number, self.last):
            block = self._join(number)
            self._block = number, self.last, block
        return block

    def _join(self, number: int) -> bytes:
        begin, gap = max(number, self._forgotten), b""
        if begin > number:
            gap = self._gap(begin, b'{"missed":%d}' % (begin - number))
        return gap + b"".join([self._event(each) for each in range(begin + 1, self.last + 1)])

    @property
    def _forgotten(self) -> int:
        """The number of the last one that is not kept any more."""
        return self.last - len(self._kept)

    def _event(self, number: int) -> bytes:
        at = number - self.last - 1
        kept = self._kept[at]
        if not isinstance(kept, bytes):
            kept = self._kept[at] = b"id: %b\n%b\n" % (self._id(number), self._encode(kept))
        return kept

    def _gap(self, number: int, data: bytes) -> bytes:
        return b"id: %b\nevent: gap\ndata: %b\n\n" % (self._id(number), data)

    def _id(self, number: int) -> bytes:
        return f"{self._epoch}-{number}".encode()
