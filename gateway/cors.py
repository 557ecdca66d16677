"""Which pages of other origins may call the gateway from a browser. Off unless an operator names them."""

import re
from collections.abc import Collection

from gateway.asgi import Header, Request, Response

ANY = "*"
_ORIGIN = re.compile(r"https?://[a-z0-9.\-\[\]:]+")
# What a page may read of a reply besides its body, and send besides what it always may.
_EXPOSED = b"Location, Idempotency-Key, Preference-Applied, Retry-After"
_ACCEPTED = b"Content-Type, Idempotency-Key, Prefer, Last-Event-ID, traceparent"
# A browser asks again after so long at the latest.
_MAX_AGE_S = b"600"


def origin(value: str) -> str | None:
    """A check of a setting: an origin as browsers say it, or *."""
    fits = value == ANY or _ORIGIN.fullmatch(value)
    return None if fits else "must be origins such as https://app.example.com, without a path, or *"


class Cors:
    """Says what browsers ask before they let a page of one of these origins read a reply."""

    def __init__(self, origins: Collection[str]) -> None:
        self._any = ANY in origins
        self._origins = {each.encode("latin-1") for each in origins}

    def headers(self, request: Request) -> list[Header]:
        """For every reply, also of problems. Caches must keep replies to different origins apart."""
        allowed = self._allowed(request)
        said = [] if self._any else [(b"vary", b"Origin")]
        if allowed is None:
            return said
        return [(b"access-control-allow-origin", allowed), (b"access-control-expose-headers", _EXPOSED), *said]

    def preflight(self, request: Request, methods: str) -> Response | None:
        """The reply where a browser asks whether a page may call this path; None for any other request."""
        asked = request.method == "OPTIONS" and request.header(b"access-control-request-method")
        if not asked or self._allowed(request) is None:
            return None
        reply = Response(b"", b"", 204)
        reply.headers = [
            (b"access-control-allow-methods", methods.encode()),
            (b"access-control-allow-headers", _ACCEPTED),
            (b"access-control-max-age", _MAX_AGE_S),
        ]
        return reply

    def _allowed(self, request: Request) -> bytes | None:
        said = request.header(b"origin").encode("latin-1")
        if not said:
            return None
        if self._any:
            return ANY.encode()
        return said if said in self._origins else None
