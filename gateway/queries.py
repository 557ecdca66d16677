"""Reads query parameters. What is wrong is named, what is unknown refused."""

from collections.abc import Callable
from typing import TypeVar

from gateway.asgi import Request
from gateway.problems import ProblemError, invalid
from gateway.schemas import FieldError, SessionState

T = TypeVar("T")

_BOOLS = {"true": True, "false": False}
_MAX_UINT32 = 2**32 - 1


class Query:
    """The parameters of one request. `done()` raises for all that was wrong at once."""

    def __init__(self, request: Request) -> None:
        self._given = request.query
        self._known: set[str] = set()
        self._errors: list[FieldError] = []

    def text(self, name: str) -> str:
        """Free text; empty when absent."""
        return self._one(name, str, "text", "")

    def number(self, name: str) -> int:
        """A whole number as the contract can carry; 0 when absent."""
        return self._one(name, _number, "a whole number", 0)

    def flag(self, name: str) -> bool:
        """True or false; false when absent."""
        return self._one(name, _BOOLS.__getitem__, "true or false", False)

    def states(self, name: str) -> list[SessionState]:
        """Session states, as often as it is given."""
        self._known.add(name)
        found = []
        for text in self._values(name):
            try:
                found.append(SessionState(text))
            except ValueError:
                self._wrong(name, "must be one of " + ", ".join(SessionState))
        return found

    def done(self) -> None:
        """Raises when something was wrong or is unknown."""
        for name in dict.fromkeys(name for name, _ in self._given):
            if name not in self._known:
                known = f"known are {', '.join(sorted(self._known))}" if self._known else "there are none"
                self._wrong(name[:100], f"is not a parameter of this path; {known}")
        if self._errors:
            raise ProblemError(invalid(*self._errors))

    def _one(self, name: str, read: Callable[[str], T], what: str, absent: T) -> T:
        self._known.add(name)
        values = self._values(name)
        if len(values) > 1:
            self._wrong(name, "must be given once")
        elif values:
            try:
                return read(values[0])
            except (ValueError, KeyError):
                self._wrong(name, f"must be {what}")
        return absent

    def _values(self, name: str) -> list[str]:
        return [value for each, value in self._given if each == name]

    def _wrong(self, name: str, detail: str) -> None:
        self._errors.append(FieldError(name, detail))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_UINT32):
        raise ValueError(text)
    return int(text)


def none(request: Request) -> None:
    """Refuses any parameter."""
    if request.scope["query_string"]:
        Query(request).done()
