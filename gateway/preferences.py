"""What a client would rather have (RFC 7240). A preference that is not known or makes no sense is none."""

import re
from collections.abc import Iterable

MOST_WAIT_S = 60
# Parts between commas, which a quoted string may contain.
_PARTS = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*")+')
_WAIT = re.compile(r'wait\s*=\s*(?:"([0-9]{1,9})"|([0-9]{1,9}))', re.IGNORECASE)


def wait_s(prefer: Iterable[str]) -> int:
    """Whole seconds that the client would rather wait than be refused, at most 60; 0: none. The first counts."""
    for part in (part for header in prefer for part in _PARTS.findall(header)):
        if match := _WAIT.fullmatch(part.partition(";")[0].strip()):
            return min(int(match[1] or match[2]), MOST_WAIT_S)
    return 0
