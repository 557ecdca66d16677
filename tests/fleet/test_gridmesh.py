"""The command line as its users have it: the real command, a real mesh."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.mesh_processes import ROOT, Mesh, free_port, wait_for

COMMAND = (sys.executable, "-m", "deploy.command_line")
BOUND_S = 30
_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]")

Gridmesh = Callable[..., "Answer"]


class Answer:
    """What one command printed, and how it ended."""

    def __init__(self, url: str, argv: tuple[str, ...]) -> None:
        ended = subprocess.run(
            (*COMMAND, *argv),
            env={**os.environ, "GRIDMESH_URL": url},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )
        self.code, self.out, self.err = ended.returncode, ended.stdout, ended.stderr
        assert "Traceback" not in self.err, self.err

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def gridmesh(mesh: Mesh) -> Gridmesh:
    return lambda *argv: Answer(mesh.url, argv)


def charged(gridmesh: Gridmesh, *argv: str) -> dict[str, Any]:
    session: dict[str, Any] = gridmesh("charge", *argv, "--json").json["session"]
    return session


def test_the_command_line_and_the_gateway_are_of_one_version(gridmesh: Gridmesh, mesh: Mesh) -> None:
    version = mesh.http.get("/openapi.json").json()["info"]["version"]
    assert gridmesh("--version").out == f"gridmesh {version}\n"


# --- driving ---------------------------------------------------------------------------------------


def test_a_car_is_charged_and_its_key_finds_it_again(gridmesh: Gridmesh) -> None:
    first = gridmesh("charge", "EV-1", "--energy", "90", "--power", "4", "--departure", "2h", "--key", "once")
    assert (first.code, first.err) == (0, "")
    assert re.match(r"EV-1 at [abc]: charging, 4 kW granted\n", first.out)
    assert re.search(r"placement  \d+% load before, \d+% after; 3 eligible \(least_load_ahead\)", first.out)
    again = gridmesh("charge", "EV-1", "--energy", "90", "--power", "4", "--key", "once", "--json")
    assert again.code == 1
    assert (again.json["status"], again.json["reason"]) == (422, "KEY_REUSED")  # it said nothing of a departure
    assert again.err.startswith("gridmesh: The idempotency key belongs to another request: ")
    assert again.err.count("\n") == 1


def test_a_wrong_request_is_one_line_that_names_each_field(gridmesh: Gridmesh) -> None:
    answer = gridmesh("charge", "EV-1", "--power", "99999", "--energy", "-5")
    assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1)
    assert answer.err.startswith("gridmesh: The request is not valid: energy_kwh: must be ")
    assert answer.err.endswith("max_power_kw: must be above 0 and at most 4000 (INVALID_REQUEST)\n")


def test_a_car_is_waited_for(gridmesh: Gridmesh) -> None:
    answer = gridmesh("charge", "EV-2", "--energy", "0.2", "--at", "b", "--wait")
    assert answer.code == 0
    assert answer.out.endswith("\nended: 0.20 kWh, energy limit reached\n")
    session = charged(gridmesh, "EV-2", "--energy", "0.2", "--wait")
    assert (session["state"], session["delivered_kwh"]) == ("ENDED", 0.2)


def test_a_car_is_watched_until_it_ends(gridmesh: Gridmesh) -> None:
    answer = gridmesh("charge", "EV-3", "--energy", "0.2", "--watch", "--json")
    charge, *events, end = answer.json_lines
    assert charge["session"]["vehicle_id"] == "EV-3"
    assert [event["event"] for event in events] == ["session"] * len(events)
    assert events[-1]["data"]["state"] == "ENDED"
    assert end == {
        "event": "end",
        "data": {"session_id": charge["session"]["session_id"], "stop_reason": "ENERGY_LIMIT_REACHED"},
    }


def test_sessions_are_listed_by_page_and_filter(gridmesh: Gridmesh) -> None:
    ids = [charged(gridmesh, "EV-4", "--energy", "90", "--power", "4", "--at", "c")["session_id"] for _ in range(2)]
    first = gridmesh("sessions", "--vehicle", "EV-4", "--page-size", "1")
    assert first.out.splitlines()[1].startswith(f"{ids[0]}  EV-4     charging")
    [token] = re.findall(r"there are more: --page (\S+), or --all", first.err)
    second = gridmesh("sessions", "--vehicle", "EV-4", "--page-size", "1", "--page", token, "--json")
    assert [session["session_id"] for session in second.json["sessions"]] == ids[1:]
    every = gridmesh("sessions", "--at", "c", "--vehicle", "EV-4", "--page-size", "1", "--all", "--json").json
    assert [session["session_id"] for session in every["sessions"]] == ids
    assert "next_page_token" not in every


def test_all_pages_together_say_whose_sessions_are_missing(mesh: Mesh, gridmesh: Gridmesh) -> None:
    ids = [charged(gridmesh, "EV-7", "--energy", "90", "--power", "4", "--at", "c")["session_id"] for _ in range(2)]
    mesh.signal("a", signal.SIGSTOP)
    try:
        wait_for(lambda: "a" not in mesh.fresh(), BOUND_S, "its report is old")
        every = gridmesh("sessions", "--vehicle", "EV-7", "--page-size", "1", "--all", "--json").json
    finally:
        mesh.signal("a", signal.SIGCONT)
        wait_for(lambda: mesh.fresh() == {"a", "b", "c"}, BOUND_S, "all report again")
    assert [session["session_id"] for session in every["sessions"]] == ids
    assert every["unreachable_substation_ids"] == ["a"]


def test_a_session_is_stopped_and_stays_so(gridmesh: Gridmesh) -> None:
    session_id = charged(gridmesh, "EV-5", "--energy", "90", "--power", "4")["session_id"]
    stopped = gridmesh("stop", session_id)
    assert (stopped.code, stopped.err) == (0, "")
    assert re.fullmatch(r"EV-5 ended: \d\.\d\d kWh, remote\n", stopped.out)
    assert gridmesh("stop", session_id, "--reason", "local", "--json").json["session"]["stop_reason"] == "REMOTE"


def test_a_session_that_nobody_knows_is_refused(gridmesh: Gridmesh) -> None:
    answer = gridmesh("stop", "a.no?such#ö")
    assert (answer.code, answer.out) == (1, "")
    assert (
        answer.err
        == "gridmesh: No such session: no session 'a.no?such#ö'; `gridmesh sessions` lists them (SESSION_NOT_FOUND)\n"
    )


# --- operating -------------------------------------------------------------------------------------


def test_substations_are_shown(gridmesh: Gridmesh) -> None:
    shown = gridmesh("substations")
    head, *rows, total = shown.out.splitlines()
    assert head.split() == ["substation", "power", "kW", "of", "limit", "cars", "plugs", "free", "report", "state"]
    assert [row.split()[0] for row in rows] == ["a", "b", "c"]
    assert "of 300 kW committed" in total
    listed = gridmesh("substations", "--json").json["substations"]
    assert [each["state"] for each in listed] == ["FRESH"] * 3


def test_a_limit_is_set_and_cleared(gridmesh: Gridmesh) -> None:
    shown = gridmesh("limit", "set", "a", "40", "--source", "SO", "--until", "2h", "--reason", "peak")
    assert shown.out.startswith("a: 40 of 100 kW, by SO\n  SO: 40 kW from ")
    assert shown.out.endswith("Z (peak)\n")
    both = gridmesh("limit", "set", "a", "60", "--grid-critical", "--json").json
    assert [(each["source"], each["grid_critical"]) for each in both["limits"]] == [("SO", False), ("CSO", True)]
    assert gridmesh("limit", "clear", "a", "--json").json["load"]["limit_power_kw"] == 40
    assert gridmesh("limit", "clear", "a", "--source", "so").out == "a: 100 of 100 kW\n"
    unknown = gridmesh("limit", "set", "x", "1")
    assert (unknown.code, unknown.err.count("(SUBSTATION_NOT_FOUND)")) == (1, 1)


def test_a_drained_substation_takes_no_car_and_says_when_to_come_back(gridmesh: Gridmesh) -> None:
    try:
        assert gridmesh("drain", "b").out.startswith("b: takes no new cars (draining); ")
        refused = gridmesh("charge", "EV-6", "--at", "b")
        assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
        assert re.search(r"\(NOT_ACCEPTING\); try again in \d+ s\n$", refused.err)
    finally:
        assert gridmesh("undrain", "b", "--json").json["load"]["accepting"]


def test_a_rush_hour_has_one_json_document(gridmesh: Gridmesh) -> None:
    answer = gridmesh(
        "rush-hour", "--cars", "6", "--seconds", "0", "--energy-kwh", "0.1", "--watch-seconds", "0", "--json"
    )
    assert (answer.json["admitted"], answer.json["refusals"], answer.code) == (6, {}, 0)
    assert sum(each["sessions"] for each in answer.json["substations"]) == 6


def test_up_tells_programs_where_everything_is(tmp_path: Path) -> None:
    ports = [
        word
        for name in ("gateway", "balancer", "substation", "metrics")
        for word in (f"--{name}-port", str(free_port()))
    ]
    argv = (*COMMAND, "up", "--json", "--rated-kw", "50", "--data", str(tmp_path), *ports)
    running = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, process_group=0)
    try:
        assert running.stdout
        said = (json.loads(line) for line in running.stdout)
        ready = next(line["ready"] for line in said if "ready" in line)
        assert ready["gateway"] == f"http://localhost:{ports[1]}"
        assert Answer(ready["gateway"], ("substations",)).code == 0
        running.send_signal(signal.SIGINT)
        assert list(said)[-1] == {"part": "mesh", "line": "stopped"}
        assert running.wait(BOUND_S) == 0
    finally:
        running.kill()
        running.communicate()


# --- watching --------------------------------------------------------------------------------------


class Screen:
    """`gridmesh watch` in a terminal of 80 by 24, read as it writes."""

    def __init__(self, url: str) -> None:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            os.chdir(ROOT)
            os.execve(sys.executable, (*COMMAND, "watch", "--url", url), {**os.environ, "TERM": "xterm-256color"})
        self._seen = b""
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # how a terminal ends
            while some := os.read(self._terminal, 65536):
                self._seen += some

    def mark(self) -> int:
        return len(self._seen)

    def shows(self, words: str, since: int = 0) -> None:
        def shown() -> bool:
            return words in _CONTROL.sub(b"", self._seen[since:]).decode(errors="replace")

        try:
            wait_for(shown, BOUND_S, f"the screen shows {words!r}")
        except AssertionError as error:
            error.add_note(_CONTROL.sub(b"", self._seen[-3000:]).decode(errors="replace"))
            raise

    def end(self) -> int:
        """Ctrl-C, and the exit code."""
        with suppress(OSError):
            os.write(self._terminal, b"\x03")
        try:
            ended = wait_for(lambda: _ended(self._pid), BOUND_S, "it ends at Ctrl-C")
        except AssertionError:
            os.kill(self._pid, signal.SIGKILL)
            raise
        assert ended
        code = os.waitstatus_to_exitcode(ended[1])
        os.close(self._terminal)
        self._reader.join(BOUND_S)
        return code


def _ended(pid: int) -> tuple[int, int] | None:
    """Of a child that has ended."""
    ended = os.waitpid(pid, os.WNOHANG)
    return ended if ended[0] else None


@pytest.fixture
def screen(mesh: Mesh) -> Iterator[Screen]:
    shown = Screen(mesh.url)
    yield shown
    with suppress(ChildProcessError):  # ended by the test
        shown.end()


def test_the_screen_survives_a_gateway_that_dies_and_says_so(mesh: Mesh, screen: Screen) -> None:
    screen.shows("● live")
    screen.shows("of 300 kW committed")
    mesh.kill9("gateway")
    try:
        screen.shows("● STREAM LOST; this is ")
        screen.shows("no gateway answers at ")
    finally:
        lost = screen.mark()
        mesh.restart("gateway")
    screen.shows("● live", since=lost)
    assert screen.end() == 0


def test_a_program_is_told_of_substations_and_sessions(gridmesh: Gridmesh) -> None:
    told = gridmesh("watch", "--seconds", "1", "--json")
    assert told.code == 0
    events = {line["event"]: line["data"] for line in told.json_lines}
    assert [each["state"] for each in events["substations"]["substations"]] == ["FRESH"] * 3
    assert "sessions" in events["sessions"]


def test_without_a_terminal_a_line_says_how_it_is(gridmesh: Gridmesh) -> None:
    told = gridmesh("watch", "--seconds", "1")
    assert told.code == 0
    assert re.match(r"\d\d:\d\d:\d\dZ  live: a \d+\.\d/100 kW \d+ cars, b ", told.out)


def test_a_reader_that_leaves_is_no_error(mesh: Mesh) -> None:
    argv = (*COMMAND, "watch", "--json", "--url", mesh.url)
    running = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout
    assert running.stderr
    with running:
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait(BOUND_S) == 1


# --- what is wrong ---------------------------------------------------------------------------------


def findings(answer: Answer) -> dict[str, tuple[str, str, str]]:
    return {each["subject"]: (each["level"], each["finding"], each["remedy"]) for each in answer.json["findings"]}


def test_a_sound_mesh_has_nothing_wrong(gridmesh: Gridmesh) -> None:
    shown = gridmesh("doctor")
    assert (shown.code, shown.err) == (0, "")
    assert [line.split()[:2] for line in shown.out.splitlines()] == [
        ["ok", "gateway"], ["ok", "clocks"], ["ok", "ready"], ["ok", "a"], ["ok", "b"], ["ok", "c"], ["ok", "sessions"],
        ["note", "certificates"],
    ]  # fmt: skip
    assert gridmesh("doctor", "--json").json["ok"] is True


def test_a_drained_a_stopped_and_a_dead_substation_are_told_apart(mesh: Mesh, gridmesh: Gridmesh) -> None:
    assert gridmesh("drain", "a").code == 0
    mesh.signal("b", signal.SIGSTOP)
    mesh.kill9("c")
    try:
        wait_for(lambda: not mesh.fresh() & {"b", "c"}, BOUND_S, "their reports are old")
        answer = gridmesh("doctor", "--json")
        assert (answer.code, answer.json["ok"]) == (1, False)
        found = findings(answer)
        assert found["ready"][0] == "wrong"
        assert found["a"] == ("wrong", "is drained: no new cars", "`gridmesh undrain a` when that is over")
        assert found["b"][2].startswith(f"port {mesh.address('b')} is open: its process hangs or is stopped")
        assert found["c"][2].startswith(f"port {mesh.address('c')} is closed: its process is not running")
        assert "c are served by nobody" in found["sessions"][1]
    finally:
        mesh.signal("b", signal.SIGCONT)
        mesh.restart("c")
        gridmesh("undrain", "a")
        wait_for(lambda: mesh.fresh() == {"a", "b", "c"}, BOUND_S, "all report again")


def test_a_closed_port_is_found_and_said_what_to_do_about() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    answer = Answer(url, ("doctor", "--json"))
    assert answer.code == 3
    assert findings(answer)["gateway"][1].startswith(f"no gateway answers at {url}: ")
    shown = Answer(url, ("doctor",))
    assert (shown.code, shown.err) == (3, "")
    assert "`gridmesh up`" in shown.out.splitlines()[0]


def test_another_program_on_the_port_is_no_gateway(mesh: Mesh) -> None:
    url = mesh.metrics_url("a").removesuffix("/metrics")
    answer = Answer(url, ("substations",))
    assert (answer.code, answer.out, answer.err.count("\n")) == (3, "", 1)
    assert "something listens there" in Answer(url, ("doctor",)).out
