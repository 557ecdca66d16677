"""The gateway as its clients see it."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from fleet.events import Event, read_events
from fleet.replies import NO_ANSWER, InDoubt, Load, Register, Reply, read_loads, read_register, read_reply

# A repeat after no answer at all comes soon, then later.
FIRST_REPEAT_S, LAST_REPEAT_S = 0.2, 2.0
# The gateway breaks the silence of a stream every 15 s.
SILENCE_S = 20.0


class GatewayError(Exception):
    """What was asked of the gateway did not come about. One line that says why.

    GatewayError
      Unreachable   nobody answers, or who answers is no gateway
      Refusal       the gateway says no, and why
    """

    # Whether a charge that was asked for may have been admitted all the same.
    in_doubt = False
    retry_after_s: int | None = None

    def with_hint(self, hint: str) -> "GatewayError":
        """The same error, which also says what to do."""
        return type(self)(f"{self}; {hint}")

    def as_json(self) -> dict[str, Any]:
        """In the form of the gateway's problems."""
        return {"title": "The gateway cannot be reached", "detail": str(self), "reason": "GATEWAY_UNREACHABLE"}


class Unreachable(GatewayError):
    """There is no gateway to talk to."""

    def __init__(self, words: str, *, in_doubt: bool = False) -> None:
        super().__init__(words)
        self.in_doubt = in_doubt


class Refusal(GatewayError):
    """The gateway's answer is a problem (RFC 9457)."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        self.problem = dict(problem)
        self.status = int(problem.get("status", 0))
        self.retry_after_s = problem.get("retry_after_s")
        self.in_doubt = isinstance(read_reply(self.status, {}, self.problem), InDoubt)
        again = f"; try again in {self.retry_after_s} s" if self.retry_after_s else ""
        super().__init__(f"{problem.get('title')}: {problem.get('detail')} ({problem['reason']}){again}")

    def with_hint(self, hint: str) -> "Refusal":
        return Refusal({**self.problem, "detail": f"{self.problem.get('detail')}; {hint}"})

    def as_json(self) -> dict[str, Any]:
        return self.problem


@dataclass(frozen=True)
class Lost:
    """A stream broke; it is asked for again in `retry_s` seconds."""

    why: str
    retry_s: float


class Gateway:
    """Calls of one client; at most as many at a time as it has connections."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    @property
    def url(self) -> str:
        return str(self._http.base_url)

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The JSON of the answer. Refusal with the gateway's problem, Unreachable when there is no such answer."""
        return self.read(await self.send(method, path, body=body, query=query, headers=headers))

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """The answer, whatever it is. Unreachable when there is none."""
        try:
            return await self._http.request(method, path, json=body, params=query, headers=headers)
        except httpx.RequestError as error:
            raise self._unreachable(error) from None

    async def loads(self) -> dict[str, Load]:
        """Each substation's last report. GatewayError when there is no such answer."""
        answer = await self.call("GET", "/v1/substations")
        try:
            return read_loads(answer)
        except (KeyError, TypeError) as error:
            raise self.stranger(repr(error)) from None

    async def charge_one(
        self, key: str, body: Mapping[str, Any], patience_s: float, on_doubt: Callable[[], None]
    ) -> dict[str, Any]:
        """The reply to one charge, asked for again while its outcome is in doubt. GatewayError when there is none.

        A repeat with the same key finds the session that an unanswered request made. Before the first, `on_doubt`.
        """
        loop, pause, doubted = asyncio.get_running_loop(), FIRST_REPEAT_S, False
        until = loop.time() + patience_s
        while True:
            try:
                return await self.call("POST", "/v1/charges", body=body, headers={"idempotency-key": key})
            except GatewayError as error:
                if not error.in_doubt and not (doubted and isinstance(error, Unreachable)):
                    raise
                wait = error.retry_after_s or pause
                if loop.time() + wait > until:
                    raise error.with_hint(f"repeat with --key {key} to learn whether the car was admitted") from None
                if not doubted:
                    on_doubt()
                doubted = True
            await asyncio.sleep(wait)
            pause = min(2 * pause, LAST_REPEAT_S)

    async def events(self, path: str, last_id: str = "") -> AsyncGenerator[Event, None]:
        """One stream until it ends. GatewayError when it breaks, or is refused."""
        headers = {"last-event-id": last_id} if last_id else {}
        timeout = httpx.Timeout(10, read=SILENCE_S)
        try:
            async with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
                if response.status_code == httpx.codes.NO_CONTENT:  # its end was told before
                    yield Event("end", {})
                    return
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    self.read(response)
                async for event in read_events(response.aiter_bytes()):
                    yield event
        except httpx.RequestError as error:
            raise self._unreachable(error) from None
        except ValueError as error:
            raise self.stranger(repr(error)) from None

    async def follow(self, path: str) -> AsyncGenerator[Event | Lost, None]:
        """A stream over all its breaks, each of which is said. Ends with its `end`; Refusal when it will never be."""
        last_id, pause = "", FIRST_REPEAT_S
        while True:
            why = "the stream ended"
            try:
                async with aclosing(self.events(path, last_id)) as events:
                    async for event in events:
                        if event.name == "error":
                            raise Refusal(event.data)
                        last_id, pause = event.event_id or last_id, FIRST_REPEAT_S
                        yield event
                        if event.name == "end":
                            return
            except GatewayError as error:
                if (
                    isinstance(error, Refusal)
                    and 400 <= error.status < 500
                    and error.status != httpx.codes.TOO_MANY_REQUESTS
                ):
                    raise
                why = str(error)
            yield Lost(why, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_REPEAT_S)

    def read(self, response: httpx.Response) -> dict[str, Any]:
        """Its JSON; the same errors as of `call`."""
        body = _json(response)
        if isinstance(body, dict) and response.is_success:
            return body
        if isinstance(body, dict) and "reason" in body:
            raise Refusal({"status": response.status_code, **body})
        if response.is_success:
            raise self.stranger(response.text[:60] or "nothing")
        # A proxy's page, or somebody else: who knows what it did.
        why = f"{self.url} answers {response.status_code}: {_detail(response)}"
        raise Unreachable(why, in_doubt=response.is_server_error)

    def stranger(self, said: str) -> "Unreachable":
        """The error for who answers, but not as a gateway would."""
        return Unreachable(f"{self.url} does not answer like a gateway: {said}", in_doubt=True)

    def _unreachable(self, error: httpx.RequestError) -> "Unreachable":
        unsent = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol))
        return Unreachable(f"no gateway answers at {self.url}: {_words(error)}", in_doubt=not unsent)

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
            response = await self._http.get(path_of("charges", session_id))
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


def _words(error: httpx.RequestError) -> str:
    return str(error) or type(error).__name__


def path_of(*parts: str) -> str:
    """A path under /v1 whose parts may hold any character."""
    return "/".join(("/v1", *(quote(part, safe="") for part in parts)))


@asynccontextmanager
async def open_gateway(url: str, connections: int) -> AsyncIterator[Gateway]:
    """A client of the gateway at `url`."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    # Waiting for a free connection is the caller's wish, not an error.
    timeout = httpx.Timeout(10, pool=None)
    # Over plain HTTP the authorities' certificates are not read: that takes longer than most commands.
    verify = not url.startswith("http:")
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout, verify=verify, trust_env=False) as http:
        yield Gateway(http)
