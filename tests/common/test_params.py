"""Arithmetic on named tensors does what it says, name by name; randomness is a function of its key."""

import hashlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.params import (
    add,
    count,
    digest,
    is_finite,
    like,
    map_params,
    norm,
    part,
    prefixed,
    scaled,
    shapes,
    zeros_like,
)
from clinimeta.common.rng import derive_seed, generator
from clinimeta.common.typing import Params

NAMES = st.text(st.characters(codec="utf-8"), max_size=6)
VALUES = st.floats(-1e6, 1e6)
TENSORS = st.lists(VALUES, max_size=4).map(lambda values: torch.tensor(values, dtype=torch.float64))
PARAMS = st.dictionaries(NAMES, TENSORS, max_size=4)


def flat(params: Params) -> torch.Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *(p.flatten() for p in params.values())])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Params, Params]:
    """Two sets of parameters of the same names and shapes, in different orders."""
    left = draw(PARAMS)
    right = {
        name: torch.randn(p.shape, generator=generator(i), dtype=p.dtype)
        for i, (name, p) in enumerate(left.items())
    }
    return left, {name: right[name] for name in reversed(list(right))}


@given(both=pairs(), scale=st.floats(-10, 10))
def test_arithmetic_is_that_of_the_flat_vectors(both: tuple[Params, Params], scale: float) -> None:
    left, right = both
    aligned = flat({name: right[name] for name in left})
    assert torch.equal(flat(add(left, right, scale)), flat(left) + scale * aligned)
    assert torch.equal(flat(scaled(left, scale)), scale * flat(left))
    assert torch.equal(flat(zeros_like(left)), torch.zeros_like(flat(left)))
    assert count(left) == flat(left).numel()
    assert norm(left) == pytest.approx(float(torch.linalg.vector_norm(flat(left))), rel=1e-12)


@given(both=pairs())
def test_the_first_arguments_order_is_kept(both: tuple[Params, Params]) -> None:
    left, right = both
    assert list(map_params(torch.add, left, right)) == list(left)
    assert list(map_params(torch.add, right, left)) == list(right)


def test_adding_leaves_the_arguments_alone() -> None:
    left, right = {"w": torch.ones(2)}, {"w": torch.full((2,), 3.0)}
    assert torch.equal(add(left, right)["w"], torch.full((2,), 4.0))
    assert torch.equal(left["w"], torch.ones(2))


def test_zeros_have_the_same_shapes_and_number_types() -> None:
    like = {"w": torch.ones(2, 3), "n": torch.ones((), dtype=torch.int64)}
    zeros = zeros_like(like)
    assert shapes(zeros) == shapes(like) == {"w": (2, 3), "n": ()}
    assert [z.dtype for z in zeros.values()] == [torch.float32, torch.int64]


@pytest.mark.parametrize(("names", "differ"), [("a", "b"), ("abc", "c"), ("ac", "b.*c"), ("", "a.*b")])
def test_other_names_are_an_error_that_tells_the_difference(names: str, differ: str) -> None:
    mine, other = ({name: torch.ones(1) for name in chosen} for chosen in ("ab", names))
    with pytest.raises(ValueError, match=f"parameter names differ: .*{differ}"):
        add(mine, other)
    with pytest.raises(ValueError, match=f"parameter names differ: .*{differ}"):
        map_params(torch.add, mine, mine, other)


def test_the_norm_is_the_same_to_the_bit_in_whatever_order_the_names_stand() -> None:
    """A checkpoint does not keep the order; a sum in another order would end on another bit."""
    values = {f"w{i}": torch.rand(3, generator=generator("norm", i)) for i in range(40)}
    orders = [dict(sorted(values.items(), key=lambda kv, i=i: derive_seed(kv[0], i))) for i in range(20)]
    assert {norm(order) for order in orders} == {norm(values)}


def test_the_norm_of_nothing_is_zero() -> None:
    assert norm({}) == 0.0


def test_the_norm_of_float32_weights_does_not_overflow() -> None:
    assert norm({"w": torch.full((4,), 1e30)}) == pytest.approx(2e30, rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 3])
def test_one_entry_that_is_not_finite_is_found(value: float, at: int) -> None:
    weights = {"a": torch.zeros(2), "b": torch.zeros(4)}
    assert is_finite(weights)
    weights["b"][at] = value
    assert not is_finite(weights)


@given(params=PARAMS)
def test_parameters_are_like_others_of_the_same_names_shapes_and_number_types(params: Params) -> None:
    backwards = {name: params[name] + 1 for name in reversed(list(params))}
    assert like(backwards, params)
    assert not like({**backwards, "one more": torch.zeros(1)}, params)
    for name in params:
        assert not like({n: p for n, p in params.items() if n != name}, params)
        assert not like({**params, name: params[name].float()}, params)
        assert not like({**params, name: params[name][None]}, params)


@given(first=PARAMS, second=PARAMS)
def test_parts_under_prefixes_come_back_out(first: Params, second: Params) -> None:
    both = {**prefixed(first, "model"), **prefixed(second, "models")}
    assert list(part(both, "model").items()) == list(first.items())
    assert list(part(both, "models").items()) == list(second.items())
    assert part(both, "other") == {}


@given(params=PARAMS)
def test_a_digest_does_not_depend_on_order_or_on_who_holds_the_memory(params: Params) -> None:
    backwards = {name: params[name].clone().requires_grad_() for name in reversed(list(params))}
    assert digest(backwards) == digest(params)


BASE = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([0.0])}


def test_a_digest_is_that_of_the_values_not_of_their_layout() -> None:
    assert digest({**BASE, "a": BASE["a"].T.contiguous().T}) == digest(BASE)


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.nextafter(BASE["a"], torch.tensor(9.0))},
        {"a": BASE["a"].view(torch.int32)},
        {"a": BASE["a"].reshape(4)},
        {"a": BASE["a"].T},
        {"b": torch.tensor([-0.0])},
        {"b": torch.tensor(0.0)},
        {"c": torch.tensor([0.0])},
    ],
    ids=["one ulp", "number type", "shape", "transposed", "sign of zero", "rank", "a name too many"],
)
def test_a_digest_changes_with_every_bit(change: Params) -> None:
    assert digest({**BASE, **change}) != digest(BASE)


def test_a_digest_changes_with_the_names() -> None:
    assert digest({"a": BASE["b"]}) != digest({"b": BASE["b"]})


# Randomness

PARTS = st.lists(st.one_of(NAMES, st.integers()), max_size=4)


def test_a_seed_is_the_same_on_every_machine() -> None:
    """Written out: SHA-256 over length-prefixed `type:value` parts, the first 63 bits."""
    text = b"".join(len(p).to_bytes(8, "little") + p for p in (b"str:cohort", b"int:0", b"int:7"))
    expected = int.from_bytes(hashlib.sha256(text).digest()[:8], "little") // 2
    assert derive_seed("cohort", 0, 7) == expected == 3175459158685916508


@given(one=PARTS, other=PARTS)
def test_different_keys_have_different_seeds(one: list[str | int], other: list[str | int]) -> None:
    assert 0 <= derive_seed(*one) < 2**63
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)


def test_a_number_is_not_its_text_and_parts_do_not_run_together() -> None:
    seeds = {derive_seed("1"), derive_seed(1), derive_seed("a", "b"), derive_seed("ab"), derive_seed("a:b")}
    assert len(seeds) == 5


def test_a_generator_starts_afresh_for_each_key() -> None:
    draws = [torch.rand(4, generator=generator(*key)) for key in (("a", 1), ("a", 1), ("a", 2))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
