"""A record survives the codec to the bit; everything that is not exactly a record is a RecordError."""

import dataclasses
import json
import pickle
import struct
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.codec import KINDS, Envelope, decode, decode_params, encode, encode_params
from clinimeta.common.errors import RecordError
from clinimeta.common.metrics import Mean
from clinimeta.common.records import (
    REFUSALS,
    VERSION,
    Calibration,
    CalibrationOrder,
    Introduction,
    IntroductionOrder,
    Masking,
    MaskingOrder,
    MetaGradient,
    MetaGradientOrder,
    Order,
    Quantised,
    QuantisedOrder,
    Refusal,
    Reply,
    count_range,
)
from clinimeta.common.rng import generator
from clinimeta.common.typing import Params

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.floats(allow_nan=False)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    rng = generator("codec", draw(st.integers(0, 999)))
    return (torch.randn(shape, generator=rng) * 100).to(draw(st.sampled_from(DTYPES)))


PARAMS = st.dictionaries(TEXT.filter(lambda name: name != "__metadata__"), tensors(), max_size=4)

VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: INTEGERS,
    float: NUMBERS,
    bytes: st.binary(max_size=20),
    tuple[int, ...]: st.lists(INTEGERS, max_size=4).map(tuple),
    tuple[float, ...]: st.lists(NUMBERS, max_size=4).map(tuple),
    tuple[bytes, ...]: st.lists(st.binary(max_size=20), max_size=4).map(tuple),
    Params: PARAMS,
    Mapping[str, Mean]: st.dictionaries(TEXT, st.builds(Mean, NUMBERS, NUMBERS), max_size=3),
}
"""What a field of each type may hold; a record with another type of field fails the contract below."""

WEIGHTS = {"bias": torch.tensor([0.5]), "weight": torch.tensor([[1.0], [-2.0]])}
EXAMPLES: dict[str, Order | Reply] = {
    "IntroductionOrder": IntroductionOrder("n"),
    "Introduction": Introduction("n", "ulm", "clinimeta 0", 20, 49),
    "MetaGradientOrder": MetaGradientOrder("n", "run", 3, b"{}", WEIGHTS),
    "MetaGradient": MetaGradient(
        "n", "run", 3, "ulm", 4.0, WEIGHTS, {"query_loss": Mean(2.5, 4.0), "query_accuracy": Mean(3.0, 4.0)}
    ),
    "QuantisedOrder": QuantisedOrder("n", "run", 3, b"{}", 9, WEIGHTS),
    "Quantised": Quantised("n", "run", 3, "ulm", b"\x01\x02\x03\x04"),
    "MaskingOrder": MaskingOrder("n", "run", 3, b"{}", (b"one", b"two"), WEIGHTS),
    "Masking": Masking("n", "run", "ulm", (b"first", b"second")),
    "CalibrationOrder": CalibrationOrder("n", "run", b"{}", WEIGHTS, (0.5, 1.0)),
    "Calibration": Calibration("n", "run", "ulm", (1, 5), (3.0, 2.0, 2.0, 1.5)),
    "Refusal": Refusal("n", "ulm", "internal", "no"),
}


def hints(kind: type) -> dict[str, Any]:
    types = get_type_hints(kind)
    return {field.name: types[field.name] for field in dataclasses.fields(kind)}


def any_fields(kind: type) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: VALUES[hint] for name, hint in hints(kind).items()})


def bits(params: Params) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    return {
        name: (t.dtype, tuple(t.shape), bytes(t.detach().contiguous().reshape(-1).view(torch.uint8).tolist()))
        for name, t in params.items()
    }


def assert_same(left: Order | Reply, right: Order | Reply) -> None:
    assert type(left) is type(right)
    for name, hint in hints(type(left)).items():
        one, other = getattr(left, name), getattr(right, name)
        if hint == Params:
            assert bits(one) == bits(other)
        else:
            assert one == other
            assert type(one) is type(other) or hint == Mapping[str, Mean]


def safetensors_bytes(header: object, data: bytes = b"", *, spaces: int = 0, compact: bool = True) -> bytes:
    """A safetensors file written by hand, header padded to 8 bytes as the format's own writer does."""
    text = json.dumps(header, separators=(",", ":") if compact else None).encode()
    text += b" " * (-len(text) % 8 + spaces)
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, end: int, *, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


