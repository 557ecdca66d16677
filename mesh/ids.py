"""Identifiers: UUIDv7 from a given clock and rng, session ids, and what a printable id is."""

import re
from random import Random

SUBSTATION_ID = re.compile(r"[a-z0-9-]{1,40}")
_MOST_PRINTABLE = 128
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_SESSION = re.compile(rf"({SUBSTATION_ID.pattern})\.{_UUID.pattern}")

# Version and variant.
_FREE_BITS, _FIXED = ~(0xF << 76 | 0x3 << 62), 0x7 << 76 | 0x2 << 62


def uuid7(now_ms: int, rng: Random) -> str:
    """RFC 9562 UUIDv7: 48 bits of milliseconds, then random. Sorts by time as text."""
    value = (now_ms & (1 << 48) - 1) << 80 | rng.getrandbits(80)
    digits = (value & _FREE_BITS | _FIXED).to_bytes(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def session_id(substation_id: str, uuid: str) -> str:
    """`<substation_id>.<uuid7>`: whoever has the id knows whom to ask."""
    return f"{substation_id}.{uuid}"


def substation_of(session: str) -> str | None:
    """The substation that a session id names, or None when it is no session id."""
    named = _SESSION.fullmatch(session)
    return named[1] if named else None


def is_printable(text: str) -> bool:
    """1 to 128 printable ASCII characters: what request and vehicle ids must be."""
    return 0 < len(text) <= _MOST_PRINTABLE and text.isascii() and text.isprintable()


def is_uuid7(text: str) -> bool:
    """A UUIDv7 in lower-case text form."""
    return _UUID.fullmatch(text) is not None
