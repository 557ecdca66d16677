"""A gateway without a network, and an event loop whose clock jumps: a day passes in no time, always alike."""

import asyncio
import json
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from fleet.gateway import Gateway

T = TypeVar("T")


class _NoWaiting(selectors.DefaultSelector):
    """Waits for nothing: what would have been slept is added to the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits for somebody else"
        self.now += max(0.0, timeout)
        return super().select(0)


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = _NoWaiting()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now


def in_no_time(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs it on a clock that starts at 0 and jumps to whatever is next."""
    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        return runner.run(coroutine)


Charge = Callable[[str, dict[str, Any]], httpx.Response]


@dataclass
class FakeMesh:
    """Answers as the gateway does. `charge` may be replaced; by default it admits in turns."""

    substations: tuple[str, ...] = ("a", "b", "c")
    time_scale: dict[str, float] = field(default_factory=dict)
    over_limit_s: dict[str, float] = field(default_factory=dict)
    asked: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    charge: Charge | None = None

    def gateway(self) -> Gateway:
        return Gateway(httpx.AsyncClient(base_url="http://mesh", transport=httpx.MockTransport(self._answer)))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        match request.method, request.url.path.split("/")[2:]:
            case "POST", ["charges"]:
                key, body = request.headers["idempotency-key"], json.loads(request.content)
                self.asked.append((asyncio.get_running_loop().time(), key, body))
                return (self.charge or self.admit)(key, body)
            case "GET", ["charges", session_id]:
                session = self.sessions.get(session_id)
                return httpx.Response(200, json={"session": session}) if session else httpx.Response(404)
            case "GET", ["substations"]:
                return httpx.Response(200, json={"substations": [self._substation(name) for name in self.substations]})
        return httpx.Response(404)

    def admit(self, key: str, body: dict[str, Any], delivered: float = 1.0) -> httpx.Response:
        """A session that is soon over, with that share of the energy it asked for."""
        name = self.substations[len(self.sessions) % len(self.substations)]
        session = {
            "session_id": f"{name}.{key}",
            "substation_id": name,
            "state": "ENDED",
            "delivered_kwh": delivered * body["energy_kwh"],
        }
        self.sessions[f"{name}.{key}"] = session
        return httpx.Response(201, json={"session": session})

    def _substation(self, name: str) -> dict[str, Any]:
        mine = sum(session["substation_id"] == name for session in self.sessions.values())
        report = {
            "substation_id": name,
            "epoch": 1,
            "limit_power_kw": 100.0,
            "demand_kw": 11.0 * mine,
            "committed_kw": min(100.0, 11.0 * mine),
            "active_sessions": mine,
            "time_scale": self.time_scale.get(name, 60.0),
            "over_limit_seconds": self.over_limit_s.get(name, 0.0),
        }
        return {"substation_id": name, "state": "FRESH", "report": report}


def problem(status: int, reason: str, retry_after: str | None = None) -> httpx.Response:
    headers = {"retry-after": retry_after} if retry_after else {}
    return httpx.Response(status, json={"reason": reason, "detail": "in words"}, headers=headers)
