"""Values as bytes and back: length-prefixed parts, one form for each value, nothing left over.

Everything that is hashed, signed, sent or kept goes through here, so equal values are equal bytes.
"""

import dataclasses
import struct
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from clinimeta.common.errors import RecordError

T = TypeVar("T")


def pack(*parts: bytes) -> bytes:
    """Each part behind its length (four bytes, big endian).

    >>> pack(b"ab", b"c") == pack(b"a", b"bc")
    False
    """
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def unpack(data: bytes) -> list[bytes]:
    """The inverse of `pack`.

    Raises:
        RecordError: a length that does not fit.
    """
    parts, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if at + 4 > len(data) or end > len(data):
            raise RecordError("packed bytes are cut short")
        parts.append(data[at + 4 : end])
        at = end
    return parts


def encode(value: Any) -> bytes:
    """A frozen dataclass as bytes: its fields, packed in the order in which the class names them.

    Fields may be int (unsigned, eight bytes), float (IEEE 754, eight bytes), str (UTF-8), bytes, tuples of
    these, mappings of str to bytes (in order of their keys), and other such dataclasses.
    """
    return pack(*(_encode(getattr(value, name), hint) for name, hint in _fields(type(value))))


def decode(kind: type[T], data: bytes) -> T:
    """The inverse of `encode`; accepts nothing but what it produces.

    Raises:
        RecordError: a field missing, left over, of the wrong length or not in the one form.
    """
    fields, parts = _fields(kind), unpack(data)
    if len(parts) != len(fields):
        raise RecordError(f"{kind.__name__}: {len(parts)} fields, expected {len(fields)}")
    values = {name: _decode(part, hint) for (name, hint), part in zip(fields, parts, strict=True)}
    value = kind(**values)
    if encode(value) != data:
        raise RecordError(f"{kind.__name__}: not in canonical form")
    return value


_KNOWN: dict[type, tuple[tuple[str, Any], ...]] = {}


def _fields(kind: type) -> tuple[tuple[str, Any], ...]:
    if kind not in _KNOWN:
        hints = get_type_hints(kind)
        _KNOWN[kind] = tuple((field.name, hints[field.name]) for field in dataclasses.fields(kind))
    return _KNOWN[kind]


def _encode(value: Any, hint: Any) -> bytes:
    if hint is bytes:
        return bytes(value)
    if hint is str:
        return str(value).encode()
    if hint is int:
        return int(value).to_bytes(8, "big")
    if hint is float:
        return struct.pack(">d", value)
    if get_origin(hint) is tuple:
        return pack(*(_encode(item, get_args(hint)[0]) for item in value))
    if hint == Mapping[str, bytes]:
        return pack(*(part for name in sorted(value) for part in (name.encode(), value[name])))
    return encode(value)


def _decode(data: bytes, hint: Any) -> Any:
    if hint is bytes:
        return data
    if hint is str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise RecordError("text that is not UTF-8") from None
    if hint in (int, float):
        if len(data) != 8:
            raise RecordError("a number that is not eight bytes long")
        return int.from_bytes(data, "big") if hint is int else struct.unpack(">d", data)[0]
    if get_origin(hint) is tuple:
        return tuple(_decode(part, get_args(hint)[0]) for part in unpack(data))
    if hint == Mapping[str, bytes]:
        parts = unpack(data)
        if len(parts) % 2:
            raise RecordError("a mapping with a name and no value")
        names = [_decode(name, str) for name in parts[::2]]
        return dict(zip(names, parts[1::2], strict=True))
    return decode(hint, data)
