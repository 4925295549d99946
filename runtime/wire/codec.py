"""Messages as bytes: JSON beside a table of tensors, and nothing that could name code.

Suture's members write and read this, over torch RPC (in the place of pickles, see ``rpc.lockdown``) and over gRPC (see
``frames``). A reader knows a fixed list of message classes; each is rebuilt from its fields, every one of which must
be of the type that the class declares. There is no import, no attribute look-up by name, and no state that a message
could set.

A value is None, a bool, a number, a text, a list, or an object of one key that says what it is:
``{"Upload": [fields]}``, ``{"tensor": index in the table}``, ``{"bytes": hex}``, ``{"dict": {...}}``. A carrier may
have further kinds of its own, see `Kinds`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from suture.runtime.errors import WireError
from suture.runtime.scheduler import Turn
from suture.runtime.wire import messages

MAX_BYTES = (
    2**20
)  # beside the tensors; the longest of ours names a deep top's tensors, some tens of kilobytes
MAX_DEPTH = 12
MAX_TENSORS = 10_000

MESSAGES: dict[str, type] = {message.__name__: message for message in (*messages.MESSAGES, Turn)}


@dataclass(frozen=True, slots=True)
class Kinds:
    """Kinds of value that one carrier knows and the protocol does not.

    Attributes:
        write: by class, the kind's name and what its value is written as, in values of the protocol.
        read: by the kind's name, the value of what was written. Raises WireError where it cannot be that.
    """

    write: Mapping[type, tuple[str, Callable[[Any], Any]]] = field(default_factory=dict)
    read: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)


NONE = Kinds()


def encode(value: Any, kinds: Kinds = NONE) -> tuple[bytes, list[Tensor]]:
    """``value`` as bytes and the tensors that go beside them.

    Raises:
        WireError: it holds something that is no message.
    """
    tensors: list[Tensor] = []
    return json.dumps(_form(value, tensors, kinds), separators=(",", ":")).encode(), tensors


def _form(value: Any, tensors: list[Tensor], kinds: Kinds) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, (list, tuple)) and type(value) not in kinds.write:
        return [_form(item, tensors, kinds) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _form(item, tensors, kinds) for key, item in value.items()}}
    if type(value) in kinds.write:
        kind, write = kinds.write[type(value)]
        return {kind: _form(write(value), tensors, kinds)}
    name = type(value).__name__
    if MESSAGES.get(name) is not type(value):
        raise WireError(f"a {name} is no message of the protocol; it was not sent")
    return {name: [_form(getattr(value, field), tensors, kinds) for field in _field_types(MESSAGES[name])]}


def decode(data: bytes, tensors: list[Tensor], kinds: Kinds = NONE) -> Any:
    """The value that `encode` wrote.

    Raises:
        WireError: the bytes are anything else; whatever was read until then is dropped.
    """
    if len(data) > MAX_BYTES or len(tensors) > MAX_TENSORS:
        raise WireError(
            f"a message of {len(data)} bytes and {len(tensors)} tensors; at most {MAX_BYTES} and {MAX_TENSORS}"
        )
    try:
        form = json.loads(data.decode())
    except (ValueError, RecursionError):  # a text that is no UTF-8 or no JSON, or nested without end
        raise WireError("not a message of the protocol") from None
    return _value(form, tensors, kinds, 0)


def _value(form: Any, tensors: list[Tensor], kinds: Kinds, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise WireError(f"a message nested deeper than {MAX_DEPTH}")
    if isinstance(form, list):
        return [_value(item, tensors, kinds, depth + 1) for item in form]
    if not isinstance(form, dict):
        return form
    if len(form) != 1:
        raise WireError(f"an object of {len(form)} keys; there must be one, that says what it is")
    ((kind, content),) = form.items()
    if kind == "tensor" and type(content) is int and 0 <= content < len(tensors):
        return tensors[content]
    if kind == "bytes" and isinstance(content, str):
        try:
            return bytes.fromhex(content)
        except ValueError:
            raise WireError("bytes that are no hexadecimal digits") from None
    if kind == "dict" and isinstance(content, dict):
        return {key: _value(item, tensors, kinds, depth + 1) for key, item in content.items()}
    if kind in kinds.read:
        return kinds.read[kind](_value(content, tensors, kinds, depth + 1))
    if kind in MESSAGES and isinstance(content, list):
        return _message(MESSAGES[kind], [_value(item, tensors, kinds, depth + 1) for item in content])
    raise WireError(f"a {kind!r:.40} that cannot be read")


def _message(kind: type, values: list[Any]) -> Any:
    types = _field_types(kind)
    if len(values) != len(types):
        raise WireError(f"{kind.__name__}: expected {len(types)} fields, got {len(values)}")
    for index, (name, expected) in enumerate(types.items()):
        if isinstance(expected, type) and issubclass(expected, StrEnum) and type(values[index]) is str:
            values[index] = expected.__members__.get(values[index].upper(), values[index])
        if not fits(values[index], expected):
            raise WireError(f"{kind.__name__}.{name}: got {_shown(values[index])}")
    return kind(*values)


def fits(value: Any, expected: Any) -> bool:
    """Whether ``value`` is of the type ``expected``, in its contents too; bools are no numbers.

    Args:
        value: as decoded.
        expected: a class, a union, ``list`` or ``dict`` with or without arguments, or Any.
    """
    if expected is Any:
        return True
    origin, arguments = get_origin(expected), get_args(expected)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is list:
        return type(value) is list and all(fits(item, arguments[0]) for item in value)
    if origin is dict:
        return type(value) is dict and all(
            fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items()
        )
    if expected is None or expected is NoneType:
        return value is None
    if expected is float:
        return type(value) in (float, int)
    if expected in (bool, int, str, bytes, list, dict):
        return type(value) is expected
    return isinstance(value, expected)


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    assert is_dataclass(kind)
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.40}" if not isinstance(value, Tensor) else "a tensor"
