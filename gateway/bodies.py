"""Reads JSON bodies. What is right takes one fast pass; what is wrong a slow one that names every field."""

import asyncio
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

import msgspec

from gateway.asgi import Disconnected, Request
from gateway.problems import ProblemError, invalid, problem, too_large
from gateway.schemas import FieldError
from mesh.admission import Bound

T = TypeVar("T", bound=msgspec.Struct)
Item = TypeVar("Item")

MAX_BYTES = 4 * 1024 * 1024
# Bodies above this are bounded in number: uvicorn stops reading at as much by itself.
LARGE_BYTES = 64 * 1024
# A name of the client's, as far as it is repeated to it.
_MAX_NAME = 100
_MOST_ERRORS = 20
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "datetime": 'a point in time such as "2026-03-01T17:30:00Z"',
    "null": "null",
}


async def read(request: Request, timeout_s: float, large: Bound) -> bytes:
    """The whole body, bounded in size and time, and where it is large in number."""
    if (arrived := request.arrived) is not None:
        return arrived
    if int(request.header(b"content-length") or 0) > MAX_BYTES:
        raise ProblemError(too_large())
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(timeout_s):
            with ExitStack() as counted:
                while more:
                    part, more = await request.part()
                    if len(body) <= LARGE_BYTES < len(body) + len(part):
                        counted.enter_context(large)
                    body += part
                    if len(body) > MAX_BYTES:
                        raise ProblemError(too_large())
    except TimeoutError:
        slow = problem(408, "BODY_TOO_SLOW", f"the body must arrive within {timeout_s:g} s")
        raise ProblemError(slow, {"Connection": "close"}) from None
    except Disconnected:
        raise ProblemError(problem(400, "INVALID_JSON", "the body ended early")) from None
    return bytes(body)


def require_json(request: Request, body: bytes) -> None:
    """Refuses an empty body, and one that does not say it is JSON."""
    if not body:
        raise ProblemError(problem(400, "INVALID_JSON", "the body is empty: it must be a JSON document"))
    given = request.header(b"content-type")
    if given != "application/json" and given.partition(";")[0].strip().lower() != "application/json":
        was = f"not {given[:_MAX_NAME]}" if given else "and there is none"
        raise ProblemError(
            problem(415, "UNSUPPORTED_MEDIA_TYPE", f"the header Content-Type must be application/json, {was}"),
            {"Accept": "application/json"},
        )


