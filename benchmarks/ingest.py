"""Table d: what it costs a balancer to follow a thousand substations. `python -m benchmarks.ingest`.

Two processes on loopback. One is the balancer's side: production channels, subscriptions, desk and view under
uvloop, two streams over each of its connections. The other plays the substations, every one at an address of
its own (127.x.y.z), so that no two channels share a connection. For each it answers the stream of admissions
with the end of an empty snapshot and holds it open, and sends reports of real content and size at the asked
rate, each with the next sequence and the moment of its sending.

The substations speak HTTP/2 by hand, so that the side that is not measured stays cheap and leaves a core to the
one that is. Sends are spread at random over milliseconds, each in a segment of its own, as those of independent
substations are. A client that does not keep up is sent no more than HTTP/2 lets it be sent.

Printed are CPU time (user and system, all threads) of both processes over the measured time, and the age of
reports, wall clock when one has been applied to the view less the moment of its sending, in whole milliseconds.
`--bare` reads the same streams without doing anything with what comes: the floor under any balancer that uses
grpc.aio.
"""

import argparse
import asyncio
import multiprocessing
import os
import resource
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from multiprocessing.connection import Connection
from random import Random
from typing import cast

import uvloop
from prometheus_client import CollectorRegistry

from balancer import wire
from balancer.changes import Changes
from balancer.desk import Desk, Settled
from balancer.metrics import BalancerMetrics
from balancer.peers import Peer, Peers
from balancer.subscriptions import Subscription, Subscriptions
from balancer.view import Load, LoadView
from gridmesh.v1 import reports_pb2
from mesh import logs
from mesh.charge import Key
from mesh.clock import SystemClock, seconds
from mesh.model import LimitSource
from mesh.outlook import GRID_MS, Outlook
from mesh.units import MJ_PER_KWH

STREAMS = 1_000
RATES = (10, 1)
WARM_UP_S, MEASURED_S = 10.0, 15.0
INTERVAL_MS = 1_000
TICK_S = 0.001
FILES = 8_192
PATIENCE_S = 20.0
CONNECTED_S = 60.0


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds."""

    warm_up_s: float
    measured_s: float


@dataclass(frozen=True, slots=True)
class Span:
    """The measured time, in monotonic seconds, which are the same in every process of a machine."""

    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one process over the measured time. `ages_ms` is sorted, and empty where there is no view."""

    cpu_s: float
    reports: int
    connections: int
    ages_ms: list[int]
    switches: int

    def age_ms(self, share: float) -> int:
        return self.ages_ms[int(share * (len(self.ages_ms) - 1))]


async def measured(span: Span, count: Callable[[], int]) -> tuple[float, int, int]:
    """CPU seconds of this process, by how much `count` grew, and switches of context, over the span."""
    await asyncio.sleep(span.begin_s - seconds())
    usage, counted = resource.getrusage(resource.RUSAGE_SELF), count()
    await asyncio.sleep(span.end_s - seconds())
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    switches = after.ru_nvcsw + after.ru_nivcsw - usage.ru_nvcsw - usage.ru_nivcsw
    return cpu_s, count() - counted, switches


# --- the substations --------------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
ACK, END_HEADERS = 1, 4
INITIAL_WINDOW = 4
# Before each gRPC message: whether it is compressed, and its length.
PREFIX = 5
MOST_INTERVAL_S = 60
# `:status: 200` from the static table, then a literal content-type (name 31 of that table).
RESPONSE = b"\x88\x0f\x10\x10application/grpc"
HEAD = struct.Struct(">BHBBI")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    length = len(payload)
    return HEAD.pack(length >> 16, length & 0xFFFF, kind, flags, stream) + payload


def message(stream: int, body: bytes) -> bytes:
    """One gRPC message in a DATA frame."""
    return frame(DATA, 0, stream, struct.pack(">BI", 0, len(body)) + body)


