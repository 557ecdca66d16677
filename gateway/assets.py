"""The live page's files: read once, checked again at each load by their hash, and nothing from anywhere else."""

from hashlib import sha256
from pathlib import Path

from gateway.asgi import HTML, Header, Request, Response, empty
from gateway.operation import Operation

_FOLDER = Path(__file__).parent / "page"
_MEDIA = {
    ".html": HTML,
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
}
# Only scripts and styles of ours that are files, and only this gateway is asked; nobody frames the page, whose buttons
# cut power.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Asset:
    """One file."""

    def __init__(self, path: Path) -> None:
        self._body = path.read_bytes()
        self._media = _MEDIA[path.suffix]
        self._tag = f'"{sha256(self._body).hexdigest()[:16]}"'
        self._headers: list[Header] = [
            (b"etag", self._tag.encode()),
            (b"cache-control", b"no-cache"),  # kept, and asked about each time: a new version is seen at once
            (b"content-security-policy", _POLICY),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]

    async def show(self, request: Request) -> Response:
        """The file, or 304 where the client has it."""
        if self._tag in request.header(b"if-none-match"):
            return empty(304, self._headers)
        return Response(self._body, self._media, 200, self._headers)


def index() -> Asset:
    """The page."""
    return Asset(_FOLDER / "index.html")


def parts() -> list[Operation]:
    """What the page loads. No part of the API, and so of no document."""
    files = sorted(path for path in _FOLDER.iterdir() if path.suffix in _MEDIA and path.suffix != ".html")
    return [
        Operation(path.name, "GET", f"/page/{path.name}", "page", path.name, Asset(path).show, ()) for path in files
    ]
