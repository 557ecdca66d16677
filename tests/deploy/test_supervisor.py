"""The supervisor with stand-in children: what it restarts, what it says, in which order it stops."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.supervisor import CannotStart, Command, Pace, how_it_ended, supervise
from tests.mesh_processes import ROOT, eventually, wait_for

SERVES = "import signal; print('up', flush=True); signal.sigwait([signal.SIGTERM]); print('bye')"
BLOCKED = f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); {SERVES}"
QUICK = Pace(first=0.02, most=0.08, steady=30, stop=5)


def child(name: str, program: str) -> Command:
    return Command(name, (sys.executable, "-c", program), {})


class Said(list[tuple[str, str]]):
    """What the supervisor printed: (who, line)."""

    def say(self, who: str, line: str) -> None:
        self.append((who, line))

    def by(self, who: str) -> list[str]:
        return [line for name, line in self if name == who]


@asynccontextmanager
async def supervised(said: Said, *stages: list[Command], pace: Pace = QUICK) -> AsyncIterator[asyncio.Event]:
    """Runs the supervisor until the block ends."""
    stopping = asyncio.Event()
    task = asyncio.create_task(supervise(stages, said.say, stopping, pace))
    try:
        yield stopping
    finally:
        stopping.set()
        await task


def has(said: Said, who: str, line: str) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return line in said.by(who)

    return condition


async def test_the_last_stage_stops_first() -> None:
    said = Said()
    async with supervised(said, [child("a", BLOCKED), child("b", BLOCKED)], [child("c", BLOCKED)]):
        for name in "abc":
            await eventually(has(said, name, "up"), 10)
    assert said[-3:][0] == ("c", "bye")
    assert {("a", "bye"), ("b", "bye")} == set(said[-2:])


async def test_who_is_told_to_stop_with_all_others_is_not_started_again() -> None:
    said, slow = Said(), BLOCKED.replace("print('bye')", "import time; time.sleep(0.5); print('bye')")
    async with supervised(
        said, [child("a", f"import os; print(os.getpid(), flush=True); {BLOCKED}")], [child("b", slow)]
    ) as stopping:
        for name in "ab":
            await eventually(has(said, name, "up"), 10)
        stopping.set()
        os.kill(int(said.by("a")[0]), signal.SIGTERM)
    assert said.by("a").count("up") == 1
    assert not said.by("")


async def test_a_child_that_dies_is_started_again_later_and_later() -> None:
    said = Said()

    async def tried_five_times() -> bool:
        return said.by("a").count("up") >= 5

    async with supervised(said, [child("a", "print('up'); raise SystemExit(3)")]):
        await eventually(tried_five_times, 20)
    assert said.by("")[:4] == [
        f"a exited with code 3; starting it again in {delay} s" for delay in ("0.02", "0.04", "0.08", "0.08")
    ]


async def test_a_child_that_lived_long_is_started_again_at_once() -> None:
    said = Said()

    async def tried_three_times() -> bool:
        return said.by("a").count("up") >= 3

    async with supervised(said, [child("a", "print('up')")], pace=Pace(first=0.02, most=1, steady=0)):
        await eventually(tried_three_times, 20)
    assert set(said.by("")) == {"a exited with code 0; starting it again in 0.02 s"}


async def test_a_child_that_was_told_something_wrong_stops_everything() -> None:
    said = Said()
    wrong = child("b", "import sys; sys.stderr.write('b: B_PORT=x is not a whole number\\n'); sys.exit(2)")
    with pytest.raises(CannotStart, match=r"^b cannot start: b: B_PORT=x is not a whole number$"):
        await asyncio.wait_for(supervise([[child("a", SERVES)], [wrong]], said.say, asyncio.Event(), QUICK), 20)
    assert said.by("") == []


RUNS_ONCE = """
import pathlib, sys
marker = pathlib.Path(sys.argv[1])
if marker.exists():
    print("a: the disk is full", flush=True)
    sys.exit(2)
marker.touch()
print("up", flush=True)
{then}
"""


def runs_once(tmp_path: Path, then: str) -> Command:
    """Comes up once, and says that it cannot start at every later start."""
    return Command("a", (sys.executable, "-c", RUNS_ONCE.format(then=then), str(tmp_path / "marker")), {})


async def test_a_child_that_has_run_is_started_again_whatever_it_says_then(tmp_path: Path) -> None:
    said = Said()
    again = "a exited with code 2 (a: the disk is full); starting it again in 0.04 s"
    quick = Pace(first=0.02, most=0.08, started=0.1, steady=30, stop=5)
    child_a = runs_once(tmp_path, then="import time; time.sleep(0.3); sys.exit(1)")
    async with supervised(said, [child_a], [child("b", SERVES)], pace=quick):
        await eventually(has(said, "", again), 20)
        await eventually(has(said, "", again.replace("0.04", "0.08")), 20)
        assert "bye" not in said.by("b")


async def test_a_child_that_died_of_its_first_start_has_not_run(tmp_path: Path) -> None:
    said = Said()
    with pytest.raises(CannotStart, match=r"^a cannot start: a: the disk is full$"):
        await asyncio.wait_for(
            supervise([[runs_once(tmp_path, then="sys.exit(1)")]], said.say, asyncio.Event(), QUICK), 20
        )


async def test_a_child_that_takes_long_to_say_that_it_cannot_start_has_not_run() -> None:
    said = Said()
    slow = child("a", "import sys, time; time.sleep(0.3); print('wrong'); sys.exit(2)")
    with pytest.raises(CannotStart, match=r"^a cannot start: wrong$"):
        await asyncio.wait_for(supervise([[slow]], said.say, asyncio.Event(), Pace(started=0.1)), 20)


async def test_a_child_that_does_not_stop_is_killed() -> None:
    said = Said()
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    async with supervised(said, [child("a", deaf)], pace=Pace(stop=0.1)):
        await eventually(has(said, "a", "up"), 10)
    assert said.by("") == ["a did not stop within 0.1 s; killed"]


async def test_a_stop_does_not_wait_for_a_backoff() -> None:
    said = Said()
    async with supervised(said, [child("a", "raise SystemExit(1)")], pace=Pace(first=60, most=60)):
        await eventually(has(said, "", "a exited with code 1; starting it again in 60 s"), 10)


async def test_a_line_beyond_the_buffer_comes_in_pieces() -> None:
    said = Said()
    async with supervised(said, [child("a", f"print('x' * 200_000 + 'y'); {SERVES}")]):
        await eventually(has(said, "a", "up"), 10)
    long = "".join(said.by("a")).partition("up")[0]
    assert long == "x" * 200_000 + "y"


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exited with code 0"), (-9, "was killed by SIGKILL"), (-40, "was killed by signal 40")],
)
def test_how_a_child_ended_is_said_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties a child's life to its parent's only on Linux")
def test_no_child_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = f"""
import asyncio, sys
from deploy.supervisor import Command, supervise
child = "import os, pathlib, signal; pathlib.Path({str(pid_file)!r}).write_text(f'{{os.getpid()}}.'); signal.pause()"
asyncio.run(supervise([[Command("a", (sys.executable, "-c", child), {{}})]], print, asyncio.Event()))
"""
    with subprocess.Popen((sys.executable, "-c", program), cwd=ROOT) as supervisor:
        wait_for(lambda: pid_file.exists() and pid_file.read_text().endswith("."), 20, "the child runs")
        supervisor.kill()
    pid = int(pid_file.read_text().rstrip("."))
    wait_for(lambda: not _runs(pid), 5, "the child is gone")


def _runs(pid: int) -> bool:
    """Whether the process lives; one that ended and was not waited for by anybody does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
