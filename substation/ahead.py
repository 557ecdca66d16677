"""What a substation has promised for the hours ahead, kept up as cars come and go.

Promises shift as time passes and as cars draw less than they could: whoever keeps this makes it anew once a second
or so. In between, who came counts at once and who is done counts no more.
"""

from collections.abc import Iterable

from mesh.outlook import Curves, Need, Outlook
from substation.completion import need_of
from substation.grants import remaining_mj
from substation.sessions import Session


class Ahead:
    """The promises as of `made_ms`, wall milliseconds, under one limit. `scale`: seconds of charging in one second."""

    def __init__(self, sessions: Iterable[Session], limit_w: int, scale: int, now: int) -> None:
        self.made_ms = now
        self._limit_w = limit_w
        self._scale = scale
        self._curves = Curves()
        # Who is counted in the curves; who came, and what those asked who went, since they were asked for.
        self._counted: dict[str, Need] = {}
        self._came: dict[str, Need] = {}
        self._went: list[Need] = []
        for session in sessions:
            self.add(session, now)

    def add(self, session: Session, now: int) -> None:
        """Nothing for one that wants no more."""
        if session.active:
            self._came[session.session_id] = self._need(session, now)

    def _need(self, session: Session, now: int) -> Need:
        """What its claim would ask: little of a claim is needed for that."""
        left_ms = (session.planned_departure_ms - now) * self._scale
        remaining = remaining_mj(session, now, self._scale)
        return need_of(remaining, left_ms, session.wanted_w, self._limit_w, assumed=session.departure_assumed)

    def drop(self, session_id: str) -> None:
        """It wants no more."""
        if self._came.pop(session_id, None) is None and (asked := self._counted.pop(session_id, None)) is not None:
            self._went.append(asked)

    def outlook(self) -> Outlook:
        """The curves as of now. Where more went than stay, those who stay are counted anew."""
        if len(self._went) > len(self._counted):
            self._curves = Curves()
            self._curves.count(self._counted.values(), 1)
        else:
            self._curves.count(self._went, -1)
        self._curves.count(self._came.values(), 1)
        self._counted |= self._came
        self._came, self._went = {}, []
        return self._curves.outlook()
