"""What a balancer serves. Translates and decides nothing: the router places, the substations answer."""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from balancer import wire
from balancer.batch import Batch
from balancer.changes import Changes
from balancer.desk import Desk
from balancer.peers import RETRY_MS, Peer, Peers
from balancer.router import Router, in_time_s
from gridmesh.v1 import charging_pb2, charging_pb2_grpc, operations_pb2, operations_pb2_grpc
from mesh import tracing
from mesh.admission import Admission
from mesh.batching import Batches, Outcomes
from mesh.clock import Clock, seconds
from mesh.errors import InvalidRequest, NotFound, Unavailable, Violation
from mesh.ids import substation_of
from mesh.interceptors import Context
from mesh.latest import Latest
from mesh.model import ErrorReason, ReportState

log = structlog.get_logger()

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res")

MAX_PAGE = 1_000
DEFAULT_PAGE = 100
# One substation's share of a listing: a silent one must not hold back the others' sessions. It is part of what is left
# of the time, or several together would: less of it for one that has not reported lately.
_PAGE_TIMEOUT_S = 2.0
_PAGE_SHARE = 0.5
_SILENT_SHARE = 0.1
_COALESCE_S = 0.1
_HEARTBEAT_S = 1.0


class Forwarder:
    """Finds the substation that a call is for and hands it on."""

    def __init__(self, desk: Desk, peers: Peers, clock: Clock, default_timeout_s: float) -> None:
        self._desk = desk
        self._peers = peers
        self._clock = clock
        self.default_timeout_s = default_timeout_s

    def timeout_s(self, context: Context) -> float:
        """What is left of the caller's deadline."""
        left: float | None = context.time_remaining()
        return self.default_timeout_s if left is None else max(0.001, left)

    def handed_on_s(self, context: Context) -> float:
        """The same for a substation: it ends here first, so that the caller hears who did not answer."""
        return in_time_s(self.timeout_s(context))

    def for_session(self, session_id: str) -> tuple[Peer, str]:
        """Whom to ask about a session. NotFound when its id names no substation of this mesh."""
        substation_id = substation_of(session_id)
        if substation_id is None:
            raise NotFound(ErrorReason.SESSION_NOT_FOUND, f"no session {session_id[:80]!r}")
        return self._peer(substation_id, ErrorReason.SESSION_NOT_FOUND, f"no session {session_id}")

    def for_substation(self, substation_id: str) -> tuple[Peer, str]:
        """Whom to ask about a substation."""
        if not substation_id:
            raise InvalidRequest(Violation("substation_id", "must name a substation"))
        return self._peer(
            substation_id, ErrorReason.SUBSTATION_NOT_FOUND, f"no substation {substation_id[:80]!r} in this mesh"
        )

    def _peer(self, substation_id: str, reason: ErrorReason, message: str) -> tuple[Peer, str]:
        address = self._desk.view.address_of(substation_id)
        if address is not None:
            return self._peers[address], substation_id
        if self._desk.index.knows(substation_id):
            # It was there and may hold live sessions: that it is not found now says nothing of them.
            why = f"substation {substation_id} cannot be reached: no address is known any more"
            raise Unavailable(ErrorReason.SUBSTATION_UNREACHABLE, why, RETRY_MS)
        if not len(self._desk.view) or self._desk.view.unheard():
            raise Unavailable(ErrorReason.NO_SUBSTATION, f"{message}, but not every substation has reported yet", 1_000)
        raise NotFound(reason, message)

    def page_timeout_s(self, peer: Peer, left_s: float) -> float:
        """What one substation may take of the time that is left for a listing."""
        view = self._desk.view
        fresh = view.state(view[peer.address], self._clock.now_ms()) is ReportState.FRESH
        return max(0.001, min(_PAGE_TIMEOUT_S, left_s * (_PAGE_SHARE if fresh else _SILENT_SHARE)))

    async def unary(
        self, rpc: Callable[..., Awaitable[Res]], request: Req, peer: Peer, substation_id: str, timeout_s: float
    ) -> Res:
        """Hands a call on and its answer or error back."""
        if not peer.ready():
            raise peer.unreachable(substation_id, "not connected")
        try:
            with peer.in_use(), tracing.calling(request, peer.address):
                return await rpc(request, timeout=timeout_s, metadata=tracing.metadata())
        except grpc.aio.AioRpcError as error:
            raise peer.error_of(error, substation_id) from None