# What must pass


def test_every_kind_of_record_is_tested() -> None:
    assert set(KINDS.values()) == {*get_args(Order), *get_args(Reply)}
    assert {kind: type(record) for kind, record in EXAMPLES.items()} == KINDS


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_what_was_encoded_is_decoded(kind: str, data: st.DataObject) -> None:
    record = KINDS[kind](**data.draw(any_fields(KINDS[kind])))
    assert_same(decode(encode(record)), record)


@pytest.mark.parametrize("kind", KINDS)
def test_an_envelope_names_its_kind_and_version(kind: str) -> None:
    fields = encode(EXAMPLES[kind]).fields
    assert (fields["kind"], fields["version"]) == (kind, VERSION)


@given(params=PARAMS)
def test_equal_parameters_give_equal_bytes_in_whatever_order_they_stand(params: Params) -> None:
    backwards = {name: params[name].clone() for name in reversed(list(params))}
    assert encode_params(params) == encode_params(backwards)
    assert list(decode_params(encode_params(backwards))) == sorted(params)


def test_a_nan_in_a_tensor_travels_to_the_bit() -> None:
    odd = torch.tensor([0x7FC00001, -4194304, -2147483648], dtype=torch.int32).view(torch.float32)
    assert bits(decode_params(encode_params({"w": odd}))) == bits({"w": odd})


def test_a_tensor_that_is_a_view_or_needs_a_gradient_is_encoded_by_its_values() -> None:
    base = torch.arange(6.0).reshape(2, 3)
    view = base.clone().requires_grad_().T
    assert torch.equal(decode_params(encode_params({"w": view}))["w"], base.T)


def test_the_canonical_form_is_safetensors_with_sorted_names() -> None:
    expected = safetensors_bytes({"a": entry(0, 4), "b": entry(4, 8)}, struct.pack("<2f", 1.0, 2.0))
    assert encode_params({"b": torch.tensor([2.0]), "a": torch.tensor([1.0])}) == expected


def test_the_size_counts_names_numbers_strings_and_tensors() -> None:
    envelope = Envelope(
        {"ab": "xyz", "n": 7, "list": [1.0, 2.0], "names": ["a", "bc"], "p": b"12"}, {"t": b"12345"}
    )
    assert envelope.size == (2 + 3) + (1 + 8) + (4 + 16) + (5 + 3) + (1 + 2) + (1 + 5)


@given(count=st.integers(0, 2_000_000))
def test_the_range_of_a_count_holds_it_and_never_gives_it_away(count: int) -> None:
    low, high = count_range(count)
    assert low <= count <= high
    assert high - low >= 9
    assert count_range(low) == count_range(high) == (low, high)


def test_every_refusal_says_what_it_means() -> None:
    assert all(code.isidentifier() and meaning for code, meaning in REFUSALS.items())


# What must fail

WRONG: dict[Any, list[Any]] = {
    str: [1, b"n", ["n"], True],
    int: [1.0, True, "1", [1]],
    float: [1, True, "1.0", [1.0]],
    bytes: ["{}", 1, [b"{}"]],
    tuple[int, ...]: [1, "1", b"1", [1.0], [True], ["1"], [1, 2.0]],
    tuple[float, ...]: [1.0, "1", b"1", [1], [True], ["1"], [1.0, 2], [float("nan")], [1.0, float("nan")]],
    tuple[bytes, ...]: [b"1", "1", ["1"], [1], [b"1", "2"]],
}


def damaged_envelopes() -> Iterator[tuple[str, str, Envelope]]:
    """(Name, what the error names, envelope): each field of each kind missing or wrong, and one too many."""
    for kind, record in EXAMPLES.items():
        good = encode(record)
        fields, parts = dict(good.fields), dict(good.tensors)
        for name in fields:
            yield f"{kind}: no {name}", name, Envelope({k: v for k, v in fields.items() if k != name}, parts)
        for name in parts:
            yield f"{kind}: no tensors {name}", name, Envelope(fields, {})
            yield f"{kind}: tensors {name} as a field", name, Envelope({**fields, name: parts[name]}, {})
            yield f"{kind}: tensors {name} twice", name, Envelope({**fields, name: parts[name]}, parts)
        for name, hint in hints(type(record)).items():
            for wrong in WRONG.get(hint, []):
                yield f"{kind}: {name} = {wrong!r}", name, Envelope({**fields, name: wrong}, parts)
        yield f"{kind}: a field too many", "extra", Envelope({**fields, "extra": 1}, parts)
        yield f"{kind}: tensors too many", "extra", Envelope(fields, {**parts, "extra": encode_params({})})


