"""Our mesh beside Envoy in front of the same substations.

`make bench-envoy` makes the tables g of benchmarks/README.md anew (12 minutes; ROUNDS and SECONDS a cell can be set).
For what a charge costs us, with nothing written and without Envoy:

    .venv/bin/python -m benchmarks.envoy --arms ours --concurrency 64 --seconds 5 --rounds 1

starts our mesh alone, asks it for 5 s with 64 in flight, and prints charges per second, latency, and CPU seconds per
10,000 charges of each process (from /proc, from the first request until the last session has ended), the client's
beside it. `--tables` names others of the tables: grpc, batch, direct (a substation beside a bare server), idle. The arm
with Envoy needs `make .venv-bench/.bench` and .venv-bench/bin/python.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from benchmarks import arms, envoy_proxy, envoy_tables, ledgers, loads, render, usage
from benchmarks.arms import Arm
from benchmarks.loads import Asked, Load
from mesh.clock import seconds
from tests.mesh_processes import Mesh

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5
SECONDS = 4.0
WARM_UP_S = 1.0
# Sessions that outlive a batch, so that its utilisation is that of its placements; about 0.2 s, as at 0.25 s and 6,700
# a second more than 2,000 lived at a time.
LONGER_KWH = 0.12
IDLE_S, IDLE_SUBSTATIONS = 20.0, 10

Record = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One load with its numbers in flight."""

    name: str
    load: Load
    in_flight: Sequence[int]
    energy_kwh: float = arms.ENERGY_KWH
    # Empty: all that run. There is nothing in Envoy to compare a batch with.
    arms: Sequence[str] = ()


_MESHES = (arms.OURS, arms.UNCOALESCED)
TABLES: Mapping[str, Sequence[Kind]] = {
    "http": (Kind("one charge, HTTP", loads.http_single, (1, 16, 64, 256)),),
    "grpc": (Kind("one charge, gRPC", loads.grpc_single, (16, 64)),),
    "batch": (
        Kind("one charge, HTTP", loads.http_single, (64,), LONGER_KWH, _MESHES),
        Kind("batch of 100, HTTP", loads.http_batch, (2,), LONGER_KWH, (arms.OURS,)),
        Kind("one charge, gRPC", loads.grpc_single, (64,), LONGER_KWH, _MESHES),
        Kind("batch of 100, gRPC", loads.grpc_batch, (2,), LONGER_KWH, (arms.OURS,)),
    ),
    "direct": (Kind("one charge, gRPC", loads.grpc_single, (16, 64)),),
    "idle": (),
}


# --- one cell ---------------------------------------------------------------------------------------


def measure(arm: Arm, kind: Kind, in_flight: int, for_s: float) -> Record:
    """One cell. WrongAnswerError, or AssertionError where the ledgers say otherwise than the replies."""
    before, own_before = arm.cpu_s(), usage.own_cpu_s()
    asked = kind.load(arm, in_flight, for_s, kind.energy_kwh)
    own = usage.own_cpu_s() - own_before
    arm.settle()
    used = {name: after - before[name] for name, after in arm.cpu_s().items()}
    rss = arm.rss_mb()
    by_substation = arm.ledgers.news()
    kept = [one for sessions in by_substation.values() for one in sessions]
    check(asked, kept)
    return {
        "load": kind.name,
        "arm": arm.name,
        "in_flight": in_flight,
        "charges": len(kept),
        **_speed(asked),
        "cpu": {name: each * 10_000 / len(kept) for name, each in used.items()},
        "client_cpu": own * 10_000 / len(kept),
        "rss_mb": rss,
        "live": ledgers.peak_live(kept),
        "cv": ledgers.spread(by_substation),
    }


def check(asked: Asked, kept: Sequence[ledgers.Kept]) -> None:
    """Every charge was answered once, with a session of its own, and the ledgers hold these and no others."""
    told = list(asked.read())
    assert len(told) == len(asked.times) * asked.charges_per_call, "a charge was not answered"
    assert len({one.session_id for one in told}) == len(told), "two charges were told one session"
    assert sorted(told) == sorted((one.request_id, one.session_id) for one in kept), "the ledgers hold others"


