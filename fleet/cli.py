"""`gridmesh`, the command line: the frame that all commands share.

Each command is an async function of an `Asked` and its own options. It prints what was found and returns nothing,
or an exit code; a GatewayError becomes one line on standard error.
"""

import asyncio
import io
import json
import math
import os
import re
import sys
import tomllib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click
import httpx
from click.shell_completion import get_completion_class

from fleet.gateway import Gateway, GatewayError, Unreachable, open_gateway
from fleet.trace import TraceError

NAME = "gridmesh"
# Says the version, in the checkout as in the image: it is installed in neither.
_PROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXIT_OK, EXIT_REFUSED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
DEFAULT_URL = "http://localhost:8080"
CONNECTIONS = 64

_WORDS = "Charge electric cars through a Gridmesh, look at it, and operate it."
_EPILOG = """\b
Start a mesh, charge a car, watch:
  gridmesh up
  gridmesh charge EV-001 --energy 20 --watch
  gridmesh watch

\b
Exit codes: 0 it went well; 1 refused, or something is wrong; 2 cannot be done as it was
typed or set; 3 the gateway cannot be reached; 130 interrupted.
The gateway is --url, or else GRIDMESH_URL, or http://localhost:8080.
Completion by TAB: eval "$(gridmesh completion bash)" in ~/.bashrc (also zsh, fish)."""

_NEGATIVE = re.compile(r"-\.?\d", re.ASCII)

P = ParamSpec("P")


@dataclass(frozen=True)
class Asked:
    """What every command is given."""

    gateway: Gateway
    json: bool

    def show(self, document: Any, *, stream: bool = False) -> None:  # noqa: ANN401 - JSON
        """Prints JSON: one document, or one line of many."""
        print(json.dumps(document, indent=None if stream else 2), flush=True)


Command = Callable[Concatenate[Asked, P], Awaitable[int | None]]


# --- kinds of values -------------------------------------------------------------------------------


class Number(click.ParamType[float]):
    """A number from low to high, both included, or of low or more; without bounds any that is finite."""

    name = "number"

    def __init__(self, low: float = -math.inf, high: float = math.inf, kind: Callable[[str], float] = float) -> None:
        self._low, self._high, self._kind = low, high, kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        try:
            number = self._kind(value)
        except ValueError:
            number = math.nan
        if not (self._low <= number <= self._high and math.isfinite(number)):
            words = "a whole number" if self._kind is int else "a number"
            self.fail(f"{value!r} is not {words}{self._bounds()}", param, ctx)
        return number

    def _bounds(self) -> str:
        if math.isfinite(self._high):
            return f" from {self._low:g} to {self._high:g}"
        return f" of {self._low:g} or more" if math.isfinite(self._low) else ", such as 7.5"


class Text(click.ParamType[str]):
    """Text that can be shown and sent; `ascii_only` where it becomes a header."""

    name = "text"

    def __init__(self, *, ascii_only: bool = False) -> None:
        self._ascii_only = ascii_only

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        if not value or not value.isprintable() or (self._ascii_only and not value.isascii()):
            self.fail(f"{value!r} is not printable{' ASCII' if self._ascii_only else ''} text", param, ctx)
        return str(value)


class _Url(click.ParamType[str]):
    name = "url"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        with suppress(httpx.InvalidURL):
            url = httpx.URL(value)
            if url.scheme in {"http", "https"} and url.host:
                return value
        return self.fail(f"{value!r} is no address of a gateway such as {DEFAULT_URL}", param, ctx)


class Moment(click.ParamType[datetime | timedelta]):
    """A time with its zone, or how long from now: then a timedelta."""

    name = "when"
    _UNITS: tuple[str, ...] = ("days", "hours", "minutes", "seconds")
    _SPAN = re.compile(r"(?:(\d{1,4})d)?(?:(\d{1,5})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?", re.ASCII)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | timedelta:  # noqa: ANN401
        with suppress(ValueError, OverflowError):
            span = self._SPAN.fullmatch(value)
            if value and span:
                return timedelta(**{unit: int(n) for unit, n in zip(self._UNITS, span.groups(), strict=True) if n})
            time = datetime.fromisoformat(value)
            if time.tzinfo:
                return time.astimezone(UTC)
        return self.fail(
            f"{value!r} is neither a span such as 90m or 1h30m nor a time such as 2026-03-01T18:00Z", param, ctx
        )