DAMAGED = {name: (envelope, named) for name, named, envelope in damaged_envelopes()}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_field_missing_left_over_or_of_the_wrong_type_is_an_error_that_names_it(damage: str) -> None:
    envelope, named = DAMAGED[damage]
    with pytest.raises(RecordError, match=rf"\b{named}\b"):
        decode(envelope)


def test_the_wrong_types_are_tried_on_every_type_of_field() -> None:
    used = {hint for kind in KINDS.values() for hint in hints(kind).values()}
    assert used == set(VALUES) == {*WRONG, Params, Mapping[str, Mean]}


@pytest.mark.parametrize("version", [0, 2, -1, "1", b"1", [1], True, 1.0])
def test_another_version_is_an_error(version: Any) -> None:
    good = encode(EXAMPLES["Refusal"])
    with pytest.raises(RecordError, match="version"):
        decode(Envelope({**good.fields, "version": version}, good.tensors))


@pytest.mark.parametrize(
    "kind", ["", "refusal", "Mean", "Envelope", "clinimeta.common.records.Refusal", 1, ["Refusal"]]
)
def test_an_unknown_kind_is_an_error(kind: Any) -> None:
    good = encode(EXAMPLES["Refusal"])
    with pytest.raises(RecordError, match="unknown kind"):
        decode(Envelope({**good.fields, "kind": kind}, good.tensors))


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": ["query_loss"]},
        {"totals": [2.5]},
        {"weights": [4.0, 4.0, 4.0]},
        {"names": ["query_loss", "query_loss"]},
        {"names": [], "totals": [2.5, 3.0], "weights": [4.0, 4.0]},
        {"names": ["query_loss", 1]},
        {"names": "query_loss"},
        {"totals": [2.5, 3]},
        {"totals": [2.5, float("nan")]},
        {"weights": [float("nan"), 4.0]},
        {"weights": [True, 4.0]},
        {"weights": 4.0},
    ],
    ids=str,
)
def test_means_whose_parts_do_not_fit_together_are_an_error(wrong: dict[str, Any]) -> None:
    good = encode(EXAMPLES["MetaGradient"])
    fields = {**good.fields, **{f"metrics.{name}": value for name, value in wrong.items()}}
    with pytest.raises(RecordError, match="metrics"):
        decode(Envelope(fields, good.tensors))


@pytest.mark.parametrize("wrong", ["text", None, 3, [b"x"], bytearray(encode_params(WEIGHTS))], ids=repr)
def test_tensors_that_are_no_bytes_are_an_error(wrong: Any) -> None:
    envelope = encode(EXAMPLES["MetaGradientOrder"])
    object.__setattr__(envelope, "tensors", {"params": wrong})  # past the constructor's own check
    with pytest.raises(RecordError, match="'params' has the wrong type"):
        decode(envelope)


