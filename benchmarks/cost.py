"""The CPU gate: what a charge costs at each hop, held against a record. `python -m benchmarks.cost`.

CPU time depends on the machine and on who else uses it. So each hop (`benchmarks.hops`) is measured relative to a fixed
mix of work of the same kind, the calibration: a cost is in thousandths of one calibration per charge. The two run in
turn, in slices of a millisecond or some more, of which enough are served without an interruption; of both the
10th percentile counts. A hop that seems above the gate is measured for longer before that is said.

It has to be a process of its own: what another has loaded, how it logs, and what it leaves to the garbage collector
would be in the figures.

Exit code 0 when no hop costs more than 15 % above its record, 1 when one does, 2 when there is no record for this
version of Python. `--record` makes the record anew, as the median of five processes: where a cost is wanted, or has
gone down.
"""

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from statistics import median

import msgspec
import uvloop

from benchmarks import hops
from benchmarks.hops import Aside, Hop, VirtualLoop
from gridmesh.v1 import charging_pb2
from mesh import logs

RECORD = Path(__file__).parent / "results" / "cost.json"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
GATE = 0.15
ABOVE, NO_RECORD = 1, 2
ROUNDS, WARM_UP = 80, 5
# So many times the rounds, before a hop is said to be above.
PATIENCE = 4
PROCESSES = 5
# What `--slower` adds to a hop.
SLOWER = 0.2

Ratios = Mapping[str, float]
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"substation": VirtualLoop}
HOPS: dict[str, Callable[[Aside], AbstractAsyncContextManager[Hop]]] = {
    "gateway, single": hops.gateway_singles,
    "gateway, batch": hops.gateway_batch,
    "balancer": hops.balancer,
    "substation": hops.substation,
}


# --- the calibration --------------------------------------------------------------------------------


class _Thing:
    __slots__ = ("name", "value")

    def __init__(self, name: str, value: int) -> None:
        self.name = name
        self.value = value

    def plus(self, other: "_Thing") -> int:
        return self.value + other.value


class _Body(msgspec.Struct):
    request_id: str
    vehicle_id: str
    energy_kwh: float


class Calibration:
    """Work that no change of the mesh changes: calls, lookups, small objects, messages, JSON, tasks."""

    def __init__(self) -> None:
        self._things = {f"thing-{number}": _Thing(f"thing-{number}", number * 7919 % 512) for number in range(512)}
        self._bodies = [_Body(f"charge-{number}", "EV-1", 0.02) for number in range(100)]
        self._decode = msgspec.json.Decoder(list[_Body]).decode
        request = charging_pb2.ChargeBatchRequest()
        for number in range(30):
            one = request.items.add().request
            one.request_id, one.vehicle_id, one.owner = f"charge-{number:012}", "EV-1", "anonymous"
            one.max_power_kw, one.energy_kwh, one.attempt_id = 11, 0.02, f"{number:036}"
            one.not_after.FromMilliseconds(1_800_000_000_000 + number)
        self._request = request.SerializeToString()

    async def run(self) -> None:
        """Once."""
        self._lookups()
        self._heap()
        self._messages()
        self._json()
        await self._tasks()

    def _lookups(self) -> None:
        for _ in range(2):
            total, found = 0, []
            for name, thing in self._things.items():
                total += thing.plus(self._things[thing.name])
                found.append((name, total))
            {name: _Thing(name, value) for name, value in found}

    def _heap(self) -> None:
        queue: list[tuple[int, str]] = []
        for name, thing in self._things.items():
            heappush(queue, (thing.value, name))
        while queue:
            heappop(queue)

    def _messages(self) -> None:
        for _ in range(3):
            reply = charging_pb2.ChargeBatchResponse()
            for index, item in enumerate(charging_pb2.ChargeBatchRequest.FromString(self._request).items):
                asked, told = item.request, reply.outcomes.add(index=index).response.session
                told.request_id, told.owner, told.attempt_id = asked.request_id, asked.owner, asked.attempt_id
                told.max_power_kw, told.energy_kwh = asked.max_power_kw, asked.energy_kwh
            reply.SerializeToString()

    def _json(self) -> None:
        for _ in range(2):
            self._decode(msgspec.json.encode(self._bodies))

    async def _tasks(self) -> None:
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(64)]
        tasks = [loop.create_task(_told(future)) for future in futures]
        await asyncio.sleep(0)
        for number, future in enumerate(futures):
            future.set_result(number)
        await asyncio.gather(*tasks)


async def _told(future: "asyncio.Future[int]") -> int:
    return await future


# --- measuring --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slices:
    """CPU seconds of one calibration and of one charge, each beside the other."""

    calibration_s: list[float]
    charge_s: list[float]

    @property
    def ratio(self) -> float:
        """What a charge costs, in thousandths of a calibration."""
        return 1000 * _low(self.charge_s) / _low(self.calibration_s)


def _low(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 10]


