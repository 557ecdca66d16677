"""Plays a plan on a real mesh and writes down what happened."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from mesh.clock import seconds
from tests.faults.clients import Car, Clients
from tests.faults.mesh import Mesh
from tests.faults.plan import QUIET_S, Round
from tests.faults.records import PLACES, RESIDENTS, Log, Span
from tests.faults.scenes import Scenes
from tests.faults.witness import Witness

RATED_KW, TIME_SCALE = 100.0, 60
FINISH_S = 15.0


async def play(rounds: list[Round], seed: int, folder: Path, per_s: float, until_s: float | None = None) -> Log:
    """The log of a run. `until_s`: no round begins later than that."""
    log, began = Log(seed, RATED_KW, TIME_SCALE), seconds()

    def clock() -> float:
        return seconds() - began

    mesh = Mesh(folder, Random(f"{seed} mesh"), RATED_KW, TIME_SCALE)
    try:
        await mesh.start()
        await _play(mesh, rounds, log, clock, per_s, until_s)
    finally:
        await mesh.stop()
    Witness(mesh, log, clock).read_ledgers()
    return log


def _leaves(group: BaseExceptionGroup[AssertionError]) -> Iterator[BaseException]:
    for one in group.exceptions:
        yield from _leaves(one) if isinstance(one, BaseExceptionGroup) else (one,)


async def _play(
    mesh: Mesh, rounds: list[Round], log: Log, clock: Callable[[], float], per_s: float, until_s: float | None
) -> None:
    clients, witness = Clients(mesh, log, clock, Random(f"{log.seed} clients")), Witness(mesh, log, clock)
    scenes = Scenes(mesh, clients, witness, log, clock, Random(f"{log.seed} scenes"))
    await mesh.whole()
    witness.start()
    residents = [Car(clients.new_key(), allowed=(place,)) for place in PLACES for _ in range(RESIDENTS)]
    await asyncio.gather(*(clients.charge(car) for car in residents))
    traffic = asyncio.create_task(clients.traffic(per_s))
    try:
        for scenes_of_round in rounds:
            if until_s is not None and clock() > until_s:
                break
            async with asyncio.TaskGroup() as group:
                for scene in scenes_of_round:
                    group.create_task(scenes.play(scene))
            since = clock()
            await mesh.whole()
            whole = clock()
            log.whole_after.append(whole - since)
            await asyncio.sleep(QUIET_S)
            log.whole.append(Span(whole, clock()))
    except* AssertionError as stuck:
        # Something never happened that had to: the run is over, and what is known so far is looked at.
        log.wrong += [str(one) for one in _leaves(stuck)]
    await clients.finish(FINISH_S)
    await traffic
    log.wrong += [f"{name} is not running" for name in mesh.died()]
    log.wrong += [f"a stack trace in the log of {name}" for name in mesh.parts if "Traceback (" in mesh.log_of(name)]
    await witness.left()
    for place in PLACES:
        await witness.read_meter(place)
    await witness.stop()
