from dataclasses import dataclass

import pytest

from mesh.settings import ServiceSettings, StartupError, address, load, one_of, setting, within


@dataclass(frozen=True, kw_only=True)
class Example(ServiceSettings):
    port: int = setting(1, "a port", within(0, 65535))
    ratio: float = setting(0.5, "a ratio")
    on: bool = setting(False, "a switch")
    name: str = setting("", "a name", one_of("", "x"))
    peers: tuple[str, ...] = setting((), "some addresses", address)
    most: int | None = setting(None, "a bound")


def read(*argv: str, **environ: str) -> Example:
    return load(Example, "EXAMPLE", argv, environ)


def test_defaults_stand_when_nothing_is_said() -> None:
    assert read() == Example()


def test_a_flag_wins_over_the_environment() -> None:
    assert read("--port", "7", EXAMPLE_PORT="8", EXAMPLE_HOST="0.0.0.0") == Example(port=7, host="0.0.0.0")


def test_each_type_is_read() -> None:
    found = read(EXAMPLE_RATIO="2", EXAMPLE_ON="true", EXAMPLE_PEERS="a:1, b:2", EXAMPLE_MOST="3", EXAMPLE_NAME="x")
    assert found == Example(ratio=2.0, on=True, peers=("a:1", "b:2"), most=3, name="x")
    assert read(EXAMPLE_MOST="", EXAMPLE_ON="no") == Example()


IN_BRACKETS = "host:port, an address of IPv6 in brackets: [::1]:50051"


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--port", "x"], {}, "--port='x' is not a whole number"),
        ([], {"EXAMPLE_PORT": "70000"}, "EXAMPLE_PORT='70000' must be from 0 to 65535"),
        ([], {"EXAMPLE_RATIO": "half"}, "EXAMPLE_RATIO='half' is not a number"),
        ([], {"EXAMPLE_ON": "maybe"}, "EXAMPLE_ON='maybe' is not true or false"),
        ([], {"EXAMPLE_NAME": "y"}, "EXAMPLE_NAME='y' must be one of , x"),
        ([], {"EXAMPLE_PEERS": "a:1,b"}, "EXAMPLE_PEERS='a:1,b' must be host:port"),
        ([], {"EXAMPLE_PEERS": "http://a:1"}, "EXAMPLE_PEERS='http://a:1' must be host:port"),
        ([], {"EXAMPLE_PEERS": "::1:50051"}, f"EXAMPLE_PEERS='::1:50051' must be {IN_BRACKETS}"),
        ([], {"EXAMPLE_PEERS": "[::1]:1,::1"}, f"EXAMPLE_PEERS='[::1]:1,::1' must be {IN_BRACKETS}"),
        ([], {"EXAMPLE_LOG_LEVEL": "loud"}, "EXAMPLE_LOG_LEVEL='loud' must be one of debug, info, warning, error"),
        (["--wat"], {}, "unknown argument --wat"),
        (["--port"], {}, "argument --port: expected one argument"),
    ],
)
def test_a_bad_setting_is_named_as_it_was_given(argv: list[str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(StartupError) as caught:
        load(Example, "EXAMPLE", argv, environ)
    assert str(caught.value) == message
