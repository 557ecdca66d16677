"""What is taken for a trace context, and when spans are made at all."""

import asyncio

import pytest

from gridmesh.v1 import charging_pb2, operations_pb2, reports_pb2
from mesh import tracing
from mesh.settings import StartupError

CAME = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


async def of(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Trace id and metadata of a task that came with it."""
    tracing.came_with(text)
    return tracing.trace_id(), tracing.metadata()


async def test_a_trace_goes_on_as_it_came() -> None:
    assert await asyncio.create_task(of(CAME)) == ("0af7651916cd43dd8448eb211c80319c", (("traceparent", CAME),))
    assert tracing.trace_id() == "", "another task's"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        CAME.upper(),
        CAME[:-1],
        CAME + "-00",
        CAME + "\n",
        "ff" + CAME[2:],
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
    ],
)
async def test_what_is_no_trace_context_goes_nowhere(text: str) -> None:
    tracing.came_with(CAME)
    assert await asyncio.create_task(of(text)) == ("", ())


async def test_without_an_endpoint_a_span_is_nothing_and_the_same_one_always() -> None:
    tracing.start("gateway")
    assert not tracing.exporting()
    asked = charging_pb2.ChargeRequest()
    spans = [tracing.span("x"), tracing.serving("/a.B/C"), tracing.calling(asked, "127.0.0.1:1")]
    assert all(span is tracing.NOTHING for span in spans)
    await tracing.stop(1.0)


@pytest.mark.parametrize("off", [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_the_standard_switches_turn_it_off(monkeypatch: pytest.MonkeyPatch, off: tuple[str, str]) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(*off)
    tracing.start("gateway")
    assert not tracing.exporting()


def test_another_protocol_than_grpc_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with pytest.raises(StartupError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL='http/protobuf' must be grpc"):
        tracing.start("gateway")
    assert not tracing.exporting()


@pytest.mark.parametrize(
    ("request_", "method"),
    [
        (charging_pb2.ChargeRequest(), "/gridmesh.v1.ChargingService/Charge"),
        (charging_pb2.ChargeBatchRequest(), "/gridmesh.v1.ChargingService/ChargeBatch"),
        (operations_pb2.SetLimitRequest(), "/gridmesh.v1.OperationsService/SetLimit"),
        (reports_pb2.ResolveChargeRequest(), "/gridmesh.v1.LoadReportService/ResolveCharge"),
    ],
)
def test_a_call_is_named_after_its_request(
    request_: charging_pb2.ChargeRequest | operations_pb2.SetLimitRequest, method: str
) -> None:
    assert tracing._method_of(request_) == method
