"""Every way a call to the balancer can fail, as the client of HTTP sees it."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest

from gateway.problems import _TITLES
from mesh.errors import (
    AttemptExpired,
    AttemptFenced,
    InternalError,
    MeshError,
    NotFound,
    PreconditionFailed,
    Refused,
    Unavailable,
)
from mesh.model import ErrorReason
from tests.gateway.running import (
    CAR,
    SESSION_ID,
    Context,
    FakeBalancer,
    Gateway,
    Message,
    aborts,
    eventually,
    fails,
    gateway_before,
    hangs,
    served,
)
from tests.gateway.test_bad_requests import a_problem


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Refused(ErrorReason.NO_CHARGE_POINT, "no plug", 1), 503, "1"),
        (Refused(ErrorReason.NO_CHARGE_POINT, "no plug", 1000), 503, "1"),
        (Refused(ErrorReason.NO_CHARGE_POINT, "no plug", 1001), 503, "2"),
        (Refused(ErrorReason.NO_CHARGE_POINT, "no plug", 0), 503, "1"),
        (Refused(ErrorReason.NO_CHARGE_POINT, "no plug"), 503, "1"),
        (Refused(ErrorReason.FLOOR_ABOVE_LIMIT, "floor", 60_000), 503, "60"),
        (Refused(ErrorReason.TOO_MANY_WAITING, "turns", 2_500), 503, "3"),
        (Refused(ErrorReason.NOT_ACCEPTING, "draining", 5_000), 503, "5"),
        (Refused(ErrorReason.INTERNAL, "of a kind not known here", 5_000), 429, "5"),
        (Unavailable(ErrorReason.NO_SUBSTATION, "nobody", 1_000), 503, "1"),
        (Unavailable(ErrorReason.OUTCOME_UNKNOWN, "repeat", 200), 503, "1"),
        (Unavailable(ErrorReason.LEDGER_UNAVAILABLE, "disk", 1_000), 503, "1"),
        (Unavailable(ErrorReason.SUBSTATION_UNREACHABLE, "gone"), 503, "1"),
        (PreconditionFailed(ErrorReason.KEY_REUSED, "another car"), 422, None),
        (PreconditionFailed(ErrorReason.ATTEMPT_NEWER, "newer"), 400, None),
        (AttemptExpired(ErrorReason.ATTEMPT_EXPIRED, "late"), 504, "1"),
        (AttemptFenced(ErrorReason.ATTEMPT_FENCED, "fenced"), 409, None),
        (NotFound(ErrorReason.SESSION_NOT_FOUND, "no session"), 404, None),
        (NotFound(ErrorReason.SUBSTATION_NOT_FOUND, "no substation"), 404, None),
    ],
    ids=lambda value: f"{value.reason.name}-{value.retry_after_ms}" if isinstance(value, MeshError) else None,
)
async def test_an_error_of_the_mesh_becomes_its_problem(
    gateway: Gateway, error: MeshError, status: int, retry_after: str | None
) -> None:
    gateway.fake.answers["Charge"] = fails(error)
    reply = await gateway.post(CAR)
    body = a_problem(reply, status, error.reason.name)
    assert body["detail"] == error.message
    assert reply.headers.get("retry-after") == retry_after
    assert body.get("retry_after_s") == (None if retry_after is None else int(retry_after))


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        (grpc.StatusCode.CANCELLED, 503, "BALANCER_UNREACHABLE"),
        (grpc.StatusCode.UNKNOWN, 500, "INTERNAL"),
        (grpc.StatusCode.INVALID_ARGUMENT, 400, "INVALID_ARGUMENT"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.NOT_FOUND, 404, "NOT_FOUND"),
        (grpc.StatusCode.ALREADY_EXISTS, 409, "ALREADY_EXISTS"),
        (grpc.StatusCode.PERMISSION_DENIED, 403, "PERMISSION_DENIED"),
        (grpc.StatusCode.UNAUTHENTICATED, 401, "UNAUTHENTICATED"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "RESOURCE_EXHAUSTED"),
        (grpc.StatusCode.FAILED_PRECONDITION, 400, "FAILED_PRECONDITION"),
        (grpc.StatusCode.ABORTED, 409, "ABORTED"),
        (grpc.StatusCode.OUT_OF_RANGE, 400, "OUT_OF_RANGE"),
        (grpc.StatusCode.UNIMPLEMENTED, 501, "UNIMPLEMENTED"),
        (grpc.StatusCode.INTERNAL, 500, "INTERNAL"),
        (grpc.StatusCode.UNAVAILABLE, 503, "BALANCER_UNREACHABLE"),
        (grpc.StatusCode.DATA_LOSS, 500, "INTERNAL"),
    ],
)
async def test_a_status_that_is_not_ours_goes_by_the_usual_table(
    gateway: Gateway, code: grpc.StatusCode, status: int, reason: str
) -> None:
    gateway.fake.answers["GetSession"] = aborts(code)
    reply = await gateway.http.get(f"/v1/charges/{SESSION_ID}")
    a_problem(reply, status, reason)
    assert ("retry-after" in reply.headers) == (status in {429, 503, 504})


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.CANCELLED, 503),
        (grpc.StatusCode.INTERNAL, 503),
        (grpc.StatusCode.UNKNOWN, 503),
        (grpc.StatusCode.DATA_LOSS, 503),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    ],
)
async def test_a_charge_that_was_sent_and_not_answered_is_in_doubt(
    gateway: Gateway, code: grpc.StatusCode, status: int
) -> None:
    gateway.fake.answers["Charge"] = aborts(code)
    reply = await gateway.post(CAR, Idempotency_Key="k-7")
    body = a_problem(reply, status, "OUTCOME_UNKNOWN")
    assert "repeat it with the same Idempotency-Key, k-7" in body["detail"]
    assert reply.headers["retry-after"] == "1"
    assert reply.headers["idempotency-key"] == "k-7"


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT])
async def test_a_charge_that_was_refused_by_a_stranger_is_not_in_doubt(gateway: Gateway, code: grpc.StatusCode) -> None:
    gateway.fake.answers["Charge"] = aborts(code)
    assert (await gateway.post(CAR)).json()["reason"] == code.name


async def test_a_defect_of_the_balancer_is_a_500(gateway: Gateway) -> None:
    gateway.fake.answers["GetSession"] = gateway.fake.answers["Charge"] = fails(InternalError())
    a_problem(await gateway.post(CAR), 500, "INTERNAL")
    a_problem(await gateway.http.get(f"/v1/charges/{SESSION_ID}"), 500, "INTERNAL")


async def test_no_answer_in_time_is_504_and_the_deadline_was_passed_on() -> None:
    fake = FakeBalancer(answers={"GetSession": hangs, "Charge": hangs})
    async with served(fake) as port, gateway_before(port, fake, timeout_s=0.2) as gateway:
        await gateway.connected()
        a_problem(await gateway.http.get(f"/v1/charges/{SESSION_ID}"), 504, "DEADLINE_EXCEEDED")
        a_problem(await gateway.post(CAR), 504, "OUTCOME_UNKNOWN")
    assert all(0 < timeout < 0.3 for timeout in fake.timeouts)


async def test_a_balancer_that_is_not_there_is_503_for_certain_and_found_when_it_comes() -> None:
    fake = FakeBalancer()
    async with served(fake) as port:
        pass  # a port that was free a moment ago
    async with gateway_before(port, fake) as gateway:
        for reply in (
            await gateway.post(CAR),
            await gateway.http.get("/v1/charges"),
            await gateway.http.get("/readyz"),
        ):
            assert a_problem(reply, 503, "BALANCER_UNREACHABLE")["detail"] == "there is no connection to a balancer"
            assert reply.headers["retry-after"] == "1"

        async def admitted() -> bool:
            return (await gateway.post(CAR)).status_code == 201

        async with served(fake, port):
            await eventually(admitted)


async def test_a_balancer_that_dies_under_a_charge_leaves_it_in_doubt() -> None:
    came = asyncio.Event()

    async def comes_and_hangs(request: Message, context: Context) -> None:
        came.set()
        await hangs(request, context)

    fake = FakeBalancer(answers={"Charge": comes_and_hangs})
    async with AsyncExitStack() as balancer:
        port = await balancer.enter_async_context(served(fake))
        async with gateway_before(port, fake) as gateway:
            asked = asyncio.create_task(gateway.post(CAR))
            await came.wait()
            await balancer.aclose()
            a_problem(await asked, 503, "OUTCOME_UNKNOWN")


async def test_a_defect_in_the_gateway_is_a_500_without_its_cause(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(message: Message) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("gateway.translate.session_list", broken)
    reply = await gateway.http.get("/v1/charges")
    a_problem(reply, 500, "INTERNAL")
    assert "secret" not in reply.text
    assert "secret" in capsys.readouterr().out


def test_every_reason_of_the_mesh_has_a_title() -> None:
    assert {reason.name for reason in ErrorReason} <= set(_TITLES)
