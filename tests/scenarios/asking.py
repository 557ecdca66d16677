"""Calls of the contract, and what a refused one says, read alike over gRPC and over HTTP."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import grpc
import httpx
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gridmesh.v1 import (
    charging_pb2,
    charging_pb2_grpc,
    load_pb2,
    operations_pb2,
    operations_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
)
from tests.mesh_processes import Mesh

TIMEOUT_S = 10.0
# 11 kW and much energy: it still charges when the test is over.
CAR: Mapping[str, Any] = {"vehicle_id": "EV-001", "max_power_kw": 11.0, "energy_kwh": 500.0}

_keys = count(1)


def new_key() -> str:
    """A request id that nobody has used in this run."""
    return f"key-{next(_keys)}"


@dataclass(frozen=True)
class Refusal:
    """What a caller is told of a call that failed. `code` is gRPC's, `status` HTTP's."""

    reason: str
    message: str
    code: str = ""
    status: int = 0
    domain: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None


class Server:
    """One gRPC server of the mesh: a balancer, or a substation asked directly."""

    def __init__(self, mesh: Mesh, name: str) -> None:
        channel = mesh.channel(name)
        self.name = name
        self.charging: charging_pb2_grpc.ChargingServiceStub = charging_pb2_grpc.ChargingServiceStub(channel)
        self.operations: operations_pb2_grpc.OperationsServiceStub = operations_pb2_grpc.OperationsServiceStub(channel)
        self.reports: reports_pb2_grpc.LoadReportServiceStub = reports_pb2_grpc.LoadReportServiceStub(channel)

    def charge(self, request_id: str = "", **said: Any) -> charging_pb2.ChargeResponse:  # noqa: ANN401
        """Charges a car like CAR, but for what is said."""
        request = charging_pb2.ChargeRequest(request_id=request_id or new_key(), **{**CAR, **said})
        return self.charging.Charge(request, timeout=TIMEOUT_S)

    def session(self, session_id: str) -> charging_pb2.Session:
        asked = charging_pb2.GetSessionRequest(session_id=session_id)
        return self.charging.GetSession(asked, timeout=TIMEOUT_S).session

    def stop(self, session_id: str) -> charging_pb2.Session:
        asked = charging_pb2.StopSessionRequest(session_id=session_id)
        return self.charging.StopSession(asked, timeout=TIMEOUT_S).session

    def sessions(self, **filters: Any) -> list[charging_pb2.Session]:  # noqa: ANN401
        """All pages of ListSessions."""
        found: list[charging_pb2.Session] = []
        asked = charging_pb2.ListSessionsRequest(**{"page_size": 1000, **filters})
        while True:
            page = self.charging.ListSessions(asked, timeout=TIMEOUT_S)
            found += page.sessions
            if not page.next_page_token:
                return found
            asked.page_token = page.next_page_token

    def substations(self) -> Sequence[operations_pb2.Substation]:
        """A balancer's view."""
        return self.operations.ListSubstations(operations_pb2.ListSubstationsRequest(), timeout=TIMEOUT_S).substations

    @contextmanager
    def load_reports(self) -> Iterator[Iterator[load_pb2.LoadReport]]:
        """The stream of reports of a substation."""
        call: Any = self.reports.StreamLoadReports(reports_pb2.StreamLoadReportsRequest(), timeout=60)
        with _cancelled_after(call):
            yield (message.report for message in call)

    @contextmanager
    def watch(self, session_id: str) -> Iterator[Iterator[charging_pb2.Session]]:
        """The stream of a session."""
        call: Any = self.charging.WatchSession(charging_pb2.WatchSessionRequest(session_id=session_id), timeout=60)
        with _cancelled_after(call):
            yield (message.session for message in call)

    def load(self) -> load_pb2.LoadReport:
        """A substation's load now."""
        with self.load_reports() as reports:
            return next(reports)

    def set_limit(
        self,
        limit_kw: float,
        source: load_pb2.LimitSource.ValueType = load_pb2.LIMIT_SOURCE_SO,
        **said: Any,  # noqa: ANN401
    ) -> operations_pb2.SetLimitResponse:
        """Sets a substation's limit, asked directly."""
        limit = operations_pb2.Limit(source=source, limit_kw=limit_kw, **said)
        return self.operations.SetLimit(operations_pb2.SetLimitRequest(limit=limit), timeout=TIMEOUT_S)

    def clear_limit(
        self, source: load_pb2.LimitSource.ValueType = load_pb2.LIMIT_SOURCE_SO
    ) -> operations_pb2.ClearLimitResponse:
        return self.operations.ClearLimit(operations_pb2.ClearLimitRequest(source=source), timeout=TIMEOUT_S)


@contextmanager
def _cancelled_after(call: Any) -> Iterator[None]:  # noqa: ANN401 - a call's type is private to grpcio
    try:
        yield
    finally:
        call.cancel()


def refusal(error: grpc.RpcError) -> Refusal:
    """What a failed gRPC call carries."""
    call: Any = error
    status = rpc_status.from_call(call)
    assert status is not None, f"{call.code().name} without details of google.rpc: {call.details()[:200]}"
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    found = {type(d).__name__ for d in (info, bad, retry) if any(each.Unpack(d) for each in status.details)}
    return Refusal(
        reason=info.reason,
        message=status.message,
        code=call.code().name,
        domain=info.domain,
        fields={violation.field: violation.description for violation in bad.field_violations},
        retry_after_s=retry.retry_delay.ToTimedelta().total_seconds() if "RetryInfo" in found else None,
    )


def problem(reply: httpx.Response) -> Refusal:
    """What a refused HTTP request says."""
    assert reply.headers["content-type"] == "application/problem+json", (reply.status_code, reply.text[:200])
    body = reply.json()
    assert (body["status"], body["type"]) == (reply.status_code, f"urn:gridmesh:problem:{body['reason']}")
    retry = reply.headers.get("retry-after")
    return Refusal(
        reason=body["reason"],
        message=body["detail"],
        status=reply.status_code,
        fields={error["field"]: error["detail"] for error in body.get("errors", ())},
        retry_after_s=None if retry is None else float(retry),
    )


def events(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The (name, data) of server-sent events."""
    name = ""
    for line in lines:
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, value


@contextmanager
def session_events(mesh: Mesh, session_id: str) -> Iterator[Iterator[tuple[str, str]]]:
    """The events of one session through the gateway."""
    with mesh.http.stream("GET", f"/v1/charges/{session_id}/events") as reply:
        assert reply.status_code == 200
        with closing(reply):
            yield events(reply.iter_lines())


def post_car(http: httpx.Client, key: str = "", **said: Any) -> httpx.Response:  # noqa: ANN401
    """Charges a car like CAR through the gateway."""
    return http.post("/v1/charges", json={**CAR, **said}, headers={"Idempotency-Key": key or new_key()})
