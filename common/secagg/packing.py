"""Values as bytes and back: length-prefixed parts, one form for each value, nothing left over.

Everything that is hashed, signed, sent or kept goes through here, so equal values are equal bytes.
"""

import dataclasses
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from clinimeta.common.errors import RecordError

T = TypeVar("T")


def pack(*parts: bytes) -> bytes:
    """Each part behind its length (four bytes, big endian).

    >>> pack(b"ab", b"c") == pack(b"a", b"bc")
    False
    """
    return b"".join([piece for part in parts for piece in (len(part).to_bytes(4, "big"), part)])


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
    return pack(*[form.encode(getattr(value, name)) for name, form in _fields(type(value))])


def decode(kind: type[T], data: bytes) -> T:
    """The inverse of `encode`; accepts nothing but what it produces.

    Raises:
        RecordError: a field missing, left over, of the wrong length or not in the one form.
    """
    fields, parts = _fields(kind), unpack(data)
    if len(parts) != len(fields):
        raise RecordError(f"{kind.__name__}: {len(parts)} fields, expected {len(fields)}")
    return kind(**{name: form.decode(part) for (name, form), part in zip(fields, parts, strict=True)})


class _Form(NamedTuple):
    """How values of one type become bytes, and back."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


_KNOWN: dict[type, list[tuple[str, _Form]]] = {}


def _fields(kind: type) -> list[tuple[str, _Form]]:
    if kind not in _KNOWN:
        hints = get_type_hints(kind)
        _KNOWN[kind] = [(field.name, _form(hints[field.name])) for field in dataclasses.fields(kind)]
    return _KNOWN[kind]


def _form(hint: Any) -> _Form:
    if hint in _PLAIN:
        return _PLAIN[hint]
    if get_origin(hint) is tuple:
        item = _form(get_args(hint)[0])
        return _Form(
            lambda values: pack(*map(item.encode, values)), lambda data: tuple(map(item.decode, unpack(data)))
        )
    return _Form(encode, lambda data: decode(hint, data))


def _decode_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise RecordError("text that is not UTF-8") from None


def _decode_number(data: bytes, layout: str) -> Any:
    if len(data) != 8:
        raise RecordError("a number that is not eight bytes long")
    return struct.unpack(layout, data)[0]


def _encode_mapping(values: Mapping[str, bytes]) -> bytes:
    return pack(*[part for name in sorted(values) for part in (name.encode(), values[name])])


def _decode_mapping(data: bytes) -> dict[str, bytes]:
    parts = unpack(data)
    names = [_decode_text(name) for name in parts[::2]]
    if len(parts) % 2 or names != sorted(set(names)):
        raise RecordError("a mapping without a value, or with names that are not in order")
    return dict(zip(names, parts[1::2], strict=True))


_PLAIN: Mapping[Any, _Form] = {
    bytes: _Form(bytes, bytes),
    str: _Form(str.encode, _decode_text),
    int: _Form(struct.Struct(">Q").pack, lambda data: _decode_number(data, ">Q")),
    float: _Form(struct.Struct(">d").pack, lambda data: _decode_number(data, ">d")),
    Mapping[str, bytes]: _Form(_encode_mapping, _decode_mapping),
}