class ChargingServicer(charging_pb2_grpc.ChargingServiceServicer):
    """ChargingService over all substations."""

    def __init__(
        self, router: Router, forwarder: Forwarder, desk: Desk, changes: Changes, admission: Admission
    ) -> None:
        self._admission = admission
        self._router = router
        self._forward = forwarder
        self._desk = desk
        self._changes = changes

    async def Charge(self, request: charging_pb2.ChargeRequest, context: Context) -> charging_pb2.ChargeResponse:
        return await self._router.charge(request, self._forward.timeout_s(context))

    async def ChargeBatch(
        self, request: charging_pb2.ChargeBatchRequest, context: Context
    ) -> AsyncIterator[charging_pb2.ChargeBatchResponse]:
        batch = Batch(self._router, self._admission, request, self._forward.timeout_s(context))
        async with aclosing(batch.responses()) as responses:
            async for response in responses:
                yield response.batch

    async def StreamCharges(
        self, requests: AsyncIterator[charging_pb2.StreamChargesRequest], context: Context
    ) -> AsyncIterator[charging_pb2.StreamChargesResponse]:
        def serve(request: charging_pb2.ChargeBatchRequest) -> Outcomes:
            return Batch(self._router, self._admission, request, self._forward.default_timeout_s).responses()

        async with aclosing(Batches(serve, self._admission.leaving).responses(requests)) as responses:
            async for response in responses:
                yield response

    async def GetSession(
        self, request: charging_pb2.GetSessionRequest, context: Context
    ) -> charging_pb2.GetSessionResponse:
        peer, substation_id = self._forward.for_session(request.session_id)
        timeout_s = self._forward.handed_on_s(context)
        return await self._forward.unary(peer.charging.GetSession, request, peer, substation_id, timeout_s)

    async def StopSession(
        self, request: charging_pb2.StopSessionRequest, context: Context
    ) -> charging_pb2.StopSessionResponse:
        peer, substation_id = self._forward.for_session(request.session_id)
        timeout_s = self._forward.handed_on_s(context)
        return await self._forward.unary(peer.charging.StopSession, request, peer, substation_id, timeout_s)

    async def WatchSession(
        self, request: charging_pb2.WatchSessionRequest, context: Context
    ) -> AsyncIterator[charging_pb2.WatchSessionResponse]:
        peer, substation_id = self._forward.for_session(request.session_id)
        if not peer.ready():
            raise peer.unreachable(substation_id, "not connected")
        timeout_s = context.time_remaining()
        call = peer.charging.WatchSession(request, timeout=timeout_s, metadata=tracing.metadata())
        self._changes.on_close(call.cancel)
        latest = Latest(call)
        try:
            with peer.in_use():
                while (response := await latest.read()) is not grpc.aio.EOF:
                    yield response
        except grpc.aio.AioRpcError as error:
            raise peer.error_of(error, substation_id) from None
        except asyncio.CancelledError:
            self._changes.raise_if_closed()
            raise
        finally:
            self._changes.off_close(call.cancel)
            latest.cancel()

    async def ListSessions(
        self, request: charging_pb2.ListSessionsRequest, context: Context
    ) -> charging_pb2.ListSessionsResponse:
        until_s = seconds() + self._forward.timeout_s(context)
        size = request.page_size or DEFAULT_PAGE
        if size > MAX_PAGE:
            raise InvalidRequest(Violation("page_size", f"must be at most {MAX_PAGE}"))
        token = PageToken.read(request.page_token)
        if request.substation_id:
            self._forward.for_substation(request.substation_id)
        if not len(self._desk.view):
            raise Unavailable(ErrorReason.NO_SUBSTATION, "no substation is known yet", RETRY_MS)
        page = charging_pb2.ListSessionsResponse()
        for substation_id, inner in self._to_list(request, token):
            if len(page.sessions) >= size:
                page.next_page_token = PageToken(substation_id, inner).text()
                return page
            following = await self._page_of(substation_id, inner, request, size, page, until_s)
            if following:
                page.next_page_token = PageToken(substation_id, following).text()
                return page
        if not request.substation_id:
            page.unreachable_substation_ids.extend(self._unheard())
        return page

    def _unheard(self) -> list[str]:
        """Addresses where nobody knows who is there, and substations with live sessions of which nobody knows where."""
        found = {known.substation_id for known in self._desk.view}
        return self._desk.view.unheard() + self._desk.index.with_live_sessions(but=found)

    def _to_list(self, request: charging_pb2.ListSessionsRequest, token: "PageToken") -> list[tuple[str, str]]:
        """(substation, its page token) still to be read, in order of substation id."""
        ids = sorted(k.substation_id for k in self._desk.view if k.load is not None)
        wanted = [i for i in ids if i >= token.substation_id and request.substation_id in {"", i}]
        return [(i, token.inner if i == token.substation_id else "") for i in wanted]

    async def _page_of(
        self,
        substation_id: str,
        inner: str,
        request: charging_pb2.ListSessionsRequest,
        size: int,
        page: charging_pb2.ListSessionsResponse,
        until_s: float,
    ) -> str:
        """Adds one substation's sessions to the page, as far as they fit; returns its next page token."""
        asked = charging_pb2.ListSessionsRequest()
        asked.CopyFrom(request)
        asked.substation_id = ""
        asked.page_size, asked.page_token = size - len(page.sessions), inner
        try:
            peer, _ = self._forward.for_substation(substation_id)
            within_s = self._forward.page_timeout_s(peer, until_s - seconds())
            part = await self._forward.unary(peer.charging.ListSessions, asked, peer, substation_id, within_s)
        except Unavailable:
            page.unreachable_substation_ids.append(substation_id)
            return ""
        page.sessions.extend(part.sessions)
        page.unreachable_substation_ids.extend(part.unreachable_substation_ids)
        return part.next_page_token


