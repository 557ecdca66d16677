"""The gateway as a process: how it starts, refuses to, and stops."""

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.running import CAR, SESSION_ID, Context, FakeBalancer, Message, hangs, served

ROOT = Path(__file__).parents[2]


async def start(**settings: object) -> Process:
    environ = {"PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}", "PATH": os.environ["PATH"]}
    told = {"PORT": 0, "METRICS_PORT": 0, **settings}
    environ |= {f"GATEWAY_{name}": str(value) for name, value in told.items()}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", stdout=PIPE, stderr=PIPE, env=environ, cwd=ROOT
    )


@asynccontextmanager
async def running(**settings: object) -> AsyncIterator[tuple[Process, dict[str, Any]]]:
    """A process that listens, and its first log line."""
    process = await start(**settings)
    try:
        assert process.stdout is not None
        yield process, json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("setting", ["PORT", "METRICS_PORT"])
async def test_a_port_in_use_is_one_line_and_exit_2(setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await start(**{setting: port})
        _, error = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert error.decode().count("\n") == 1
    assert f"127.0.0.1:{port}" in error.decode()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"PORT": "x"}, "GATEWAY_PORT='x' is not a whole number"),
        ({"PORT": 70000}, "GATEWAY_PORT='70000' must be from 0 to 65535"),
        ({"BALANCERS": "nowhere"}, "GATEWAY_BALANCERS='nowhere' must be host:port"),
        ({"TIMEOUT_S": 0}, "GATEWAY_TIMEOUT_S='0' must be from"),
        ({"HOST": "256.1.1.1"}, "256.1.1.1"),
    ],
)
async def test_a_bad_setting_is_one_line_and_exit_2(settings: dict[str, Any], says: str) -> None:
    process = await start(**settings)
    _, error = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert error.decode().count("\n") == 1
    assert says in error.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_streams_finishes_requests_and_exits_0(number: signal.Signals) -> None:
    came, may_answer = asyncio.Event(), asyncio.Event()

    async def slow(request: Message, context: Context) -> None:
        came.set()
        await may_answer.wait()

    fake = FakeBalancer(answers={"Charge": slow, "WatchSession": hangs})
    async with served(fake) as port, running(BALANCERS=f"127.0.0.1:{port}") as (process, first):
        assert (first["event"], first["host"]) == ("listening", "127.0.0.1")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{first['port']}", timeout=10) as http:
            metrics = await http.get(f"http://127.0.0.1:{first['metrics_port']}/metrics")
            assert "# TYPE http_requests_total counter" in metrics.text
            charging = asyncio.create_task(http.post("/v1/charges", json=CAR))
            await came.wait()
            async with http.stream("GET", f"/v1/charges/{SESSION_ID}/events") as events:
                lines = events.aiter_lines()
                assert await anext(lines) == "event: session"
                process.send_signal(number)
                assert [line async for line in lines if line.startswith("event")] == ["event: error"]
            may_answer.set()
            assert (await charging).status_code == 201
        assert await asyncio.wait_for(process.wait(), 3) == 0
        output, error = await process.communicate()
        assert not error
        assert json.loads(output.splitlines()[-1])["event"] == "stopped"


async def test_it_stops_while_the_balancer_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with running(BALANCERS=f"127.0.0.1:{silent.getsockname()[1]}") as (process, _):
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 3) == 0