class Reader(Generic[T]):
    """Reads one type of body."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._decoder = msgspec.json.Decoder(kind)

    def decode(self, body: bytes | msgspec.Raw, root: str = "#") -> T:
        """The body. ProblemError names each field that is wrong, by its pointer below `root`."""
        try:
            return self._decoder.decode(body)
        except _BROKEN as error:
            value = loads(bytes(body))
            errors = _first(unspeakable(value, root)) or _first(_wrong_fields(value, self._kind, root))
            if not errors:
                raise ProblemError(problem(400, "INVALID_JSON", f"the body is not JSON: {error}")) from None
            raise ProblemError(invalid(*errors)) from None


class ArrayReader(Generic[T]):
    """Reads an array of one type of items."""

    def __init__(self, kind: type[T]) -> None:
        self._item = Reader(kind)
        self._decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]  # known when it runs

    def decode(self, body: bytes, most: int) -> Iterator[T | ProblemError]:
        """Each item, or what is wrong with it: a bad one does not hold back the others. ProblemError for no array."""
        try:
            found = self._decoder.decode(body)
        except _BROKEN:
            return (self._one(item, f"#/{index}") for index, item in enumerate(_bounded(_items(body), most)))
        return iter(_bounded(found, most))

    def _one(self, item: msgspec.Raw, root: str) -> T | ProblemError:
        try:
            return self._item.decode(item, root)
        except ProblemError as error:
            return error


def _bounded(found: list[Item], most: int) -> list[Item]:
    if len(found) > most:
        raise ProblemError(invalid(FieldError("body", f"must be at most {most:,} items, not {len(found):,}", "#")))
    return found


def _items(body: bytes) -> list[msgspec.Raw]:
    """The items of an array, each still to be decoded."""
    try:
        return _ITEMS.decode(body)
    except _BROKEN as error:
        value = loads(body)
        errors = _first(unspeakable(value, "#"))
        if not isinstance(value, list):
            errors = [FieldError("body", f"must be an array, not {_WORDS[_kind_of(value)]}", "#")]
        if not errors:
            raise ProblemError(problem(400, "INVALID_JSON", f"the body is not JSON: {error}")) from None
        raise ProblemError(invalid(*errors)) from None


_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


def loads(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """The body as Python values, with NaN and numbers out of range as such, to be named. ProblemError when broken."""
    try:
        return json.loads(body.decode(), parse_int=_int)  # bytes would also be read as UTF-16
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        detail = f"the body is not JSON: {error.msg} at {where}"
    except UnicodeDecodeError:
        detail = "the body is not JSON: it is not UTF-8"
    except RecursionError:
        detail = "the body is nested too deep"
    raise ProblemError(problem(400, "INVALID_JSON", detail))


def _int(digits: str) -> int | float:
    # Beyond a double's range, where int() would also take too long.
    return int(digits) if len(digits) < 300 else math.inf


def _first(errors: Iterable[FieldError]) -> list[FieldError]:
    """As many as help: 4 MiB can hold a million mistakes."""
    return list(itertools.islice(errors, _MOST_ERRORS))


def unspeakable(value: Any, root: str) -> Iterator[FieldError]:  # noqa: ANN401
    """The places of what Python's json lets through and JSON does not: NaN, infinity, half of a surrogate pair."""
    todo = [(value, "", root)]
    while todo:
        each, name, pointer = todo.pop()
        if isinstance(each, dict):
            todo += [(v, str(k) if not name else f"{name}.{k}", f"{pointer}/{_escape(k)}") for k, v in each.items()]
        elif isinstance(each, list):
            todo += [(v, f"{name}[{i}]", f"{pointer}/{i}") for i, v in enumerate(each)]
        elif isinstance(each, float) and not math.isfinite(each):
            yield _field_error(name or "body", "must be a finite number", pointer)
        elif isinstance(each, str) and not each.isprintable() and re.search("[\ud800-\udfff]", each):
            yield _field_error(name or "body", "must be valid Unicode", pointer)


def _wrong_fields(value: Any, kind: type[msgspec.Struct], root: str) -> Iterator[FieldError]:  # noqa: ANN401
    if not isinstance(value, dict):
        yield FieldError("body", f"must be an object, not {_WORDS[_kind_of(value)]}", root)
        return
    known = {each.name: each for each in msgspec.structs.fields(kind)}
    for name, each in known.items():
        if name not in value:
            if each.required:
                yield FieldError(name, "is required", f"{root}/{name}")
            continue
        try:
            msgspec.convert(value[name], each.type)
        except msgspec.ValidationError as error:
            yield _of_message(str(error), name, root)
    for name in value:
        if name not in known:
            yield _field_error(name, "is not known here; known are " + ", ".join(known), f"{root}/{_escape(name)}")


def _of_message(message: str, name: str, root: str) -> FieldError:
    """The sentence of a validation error, in the words of JSON and with its place inside the field."""
    what, _, path = message.partition(" - at `$")
    path = path.rstrip("`")
    if match := re.fullmatch(r"Expected `([a-z]+)(?: \| null)?`, got `([a-z]+)`", what):
        what = f"must be {_WORDS.get(match[1], match[1])}, not {_WORDS.get(match[2], match[2])}"
    elif match := re.fullmatch(r"Expected `int` (<=|>=) (\d+)", what):
        what = f"must be at {'most' if match[1] == '<=' else 'least'} {match[2]}"
    elif "datetime" in what:
        what = f"must be {_WORDS['datetime']}, with its zone"
    elif what.startswith("Invalid enum value"):
        what = f"must be one of the words in the document, not{what.removeprefix('Invalid enum value')}"
    pointer = f"{root}/{name}" + "".join(f"/{part}" for part in re.findall(r"[^.\[\]]+", path))
    return _field_error(name + path, what, pointer)


def _kind_of(value: Any) -> str:  # noqa: ANN401
    kinds = {dict: "object", list: "array", str: "str", bool: "bool", int: "int", float: "float"}
    return kinds.get(type(value), "null")


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _field_error(name: str, detail: str, pointer: str) -> FieldError:
    """With what came from the client made short and printable."""
    return FieldError(_short(name), _short(detail, 400), _short(pointer))


def _short(text: str, most: int = _MAX_NAME) -> str:
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= most else text[: most - 1] + "…"
