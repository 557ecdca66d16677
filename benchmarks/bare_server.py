"""The floor under a substation's Charge: grpc.aio, one row in SQLite, group commit, and nothing else.

`python -m benchmarks.bare_server --port PORT --ledger FILE --like FOLDER` decodes a ChargeRequest, keeps one row with
the durability of a substation, and answers a ChargeResponse; both as large as those of a substation, of which the
folder has one each. No admission, power, keys, streams, metrics, interceptors; a session has ended when it begins.
"""

import argparse
import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import grpc
import msgspec
import uvloop

from deploy.parts import LOOPBACK
from gridmesh.v1 import charging_pb2, charging_pb2_grpc
from mesh.clock import SystemClock
from mesh.ids import session_id, uuid7
from substation import schema
from substation.records import SessionRecord

ANSWER, ROW = "answer.binpb", "row.msgpack"
Row = tuple[str, int, bytes]
_INSERT = "INSERT INTO sessions VALUES (?, ?, ?)"


class Ledger:
    """Rows that came while one commit was under way are the next one."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        schema.migrate(self._db)
        self._writer = ThreadPoolExecutor(1)
        self._rows: list[Row] = []
        self._gathering: asyncio.Future[None] | None = None
        self._wake = asyncio.Event()

    async def keep(self, row: Row) -> None:
        """Returns when the row is on the disk."""
        if self._gathering is None:
            self._gathering = asyncio.get_running_loop().create_future()
            self._wake.set()
        self._rows.append(row)
        await self._gathering

    async def commit_forever(self) -> None:
        """One commit after the other."""
        while await self._wake.wait():
            self._wake.clear()
            rows, self._rows = self._rows, []
            written, self._gathering = self._gathering, None
            await asyncio.get_running_loop().run_in_executor(self._writer, self._commit, rows)
            if written is not None:
                written.set_result(None)

    def _commit(self, rows: Sequence[Row]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(_INSERT, rows)
        self._db.execute("COMMIT")


class Bare(charging_pb2_grpc.ChargingServiceServicer):
    """Charge, with nothing that a substation does for it but the commit."""

    def __init__(self, ledger: Ledger, like: Path) -> None:
        self._ledger = ledger
        self._answer = charging_pb2.ChargeResponse.FromString((like / ANSWER).read_bytes())
        self._record = msgspec.msgpack.decode((like / ROW).read_bytes(), type=SessionRecord)
        self._encode = msgspec.msgpack.Encoder().encode
        self._clock, self._rng = SystemClock(), Random()

    async def Charge(  # noqa: N802 - the contract's name
        self, request: charging_pb2.ChargeRequest, context: object
    ) -> charging_pb2.ChargeResponse:
        """Keeps a row and answers."""
        answer, record, now = charging_pb2.ChargeResponse(), self._record, self._clock.now_ms()
        answer.CopyFrom(self._answer)
        answer.session.request_id = record.request_id = request.request_id
        answer.session.vehicle_id = record.vehicle_id = request.vehicle_id
        record.session_id = session_id(answer.session.substation_id, uuid7(now, self._rng))
        answer.session.session_id = record.session_id
        record.started_ms = record.ended_ms = now
        await self._ledger.keep((record.session_id, now, self._encode(record)))
        return answer


async def serve(port: int, ledger: Ledger, like: Path) -> None:
    """Serves until the process ends."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    bare = Bare(ledger, like)  # type: ignore[abstract] # the other methods stay UNIMPLEMENTED
    charging_pb2_grpc.add_ChargingServiceServicer_to_server(bare, server)
    server.add_insecure_port(f"{LOOPBACK}:{port}")
    await server.start()
    await ledger.commit_forever()


def main() -> None:
    """Serves as told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--like", type=Path, required=True)
    told = parser.parse_args()
    uvloop.run(serve(told.port, Ledger(told.ledger), told.like))


if __name__ == "__main__":
    main()
