"""Who waits for a plug, and who of them tries next: a queue that decides by itself, at times it is given.

Those that wait try again in rounds, first come first, one after the other. A car that was refused bars, in that round,
those behind it that could only be served where it could have been. Others may overtake it: they take nothing from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mesh.charge import Charge

# Between two rounds: one call or two a second for all that wait, and so long may a plug stay free that nobody told of.
PAUSE_MS = 500
# A balancer hears of a change within so long: its report leaves after 20 ms.
NEWS_MS = 50


@dataclass(eq=False, slots=True)
class Place:
    """One car's place. `why` is what refused it last (`tried`), or one before it that stands in its way."""

    charge: Charge
    why: Exception | None = None
    tried: bool = False


class Line:
    """All places. Times in milliseconds of any clock that does not go back."""

    def __init__(self) -> None:
        self._places: dict[Place, None] = {}
        # The round under way: who is still to be looked at, and who was refused in it.
        self._round: Iterator[Place] | None = None
        self._barring: list[Place] = []
        # Whose turn it is.
        self.trying: Place | None = None
        # When the next round may begin.
        self._due_ms = 0

    def __len__(self) -> int:
        return len(self._places)

    def join(self, charge: Charge, now_ms: int, why: Exception | None) -> Place:
        """A place behind all others. One that was not refused yet makes the next round begin at once."""
        if why is None:
            self.hurry(now_ms)
        elif not self._places:
            self._due_ms = now_ms + PAUSE_MS
        place = Place(charge, why, tried=why is not None)
        self._places[place] = None
        return place

    def leave(self, place: Place) -> None:
        """It was served, or waits no longer. Nothing happens for one that has left."""
        self._places.pop(place, None)
        if self.trying is place:
            self.trying = None

    def refused(self, place: Place, why: Exception) -> None:
        """It has tried, and keeps its place."""
        place.why, place.tried = why, True
        self._barring.append(place)
        self.trying = None

    def hurry(self, at_ms: int) -> None:
        """The next round begins at that time, if not before."""
        self._due_ms = min(self._due_ms, at_ms)

    def next(self, now_ms: int) -> Place | None:
        """Who is to try now: then `refused` or `leave` is to be told. None while one tries, and between rounds."""
        if self.trying is not None or not (self._round or self._begin(now_ms)):
            return None
        assert self._round is not None
        for place in self._round:
            if place not in self._places:
                continue
            bar = next((each for each in self._barring if _as_wide(each.charge, place.charge)), None)
            if bar is None:
                self.trying = place
                return place
            place.why, place.tried = bar.why, False
        self._round = None
        return self.next(now_ms)

    def due_ms(self) -> int | None:
        """When `next` is to be asked again; None while one tries, or nobody waits."""
        return None if self.trying is not None or not self._places else self._due_ms

    def _begin(self, now_ms: int) -> bool:
        if not self._places or now_ms < self._due_ms:
            return False
        self._round, self._barring = iter(list(self._places)), []
        self._due_ms = now_ms + PAUSE_MS
        return True


def _as_wide(one: Charge, other: Charge) -> bool:
    """Whether all that could serve the other could serve the one."""
    anywhere = not one.allowed or (bool(other.allowed) and other.allowed <= one.allowed)
    return anywhere and one.floor_w <= other.floor_w
