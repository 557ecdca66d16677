"""A receiver of spans, as a collector of traces would be: OTLP over gRPC, kept in memory."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.mesh_processes import wait_for

KINDS = {
    trace_pb2.Span.SPAN_KIND_INTERNAL: "internal",
    trace_pb2.Span.SPAN_KIND_SERVER: "server",
    trace_pb2.Span.SPAN_KIND_CLIENT: "client",
}
_ARRIVES_S = 10.0


@dataclass(frozen=True)
class Received:
    """One span. Times are nanoseconds."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    # Of the process: its service's name and which of several it is.
    service: str
    instance: str
    began: int
    ended: int
    failed: bool
    attributes: Mapping[str, Any]
    events: tuple[tuple[str, Mapping[str, Any]], ...]


@dataclass
class Receiver:
    """Keeps what comes. Give it to `listening`."""

    spans: list[Received] = field(default_factory=list)

    def Export(  # noqa: N802 - the name of the rpc
        self, request: service_pb2.ExportTraceServiceRequest, context: object
    ) -> service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            process = _read(resource.resource.attributes)
            self.spans += [_span(span, process) for scope in resource.scope_spans for span in scope.spans]
        return service_pb2.ExportTraceServiceResponse()

    def of(self, trace_id: str) -> list[Received]:
        """What has come of one trace."""
        return [span for span in tuple(self.spans) if span.trace_id == trace_id]

    def tree(self, trace_id: str, leaf: str, count: int = 1) -> "Tree":
        """A trace, once so many spans called `leaf` and all above them have come."""

        def complete() -> "Tree | None":
            tree = Tree({span.span_id: span for span in self.of(trace_id)})
            leaves = tree.named(leaf)
            known = len(leaves) >= count and all(tree.way(one)[0].service == "gateway" for one in leaves)
            return tree if known else None

        tree = wait_for(complete, _ARRIVES_S, f"{leaf} and all above it: {self.of(trace_id)}")
        assert tree is not None
        return tree


@dataclass(frozen=True)
class Tree:
    """The spans of one trace."""

    spans: Mapping[str, Received]

    def named(self, name: str) -> list[Received]:
        return [span for span in self.spans.values() if span.name == name]

    def way(self, leaf: Received) -> list[Received]:
        """From the first span that we know of down to this one."""
        parent = self.spans.get(leaf.parent_id)
        return [*(self.way(parent) if parent else ()), leaf]


@contextmanager
def listening(receiver: Receiver, port: int) -> Iterator[None]:
    """Serves it on that port of loopback."""
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait()


def _span(span: trace_pb2.Span, process: Mapping[str, Any]) -> Received:
    return Received(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        kind=KINDS[span.kind],
        service=process["service.name"],
        instance=process.get("service.instance.id", ""),
        began=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes=_read(span.attributes),
        events=tuple((event.name, _read(event.attributes)) for event in span.events),
    )


def _read(attributes: Any) -> dict[str, Any]:  # noqa: ANN401 - a repeated field
    def value(one: KeyValue) -> Any:  # noqa: ANN401
        return getattr(one.value, one.value.WhichOneof("value") or "string_value")

    return {one.key: value(one) for one in attributes}