def _speed(asked: Asked) -> Record:
    """Of what came while it was asked: what was still under way then is served with fewer in flight."""
    in_time = [one for one in asked.times if one.came_s < asked.ends_s]
    took = sorted(one.came_s - one.sent_s for one in in_time or asked.times)
    return {
        "per_second": len(in_time) * asked.charges_per_call / (asked.ends_s - asked.began_s),
        **{f"p{percent}_ms": took[len(took) * percent // 100] * 1000 for percent in (50, 99)},
    }


def show(record: Record) -> str:
    """One line of a cell."""
    cpu = " + ".join(f"{name} {each:.2f}" for name, each in record["cpu"].items())
    return (
        f"{record['load']}, {record['in_flight']:3} in flight  {record['arm']:20} {record['per_second']:7.0f}/s  "
        f"p50 {record['p50_ms']:6.1f} ms  p99 {record['p99_ms']:6.1f} ms  "
        f"CPU s per 10,000: {sum(record['cpu'].values()):.2f} = {cpu}; client {record['client_cpu']:.2f}  "
        f"live {record['live']}  CV {record['cv']:.3f}"
    )


# --- tables -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    names: Sequence[str]
    rounds: int
    for_s: float
    # None: those of each table.
    in_flight: Sequence[int] | None


def compare(table: str, running: Sequence[Arm], plan: Plan) -> Iterator[Record]:
    """Every cell of a table, once a round. Who begins moves on with each round."""
    for number in range(plan.rounds):
        first = number % len(running)
        for kind in TABLES[table]:
            for in_flight in plan.in_flight or kind.in_flight:
                for arm in _of(kind, (*running[first:], *running[:first])):
                    record = {"table": table, "round": number, **measure(arm, kind, in_flight, plan.for_s)}
                    print(show(record), flush=True)
                    yield record


def _of(kind: Kind, running: Sequence[Arm]) -> Iterator[Arm]:
    return (arm for arm in running if not kind.arms or arm.name in kind.arms)


@contextmanager
def warm(names: Sequence[str], folder: Path) -> Iterator[list[Arm]]:
    """These arms, after their first second."""
    with ExitStack() as stopping:
        running = [stopping.enter_context(arms.running(arms.NAMES[name], folder / name)) for name in names]
        for arm in running:
            measure(arm, TABLES["http"][0], 16, WARM_UP_S)
        yield running


def side_by_side(tables: Sequence[str], plan: Plan, folder: Path) -> Iterator[Record]:
    """Those tables whose arms are meshes."""
    with warm(plan.names, folder) as running:
        for table in tables:
            yield from compare(table, running, plan)


def direct(plan: Plan, folder: Path) -> Iterator[Record]:
    """A substation beside a bare server."""
    with arms.direct(folder) as running:
        for arm in running:
            measure(arm, TABLES["direct"][0], 16, WARM_UP_S)
        yield from compare("direct", running, plan)


def idle(folder: Path) -> Iterator[Record]:
    """How long each takes to start, then what a mesh that nobody asks uses."""
    with Mesh(folder, rated_kw=(100.0,) * IDLE_SUBSTATIONS) as mesh:
        first, *others = mesh.substations
        ready_s = {"substation": _timed(partial(mesh.start, first))}
        mesh.start(*others)
        ready_s |= {name: _timed(partial(mesh.start, name)) for name in ("balancer", "gateway")}
        groups = {"gateway": ("gateway",), "balancer": ("balancer",), "substation": mesh.substations}
        pids = {name: [mesh.pid(part) for part in parts] for name, parts in groups.items()}
        before = {name: sum(map(usage.cpu_s, own)) for name, own in pids.items()}
        Event().wait(IDLE_S)
        for name, own in pids.items():
            cores = (sum(map(usage.cpu_s, own)) - before[name]) / IDLE_S / len(own)
            rss = sum(map(usage.rss_mb, own)) / len(own)
            yield {"table": "idle", "process": name, "cores": cores, "rss_mb": rss, "ready_s": ready_s[name]}


def _timed(work: Callable[[], object]) -> float:
    began_s = seconds()
    work()
    return seconds() - began_s


def about(plan: Plan) -> Record:
    """What the figures are of."""
    return {
        "table": "about",
        "envoy": envoy_proxy.version(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "rounds": plan.rounds,
        "seconds": plan.for_s,
    }


def make(tables: Sequence[str], plan: Plan) -> Iterator[Record]:
    """All records of these tables."""
    meshes = [table for table in tables if table not in {"direct", "idle"}]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Measured while nothing else runs.
        yield from idle(folder / "idle") if "idle" in tables else ()
        yield from direct(plan, folder / "direct") if "direct" in tables else ()
        yield from side_by_side(meshes, plan, folder) if meshes else ()


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=arms.NAMES, default=list(arms.NAMES))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=["http"])
    parser.add_argument("--concurrency", nargs="+", type=int, metavar="N", help="in flight; else as in each table")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of a cell ({SECONDS:g})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"each measures every cell once ({ROUNDS})")
    parser.add_argument("--record", action="store_true", help="all tables, written to results/ and README.md")
    told = parser.parse_args()
    if "envoy" in told.arms and not envoy_proxy.BINARY.exists():
        parser.error("no Envoy beside this Python: `make .venv-bench/.bench`, .venv-bench/bin/python; or --arms ours")
    plan = Plan(told.arms, told.rounds, told.seconds, told.concurrency)
    records = list(make(list(TABLES) if told.record else told.tables, plan))
    if told.record:
        records.insert(0, about(plan))
        (RESULTS / "envoy.json").write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n")
        render.show(RESULTS, ("envoy",))
    print(envoy_tables.show(records))


if __name__ == "__main__":
    main()
