"""Records to plain fields and back, strictly: kind, version, names, types and lengths, nothing left over.

Weights travel as safetensors in its one canonical form; there is no pickle anywhere. The fields of a
record are read off its dataclass, so a new record needs no code here.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, get_type_hints

import safetensors
import safetensors.torch
import torch

from clinimeta.common import records
from clinimeta.common.errors import RecordError
from clinimeta.common.metrics import Mean
from clinimeta.common.records import VERSION, Order, Reply
from clinimeta.common.typing import Params

Scalar: TypeAlias = str | int | float | bytes
Field: TypeAlias = Scalar | list[int] | list[float] | list[str] | list[bytes]

KINDS: dict[str, type[Order | Reply]] = {
    kind.__name__: kind
    for kind in (
        records.IntroductionOrder,
        records.Introduction,
        records.MetaGradientOrder,
        records.MetaGradient,
        records.QuantisedOrder,
        records.Quantised,
        records.MaskingOrder,
        records.Masking,
        records.CalibrationOrder,
        records.Calibration,
        records.Refusal,
    )
}


@dataclass(frozen=True, slots=True)
class Envelope:
    """A record taken apart: small fields, and the bytes of its tensors."""

    fields: Mapping[str, Field]
    tensors: Mapping[str, bytes]

    @property
    def size(self) -> int:
        """Payload in bytes: names, numbers at 8 bytes, strings and tensors; framing apart."""
        small = sum(len(name) + _field_size(value) for name, value in self.fields.items())
        return small + sum(len(name) + len(data) for name, data in self.tensors.items())


def encode(record: Order | Reply) -> Envelope:
    """Take a record apart."""
    fields: dict[str, Field] = {"kind": type(record).__name__, "version": VERSION}
    tensors: dict[str, bytes] = {}
    for name, hint in _hints(type(record)).items():
        value = getattr(record, name)
        if hint == Params:
            tensors[name] = encode_params(value)
        elif hint == Mapping[str, Mean]:
            fields[f"{name}.names"] = list(value)
            fields[f"{name}.totals"] = [float(mean.total) for mean in value.values()]
            fields[f"{name}.weights"] = [float(mean.weight) for mean in value.values()]
        else:
            fields[name] = list(value) if isinstance(value, tuple) else value
    return Envelope(fields, tensors)


def decode(envelope: Envelope) -> Order | Reply:
    """Put a record together again.

    Raises:
        RecordError: another version, an unknown kind, a field missing, left over or of the wrong type,
            or tensors that are not canonical safetensors.
    """
    fields, tensors = dict(envelope.fields), dict(envelope.tensors)
    version = fields.get("version")
    if type(version) is not int or version != VERSION:
        raise RecordError(f"record version {fields.get('version')!r}, expected {VERSION}")
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise RecordError("unknown kind of record")
    del fields["kind"], fields["version"]
    values: dict[str, Any] = {}
    for name, hint in _hints(KINDS[kind]).items():
        if hint == Params:
            values[name] = decode_params(_take(tensors, name, kind, bytes))
        elif hint == Mapping[str, Mean]:
            values[name] = _decode_means(fields, name, kind)
        else:
            values[name] = _FIELDS[hint](_take(fields, name, kind, None), f"{kind}.{name}")
    if fields or tensors:
        raise RecordError(f"{kind}: unexpected {', '.join(sorted({*fields, *tensors}))}")
    return KINDS[kind](**values)


def encode_params(params: Params) -> bytes:
    """Canonical safetensors bytes: equal parameters give equal bytes."""
    ordered = {name: params[name].detach().contiguous() for name in sorted(params)}
    data: bytes = safetensors.torch.save(ordered)
    return data


def decode_params(data: bytes) -> Params:
    """The inverse of `encode_params`; accepts nothing but what it produces.

    Raises:
        RecordError: not safetensors, or not in the canonical form.
    """
    try:
        params: dict[str, torch.Tensor] = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError, RuntimeError):
        raise RecordError("tensors are not safetensors") from None
    if encode_params(params) != data:
        raise RecordError("tensors are not in canonical form")
    return {name: params[name] for name in sorted(params)}


def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _take(source: dict[str, Any], name: str, kind: str, wanted: type | None) -> Any:
    if name not in source:
        raise RecordError(f"{kind}: '{name}' is missing")
    value = source.pop(name)
    if wanted is not None and type(value) is not wanted:
        raise RecordError(f"{kind}: '{name}' has the wrong type")
    return value


def _decode_means(fields: dict[str, Any], name: str, kind: str) -> dict[str, Mean]:
    names = _list_of(str)(_take(fields, f"{name}.names", kind, None), f"{kind}.{name}.names")
    totals = _list_of(float)(_take(fields, f"{name}.totals", kind, None), f"{kind}.{name}.totals")
    weights = _list_of(float)(_take(fields, f"{name}.weights", kind, None), f"{kind}.{name}.weights")
    if not len(names) == len(totals) == len(weights) == len(set(names)):
        raise RecordError(f"{kind}: '{name}' has names, totals and weights of different lengths")
    return {n: Mean(t, w) for n, t, w in zip(names, totals, weights, strict=True)}


def _scalar(wanted: type) -> Callable[[Any, str], Any]:
    def read(value: Any, where: str) -> Any:
        if type(value) is not wanted:
            raise RecordError(f"{where} has the wrong type")
        return value

    return read


def _list_of(wanted: type) -> Callable[[Any, str], tuple[Any, ...]]:
    def read(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or any(type(item) is not wanted for item in value):
            raise RecordError(f"{where} has the wrong type")
        if wanted is float and any(math.isnan(item) for item in value):
            raise RecordError(f"{where} holds NaN")
        return tuple(value)

    return read


_FIELDS: dict[Any, Callable[[Any, str], Any]] = {
    str: _scalar(str),
    int: _scalar(int),
    float: _scalar(float),
    bytes: _scalar(bytes),
    tuple[int, ...]: _list_of(int),
    tuple[float, ...]: _list_of(float),
    tuple[bytes, ...]: _list_of(bytes),
}


def _field_size(value: Field) -> int:
    if isinstance(value, list):
        return sum(_field_size(item) for item in value)
    return len(value) if isinstance(value, str | bytes) else 8
