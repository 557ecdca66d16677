"""Server-sent events as the gateway writes them: lines that end in LF. No I/O."""

import json
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """One event. `data` is its JSON."""

    name: str
    data: Any
    event_id: str = ""


@dataclass
class Parser:
    """Bytes in, events out, however the bytes are cut."""

    _rest: bytes = b""
    _fields: dict[str, str] = field(default_factory=dict)

    def feed(self, some: bytes) -> list[Event]:
        """The events that are complete now. ValueError when their data is no JSON."""
        *lines, self._rest = (self._rest + some).split(b"\n")
        return [event for line in lines if (event := self._line(line.decode(errors="replace")))]

    def _line(self, line: str) -> Event | None:
        if line:
            name, _, value = line.partition(":")  # a comment has the empty name
            self._fields[name] = value.removeprefix(" ")
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        return Event(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id", ""))


async def read_events(chunks: AsyncIterable[bytes]) -> AsyncIterator[Event]:
    """The events of a stream as it comes."""
    parser = Parser()
    async for chunk in chunks:
        for event in parser.feed(chunk):
            yield event