class Bench:
    """A hop beside the calibration, each on an event loop of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hop: Hop) -> None:
        self._loop = loop
        self._hop = hop
        self._calibrating = uvloop.new_event_loop()
        self._calibration = Calibration()
        self.slices = Slices([], [])
        # The same hop made slower on purpose, beside the same calibrations.
        self.slower = Slices(self.slices.calibration_s, [])

    def warm_up(self) -> None:
        """Slices that do not count."""
        for _ in range(WARM_UP):
            self._slice(0.0)
            self._calibrate()

    def turn(self, *, slower: bool) -> None:
        """A slice of both; `slower`: and one more of the hop, slower by `SLOWER`."""
        self.slices.calibration_s.append(self._calibrate())
        self.slices.charge_s.append(self._slice(0.0))
        if slower:
            # Here too: a hop that follows itself finds the caches warm.
            self.slower.calibration_s.append(self._calibrate())
            self.slower.charge_s.append(self._slice(SLOWER))

    def _calibrate(self) -> float:
        _tidy()
        begun_s = time.process_time()
        self._calibrating.run_until_complete(self._calibration.run())
        return time.process_time() - begun_s

    def _slice(self, slower: float) -> float:
        """Serves one. `slower`: by so much of what it takes, which is more where others use the cores."""
        work = self._loop.run_until_complete(self._hop.prepare())
        _tidy()
        begun_s, before_s = time.process_time(), self._hop.aside.cpu_s

        def took_s() -> float:
            return time.process_time() - begun_s - (self._hop.aside.cpu_s - before_s)

        self._loop.run_until_complete(work())
        _spin(slower * took_s())
        return took_s() / self._hop.charges

    def close(self) -> None:
        self._calibrating.close()


def _tidy() -> None:
    """The collector runs within a slice, as in the services, but each begins with nothing for it to look at."""
    gc.collect()
    gc.freeze()


def _spin(cpu_s: float) -> None:
    until_s = time.process_time() + cpu_s
    while time.process_time() < until_s:
        pass


@contextmanager
def opened(name: str) -> Iterator[Bench]:
    """The bench of that hop."""
    loop = LOOPS.get(name, uvloop.new_event_loop)()
    opening = HOPS[name](Aside())
    bench = Bench(loop, loop.run_until_complete(opening.__aenter__()))
    try:
        bench.warm_up()
        yield bench
    finally:
        bench.close()
        loop.run_until_complete(opening.__aexit__(None, None, None))
        loop.close()


# --- judging ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a hop costs, and what its record says, in thousandths of a calibration per charge."""

    hop: str
    recorded: float
    measured: float

    @property
    def change(self) -> float:
        return self.measured / self.recorded - 1

    @property
    def above(self) -> bool:
        return self.change > GATE

    @property
    def below(self) -> bool:
        return self.change < -GATE

    def __str__(self) -> str:
        text = f"{self.hop}: {self.measured:.1f}, recorded {self.recorded:.1f} ({self.change:+.1%})"
        if self.above:
            text += f" ABOVE by more than {GATE:.0%}; if that is wanted: python -m benchmarks.cost --record"
        if self.below:
            text += f" below by more than {GATE:.0%}; a new record is due: python -m benchmarks.cost --record"
        return text


def verdicts(recorded: Ratios, measured: Ratios) -> list[Verdict]:
    """Of each hop that was measured."""
    return [Verdict(hop, recorded[hop], ratio) for hop, ratio in measured.items()]


def measure(settled: Callable[[Ratios], bool] = lambda _: True) -> Ratios:
    """What each hop costs, measured for as long as that is not `settled`, within patience."""
    with ExitStack() as stack:
        benches = {name: stack.enter_context(opened(name)) for name in HOPS}
        for _ in range(PATIENCE):
            for _ in range(ROUNDS):
                for bench in benches.values():
                    bench.turn(slower=False)
            ratios = {name: bench.slices.ratio for name, bench in benches.items()}
            if settled(ratios):
                break
    return ratios


def judged(recorded: Ratios) -> list[Verdict]:
    """All hops against their record."""
    return verdicts(recorded, measure(lambda ratios: not any(verdict.above for verdict in verdicts(recorded, ratios))))


def slowed(name: str) -> list[Verdict]:
    """One hop made slower, held against itself as it is: measured in turn, and for long, as 20 % is not far from 15."""
    with opened(name) as bench:
        for _ in range(PATIENCE * ROUNDS):
            bench.turn(slower=True)
        return verdicts({name: bench.slices.ratio}, {name: bench.slower.ratio})


# --- the record -------------------------------------------------------------------------------------


def load() -> dict[str, dict[str, float]]:
    """Costs by hop, by version of Python."""
    found: dict[str, dict[str, float]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return found


def record() -> dict[str, float]:
    """Measures in several processes, as their memory is never laid out alike, and writes the medians down."""
    command = (sys.executable, "-m", "benchmarks.cost", "--json")
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(PROCESSES)]  # noqa: S603
    costs = {name: round(median(run[name] for run in runs), 2) for name in HOPS}
    RECORD.write_text(json.dumps({**load(), PYTHON: costs}, indent=2) + "\n")
    return costs


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="make the record anew")
    parser.add_argument("--json", action="store_true", help="only measure, and print the costs as JSON")
    slower = f"see the gate close: hold this hop, made slower by {SLOWER:.0%}".replace("%", "%%") + ", against itself"
    parser.add_argument("--slower", choices=HOPS, help=slower)
    asked = parser.parse_args()
    logs.configure("cost", "text", "warning")
    if asked.record:
        print(json.dumps(record(), indent=2))
        return 0
    if asked.json:
        print(json.dumps(measure()))
        return 0
    recorded = load().get(PYTHON, {})
    if recorded.keys() != HOPS.keys() and not asked.slower:
        print(f"no record for Python {PYTHON}: python -m benchmarks.cost --record")
        return NO_RECORD
    said = slowed(asked.slower) if asked.slower else judged(recorded)
    print("\n".join(str(verdict) for verdict in said))
    return ABOVE if any(verdict.above for verdict in said) else 0


if __name__ == "__main__":
    sys.exit(main())
