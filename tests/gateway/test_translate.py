from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from google.protobuf.descriptor import FieldDescriptor

from gateway import schemas, translate
from gridmesh.v1 import charging_pb2


def _fill(message: Any, field: FieldDescriptor) -> object:  # noqa: ANN401 - of either kind
    """Sets that field to what no other one has. Returns how JSON says it."""
    words = field.enum_type
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            value: object = field.name
        case FieldDescriptor.TYPE_BOOL:
            value = True
        case FieldDescriptor.TYPE_ENUM:
            setattr(message, field.name, 1)
            assert words is not None
            return words.values_by_number[1].name.removeprefix(words.values[0].name.removesuffix("UNSPECIFIED"))
        case FieldDescriptor.TYPE_MESSAGE:
            getattr(message, field.name).FromMilliseconds(field.number)
            return f"1970-01-01T00:00:00.{field.number:03}Z"
        case _:
            value = field.number
    setattr(message, field.name, value)
    return value


@pytest.mark.parametrize(
    ("message", "kind", "read"),
    [
        (charging_pb2.Session(), schemas.Session, translate.session),
        (charging_pb2.Placement(), schemas.Placement, translate.placement),
    ],
)
def test_each_field_is_told_by_its_own_name(
    message: Any,  # noqa: ANN401
    kind: type[msgspec.Struct],
    read: Callable[[Any], msgspec.Struct],
) -> None:
    filled = {field.name: _fill(message, field) for field in message.DESCRIPTOR.fields}
    told = msgspec.to_builtins(read(message))
    assert set(told) == {field.name for field in msgspec.structs.fields(kind)}
    assert told == {name: filled[name] for name in told}