def first_load(number: int, now: int) -> Load:
    """A substation of 400 kW with 44 cars."""
    return Load(
        substation_id=f"substation-{number:04}",
        epoch=now,
        sequence=1_000_000,
        admission_sequence=300_000,
        generated_at_ms=now,
        rated_w=400_000,
        limit_w=352_500,
        limit_source=LimitSource.SO,
        demand_w=488_400,
        required_w=201_373,
        floor_w=182_160,
        committed_w=352_417,
        granted_w=349_981,
        measured_w=331_112,
        active_sessions=44,
        charge_points=120,
        free_charge_points=71,
        accepting=True,
        ahead=Outlook(
            tuple(kwh * MJ_PER_KWH for kwh in accumulate([0, *[23] * (len(GRID_MS) - 1)])),
            tuple(kwh * MJ_PER_KWH for kwh in accumulate([0, *[17] * (len(GRID_MS) - 1)])),
        ),
    )


class Substation:
    """What one of them says, to whoever listens."""

    def __init__(self, number: int, clock: SystemClock) -> None:
        self._clock = clock
        self._said = reports_pb2.StreamLoadReportsResponse(report=wire.report_of(first_load(number, clock.now_ms())))
        self.listener: Talk | None = None
        self.sent = 0

    def report(self) -> None:
        """Sends the next report."""
        if self.listener is not None:
            report = self._said.report
            report.sequence += 1
            report.demand_kw = 400 + report.sequence % 100
            report.generated_at.FromMilliseconds(self._clock.now_ms())
            self.sent += self.listener.say(self._said.SerializeToString())

    def end_of_snapshot(self) -> bytes:
        """There are no admissions."""
        report = self._said.report
        position = reports_pb2.AdmissionPosition(epoch=report.epoch, sequence=report.admission_sequence)
        phase = reports_pb2.ADMISSION_PHASE_SNAPSHOT_END
        return reports_pb2.StreamAdmissionsResponse(phase=phase, position=position).SerializeToString()


class Talk(asyncio.Protocol):
    """One connection: as much HTTP/2 as a gRPC client needs that opens two streams and only listens."""

    def __init__(self, substation: Substation) -> None:
        self._substation = substation
        self._transport: asyncio.WriteTransport
        self._received = b""
        self._greeted = False
        # That of reports; 0 is none.
        self._stream = 0
        # How many bytes may be sent before the client says that it has read some: in all, and of reports.
        self._window = self._initial_window = self._stream_window = 65_535

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are no subclass
        self._transport.write(frame(SETTINGS, 0, 0))

    def connection_lost(self, _: Exception | None) -> None:
        self._ended()

    def _ended(self) -> None:
        self._stream = 0
        if self._substation.listener is self:
            self._substation.listener = None

    def data_received(self, data: bytes) -> None:
        data = self._received + data
        if not self._greeted and len(data) >= len(PREFACE):
            self._greeted, data = True, data[len(PREFACE) :]
        while self._greeted and len(data) >= HEAD.size:
            high, low, kind, flags, stream = HEAD.unpack_from(data)
            end = HEAD.size + (high << 16) + low
            if len(data) < end:
                break
            self._frame(kind, flags, stream, data[HEAD.size : end])
            data = data[end:]
        self._received = data

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._settings(payload)
        elif kind == PING and not flags & ACK:
            self._transport.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self._widen(stream, int.from_bytes(payload, "big"))
        elif kind == DATA and len(payload) >= PREFIX:
            self._asked(stream, payload[PREFIX:])
        elif kind == RST_STREAM and stream == self._stream:
            self._ended()

    def _settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW:
                self._stream_window += value - self._initial_window
                self._initial_window = value
        self._transport.write(frame(SETTINGS, ACK, 0))

    def _widen(self, stream: int, by: int) -> None:
        if stream == 0:
            self._window += by
        elif stream == self._stream:
            self._stream_window += by

    def _asked(self, stream: int, request: bytes) -> None:
        # Paths are compressed from their second use on; who names an interval asks for reports.
        interval_s = reports_pb2.StreamLoadReportsRequest.FromString(request).interval.seconds
        self._transport.write(frame(HEADERS, END_HEADERS, stream, RESPONSE))
        if 0 < interval_s <= MOST_INTERVAL_S:
            self._stream, self._stream_window = stream, self._initial_window
            self._substation.listener = self
            self._substation.report()
        else:
            self._transport.write(message(stream, self._substation.end_of_snapshot()))

    def say(self, report: bytes) -> bool:
        """Whether the client had room for it."""
        size = PREFIX + len(report)
        if size > min(self._window, self._stream_window):
            return False
        self._window -= size
        self._stream_window -= size
        self._transport.write(message(self._stream, report))
        return True


