"""The substations as this process reaches them: one long-lived channel each, with its stubs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from random import Random

import grpc

from balancer import wire
from balancer.view import Load
from gridmesh.v1 import charging_pb2_grpc, load_pb2, operations_pb2_grpc, reports_pb2_grpc
from mesh.admission import Admission
from mesh.channel import open_channel
from mesh.coalescing import Coalescer
from mesh.errors import MeshError, Unavailable
from mesh.model import ErrorReason
from mesh.status import from_rpc_error

RETRY_MS = 1_000
# Asked of for each charge, and as they leave: Python 3.11 looks a member of an Enum up by a call, each time.
_READY = grpc.ChannelConnectivity.READY


class Peer:
    """One substation."""

    def __init__(self, address: str, admission: Admission, *, together: bool) -> None:
        self.address = address
        # Charges that it has from here: what it cannot answer in time is not sent.
        self.admission = admission
        # Calls under way; whoever makes one says so with `in_use`, as closing the channel would cancel it.
        self.calls = 0
        self.channel = open_channel(address)
        self.charging: charging_pb2_grpc.ChargingServiceAsyncStub = charging_pb2_grpc.ChargingServiceStub(self.channel)
        self.reports: reports_pb2_grpc.LoadReportServiceAsyncStub = reports_pb2_grpc.LoadReportServiceStub(self.channel)
        self.operations: operations_pb2_grpc.OperationsServiceAsyncStub = operations_pb2_grpc.OperationsServiceStub(
            self.channel
        )
        self.charges = Coalescer(self.charging, together=together, ready=self.ready)
        # The last load that came, as the message and as it is read: many replies share one, and what a reply has told
        # the stream of reports tells again. To compare takes a tenth of the time that it takes to read one.
        self._load: tuple[load_pb2.LoadReport, Load] | None = None

    def load_of(self, report: load_pb2.LoadReport) -> Load:
        """The load that a reply carries, or a report. wire.Malformed."""
        if self._load is None or (self._load[0] is not report and self._load[0] != report):
            self._load = (report, wire.load_of(report))
        return self._load[1]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While a call is made, or will be."""
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    def ready(self) -> bool:
        """Whether a call made now leaves at once. If not, nothing is sent and the channel is asked to connect."""
        return self.channel.get_state(try_to_connect=True) is _READY

    def error_of(self, error: grpc.aio.AioRpcError, substation_id: str) -> MeshError:
        """What a caller is told of a failed call that was handed on to here."""
        late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        why = "it did not answer in time" if late else error.details() or error.code().name
        return from_rpc_error(error) or self.unreachable(substation_id, why)

    def unreachable(self, substation_id: str, why: str) -> MeshError:
        """The substation cannot be asked now."""
        name = f"substation {substation_id}" if substation_id else f"the substation at {self.address}"
        return Unavailable(ErrorReason.SUBSTATION_UNREACHABLE, f"{name} cannot be reached: {why}", RETRY_MS)


class Peers:
    """All of them, by address; they come and go."""

    def __init__(self, addresses: Iterable[str], rng: Random, max_calls: int = 1_000, *, together: bool = True) -> None:
        self._rng = rng
        self._max_calls = max_calls
        self._together = together
        self._by_address: dict[str, Peer] = {}
        for address in addresses:
            self.add(address)

    def __getitem__(self, address: str) -> Peer:
        return self._by_address[address]

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._by_address.values())

    def add(self, address: str) -> Peer:
        """One more."""
        peer = self._by_address[address] = Peer(address, Admission(self._max_calls, self._rng), together=self._together)
        return peer

    def remove(self, address: str) -> Peer:
        """The caller closes its channel."""
        return self._by_address.pop(address)

    async def close(self) -> None:
        for peer in self._by_address.values():
            await peer.channel.close()