def rfc3339(moment: datetime | timedelta, now: datetime) -> str:
    """The moment as the gateway reads it."""
    at = now + moment if isinstance(moment, timedelta) else moment
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- commands --------------------------------------------------------------------------------------


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class _Command(click.Command):
    """One to which a negative number is a value, so that it can say what it must be; to click it is an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.ignore_unknown_options = any(_NEGATIVE.match(word) for word in args)
        return super().parse_args(ctx, args)


def command(name: str, *shown: str) -> Callable[[Command[P]], click.Command]:
    """Makes a command of the gateway's client, with the options that all have; `shown` are its examples."""

    def make(function: Command[P]) -> click.Command:
        @wraps(function)
        def run(url: str, as_json: bool, *args: P.args, **kwargs: P.kwargs) -> int | None:
            return _run(function, url, as_json, *args, **kwargs)

        with_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(run)
        with_url = click.option(
            "--url",
            type=_Url(),
            envvar=["GRIDMESH_URL", "FLEET_URL"],
            default=DEFAULT_URL,
            show_default=True,
            help="The gateway; also GRIDMESH_URL.",
        )(with_json)
        return click.command(name, cls=_Command, epilog=examples(*shown))(with_url)

    return make


def _run(function: Command[P], url: str, as_json: bool, *args: P.args, **kwargs: P.kwargs) -> int | None:
    async def with_gateway() -> int | None:
        connections = kwargs.get("connections")
        async with open_gateway(url, connections if isinstance(connections, int) else CONNECTIONS) as gateway:
            try:
                return await function(Asked(gateway, as_json), *args, **kwargs)
            except BaseExceptionGroup as errors:
                raise _first(errors) from None
            except (KeyError, TypeError) as error:
                raise gateway.stranger(repr(error)) from None

    try:
        return asyncio.run(with_gateway())
    except Unreachable as error:
        return _failed(
            error.with_hint("`gridmesh up` starts one, `gridmesh doctor` says more"), as_json, EXIT_UNREACHABLE
        )
    except GatewayError as error:
        return _failed(error, as_json, EXIT_REFUSED)


def _failed(error: GatewayError, as_json: bool, code: int) -> int:
    if as_json:
        print(json.dumps(error.as_json()), flush=True)
    say(str(error))
    return code


def _first(error: BaseException) -> BaseException:
    """Of those that ended a group of tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def say(line: str) -> None:
    """One line on standard error."""
    print(f"{NAME}: {line}", file=sys.stderr, flush=True)


@click.command("completion", epilog=examples('eval "$(gridmesh completion bash)"'))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands and options by TAB."""
    kind = get_completion_class(shell)
    assert kind
    click.echo(kind(ctx.find_root().command, {}, NAME, f"_{NAME.upper()}_COMPLETE").source())


class _InOrder(click.Group):
    """Lists its commands in the order in which a newcomer needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)


def group(name: str, words: str, commands: Sequence[click.Command], epilog: str | None = None) -> click.Group:
    """Commands under one name."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    made = {each.name or "": each for each in commands}
    return _InOrder(name, made, help=words, epilog=epilog, context_settings=settings)


def _show_version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    del param
    if asked:
        project = tomllib.loads(_PROJECT.read_text("utf-8"))["project"]
        click.echo(f"{NAME} {project['version']}")
        ctx.exit()


def _root(commands: Sequence[click.Command]) -> click.Group:
    root = group(NAME, _WORDS, [*commands, completion], _EPILOG)
    words = "Show the version and exit."
    root.params.append(
        click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help=words)
    )
    return root


def _words(error: click.ClickException) -> str:
    """One line, which also names the commands that there are where it was none of them."""
    words = " ".join(error.format_message().split())
    if isinstance(error, click.NoSuchCommand) and error.ctx and isinstance(error.ctx.command, click.Group):
        words += f" There are {', '.join(error.ctx.command.commands)}."
    return words


def main(commands: Sequence[click.Command], argv: Sequence[str]) -> int:
    """Runs one of the commands and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal need not know our bars
            stream.reconfigure(errors="replace")
    try:
        return _root(commands).main(list(argv), prog_name=NAME, standalone_mode=False) or EXIT_OK
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return EXIT_USAGE
    except click.ClickException as error:
        ctx = getattr(error, "ctx", None)
        say(f"{_words(error)} ({ctx.command_path if ctx else NAME} --help)")
        return EXIT_USAGE
    except TraceError as error:
        say(str(error))
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # as of `gridmesh sessions | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_REFUSED
