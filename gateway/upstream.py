"""One balancer as the gateway reaches it: a channel for the life of the process, and whether it can be asked."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gridmesh.v1 import charging_pb2_grpc, operations_pb2_grpc
from mesh.channel import open_channel
from mesh.coalescing import Coalescer

if TYPE_CHECKING:
    from gridmesh.v1.charging_pb2_grpc import ChargingServiceAsyncStub
    from gridmesh.v1.operations_pb2_grpc import OperationsServiceAsyncStub

log = structlog.get_logger()

# A process that stands still keeps its connection: only asking shows it. Where there is no other one to ask instead, it
# is for the log alone.
_HEALTH_EVERY_S = 0.5
_ALONE_EVERY_S = 5.0
_HEALTH_TIMEOUT_S = 1.0
# An enum's member takes as long to find as the state itself.
_READY = grpc.ChannelConnectivity.READY


class Balancer:
    """One balancer, and whether it is the only one. `changed` is called whenever its connection changes."""

    def __init__(self, target: str, changed: Callable[[], None], *, together: bool, alone: bool) -> None:
        self.target = target
        self._channel = open_channel(target)
        self.charging: ChargingServiceAsyncStub = charging_pb2_grpc.ChargingServiceStub(self._channel)
        self.charges = Coalescer(self.charging, together=together)
        self.operations: OperationsServiceAsyncStub = operations_pb2_grpc.OperationsServiceStub(self._channel)
        # Its package has no types.
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)
        self._answers = True
        self._ask_every_s = _ALONE_EVERY_S if alone else _HEALTH_EVERY_S
        self._changed = changed
        self._tasks = (asyncio.create_task(self._keep_connected()), asyncio.create_task(self._keep_asking()))

    @property
    def connected(self) -> bool:
        """Whether a call made now leaves at once."""
        return self._state() is _READY

    @property
    def well(self) -> bool:
        """Connected, and its health service said SERVING when it was last asked."""
        return self._answers and self.connected

    @property
    def connecting(self) -> bool:
        """Not connected, and it is not known yet whether it can be."""
        return self._state() in {grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING}

    def _state(self) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect=True)

    async def _keep_connected(self) -> None:
        """Connects also while nobody calls, and tells of it."""
        connected = None
        while True:
            state = self._state()
            settled = state in {_READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE}
            if settled and connected is not (state is _READY):
                # Before the first connection both are still starting, which is no reason to warn.
                lost, connected = connected, state is _READY
                (log.warning if lost else log.info)("balancer", address=self.target, connected=connected)
            await self._channel.wait_for_state_change(state)
            self._changed()

    async def _keep_asking(self) -> None:
        while True:
            if self.connected and (answers := await self._answers_now()) is not self._answers:
                self._answers = answers
                (log.info if answers else log.warning)("balancer", address=self.target, answers=answers)
            await asyncio.sleep(self._ask_every_s)

    async def _answers_now(self) -> bool:
        try:
            answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNIMPLEMENTED
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Ends the connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()