class PageToken:
    """A place in the listing of all substations: opaque to clients."""

    def __init__(self, substation_id: str = "", inner: str = "") -> None:
        self.substation_id = substation_id
        self.inner = inner

    def text(self) -> str:
        return base64.urlsafe_b64encode(json.dumps([self.substation_id, self.inner]).encode()).decode()

    @classmethod
    def read(cls, text: str) -> "PageToken":
        if not text:
            return cls()
        try:
            substation_id, inner = json.loads(base64.urlsafe_b64decode(text.encode()))
            if isinstance(substation_id, str) and isinstance(inner, str):
                return cls(substation_id, inner)
        except (binascii.Error, ValueError, TypeError):
            pass
        raise InvalidRequest(Violation("page_token", "must be a next_page_token of an earlier reply, or empty"))


class OperationsServicer(operations_pb2_grpc.OperationsServiceServicer):
    """OperationsService: hands operators' calls on, and shows the load view."""

    def __init__(self, forwarder: Forwarder, desk: Desk, clock: Clock, changes: Changes) -> None:
        self._forward = forwarder
        self._desk = desk
        self._clock = clock
        self._changes = changes

    async def SetLimit(
        self, request: operations_pb2.SetLimitRequest, context: Context
    ) -> operations_pb2.SetLimitResponse:
        return await self._hand_on("SetLimit", request, context)  # type: ignore[no-any-return]

    async def ClearLimit(
        self, request: operations_pb2.ClearLimitRequest, context: Context
    ) -> operations_pb2.ClearLimitResponse:
        return await self._hand_on("ClearLimit", request, context)  # type: ignore[no-any-return]

    async def Drain(self, request: operations_pb2.DrainRequest, context: Context) -> operations_pb2.DrainResponse:
        return await self._hand_on("Drain", request, context)  # type: ignore[no-any-return]

    async def Undrain(self, request: operations_pb2.UndrainRequest, context: Context) -> operations_pb2.UndrainResponse:
        return await self._hand_on("Undrain", request, context)  # type: ignore[no-any-return]

    async def _hand_on(self, rpc: str, request: Any, context: Context) -> Any:  # noqa: ANN401 - four message types
        peer, substation_id = self._forward.for_substation(request.substation_id)
        stub = getattr(peer.operations, rpc)
        return await self._forward.unary(stub, request, peer, substation_id, self._forward.handed_on_s(context))

    async def ListSubstations(
        self, request: operations_pb2.ListSubstationsRequest, context: Context
    ) -> operations_pb2.ListSubstationsResponse:
        return operations_pb2.ListSubstationsResponse(substations=self._substations())

    async def WatchSubstations(
        self, request: operations_pb2.WatchSubstationsRequest, context: Context
    ) -> AsyncIterator[operations_pb2.WatchSubstationsResponse]:
        with self._changes.watch() as watch:
            while True:
                yield operations_pb2.WatchSubstationsResponse(substations=self._substations())
                await asyncio.sleep(_COALESCE_S)
                await watch.wait(_HEARTBEAT_S - _COALESCE_S)
                self._changes.raise_if_closed()

    def _substations(self) -> list[operations_pb2.Substation]:
        now, view = self._clock.now_ms(), self._desk.view
        return [
            wire.substation_message(known, view.state(known, now), self._desk.ejections.ejected(known.address), now)
            for known in sorted(view, key=lambda known: known.address)
        ]
