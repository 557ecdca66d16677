"""`python -m tests.faults`: pulls plugs on a real mesh and says whether a promise was broken. `make soak`."""

import argparse
import sys
import tempfile
from pathlib import Path
from random import SystemRandom

import msgspec
import uvloop

from mesh import logs
from tests.faults import checker, plan, report, run

PER_S = 20.0
SOAK_PER_S = 34.0


def main() -> int:
    asked = _arguments()
    seed = asked.seed if asked.seed is not None else SystemRandom().randrange(1_000_000)
    again = f"python -m tests.faults --seed {seed} " + ("--short" if asked.short else f"--minutes {asked.minutes:g}")
    print(f"seed {seed}; again with: {again}", flush=True)
    folder = Path(asked.folder or tempfile.mkdtemp(prefix="gridmesh-faults-"))
    if folder.exists() and any(folder.iterdir()):
        print(f"{folder} is not empty: keys of another run would be known there", file=sys.stderr)
        return 2
    logs.configure("faults", "text", "error")
    if asked.short:
        playing = run.play(plan.short(seed), seed, folder, PER_S)
    else:
        rounds = plan.long(seed, asked.minutes)
        playing = run.play(rounds, seed, folder, SOAK_PER_S, 60 * asked.minutes - 20)
    log = uvloop.run(playing)
    (folder / "log.json").write_bytes(msgspec.json.encode(log))
    found = checker.check(log)
    print(report.summary(log, found))
    print(f"logs and ledgers: {folder}")
    return 1 if found else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, help="which faults, and when; the same seed gives the same plan")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--short", action="store_true", help="every deliberate situation once, in less than a minute")
    parser.add_argument("--folder", help="where logs and ledgers go, empty; a new temporary one by default")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