async def send_all(made: list[Substation], rate: float, rng: Random) -> None:
    """Each of them at its own phase. A late tick is made up for at once."""
    ticks = round(1 / rate / TICK_S)
    due: list[list[Substation]] = [[] for _ in range(ticks)]
    for one in made:
        due[rng.randrange(ticks)].append(one)
    begin, tick = seconds(), 0
    while True:
        await asyncio.sleep(begin + tick * TICK_S - seconds())
        while tick * TICK_S <= seconds() - begin:
            for one in due[tick % ticks]:
                one.report()
            tick += 1


async def substations(pipe: Connection, streams: int, rate: float) -> None:
    """Sends the port, and the figures at the end of the span that comes through the pipe. Serves until killed."""
    clock, loop, port = SystemClock(), asyncio.get_running_loop(), 0
    made = [Substation(number, clock) for number in range(streams)]
    for one, host in zip(made, hosts(streams), strict=True):
        server = await loop.create_server(partial(Talk, one), host, port)
        port = server.sockets[0].getsockname()[1]
    pipe.send(port)
    sending = asyncio.create_task(send_all(made, rate, Random(1)))
    span = await loop.run_in_executor(None, pipe.recv)
    cpu_s, sent, switches = await measured(span, lambda: sum(one.sent for one in made))
    pipe.send(Figures(cpu_s, sent, sum(one.listener is not None for one in made), [], switches))
    await sending


def hosts(count: int) -> list[str]:
    """So many addresses of the loopback."""
    return [f"127.{1 + n // 62_500}.{n // 250 % 250}.{1 + n % 250}" for n in range(count)]


# --- the balancer -----------------------------------------------------------------------------------


class Ages:
    """How old each report is when it has been applied."""

    def __init__(self, view: LoadView, clock: SystemClock, changes: Changes) -> None:
        self._view = view
        self._clock = clock
        self._changes = changes
        self.ages_ms: list[int] = []

    def applied(self, address: str) -> None:
        """What the servers of this process are told, and what is measured."""
        self._changes.changed()
        load = self._view[address].load
        if load is not None:
            self.ages_ms.append(self._clock.now_ms() - load.generated_at_ms)


async def begun(pipe: Connection, times: Times, connected: Callable[[], bool]) -> Span:
    """Once all are connected and warm: however long that takes on a busy machine, it is not what is measured."""
    async with asyncio.timeout(CONNECTED_S):
        while not connected():  # noqa: ASYNC110 - both kinds of readers only count
            await asyncio.sleep(0.05)
    begin_s = seconds() + times.warm_up_s
    span = Span(begin_s, begin_s + times.measured_s)
    pipe.send(span)
    return span


async def until_killed() -> None:
    """Stays connected: the other side has yet to count its connections."""
    await asyncio.Event().wait()


async def balancer(pipe: Connection, addresses: list[str], times: Times) -> None:
    """The part of a balancer that follows substations, put together as its `__main__` does."""
    clock, rng, changes = SystemClock(), Random(), Changes()
    metrics = BalancerMetrics(CollectorRegistry())
    desk = Desk(addresses, INTERVAL_MS, rng)
    peers = Peers(addresses, rng)
    ages = Ages(desk.view, clock, changes)

    def settled(_: list[Settled], __: list[Key]) -> None:
        """There are no doubts here."""

    def subscribe(peer: Peer) -> Subscription:
        on_change = partial(ages.applied, peer.address)
        return Subscription(peer, desk, clock, rng, INTERVAL_MS, metrics, on_change, settled)

    subscriptions = Subscriptions(peers, subscribe)

    def followed() -> int:
        return sum(known.caught_up is not None and known.load is not None for known in desk.view)

    subscriptions.start()
    span = await begun(pipe, times, lambda: followed() == len(addresses))
    cpu_s, reports, switches = await measured(span, lambda: len(ages.ages_ms))
    pipe.send(Figures(cpu_s, reports, followed(), sorted(ages.ages_ms[-reports:]), switches))
    await until_killed()


