"""What a line of the log looks like, and how many there are at most."""

import json
import subprocess
import sys

from structlog.testing import capture_logs

from mesh import logs
from mesh.errors import Refused, Unavailable
from mesh.model import ErrorReason

LINE = """
import structlog
from mesh import logs, tracing
logs.configure("balancer", "json", "info")
logs.bind(substation="a")
tracing.came_with("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
log = structlog.get_logger()
log.debug("left out")
log.info("placed", request_id="k-1", odd={1, 2}.__class__, none=float("nan"))
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broken")
"""


def test_a_line_is_one_json_object_that_begins_with_when_and_who() -> None:
    printed = subprocess.run([sys.executable, "-c", LINE], capture_output=True, check=True, text=True).stdout
    placed, broken = map(json.loads, printed.splitlines())
    assert list(placed)[:7] == ["timestamp", "level", "service", "substation", "event", "trace_id", "request_id"]
    assert (placed["level"], placed["service"], placed["substation"]) == ("info", "balancer", "a")
    assert placed["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert placed["timestamp"].endswith("Z")
    assert (placed["odd"], placed["none"]) == ("<class 'set'>", None), "what JSON does not know is no defect"
    assert "ZeroDivisionError" in broken["exception"]


def test_a_flood_passes_only_so_far_and_is_counted() -> None:
    flood = logs.Flood(2)
    assert [flood.passes(now) for now in (10.0, 10.1, 10.2, 10.9)] == [True, True, False, False]
    assert flood.passes(11.0)
    assert (flood.left_out(), flood.left_out()) == (2, 0)


def test_a_refusal_says_why_and_when_to_come_back_and_an_unknown_outcome_warns() -> None:
    with capture_logs() as lines:
        logs.refused(
            "k" * 1_000, Refused(ErrorReason.NO_CHARGE_POINT, "all taken", 1_500), not_at=["a NO_CHARGE_POINT"]
        )
        logs.refused("k-2", Unavailable(ErrorReason.OUTCOME_UNKNOWN, "asked and not answered"))
    refused, unknown = lines
    assert refused == {
        "event": "refused",
        "log_level": "info",
        "request_id": "k" * 128,
        "reason": "NO_CHARGE_POINT",
        "why": "all taken",
        "retry_after_s": 1.5,
        "not_at": ["a NO_CHARGE_POINT"],
    }
    assert (unknown["event"], unknown["log_level"]) == ("outcome unknown", "warning")
