"""Asks DNS again and again where substations are, and lets the mesh grow and shrink with the answers."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from balancer.desk import Desk
from balancer.discovery import Membership
from balancer.metrics import BalancerMetrics
from balancer.peers import Peers
from balancer.subscriptions import Subscriptions
from mesh.clock import Clock

log = structlog.get_logger()

LOOK_EVERY_S = 2.0
LOOK_TIMEOUT_S = 5.0
# host:port to the addresses of all that are there. OSError when nobody can say.
Resolve = Callable[[str], Awaitable[Iterable[str]]]


async def resolve(name: str) -> set[str]:
    """What the system's resolver says of host:port, IPv4 and IPv6. OSError, also where the name is not known."""
    host, _, port = name.rpartition(":")
    found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    ips = (str(address[0]) for *_, address in found)
    return {f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip in ips}


class Lookups:
    """Follows the names: one that is new has a peer and a subscription, one that is gone for good has none."""

    def __init__(
        self,
        names: Sequence[str],
        ask: Resolve,
        desk: Desk,
        peers: Peers,
        subscriptions: Subscriptions,
        clock: Clock,
        metrics: BalancerMetrics,
    ) -> None:
        # By name, why it does not resolve now; empty when it does.
        self._why = dict.fromkeys(names, "")
        self._ask = ask
        self._desk = desk
        self._peers = peers
        self._subscriptions = subscriptions
        self._clock = clock
        self._lookups = metrics.lookups
        self._members = Membership(peer.address for peer in peers)
        desk.view.absent = self._members.absent

    async def run(self) -> None:
        """Until cancelled."""
        while self._why:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except Exception:
                log.exception("a lookup met a defect; it is made again")

    async def look(self) -> None:
        """Asks for every name once. A name that cannot be resolved now leaves everything as it is."""
        for name in self._why:
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    found = await self._ask(name)
            except (OSError, TimeoutError) as error:
                self._tell(name, str(error) or type(error).__name__)
            else:
                self._tell(name, "")
                await self._follow(name, found)

    def _tell(self, name: str, why: str) -> None:
        self._lookups.labels("failed" if why else "resolved").inc()
        if why and why != self._why[name]:
            log.warning("the name of the substations does not resolve", name=name, why=why)
        elif self._why[name] and not why:
            log.info("the name resolves again", name=name)
        self._why[name] = why

    async def _follow(self, name: str, found: Iterable[str]) -> None:
        for address in self._members.resolved(name, found, self._clock.now_ms()):
            log.info("substation address found", name=name, address=address)
            self._desk.add(address)
            self._subscriptions.open(self._peers.add(address))
        for address in self._members.expired(self._clock.now_ms()):
            if self._unused(address):
                await self._drop(address)

    def _unused(self, address: str) -> bool:
        return self._desk.removable(address, self._clock.now_ms()) and not self._peers[address].calls

    async def _drop(self, address: str) -> None:
        await self._subscriptions.close(address)
        if not self._unused(address):
            self._subscriptions.open(self._peers[address])  # a call came in between; another time
            return
        self._members.dropped(address)
        self._desk.remove(address)
        await self._peers.remove(address).channel.close()
        log.info("substation address dropped", address=address)
