"""A record travels as a Flower message's content, through Flower's own encoding, and nothing else does."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.app.metadata import validate_message_type
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.codec import KINDS, encode
from clinimeta.common.errors import RecordError
from clinimeta.common.flower_records import MESSAGE_TYPES, envelope_of, from_flower, to_flower
from clinimeta.common.metrics import Mean
from clinimeta.common.records import (
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
)

WEIGHTS = {"bias": torch.tensor([0.5, float("nan")]), "weight": torch.zeros(2, 0), "rate": torch.tensor(-0.0)}
MEANS = {"query_loss": Mean(2.5, 4.0)}
EXAMPLES: dict[str, Order | Reply] = {
    "an introduction order": IntroductionOrder("n"),
    "an introduction": Introduction("n", "Universitätsklinikum Ulm", "clinimeta 0", 20, 49),
    "a meta-gradient order": MetaGradientOrder("n", "run", 2**40, b"\0\xff", WEIGHTS),
    "a meta-gradient": MetaGradient("n", "run", 3, "ulm", 4.0, WEIGHTS, MEANS),
    "a meta-gradient without metrics": MetaGradient("n", "run", 3, "ulm", 4.0, WEIGHTS, {}),
    "an order for whole numbers": QuantisedOrder("n", "run", 3, b"{}", 9, WEIGHTS),
    "whole numbers": Quantised("n", "run", 3, "ulm", b"\x01\x02\x03\x04"),
    "an order of secure aggregation": MaskingOrder("n", "run", 3, b"", (b"one", b"two"), {}),
    "an answer of secure aggregation": Masking("n", "run", "ulm", (b"first", b"")),
    "a calibration order": CalibrationOrder("n", "run", b"", {}, (0.5, float("inf"), -0.0)),
    "a calibration": Calibration("n", "run", "ulm", (1, 5), (3.0, 2.0)),
    "a calibration of nothing": Calibration("n", "run", "ulm", (), ()),
    "a refusal": Refusal("", "ulm", "internal", "no"),
}
EVERY = pytest.mark.parametrize("name", EXAMPLES)


def over_the_wire(content: RecordDict) -> RecordDict:
    """Taken apart into Flower's objects and put together again, as between two hosts."""
    contents = {key: part.deflate() for key, part in get_all_nested_objects(content).items()}
    arrived = inflate_object_from_contents(content.object_id, contents)
    assert isinstance(arrived, RecordDict)
    return arrived


def content(name: str = "a meta-gradient") -> RecordDict:
    return to_flower(EXAMPLES[name])


def with_array(**changes: Any) -> RecordDict:
    """A meta-gradient's content, its one array changed."""
    good = content()
    array = good["tensors"]["gradient"]
    parts = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data}
    return RecordDict(
        {"fields": good["fields"], "tensors": ArrayRecord({"gradient": Array(**{**parts, **changes})})}
    )


def test_every_kind_of_record_is_tested() -> None:
    assert {type(record) for record in EXAMPLES.values()} == set(KINDS.values())


@EVERY
def test_a_record_becomes_content_and_a_record_again(name: str) -> None:
    record = EXAMPLES[name]
    found = from_flower(content(name))
    assert type(found) is type(record)
    assert encode(found) == encode(record)


@EVERY
def test_flowers_own_encoding_keeps_a_record_to_the_bit(name: str) -> None:
    record = EXAMPLES[name]
    found = from_flower(over_the_wire(content(name)))
    assert type(found) is type(record)
    assert encode(found) == encode(record)


def test_an_array_that_flower_cuts_into_chunks_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", 64)
    large = MetaGradientOrder("n", "run", 1, b"", {"w": torch.arange(100, dtype=torch.float64)})
    parts = get_all_nested_objects(to_flower(large))
    assert sum(isinstance(part, ArrayChunk) for part in parts.values()) > 10
    assert encode(from_flower(over_the_wire(to_flower(large)))) == encode(large)


