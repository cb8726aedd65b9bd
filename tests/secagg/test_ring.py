"""The quantiser: exact sums that never wrap, unbiased rounding, and a No to what does not fit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clinimeta.common.errors import BoundError
from clinimeta.common.secagg.ring import Contribution, Ring, rounding_key
from clinimeta.common.secagg.terms import Column

KEY = bytes(range(32))
SITES = st.integers(1, 400)
BOUNDS = st.floats(1e-6, 1e6)


def only(values: list[float] | np.ndarray, dtype: type = np.float64) -> Contribution:
    return Contribution(np.asarray(values, dtype), {})


def ring(dim: int, bound: float, n: int) -> Ring:
    return Ring(dim, bound, (), n)


@given(n=SITES, bound=BOUNDS, key=st.binary(min_size=32, max_size=32), dtype=st.sampled_from(["f4", "f8"]))
@settings(max_examples=300)
def test_the_sum_of_as_many_sites_as_allowed_never_wraps(
    n: int, bound: float, key: bytes, dtype: str
) -> None:
    extremes = np.array([bound, -bound, 0.0], dtype)
    if abs(float(extremes[0])) > bound:  # float32 has rounded the bound up
        extremes = np.nextafter(extremes, np.float32(0))
    q = ring(3, bound, n).quantise(Contribution(extremes, {}), key).view(np.int32).astype(object)
    assert q[2] == 0
    assert n * int(q[0]) <= 2**31 - 1
    assert n * int(q[1]) >= -(2**31)
    most = (2**31 - 1) // n - 1
    assert abs(int(q[0])) <= most
    assert abs(int(q[1])) <= most


@given(
    n=SITES,
    bound=BOUNDS,
    values=st.lists(st.floats(-1, 1), min_size=1, max_size=20),
    key=st.binary(min_size=32, max_size=32),
)
def test_a_value_moves_by_less_than_one_step(n: int, bound: float, values: list[float], key: bytes) -> None:
    quantiser = ring(len(values), bound, n)
    real = np.array(values) * bound
    back = quantiser.dequantise(quantiser.quantise(Contribution(real, {}), key)).vector
    assert (np.abs(back - real) <= 1 / quantiser.scale(bound) * (1 + 1e-9)).all()


@given(n=SITES, bound=BOUNDS)
def test_the_scale_is_the_one_that_is_written(n: int, bound: float) -> None:
    assert ring(1, bound, n).scale(bound) == (math.floor((2**31 - 1) / n) - 1) / bound


@given(fraction=st.integers(0, 63), whole=st.integers(-1000, 1000))
@settings(max_examples=40)
def test_rounding_is_unbiased(fraction: int, whole: int) -> None:
    count, p = 20_000, fraction / 64
    quantiser = ring(count, 1.0, 10)
    value = (whole + p) / quantiser.scale(1.0)
    q = quantiser.quantise(only(np.full(count, value)), KEY).view(np.int32)
    assert set(np.unique(q)) <= {whole - 1, whole, whole + 1}
    # A value that is a hair under a whole number comes out one lower when its 16 random bits are all 0.
    spread = math.sqrt((p * (1 - p) + 2**-16) / count)
    assert abs(q.mean() - (whole + p)) <= 5 * spread + 2**-16


def test_the_same_key_gives_the_same_words_and_another_one_others() -> None:
    quantiser = ring(1000, 1.0, 400)
    x = only(np.random.default_rng(0).uniform(-1, 1, 1000))
    assert (quantiser.quantise(x, KEY) == quantiser.quantise(x, KEY)).all()
    assert (quantiser.quantise(x, KEY) != quantiser.quantise(x, KEY[::-1])).mean() > 0.2


def test_float32_and_float64_of_the_same_values_are_the_same_words() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 70_000).astype(np.float32)
    quantiser = ring(len(x), 1.0, 9)
    assert (quantiser.quantise(only(x, np.float32), KEY) == quantiser.quantise(only(x), KEY)).all()


@pytest.mark.parametrize("size", [1, 32_767, 32_768, 32_769, 100_000])
def test_long_vectors_are_rounded_as_if_in_one_piece(size: int) -> None:
    x = np.random.default_rng(size).uniform(-1, 1, 100_000)
    long, short = ring(100_000, 1.0, 9), ring(size, 1.0, 9)
    assert (long.quantise(only(x), KEY)[:size] == short.quantise(only(x[:size]), KEY)).all()


def test_columns_have_bounds_of_their_own_and_counts_come_back_whole() -> None:
    quantiser = Ring(2, 1e-3, (Column("tasks", 64.0), Column("loss", 1e5)), 100)
    total = np.zeros(4, np.uint32)
    for site in range(100):
        given = Contribution(np.array([1e-3, -1e-3]), {"tasks": site % 65, "loss": 1e5})
        total += quantiser.quantise(given, rounding_key(KEY, "run", 1, str(site)))
    back = quantiser.dequantise(total)
    assert round(back.columns["tasks"], 2) == sum(site % 65 for site in range(100))
    assert back.columns["loss"] == pytest.approx(1e7)
    assert back.vector == pytest.approx([0.1, -0.1])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.0000001, -1.0000001, 1e300])
@pytest.mark.parametrize("at", [0, 32_768, 40_000])
def test_what_is_not_finite_or_over_the_bound_is_refused(bad: float, at: int) -> None:
    x = np.zeros(40_001)
    x[at] = bad
    with pytest.raises(BoundError, match="bound"):
        ring(40_001, 1.0, 10).quantise(only(x), KEY)


@pytest.mark.parametrize("bad", [math.nan, 64.5])
def test_a_column_over_its_bound_is_refused(bad: float) -> None:
    with pytest.raises(BoundError, match="bound"):
        Ring(1, 100.0, (Column("tasks", 64.0),), 10).quantise(Contribution(np.zeros(1), {"tasks": bad}), KEY)


@pytest.mark.parametrize(
    "wrong",
    [
        Contribution(np.zeros(2), {}),
        Contribution(np.zeros((1, 1)), {}),
        Contribution(np.zeros(1, np.int64), {}),
        Contribution(np.zeros(1, np.float16), {}),
        Contribution(np.zeros(1), {"tasks": 1.0}),
    ],
    ids=["longer", "two-dimensional", "int", "half", "a column too many"],
)
def test_another_shape_type_or_column_is_refused(wrong: Contribution) -> None:
    with pytest.raises(BoundError):
        ring(1, 1.0, 10).quantise(wrong, KEY)
