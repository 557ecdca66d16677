"""All balancers: whom to ask, and asking another one when the first was lost."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from gateway.problems import Naming, ProblemError, ended, of_call, of_charge, too_late, unreachable
from gateway.upstream import Balancer
from gridmesh.v1 import charging_pb2
from mesh import tracing
from mesh.clock import seconds
from mesh.coalescing import Charged
from mesh.errors import MeshError
from mesh.model import ErrorReason
from mesh.status import from_rpc_error

if TYPE_CHECKING:
    from grpc.aio import UnaryStreamCall, UnaryStreamMultiCallable, UnaryUnaryMultiCallable

log = structlog.get_logger()
Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res")

_NO_NAMES = Naming()
# CANCELLED is what a server that stops says of calls that it had not begun.
_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
# What one balancer may not be able to do while another can.
_CUT_OFF = frozenset({ErrorReason.NO_SUBSTATION, ErrorReason.SUBSTATION_UNREACHABLE})


class Balancers:
    """Calls with a deadline whose failures are problems. Balancers are asked in turn, those that are well first.

    Every call may be made twice: the mesh answers a repeat of any of them as it answered the first.
    """

    def __init__(self, targets: Sequence[str], timeout_s: float, *, together: bool = True) -> None:
        self.timeout_s = timeout_s
        self._changed = asyncio.Event()
        alone = len(targets) == 1
        self._all = [Balancer(target, self._wake, together=together, alone=alone) for target in targets]
        self._turn = 0

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def chosen(self) -> Balancer:
        """The one to ask; waits while one may still connect. ProblemError when there is none: nothing was sent."""
        return self._next() or await self._waited_for()

    async def _waited_for(self) -> Balancer:
        """Only where none is there: a timer for what is would cost as much as the rest of the way."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._found()
        except TimeoutError:
            raise ProblemError(unreachable()) from None

    async def _found(self) -> Balancer:
        while True:
            # In this order: one that connects between the two looks is found by the second.
            connecting = any(each.connecting for each in self._all)
            if (balancer := self._next()) is not None:
                return balancer
            if not connecting:
                raise ProblemError(unreachable())
            await self._changed.wait()

    def _next(self, but: Balancer | None = None) -> Balancer | None:
        if len(self._all) == 1:
            # It is asked whether it is well or not, and takes nobody's turn.
            only = self._all[0]
            return only if only is not but and only.connected else None
        usable = [each for each in self._all if each is not but and each.well]
        usable = usable or [each for each in self._all if each is not but and each.connected]
        # A second try takes nobody's turn: else one that fails would be asked first every time.
        self._turn += but is None
        return usable[self._turn % len(usable)] if usable else None

    def _instead(self, lost: Balancer, error: MeshError | grpc.aio.AioRpcError) -> Balancer | None:
        """Another one, when that failure was of this balancer alone."""
        ours: MeshError | None
        if isinstance(error, MeshError):
            ours, why = error, error.message
        elif error.code() in _LOST:
            ours, why = from_rpc_error(error), error.details() or ""
        else:
            return None
        if ours is not None and ours.reason not in _CUT_OFF:
            return None
        other = self._next(but=lost)
        if other is not None:
            log.info("asking another balancer", lost=lost.target, address=other.target, why=why)
        return other

    async def call(
        self,
        method: Callable[[Balancer], "UnaryUnaryMultiCallable[Req, Res]"],
        request: Req,
        naming: Naming = _NO_NAMES,
        timeout_s: float | None = None,
    ) -> Res:
        """One call of `method`, as in `lambda balancer: balancer.charging.GetSession`."""
        until = seconds() + (timeout_s or self.timeout_s)
        balancer = await self.chosen()
        try:
            try:
                return await _ask(method, balancer, request, until)
            except grpc.aio.AioRpcError as error:
                if (other := self._instead(balancer, error)) is None:
                    raise
            return await _ask(method, other, request, until)
        except grpc.aio.AioRpcError as error:
            raise ProblemError(of_call(error, naming)) from None

    async def charge(self, attempt: Callable[[], charging_pb2.ChargeRequest], naming: Naming) -> Charged:
        """One charge; `attempt` makes its request, anew for each time it is sent.

        A failure that does not say for certain that nothing was admitted is OUTCOME_UNKNOWN. Where a balancer was
        lost in the midst of it, another one is sent the same key as a later attempt, as the client would do.
        """
        until = seconds() + self.timeout_s
        balancer = self._next() or await self._waited_for()
        request = attempt()
        try:
            return await _charged(balancer, request, until)
        except (MeshError, grpc.aio.AioRpcError) as error:
            problem, told = of_charge(error, naming, request.request_id), isinstance(error, MeshError)
            if (other := self._instead(balancer, error)) is None:
                raise ProblemError(problem, told=told) from None
        request = attempt()
        try:
            return await _charged(other, request, until)
        except (MeshError, grpc.aio.AioRpcError) as error:
            # A refusal of the later attempt says nothing of the first.
            if problem.reason == ErrorReason.OUTCOME_UNKNOWN.name:
                raise ProblemError(problem, told=told) from None
            problem, told = of_charge(error, naming, request.request_id), isinstance(error, MeshError)
            raise ProblemError(problem, told=told) from None

    async def open(
        self, method: Callable[[Balancer], "UnaryStreamMultiCallable[Req, Res]"], request: Req
    ) -> tuple["UnaryStreamCall[Req, Res]", Res]:
        """A stream without a deadline, with its first message, which has one."""
        call = method(await self.chosen())(request, metadata=tracing.metadata())
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
        """Ends all connections."""
        await asyncio.gather(*(balancer.close() for balancer in self._all))


def _charged(balancer: Balancer, request: charging_pb2.ChargeRequest, until: float) -> Awaitable[Charged]:
    if tracing.exporting():
        return _charged_in_a_span(balancer, request, until)
    return balancer.charges.charge(request, until)


async def _charged_in_a_span(balancer: Balancer, request: charging_pb2.ChargeRequest, until: float) -> Charged:
    with tracing.calling(request, balancer.target):
        return await balancer.charges.charge(request, until)


async def _ask(
    method: Callable[[Balancer], "UnaryUnaryMultiCallable[Req, Res]"], balancer: Balancer, request: Req, until: float
) -> Res:
    with tracing.calling(request, balancer.target):
        return await method(balancer)(request, timeout=until - seconds(), metadata=tracing.metadata())