FLOATS = struct.pack("<2f", 1.0, 2.0)
GOOD = safetensors_bytes({"a": entry(0, 4), "b": entry(4, 8)}, FLOATS)
NOT_CANONICAL = {
    "nothing": b"",
    "a pickle": pickle.dumps({"a": 1.0}),
    "metadata": safetensors_bytes({"__metadata__": {"note": "x"}, "a": entry(0, 4)}, FLOATS[:4]),
    "empty metadata": safetensors_bytes({"__metadata__": {}, "a": entry(0, 4)}, FLOATS[:4]),
    "a longer padding": safetensors_bytes({"a": entry(0, 4), "b": entry(4, 8)}, FLOATS, spaces=8),
    "spaces in the header": safetensors_bytes({"a": entry(0, 4), "b": entry(4, 8)}, FLOATS, compact=False),
    "names out of order": safetensors_bytes({"b": entry(4, 8), "a": entry(0, 4)}, FLOATS),
    "data out of order": safetensors_bytes({"a": entry(4, 8), "b": entry(0, 4)}, FLOATS),
    "a key too many": safetensors_bytes({"a": {**entry(0, 4), "note": 1}}, FLOATS[:4]),
    "overlapping data": safetensors_bytes({"a": entry(0, 4), "b": entry(0, 4)}, FLOATS[:4]),
    "a hole in the data": safetensors_bytes({"a": entry(4, 8)}, FLOATS),
    "data beyond the end": safetensors_bytes({"a": entry(0, 8, shape=(2,))}, FLOATS[:4]),
    "a shape that does not fit": safetensors_bytes({"a": entry(0, 8, shape=(3,))}, FLOATS),
    "a shape that overflows": safetensors_bytes({"a": entry(0, 8, shape=(2**63, 2))}, FLOATS),
    "a negative shape": safetensors_bytes({"a": entry(0, 8, shape=(-2,))}, FLOATS),
    "an empty tensor too wide for torch": safetensors_bytes({"a": entry(0, 0, shape=(0, 2**63))}),
    "an unknown number type": safetensors_bytes({"a": entry(0, 4, dtype="F31")}, FLOATS[:4]),
    "a number type that torch lacks": safetensors_bytes(
        {"a": entry(0, 4, dtype="F8_E8M0", shape=(4,))}, FLOATS[:4]
    ),
    "a list for a header": safetensors_bytes([1, 2]),
    "a header that is no JSON": struct.pack("<Q", 8) + b"{" * 8,
    "a header that is no UTF-8": struct.pack("<Q", 8) + b"\xff" * 8,
    "a header shorter than it says": struct.pack("<Q", 2**40) + b"{}",
    "a header of no length": struct.pack("<Q", 0),
    "only a length": b"\x08\0\0\0",
}


def test_the_hand_written_canonical_form_passes() -> None:
    assert bits(decode_params(GOOD)) == bits({"a": torch.tensor([1.0]), "b": torch.tensor([2.0])})


@pytest.mark.parametrize("name", NOT_CANONICAL)
def test_bytes_that_are_not_canonical_safetensors_are_an_error(name: str) -> None:
    with pytest.raises(RecordError, match="tensors are not"):
        decode_params(NOT_CANONICAL[name])


def test_a_duplicate_name_in_the_header_is_an_error() -> None:
    one = json.dumps({"a": entry(0, 4)}, separators=(",", ":"))[1:-1]
    text = f"{{{one},{one}}}".encode()
    text += b" " * (-len(text) % 8)
    with pytest.raises(RecordError):
        decode_params(struct.pack("<Q", len(text)) + text + FLOATS[:4])


@given(params=PARAMS, cut=st.integers(0, 10**6))
def test_truncated_tensors_are_an_error(params: Params, cut: int) -> None:
    data = encode_params(params)
    with pytest.raises(RecordError):
        decode_params(data[: cut % len(data)])


@given(params=PARAMS, more=st.binary(min_size=1, max_size=9))
def test_extended_tensors_are_an_error(params: Params, more: bytes) -> None:
    with pytest.raises(RecordError):
        decode_params(encode_params(params) + more)


@given(params=PARAMS, at=st.integers(0, 10**6), flipped=st.integers(1, 255))
def test_a_flipped_byte_is_an_error_or_another_canonical_form(params: Params, at: int, flipped: int) -> None:
    data = bytearray(encode_params(params))
    data[at % len(data)] ^= flipped
    try:
        decoded = decode_params(bytes(data))
    except RecordError:
        return
    assert encode_params(decoded) == data


@given(data=st.binary(max_size=64))
def test_bytes_of_chance_are_an_error(data: bytes) -> None:
    with pytest.raises(RecordError):
        decode_params(data)


def test_damaged_tensors_are_an_error_of_the_record() -> None:
    good = encode(EXAMPLES["MetaGradientOrder"])
    with pytest.raises(RecordError):
        decode(Envelope(good.fields, {"params": good.tensors["params"][:-1]}))