def test_each_order_has_a_message_type_of_its_own_that_flower_can_route() -> None:
    assert set(MESSAGE_TYPES) == set(get_args(Order))
    assert len(set(MESSAGE_TYPES.values())) == len(MESSAGE_TYPES)
    assert all(validate_message_type(message_type) for message_type in MESSAGE_TYPES.values())


def test_an_envelope_can_be_weighed_before_it_is_opened() -> None:
    assert envelope_of(content()) == encode(EXAMPLES["a meta-gradient"])


# What must fail


@pytest.mark.parametrize(
    "records",
    [
        {},
        {"tensors": content()["tensors"]},
        {"fields": content()["fields"], "tensors": content()["tensors"], "more": ConfigRecord({})},
        {"fields": content()["fields"], "arrays": content()["tensors"]},
    ],
    ids=lambda records: "+".join(records) or "nothing",
)
def test_other_records_than_ours_are_an_error(records: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match="unexpected records"):
        from_flower(RecordDict(records))


@pytest.mark.parametrize(
    "records",
    [
        {"fields": content()["tensors"], "tensors": content()["fields"]},
        {"fields": content()["fields"], "tensors": ConfigRecord({})},
        {"fields": MetricRecord({"version": 1}), "tensors": content()["tensors"]},
        {"fields": content()["fields"], "tensors": MetricRecord({})},
    ],
)
def test_records_of_another_type_are_an_error(records: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match="wrong type"):
        from_flower(RecordDict(records))


@given(shape=st.lists(st.integers(-1, 2**63 - 1), max_size=3).map(tuple))
def test_an_array_that_lies_about_its_length_is_an_error(shape: tuple[int, ...]) -> None:
    good = content()["tensors"]["gradient"]
    if shape == good.shape:
        return
    with pytest.raises(RecordError, match="array 'gradient' has a header"):
        envelope_of(with_array(shape=shape))


@pytest.mark.parametrize("extra", [-1, 1])
def test_an_array_with_a_byte_more_or_less_than_it_says_is_an_error(extra: int) -> None:
    data = content()["tensors"]["gradient"].data
    with pytest.raises(RecordError, match="array 'gradient' has a header"):
        envelope_of(with_array(data=data[:extra] if extra < 0 else data + b"\0"))


def test_an_array_of_another_rank_is_an_error() -> None:
    length = len(content()["tensors"]["gradient"].data)
    for shape in ((), (1, length), (length, 1)):
        with pytest.raises(RecordError, match="array 'gradient' has a header"):
            envelope_of(with_array(shape=shape))


@pytest.mark.parametrize(
    "changes", [{"dtype": "float32"}, {"stype": "numpy.ndarray"}, {"stype": ""}], ids=str
)
def test_an_array_of_another_serialisation_is_an_error(changes: dict[str, str]) -> None:
    with pytest.raises(RecordError, match="array 'gradient' has a header"):
        from_flower(with_array(**changes))


def test_flowers_own_numpy_arrays_are_an_error() -> None:
    numpy = ArrayRecord({"gradient": Array(np.zeros(3, dtype=np.uint8))})
    with pytest.raises(RecordError, match="array 'gradient' has a header"):
        from_flower(RecordDict({"fields": content()["fields"], "tensors": numpy}))


def test_a_boolean_that_crossed_the_wire_is_still_no_number() -> None:
    good = content("an introduction")
    fields = ConfigRecord({**good["fields"], "rows_from": True})
    with pytest.raises(RecordError, match="rows_from has the wrong type"):
        from_flower(over_the_wire(RecordDict({**good, "fields": fields})))


def test_a_record_without_tensors_sends_none_and_one_with_tensors_needs_them() -> None:
    assert set(content("an introduction")) == {"fields"}
    with pytest.raises(RecordError):
        from_flower(RecordDict({"fields": content()["fields"]}))


def test_content_that_is_well_formed_but_no_record_is_an_error() -> None:
    with pytest.raises(RecordError, match="version"):
        from_flower(RecordDict({"fields": ConfigRecord({"lr": 0.1}), "tensors": ArrayRecord({})}))
