"""Where substations are: which addresses names resolve to now, and when one that they no longer name may be dropped.

A name is written as gRPC writes it, `dns:substation:50061` or `dns:///substation:50061`; everything else is an address.
How long an answer holds is not known, so names are asked again and again. An answer that did not come changes nothing.

Times are wall milliseconds.
"""

from collections.abc import Iterable

SCHEME = "dns:"
# How long no answer may have named an address before it is dropped; a container that is started anew is away for less.
ABSENT_MS = 6_000


def name_of(target: str) -> str | None:
    """The host:port to be resolved, or None where the target is an address."""
    return target.removeprefix(SCHEME).removeprefix("///") if target.startswith(SCHEME) else None


class Membership:
    """The addresses that names lead to. Those that were given as addresses are nobody's to drop."""

    def __init__(self, fixed: Iterable[str] = ()) -> None:
        self._fixed = frozenset(fixed)
        # By address: the names that lead there.
        self._names: dict[str, set[str]] = {}
        # Addresses in use that no name leads to any more, and since which answer.
        self.absent: dict[str, int] = {}

    def resolved(self, name: str, addresses: Iterable[str], now: int) -> list[str]:
        """A name was resolved. Returns the addresses that are new."""
        found = set(addresses) - self._fixed
        new = sorted(found - self._names.keys())
        for address in found:
            self._names.setdefault(address, set()).add(name)
            self.absent.pop(address, None)
        for address in self._names.keys() - found:
            self._names[address].discard(name)
            if not self._names[address]:
                self.absent.setdefault(address, now)
        return new

    def expired(self, now: int) -> list[str]:
        """Those that may be dropped as far as names are concerned; to be asked after an answer, not after silence."""
        return [address for address, since in self.absent.items() if now - since >= ABSENT_MS]

    def dropped(self, address: str) -> None:
        """It is in use no longer."""
        del self._names[address], self.absent[address]
