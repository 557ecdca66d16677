"""`python -m fleet`: exit codes, and one line for whoever typed something wrong."""

from pathlib import Path

import pytest

from fleet.__main__ import main
from tests.mesh_processes import free_port


def test_no_gateway_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["rush-hour", "--url", url]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fleet: no gateway answers at {url}: ")
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
    assert capsys.readouterr().err == f"fleet: {file}: {line}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["rush-hour", "--cars", "0"], "argument --cars: '0' is not a whole number from 1 to 100000"),
        (["rush-hour", "--cars", "2.5"], "argument --cars: '2.5' is not a whole number"),
        (["rush-hour", "--energy-kwh", "nan"], "argument --energy-kwh: 'nan' is not a number from 0.001 to 1000"),
        (["replay", "f", "--day", "today"], "argument --day: 'today' is not a day such as 2019-12-10"),
        (["replay", "f"], "the following arguments are required: --day"),
    ],
)
def test_a_wrong_argument_is_named(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_an_address_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rush-hour", "--url", "http://:not a port"]) == 2
    assert capsys.readouterr().err.startswith("fleet: ")


def test_an_address_without_a_scheme_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rush-hour", "--url", "localhost:8080"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
