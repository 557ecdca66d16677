"""The balancer, over one channel for the life of the process."""

import asyncio
from typing import TYPE_CHECKING, TypeVar

import grpc
import structlog

from gateway.problems import Naming, ProblemError, ended, of_call, of_charge, too_late, unreachable
from gridmesh.v1 import charging_pb2, charging_pb2_grpc, operations_pb2_grpc
from mesh.channel import open_channel

if TYPE_CHECKING:
    from gridmesh.v1.charging_pb2_grpc import ChargingServiceAsyncStub
    from gridmesh.v1.operations_pb2_grpc import OperationsServiceAsyncStub

log = structlog.get_logger()
Req = TypeVar("Req")
Res = TypeVar("Res")

_NO_NAMES = Naming()


class Balancer:
    """Calls with a deadline whose failures are problems, and knowledge of whether there is a connection."""

    def __init__(self, target: str, timeout_s: float) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self._channel = open_channel(target)
        self.charging: ChargingServiceAsyncStub = charging_pb2_grpc.ChargingServiceStub(self._channel)
        self.operations: OperationsServiceAsyncStub = operations_pb2_grpc.OperationsServiceStub(self._channel)
        self._changed = asyncio.Event()
        self._watch = asyncio.create_task(self._keep_connected())

    async def _keep_connected(self) -> None:
        """Connects also while nobody calls, and wakes those who wait for a connection."""
        connected = None
        while True:
            state = self._channel.get_state(try_to_connect=True)
            settled = state in {grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE}
            if settled and connected is not (state is grpc.ChannelConnectivity.READY):
                # Before the first connection both are still starting, which is no reason to warn.
                lost, connected = connected, state is grpc.ChannelConnectivity.READY
                (log.warning if lost else log.info)("balancer", address=self.target, connected=connected)
            await self._channel.wait_for_state_change(state)
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def connected(self) -> None:
        """Returns on a connection; waits while one is being made. ProblemError when there is none: nothing was sent."""
        try:
            async with asyncio.timeout(self.timeout_s):
                while (state := self._channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    if state in {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}:
                        raise ProblemError(unreachable())
                    await self._changed.wait()
        except TimeoutError:
            raise ProblemError(unreachable()) from None

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Req, Res],
        request: Req,
        naming: Naming = _NO_NAMES,
        timeout_s: float | None = None,
    ) -> Res:
        """One call."""
        await self.connected()
        try:
            return await method(request, timeout=timeout_s or self.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise ProblemError(of_call(error, naming)) from None

    async def charge(self, request: charging_pb2.ChargeRequest, naming: Naming) -> charging_pb2.ChargeResponse:
        """One charge. A failure that does not say for certain that nothing was admitted is OUTCOME_UNKNOWN."""
        await self.connected()
        try:
            return await self.charging.Charge(request, timeout=self.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise ProblemError(of_charge(error, naming, request.request_id)) from None

    async def open(
        self, method: grpc.aio.UnaryStreamMultiCallable[Req, Res], request: Req
    ) -> tuple["grpc.aio.UnaryStreamCall[Req, Res]", Res]:
        """A stream without a deadline, with its first message, which has one."""
        await self.connected()
        call = method(request)
        try:
            async with asyncio.timeout(self.timeout_s):
                first = await call.read()
        except TimeoutError:
            call.cancel()
            raise ProblemError(too_late()) from None
        except grpc.aio.AioRpcError as error:
            raise ProblemError(of_call(error, _NO_NAMES)) from None
        except asyncio.CancelledError:
            call.cancel()
            raise
        if first is grpc.aio.EOF:
            raise ProblemError(ended())
        return call, first  # type: ignore[return-value]  # the stub's read() may be EOF

    async def close(self) -> None:
        """Ends the connection."""
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)
        await self._channel.close()
