"""The command line without a mesh: exit codes, help, and one line for whoever typed something wrong."""

import os
import subprocess
import sys
import sysconfig
import tomllib
from datetime import timedelta
from pathlib import Path

import click
import pytest

from deploy.command_line import up
from fleet.__main__ import commands, main
from fleet.cli import Moment, rfc3339
from fleet.clock import utc_now
from tests.mesh_processes import ROOT, free_port

SCRIPT = Path(sysconfig.get_path("scripts"), "gridmesh")


def all_commands() -> list[click.Command]:
    found = [up, *commands()]
    return [
        each for group in found for each in (group.commands.values() if isinstance(group, click.Group) else [group])
    ]


def test_no_gateway_is_one_line_and_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["rush-hour", "--url", url]) == 3
    err = capsys.readouterr().err
    assert err.startswith(f"gridmesh: no gateway answers at {url}: ")
    assert err.endswith("; `gridmesh up` starts one, `gridmesh doctor` says more\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "No such file or directory"),
        (b"\xff\xfe\x00", "is not a text file in UTF-8"),
        (b"a,b\n1,2\n", "line 1: column plug_in_local (or arrival_utc) is missing"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_code_2(
    content: bytes | None, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sessions.csv"
    if content is not None:
        file.write_bytes(content)
    assert main(["replay", str(file), "--day", "2019-12-10"]) == 2
    assert capsys.readouterr().err == f"gridmesh: {file}: {line}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["rush-hour", "--cars", "0"],
            "'--cars': '0' is not a whole number from 1 to 100000 (gridmesh rush-hour --help)",
        ),
        (["rush-hour", "--cars", "2.5"], "'--cars': '2.5' is not a whole number"),
        (["rush-hour", "--energy-kwh", "nan"], "'--energy-kwh': 'nan' is not a number from 0.001 to 1000"),
        (["replay", "f", "--day", "today"], "'--day': 'today' is not a day such as 2019-12-10"),
        (["replay", "f"], "Missing option '--day'"),
        (["charge"], "Missing argument 'VEHICLE'"),
        (["charge", "\udcff"], "is not printable text"),
        (["charge", "EV", "--key", "ü"], "'--key': 'ü' is not printable ASCII text"),
        (["charge", "EV", "--power", "nan"], "'--power': 'nan' is not a number, such as 7.5"),
        (["charge", "EV", "--energy", "5kWh"], "'--energy': '5kWh' is not a number, such as 7.5"),
        (["charge", "EV", "--departure", "18:00"], "'--departure': '18:00' is neither a span such as 90m"),
        (["stop", ""], "'SESSION': '' is not printable text"),
        (["limit", "set", "a", "-5"], "'KILOWATTS': '-5' is not a number of 0 or more (gridmesh limit set --help)"),
        (["limit", "set", "a", "-.5", "--source", "so"], "'KILOWATTS': '-.5' is not a number of 0 or more"),
        (["limit", "set", "a", "inf"], "'KILOWATTS': 'inf' is not a number of 0 or more"),
        (["limit", "set", "a", "5", "--sorce", "so"], "No such option '--sorce'"),
        (["drain", "a", "-5"], "Got unexpected extra argument (-5)"),
        (["limit", "set", "a", "50", "--source", "me"], "'me' is not one of 'ems', 'so', 'cso', 'other'."),
        (["sessions", "--state", "FULL"], "'FULL' is not one of 'ev_connected', "),
        (["substations", "--url", "http://:not a port"], "'http://:not a port' is no address of a gateway"),
        (["substations", "--url", "localhost:8080"], "'localhost:8080' is no address of a gateway"),
        (["fly"], "No such command 'fly'"),
        (["limit", "a", "50"], "No such command 'a'. There are set, clear. (gridmesh limit --help)"),
        (["completion"], "Missing argument '{bash|zsh|fish}'. Choose from: bash, zsh, fish"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", all_commands(), ids=lambda command: str(command.name))
def test_each_command_explains_itself_with_examples_and_speaks_json(command: click.Command) -> None:
    shown = command.get_help(click.Context(command, info_name=command.name))
    assert "--json" in shown
    assert "Examples:\n    gridmesh " in shown


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"gridmesh {version}\n"


def test_whoever_types_nothing_is_shown_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Exit codes: 0 it went well" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "at"),
    [("2026-03-01T18:00Z", "2026-03-01T18:00:00.000Z"), ("2026-03-01T18:00:00.5+02:00", "2026-03-01T16:00:00.500Z")],
)
def test_a_time_is_sent_in_utc(text: str, at: str) -> None:
    assert rfc3339(Moment().convert(text, None, None), utc_now()) == at


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("1d2h", 93600), ("1h30m5s", 5405)])
def test_a_span_is_from_now(text: str, seconds: int) -> None:
    now = utc_now()
    assert rfc3339(Moment().convert(text, None, None), now) == rfc3339(now + timedelta(seconds=seconds), now)


def run(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **environ}
    return subprocess.run(argv, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def test_set_up_puts_the_script_beside_python_and_it_completes_words() -> None:
    asked = {"_GRIDMESH_COMPLETE": "bash_complete", "COMP_WORDS": "gridmesh un", "COMP_CWORD": "1"}
    assert run(str(SCRIPT), **asked).stdout == "plain,undrain\n"


def test_the_script_prints_what_a_shell_needs_for_completion() -> None:
    shown = run(str(SCRIPT), "completion", "bash")
    assert "complete -o nosort -F _gridmesh_completion gridmesh" in shown.stdout


@pytest.mark.parametrize("name", ["GRIDMESH_URL", "FLEET_URL"])
def test_the_environment_names_the_gateway(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GRIDMESH_URL", raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert main(["substations"]) == 3
    assert "no gateway answers at http://127.0.0.1:9: " in capsys.readouterr().err


def test_up_says_what_is_wrong_with_a_setting() -> None:
    ended = run(sys.executable, "-m", "deploy.command_line", "up", "--rated-kw", "much")
    assert (ended.returncode, ended.stderr) == (2, "mesh: --rated-kw='much' is not a number\n")
