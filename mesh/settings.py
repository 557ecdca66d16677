"""Settings from the environment or from flags of the same name, checked before anything starts.

A settings class is a frozen dataclass whose fields are made by `setting(default, help)`. The field
`port` of a class loaded with prefix `BALANCER` is read from `--port` or `BALANCER_PORT`, the flag first.
"""

import argparse
import dataclasses
import ipaddress
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Check = Callable[[Any], str | None]


class StartupError(Exception):
    """The service cannot start as it is set. The message is one line and names the culprit; exit code 2."""


def setting(default: T, help: str, check: Check | None = None) -> T:  # noqa: A002 - argparse's own word
    """A field with its effect and unit in words, and a check that returns what is wrong, or None."""
    field: T = dataclasses.field(default=default, metadata={"help": help, "check": check})
    return field


def within(low: float, high: float) -> Check:
    """A check for numbers from low to high, both included."""
    return lambda value: None if low <= value <= high else f"must be from {low:g} to {high:g}"


def one_of(*values: str) -> Check:
    """A check for one of a few words."""
    return lambda value: None if value in values else f"must be one of {', '.join(values)}"


def address(value: str) -> str | None:
    """A check for host:port. A page's URL would be taken for a name that never resolves."""
    host, _, port = value.rpartition(":")
    if _is_ipv6(host) or _is_ipv6(value):  # where one ends and the other begins cannot be told
        return "must be host:port, an address of IPv6 in brackets: [::1]:50051"
    host = "" if host.startswith(("http:", "https:")) else host
    return None if host and port.isdigit() and 0 < int(port) < 65536 else "must be host:port"


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What every service can be told."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 in a container")
    log_format: str = setting("json", "json for machines, text for a terminal", one_of("json", "text"))
    log_level: str = setting("info", "least severe level to log", one_of("debug", "info", "warning", "error"))
    grace_s: float = setting(5.0, "seconds that calls in flight have to finish after SIGTERM", within(0, 60))
    max_calls: int = setting(
        1_000,
        "most calls in flight, and as many streams; beyond it they are refused. Raise it for more watchers than that",
        within(1, 100_000),
    )


def load(cls: type[T], prefix: str, argv: Sequence[str], environ: Mapping[str, str]) -> T:
    """An instance of `cls` from flags and environment. StartupError names the setting that is wrong."""
    parser = argparse.ArgumentParser(prog=prefix.lower(), exit_on_error=False)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    for field in fields:
        parser.add_argument(
            _flag(field.name),
            help=f"{field.metadata['help']} ({prefix}_{field.name.upper()}; default: {_shown(field.default)})",
        )
    try:
        given, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise StartupError(str(error)) from None
    if unknown:
        raise StartupError(f"unknown argument {unknown[0]}")
    hints = typing.get_type_hints(cls)
    values = {}
    for field in fields:
        source = _Source(field.name, prefix, getattr(given, field.name), environ)
        if source.text is not None:
            values[field.name] = source.read(hints[field.name], field.metadata["check"])
    return cls(**values)


def _shown(default: object) -> str:
    return ",".join(str(part) for part in default) if isinstance(default, tuple) else str(default)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class _Source:
    """Where one setting's text comes from, for errors that name it as the user wrote it."""

    name: str
    prefix: str
    flag: str | None
    environ: Mapping[str, str]

    @property
    def variable(self) -> str:
        return f"{self.prefix}_{self.name.upper()}"

    @property
    def text(self) -> str | None:
        return self.flag if self.flag is not None else self.environ.get(self.variable)

    def read(self, kind: Any, check: Check | None) -> Any:  # noqa: ANN401 - any type a setting may have
        who = _flag(self.name) if self.flag is not None else self.variable
        text = self.text or ""
        try:
            value = _parse(text, kind)
        except ValueError:
            raise StartupError(f"{who}={text!r} is not {_WORDS[_scalar(kind)]}") from None
        for item in value if isinstance(value, tuple) else (value,):
            if check and value is not None and (wrong := check(item)):
                raise StartupError(f"{who}={text!r} {wrong}")
        return value


_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_BOOLS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _scalar(kind: Any) -> Any:  # noqa: ANN401
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is tuple:
        return typing.get_args(kind)[0]
    return kind


def _parse(text: str, kind: Any) -> Any:  # noqa: ANN401
    if isinstance(kind, types.UnionType) and not text:
        return None
    scalar = _scalar(kind)
    if typing.get_origin(kind) is tuple:
        return tuple(scalar(part.strip()) for part in text.split(",") if part.strip())
    if scalar is bool:
        if text.lower() not in _BOOLS:
            raise ValueError(text)
        return _BOOLS[text.lower()]
    return scalar(text)
