"""The CPU gate, on the processes that make the figures."""

import subprocess
import sys

import pytest

from benchmarks import cost
from benchmarks.cost import Slices, Verdict
from tests.mesh_processes import ROOT

PATIENCE_S = 120


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "benchmarks.cost", *flags)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_no_hop_costs_more_than_its_record(capfd: pytest.CaptureFixture[str]) -> None:
    done = run()
    if done.returncode == cost.NO_RECORD:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    if cheaper := [line for line in done.stdout.splitlines() if " below " in line]:
        with capfd.disabled():
            # Workers of pytest-xdist have no standard output of their own.
            sys.stderr.write("\n".join(["", *cheaper, ""]))


def test_a_hop_that_is_a_fifth_slower_does_not_pass() -> None:
    done = run("--slower", "gateway, single")
    assert done.returncode == cost.ABOVE, done.stdout + done.stderr
    assert done.stdout.startswith("gateway, single: ")
    assert "ABOVE" in done.stdout
    assert "--record" in done.stdout


def test_a_hop_is_above_from_15_percent_on_and_below_from_15_percent_less() -> None:
    tried = {change: Verdict("balancer", 100.0, 100.0 * (1 + change / 100)) for change in (-16, -14, 0, 14, 16)}
    assert [change for change, verdict in tried.items() if verdict.above] == [16]
    assert [change for change, verdict in tried.items() if verdict.below] == [-16]
    assert str(tried[16]).startswith(
        "balancer: 116.0, recorded 100.0 (+16.0%) ABOVE by more than 15%; if that is wanted:"
    )
    assert "a new record is due: python -m benchmarks.cost --record" in str(tried[-16])
    assert str(tried[14]) == "balancer: 114.0, recorded 100.0 (+14.0%)"


def test_a_machine_that_is_slower_by_any_factor_makes_no_hop_dearer() -> None:
    calibration_s, charge_s = [0.001, 0.0011, 0.002] * 10, [0.0001, 0.00012, 0.0005] * 10
    slow = Slices([3 * one for one in calibration_s], [3 * one for one in charge_s])
    assert slow.ratio == pytest.approx(Slices(calibration_s, charge_s).ratio)


def test_there_is_a_record_of_every_hop() -> None:
    assert all(set(costs) == set(cost.HOPS) for costs in cost.load().values())
