"""Terms and messages as bytes: one form each, and nothing else is read."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parties import names_of, roster_of, terms_of

from clinimeta.common.errors import RecordError
from clinimeta.common.secagg.messages import (
    Advert,
    AdvertRequest,
    Confirm,
    ConfirmRequest,
    Masked,
    MaskedRequest,
    Refusal,
    Shares,
    SharesRequest,
    Unmask,
    UnmaskRequest,
    from_bytes,
    to_bytes,
)
from clinimeta.common.secagg.packing import pack, unpack
from clinimeta.common.secagg.terms import Column, RoundKey, Terms

ROSTER = roster_of(names_of(5))
TERMS = terms_of(ROSTER, public=("rows", "software"))
KEY = RoundKey("run", 7, 1)
ADVERT = Advert("köln", b"c" * 32, b"m" * 32, b"n" * 16, b"s" * 64)
MESSAGES: list[Any] = [
    AdvertRequest(TERMS.to_bytes()),
    ADVERT,
    SharesRequest(KEY, (ADVERT, replace(ADVERT, site="ulm"))),
    Shares(KEY, "bern", {"köln": b"1", "ulm": b""}, b"c" * 32),
    MaskedRequest(KEY, ("bern", "ulm"), {"ulm": b"sealed"}),
    Masked(KEY, "bern", bytes(12)),
    ConfirmRequest(KEY, ()),
    Confirm(KEY, "bern", b"s" * 64),
    UnmaskRequest(KEY, {}),
    Unmask(KEY, "bern", {"bern": bytes(33)}, {"ulm": bytes(33)}),
    Refusal("bern", "masked", "bad_vector", "no"),
]


def test_terms_are_read_back() -> None:
    assert Terms.from_bytes(TERMS.to_bytes()) == TERMS
    assert TERMS.key == RoundKey("run", 7, 0)


CHANGES: list[dict[str, Any]] = [
    {"run": "other"},
    {"round": 8},
    {"attempt": 1},
    {"dim": 6},
    {"bound": 2.0000001},
    {"columns": ()},
    {"columns": (Column("tasks", 65.0), TERMS.columns[1])},
    {"n_max": 6},
    {"min_cohort": 4},
    {"degree": 4},
    {"roster_digest": bytes(32)},
    {"plan_digest": bytes(32)},
    {"public": ()},
]


def test_every_term_is_in_the_digest() -> None:
    changed = [replace(TERMS, **change) for change in CHANGES]
    assert len({terms.digest for terms in (TERMS, *changed)}) == len(CHANGES) + 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suite", 0),
        ("suite", 2),
        ("run", ""),
        ("run", "x" * 201),
        ("round", -1),
        ("attempt", -1),
        ("dim", 0),
        ("dim", 2**31),
        ("bound", 0.0),
        ("bound", -1.0),
        ("bound", math.nan),
        ("bound", math.inf),
        ("bound", 1e31),
        ("columns", (Column("a", 1.0), Column("a", 2.0))),
        ("columns", (Column("", 1.0),)),
        ("columns", (Column("a", math.nan),)),
        ("n_max", 0),
        ("n_max", 10_001),
        ("min_cohort", 0),
        ("min_cohort", 6),
        ("threshold", "one"),
        ("degree", 3),
        ("degree", -2),
        ("roster_digest", bytes(31)),
        ("plan_digest", bytes(33)),
        ("public", ("b", "a")),
        ("public", ("a", "a")),
    ],
)
def test_a_term_out_of_its_range_is_an_error_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(RecordError, match=name):
        replace(TERMS, **{name: value})


@given(at=st.integers(0, 10_000), flipped=st.integers(1, 255))
def test_a_flipped_byte_is_an_error_or_other_terms(at: int, flipped: int) -> None:
    data = bytearray(TERMS.to_bytes())
    data[at % len(data)] ^= flipped
    try:
        found = Terms.from_bytes(bytes(data))
    except RecordError:
        return
    assert found != TERMS
    assert found.to_bytes() == data


@pytest.mark.parametrize(("n", "t"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (10, 7), (50, 34), (200, 134)])
def test_the_threshold_is_two_thirds_and_one(n: int, t: int) -> None:
    assert TERMS.needed(n) == t


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_messages_are_read_back(message: Any) -> None:
    assert from_bytes(to_bytes(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
@given(cut=st.integers(0, 10_000), more=st.binary(min_size=1, max_size=5))
def test_messages_cut_or_longer_are_an_error(message: Any, cut: int, more: bytes) -> None:
    data = to_bytes(message)
    for wrong in (data[: cut % len(data)], data + more):
        with pytest.raises(RecordError):
            from_bytes(wrong)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
@given(at=st.integers(0, 10_000), flipped=st.integers(1, 255))
def test_a_flipped_byte_is_an_error_or_another_message(message: Any, at: int, flipped: int) -> None:
    data = bytearray(to_bytes(message))
    data[at % len(data)] ^= flipped
    try:
        found = from_bytes(bytes(data))
    except RecordError:
        return
    assert found != message
    assert to_bytes(found) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        pack(b"Site", b""),
        pack(b"Confirm"),
        pack(b"Unmask", pack(pack(b"r", bytes(8), bytes(8)), b"bern", pack(b"name"), b"")),
        pack(b"Unmask", pack(pack(b"r", bytes(8), bytes(8)), b"bern", pack(b"b", b"", b"a", b""), b"")),
        pack(b"Unmask", pack(pack(b"r", bytes(8), bytes(8)), b"bern", pack(b"b", b"", b"b", b""), b"")),
        pack(b"Confirm", pack(pack(b"r", bytes(7), bytes(8)), b"bern", b"")),
        pack(b"Confirm", pack(pack(b"r", bytes(8), bytes(8)), b"\xff", b"")),
        pack(b"\xff", b""),
    ],
)
def test_what_is_no_message_is_an_error(data: bytes) -> None:
    with pytest.raises(RecordError):
        from_bytes(data)


@given(parts=st.lists(st.binary(max_size=20), max_size=5))
def test_packing_is_reversible_and_unambiguous(parts: list[bytes]) -> None:
    assert unpack(pack(*parts)) == parts