class Bare:
    """Reads and forgets."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.count = 0

    async def reports(self) -> None:
        request = reports_pb2.StreamLoadReportsRequest()
        request.interval.FromMilliseconds(INTERVAL_MS)
        await self._peer.channel.channel_ready()
        async for _ in self._peer.reports.StreamLoadReports(request):
            self.count += 1

    async def admissions(self) -> None:
        await self._peer.channel.channel_ready()
        async for _ in self._peer.reports.StreamAdmissions(reports_pb2.StreamAdmissionsRequest()):
            pass


async def bare(pipe: Connection, addresses: list[str], times: Times) -> None:
    """What grpc.aio alone takes."""
    readers = [Bare(peer) for peer in Peers(addresses, Random())]
    tasks = [asyncio.create_task(stream) for one in readers for stream in (one.reports(), one.admissions())]

    def followed() -> int:
        return sum(one.count > 0 for one in readers)

    span = await begun(pipe, times, lambda: followed() == len(addresses))
    cpu_s, reports, switches = await measured(span, lambda: sum(one.count for one in readers))
    pipe.send(Figures(cpu_s, reports, followed(), [], switches))
    await until_killed()
    await asyncio.gather(*tasks)


# --- both -------------------------------------------------------------------------------------------


def _run_substations(pipe: Connection, streams: int, rate: float) -> None:
    _many_files()
    uvloop.run(substations(pipe, streams, rate))


def _run_balancer(pipe: Connection, addresses: list[str], times: Times, is_bare: bool) -> None:
    _many_files()
    logs.configure("balancer", "text", "warning")
    uvloop.run(bare(pipe, addresses, times) if is_bare else balancer(pipe, addresses, times))


def _many_files() -> None:
    """A connection is a file, and so is an address that is listened at."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, most), most))


def _received(pipe: Connection, timeout_s: float) -> object:
    if not pipe.poll(timeout_s):
        raise TimeoutError("a process of the benchmark does not answer")
    return pipe.recv()


def play(streams: int, rate: float, warm_up_s: float, measured_s: float, is_bare: bool) -> tuple[Figures, Figures]:
    """The balancer's figures and the substations'."""
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    server = processes.Process(target=_run_substations, args=(theirs, streams, rate), daemon=True)
    server.start()
    try:
        port = _received(ours, PATIENCE_S)
        addresses = [f"{host}:{port}" for host in hosts(streams)]
        mine, its = processes.Pipe()
        times = Times(warm_up_s, measured_s)
        client = processes.Process(target=_run_balancer, args=(its, addresses, times, is_bare), daemon=True)
        client.start()
        ours.send(_received(mine, CONNECTED_S + PATIENCE_S))
        read = _received(mine, warm_up_s + measured_s + PATIENCE_S)
        sent = _received(ours, PATIENCE_S)
        client.kill()
        client.join()
    finally:
        server.kill()
        server.join()
    assert isinstance(read, Figures)
    assert isinstance(sent, Figures)
    return read, sent


def show(label: str, span_s: float, read: Figures, sent: Figures) -> None:
    """One row."""
    age = f"{read.age_ms(0.5):4} / {read.age_ms(0.99):4}" if read.ages_ms else "   - /    -"
    each_us = 1e6 * read.cpu_s / max(1, read.reports)
    print(
        f"{label:<16} {read.connections:11} {read.reports / span_s:9.0f} {read.cpu_s / span_s:6.3f} {each_us:10.1f} "
        f"{read.switches / max(1, read.reports):8.2f} {age:>12} {sent.reports / span_s:8.0f} "
        f"{sent.cpu_s / span_s:6.3f} {os.getloadavg()[0]:6.2f}",
        flush=True,
    )


def main() -> None:
    """Prints a row for each rate, or for those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--rate", type=float, action="append", help="reports a second of each; may be given again")
    parser.add_argument("--warm-up", type=float, default=WARM_UP_S, help="seconds")
    parser.add_argument("--measured", type=float, default=MEASURED_S, help="seconds")
    parser.add_argument("--bare", action="store_true", help="read and do nothing")
    asked = parser.parse_args()
    print(
        f"{'':<16} {'connections':>11} {'reports/s':>9} {'cores':>6} {'us/report':>10} {'switches':>8} "
        f"{'age p50/p99':>12} {'sent/s':>8} {'cores':>6} {'load':>6}"
    )
    for rate in asked.rate or RATES:
        read, sent = play(asked.streams, rate, asked.warm_up, asked.measured, asked.bare)
        show(f"{'bare, ' if asked.bare else ''}{rate:g}/s each", asked.measured, read, sent)


if __name__ == "__main__":
    main()
