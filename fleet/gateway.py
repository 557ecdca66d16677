"""The gateway as its clients see it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from fleet.replies import NO_ANSWER, InDoubt, Load, Register, Reply, read_loads, read_register, read_reply

# A repeat after no answer at all comes soon, then later.
FIRST_REPEAT_S, LAST_REPEAT_S = 0.2, 2.0


class GatewayError(Exception):
    """The gateway cannot be used. One line that says why."""


class Gateway:
    """Calls of one client; at most as many at a time as it has connections."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def loads(self) -> dict[str, Load]:
        """Each substation's last report. GatewayError when there is no such answer."""
        try:
            response = await self._http.get("/v1/substations")
            if response.status_code == httpx.codes.OK:
                return read_loads(response.json())
        except httpx.TransportError as error:
            raise GatewayError(f"no gateway answers at {self._http.base_url}: {_words(error)}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise GatewayError(f"{self._http.base_url} does not answer like a gateway: {error!r}") from None
        raise GatewayError(f"the gateway at {self._http.base_url} answers {response.status_code}: {_detail(response)}")

    async def charge(self, key: str, body: dict[str, Any], until: float, counts: Counter[str]) -> Reply:
        """Asks, and while the outcome is in doubt asks the same again, until the loop's clock says `until`.

        Each doubt is counted under its reason.
        """
        loop, pause = asyncio.get_running_loop(), FIRST_REPEAT_S
        while True:
            reply = await self._charge_once(key, body)
            if not isinstance(reply, InDoubt):
                return reply
            counts[reply.reason] += 1
            wait = pause if reply.reason == NO_ANSWER else reply.retry_after_s
            if loop.time() + wait > until:
                return reply
            await asyncio.sleep(wait)
            pause = min(2 * pause, LAST_REPEAT_S)

    async def _charge_once(self, key: str, body: dict[str, Any]) -> Reply:
        try:
            response = await self._http.post("/v1/charges", json=body, headers={"idempotency-key": key})
        except httpx.TransportError:
            return InDoubt(NO_ANSWER)
        return read_reply(response.status_code, response.headers, _json(response))

    async def register(self, session_id: str) -> Register | None:
        """What a session has come to; None when the mesh does not know it. GatewayError when it cannot say now."""
        try:
            response = await self._http.get(f"/v1/charges/{session_id}")
        except httpx.TransportError as error:
            raise GatewayError(_words(error)) from None
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.status_code != httpx.codes.OK:
            raise GatewayError(f"{response.status_code}: {_detail(response)}")
        return read_register(response.json())


def _json(response: httpx.Response) -> Any:  # noqa: ANN401
    try:
        return response.json()
    except ValueError:
        return None


def _detail(response: httpx.Response) -> str:
    body = _json(response)
    return str(body.get("detail", body)) if isinstance(body, dict) else response.text[:200].strip() or "nothing"


def _words(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__


@asynccontextmanager
async def open_gateway(url: str, connections: int) -> AsyncIterator[Gateway]:
    """A client of the gateway at `url`."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    # Waiting for a free connection is the caller's wish, not an error.
    timeout = httpx.Timeout(10, pool=None)
    try:
        http = httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout, trust_env=False)
    except (httpx.InvalidURL, ValueError) as error:
        raise GatewayError(f"{url!r} is no address of a gateway: {error}") from None
    async with http:
        yield Gateway(http)
