"""HTTP as a load generator needs it: one connection that asks as fast as it is answered.

An HTTP library would be the bottleneck.
"""

import asyncio
import json
from typing import Any, Self


class Connection:
    """One to a gateway. `close` it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, address: str) -> Self:
        """To host:port."""
        host, _, port = address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    def close(self) -> None:
        self._writer.close()

    async def post(self, path: str, body: object = None, key: str = "") -> tuple[int, dict[str, str], Any]:
        """Status, headers in lower case, and the body."""
        sent = b"" if body is None else json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: mesh\r\ncontent-type: application/json\r\ncontent-length: {len(sent)}\r\n"
        )
        head += f"idempotency-key: {key}\r\n" if key else ""
        self._writer.write(f"{head}\r\n".encode() + sent)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return (
            int(lines[0].split()[1]),
            headers,
            json.loads(await self._reader.readexactly(int(headers["content-length"]))),
        )
