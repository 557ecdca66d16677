"""Table f: what traces and log lines cost a charge. `python -m benchmarks.tracing --before CHECKOUT`.

Several meshes of one gateway, one balancer and one substation run at the same time: the code of a checkout from before
there were traces, and this code in each of its modes. They are given a few hundred charges each, in turn, again and
again; CPU time is what their processes used in their own turns, all threads. Told is the median of the rounds,
and that of the ratios to the first mesh in the same round, so that what else runs on the machine meets all of them.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median, quantiles

from deploy import parts
from deploy.parts import LOOPBACK, Part, Station
from mesh.clock import seconds
from tests.mesh_processes import ROOT, free_port
from tests.scenarios.receiver import Receiver, listening

IN_FLIGHT = 8
READY_S = 30.0
PARTS = ("gateway", "balancer", "substation")
# Full, and gone, within a second: each mesh has the same few live sessions in every round.
CAR = b'{"vehicle_id":"EV-1","max_power_kw":11,"energy_kwh":0.05}'
TIME_SCALE = 600
TRACEPARENT = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"


@dataclass
class Side:
    """One mesh, and what it is asked with."""

    name: str
    root: Path = ROOT
    level: str = "warning"
    header: bytes = b""
    environ: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    pids: dict[str, int] = field(default_factory=dict)
    # CPU seconds per 10,000 charges, by part, of each round.
    rounds: list[dict[str, float]] = field(default_factory=list)

    def totals(self) -> list[float]:
        return [sum(one.values()) for one in self.rounds]


@contextmanager
def running(side: Side, folder: Path) -> Iterator[None]:
    """Its processes."""
    station = parts.substation(Station("a", 1000.0, 500, TIME_SCALE, folder), free_port(), free_port())
    balancer = parts.balancer([station], free_port(), free_port())
    gateway = parts.gateway([balancer], free_port(), free_port())
    side.port = gateway.port
    with ExitStack() as stopping:
        for name, part in zip(PARTS, (gateway, balancer, station), strict=True):
            side.pids[name] = stopping.enter_context(_process(side, part))
        yield


@contextmanager
def _process(side: Side, part: Part) -> Iterator[int]:
    part = part.told(LOG_FORMAT="json", LOG_LEVEL=side.level)
    paths = os.pathsep.join((str(side.root), str(side.root / "generated")))
    environ = {**os.environ, **part.environ, **side.environ, "PYTHONPATH": paths, "NO_PROXY": LOOPBACK}
    command = (sys.executable, "-m", part.module)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environ, cwd=side.root, stdout=log)  # noqa: S603
        try:
            yield process.pid
        finally:
            process.terminate()
            process.wait(10)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, all threads, in nanoseconds' resolution."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Client:
    """One connection to a gateway, one charge at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, header: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._head = b"POST /v1/charges HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" + header

    async def charge(self) -> int:
        """The reply's status."""
        self._writer.write(self._head + b"content-length: %d\r\n\r\n" % len(CAR) + CAR)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        await self._reader.readexactly(length)
        return int(head[9:12])


async def charge(side: Side, charges: int) -> None:
    """So many charges. A refusal would be cheaper than a charge: there must be none."""
    left = count(charges, -1)

    async def one_after_another() -> None:
        reader, writer = await asyncio.open_connection(LOOPBACK, side.port)
        client = Client(reader, writer, side.header)
        while next(left) > 0:
            status = await client.charge()
            if status != 201:
                raise RuntimeError(f"{side.name}: status {status}")
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(one_after_another() for _ in range(IN_FLIGHT)))


async def ready(side: Side) -> None:
    """Waits until a charge succeeds."""
    end = seconds() + READY_S
    while True:
        try:
            return await charge(side, 1)
        except (OSError, RuntimeError, asyncio.IncompleteReadError):
            if seconds() > end:
                raise
            await asyncio.sleep(0.2)


async def measure(sides: Sequence[Side], rounds: int, charges: int) -> None:
    """Fills `rounds` of all sides. Who begins moves on with each round."""
    for side in sides:
        await ready(side)
        await charge(side, charges)
    for number in range(rounds):
        first = number % len(sides)
        for side in (*sides[first:], *sides[:first]):
            before = {name: cpu_s(pid) for name, pid in side.pids.items()}
            await charge(side, charges)
            used = {name: cpu_s(pid) - before[name] for name, pid in side.pids.items()}
            side.rounds.append({name: each * 10_000 / charges for name, each in used.items()})


def row(side: Side, first: Side) -> str:
    """One line of the table."""
    ratios = [100 * (mine / other - 1) for mine, other in zip(side.totals(), first.totals(), strict=True)]
    low, _, high = quantiles(ratios, n=4)
    cells = [f"{median(one[name] for one in side.rounds):.2f}" for name in PARTS]
    change = "" if side is first else f"{median(ratios):+.1f} ({low:+.1f} to {high:+.1f})"
    return f"| {side.name} | {' | '.join(cells)} | {median(side.totals()):.2f} | {change} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="What traces and log lines cost a charge.")
    parser.add_argument("--before", type=Path, default=ROOT, help="a checkout to compare with (default: this one)")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--charges", type=int, default=300, help="of each mesh in each round")
    parser.add_argument("--sides", type=int, default=6, help="only the first so many meshes, for more rounds of them")
    told = parser.parse_args()
    receiver, port = Receiver(), free_port()
    sides = [
        Side("before", root=told.before.resolve()),
        # How much of a difference is chance.
        Side("before, again", root=told.before.resolve()),
        Side("no export"),
        Side("no export, a `traceparent` came", header=TRACEPARENT),
        Side("no export, a line per decision", level="info"),
        Side("exported", environ={"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{port}"}),
    ][: told.sides]
    with ExitStack() as stopping, tempfile.TemporaryDirectory() as folder:
        stopping.enter_context(listening(receiver, port))
        for number, side in enumerate(sides):
            stopping.enter_context(running(side, Path(folder) / str(number)))
        asyncio.run(measure(sides, told.rounds, told.charges))
    print("| mesh | " + " | ".join(PARTS) + " | all | change %, quartiles |")
    print("|" + " --- |" * 6)
    for side in sides:
        print(row(side, sides[0]))


if __name__ == "__main__":
    main()
