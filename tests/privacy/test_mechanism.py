"""No task outweighs its bound, rounding adds what was derived, and the noise is what its name says."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from clinimeta.common.params import map_params, norm
from clinimeta.common.privacy.clipping import clip_factors, clip_tasks, clipped_sum, with_rounding
from clinimeta.common.privacy.discrete_gaussian import Keystream, discrete_gaussian
from clinimeta.common.privacy.noise import Noise
from clinimeta.common.rng import generator
from clinimeta.common.typing import Params

BOUNDS = st.floats(1e-6, 1e6)
SEEDS = st.integers(0, 10_000)


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def gradients(tasks: int, seed: int, dtype: torch.dtype = torch.float32) -> Params:
    """A matrix, a vector and a number a task; norms over many magnitudes."""
    rng = generator("gradients", seed)
    sizes = 10 ** (8 * torch.rand(tasks, generator=rng, dtype=torch.float64) - 4)

    def draw(*shape: int) -> torch.Tensor:
        g = torch.randn(tasks, *shape, generator=rng, dtype=torch.float64)
        return (g * sizes.reshape(-1, *[1] * len(shape))).to(dtype)

    return {"w": draw(3, 4), "b": draw(4), "rate": draw()}


def task(g: Params, i: int) -> Params:
    return map_params(lambda x: x[i].double(), g)


# Clipping


@given(st.integers(1, 8), BOUNDS, SEEDS)
def test_no_task_is_longer_than_the_bound_and_none_turns(tasks: int, bound: float, seed: int) -> None:
    g = gradients(tasks, seed)
    clipped = clip_tasks(g, bound)
    for i in range(tasks):
        before, after = task(g, i), task(clipped, i)
        assert norm(after) <= bound
        assert norm(after) == pytest.approx(min(norm(before), bound), rel=1e-9)
        inner = sum(float((before[n] * after[n]).sum()) for n in g)
        assert inner == pytest.approx(norm(before) * norm(after), rel=1e-9)


@given(st.integers(1, 8), BOUNDS, SEEDS)
def test_the_sum_is_that_of_a_loop_over_tasks(tasks: int, bound: float, seed: int) -> None:
    g = gradients(tasks, seed)
    expected = {name: torch.zeros(x.shape[1:], dtype=torch.float64) for name, x in g.items()}
    for i in range(tasks):
        one = task(g, i)
        short = min(1.0, bound / norm(one))
        expected = {name: total + short * one[name] for name, total in expected.items()}
    for found in (clipped_sum(g, bound), map_params(lambda x: x.sum(dim=0), clip_tasks(g, bound))):
        for name in g:
            assert found[name].dtype == torch.float64
            assert torch.allclose(found[name], expected[name], rtol=1e-9, atol=1e-9 * bound)


@given(st.integers(2, 8), BOUNDS, SEEDS, st.integers(0, 7))
def test_one_task_less_moves_the_sum_by_the_bound_at_most(
    tasks: int, bound: float, seed: int, which: int
) -> None:
    g = gradients(tasks, seed)
    rest = map_params(lambda x: torch.cat([x[: which % tasks], x[which % tasks + 1 :]]), g)
    difference = map_params(lambda a, b: a - b, clipped_sum(g, bound), clipped_sum(rest, bound))
    assert norm(difference) <= bound * (1 + 1e-9)


def test_short_tasks_stay_as_they_are_to_the_bit() -> None:
    g = gradients(5, 0)
    assert all(torch.equal(clip_tasks(g, 1e9)[n], g[n].double()) for n in g)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_task_that_is_not_finite_does_not_count(bad: float) -> None:
    g = gradients(4, 1)
    g["w"][2, 1, 1] = bad
    assert float(clip_factors(g, 1.0)[2]) == 0.0
    assert all(bool((x[2] == 0).all()) for x in clip_tasks(g, 1.0).values())
    without = map_params(lambda x: x[[0, 1, 3]], g)
    assert all(torch.allclose(clipped_sum(g, 1.0)[n], clipped_sum(without, 1.0)[n]) for n in g)


def test_norms_are_taken_in_float64() -> None:
    """In float32 the squares of these would vanish or overflow."""
    g = {"w": torch.tensor([[3e-30, 4e-30], [3e30, 4e30]])}
    assert norm(task(clip_tasks(g, 1e-30), 0)) == pytest.approx(1e-30, rel=1e-9)
    assert norm(task(clip_tasks(g, 1.0), 1)) == pytest.approx(1.0, rel=1e-9)


def test_zero_stays_zero() -> None:
    assert torch.equal(clip_tasks({"w": torch.zeros(2, 3)}, 1.0)["w"], torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_makes_sense(bound: float) -> None:
    with pytest.raises(ValueError, match="clipping bound"):
        clipped_sum(gradients(1, 0), bound)


def test_nothing_cannot_be_clipped() -> None:
    with pytest.raises(ValueError, match="no meta-gradient"):
        clip_factors({}, 1.0)


@given(st.integers(1, 40), st.floats(0.5, 1e6), st.floats(1e-3, 10), SEEDS)
def test_rounding_adds_no_more_than_was_derived(size: int, scale: float, far: float, seed: int) -> None:
    """Two neighbours, rounded with the same u."""
    rng = np.random.default_rng(seed)
    x, direction = rng.normal(size=size), rng.normal(size=size)
    other = x + far * direction / np.linalg.norm(direction)
    u = rng.random(size)
    moved = np.linalg.norm(np.floor(scale * x + u) - np.floor(scale * other + u)) / scale
    assert moved <= with_rounding(far, size, scale) * (1 + 1e-9)


@pytest.mark.parametrize("arguments", [(0.0, 1, 1.0), (1.0, 0, 1.0), (1.0, 1, 0.0), (math.nan, 1, 1.0)])
def test_rounding_makes_sense(arguments: Any) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        with_rounding(*arguments)


# The sampler


def test_at_a_small_sigma_every_value_is_as_often_as_it_should_be() -> None:
    count, sigma, far = 1_000_000, 3.0, 13
    drawn = discrete_gaussian(key(1), sigma, count)
    values = np.arange(-60, 61)
    probability = np.exp(-(values**2) / (2 * sigma**2))
    probability /= probability.sum()
    near = np.abs(values) <= far
    observed = np.array([(drawn == v).sum() for v in values[near]])
    observed = np.append(observed, count - observed.sum())
    expected = count * np.append(probability[near], 1 - probability[near].sum())
    assert chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_the_variance_at_a_small_sigma_is_the_exact_one(sigma: float) -> None:
    values = np.arange(-100, 101)
    probability = np.exp(-(values**2) / (2 * sigma**2))
    exact = float((values**2 * probability).sum() / probability.sum())
    assert exact <= sigma**2 * (1 + 1e-6)
    drawn = discrete_gaussian(key(2), sigma, 400_000)
    assert drawn.var() == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("sigma", [50.5, 1e4, 1e9])
def test_at_a_large_sigma_it_is_gaussian(sigma: float) -> None:
    drawn = discrete_gaussian(key(3), sigma, 400_000)
    assert drawn.dtype == np.int64
    assert drawn.std() == pytest.approx(sigma, rel=0.01)
    assert abs(drawn.mean()) < 5 * sigma / math.sqrt(len(drawn))
    assert kstest((drawn + np.random.default_rng(0).random(len(drawn)) - 0.5) / sigma, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01


def test_the_same_key_gives_the_same_noise_and_another_another() -> None:
    first, again, other = (discrete_gaussian(key(k), 1e4, 100_000) for k in (1, 1, 2))
    assert np.array_equal(first, again)
    assert (first == other).mean() < 1e-3
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.02


def test_a_longer_draw_begins_like_a_shorter_one() -> None:
    assert np.array_equal(discrete_gaussian(key(1), 9.0, 70_000)[:100], discrete_gaussian(key(1), 9.0, 100))
    assert discrete_gaussian(key(1), 9.0, 0).shape == (0,)


def test_the_noise_is_pinned_on_every_machine() -> None:
    assert discrete_gaussian(key(1), 3.0, 12).tolist() == PINNED


PINNED = [-3, 3, -1, 0, 6, 2, -4, 4, 2, 5, -2, -2]


def test_the_stream_is_aes_256_in_counter_mode() -> None:
    """NIST's vector for AES-256, all-zero key and block."""
    stream = Keystream(bytes(32)).words(2)
    assert stream.astype("<u8").tobytes().hex() == "dc95c078a2408989ad48a21492842087"
    assert "0" not in repr(Keystream(bytes(32)))


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, 2.0**41])
def test_sigma_makes_sense(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        discrete_gaussian(key(1), sigma, 1)


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        discrete_gaussian(bytes(16), 1.0, 1)


# Shares


@given(st.integers(1, 200), st.data())
def test_the_worst_survivors_have_exactly_the_noise_that_was_promised(survivors: int, data: Any) -> None:
    colluders = data.draw(st.integers(0, survivors - 1))
    noise = Noise(1.5, 2.0, 1e6, survivors=survivors, colluders=colluders)
    honest = noise.sigma**2 * (survivors - colluders)
    assert math.sqrt(honest) == pytest.approx(1.5 * 2.0 * 1e6)
    assert noise.actual(survivors) == pytest.approx(1.5)
    more = survivors + data.draw(st.integers(0, 50))
    assert noise.actual(more) == pytest.approx(noise.sigma * math.sqrt(more - colluders) / 2e6)
    assert noise.inflation(more) == pytest.approx(noise.sigma * math.sqrt(more) / (1.5 * 2e6))


def test_central_and_local_noise_are_not_split() -> None:
    central, local = (Noise(1.5, 2.0, 1e6, where) for where in ("central", "local"))  # type: ignore[arg-type]
    assert central.sigma == local.sigma == 3e6
    assert central.actual(9) == 1.5
    assert central.inflation(9) == 1.0
    assert local.actual(9) == 4.5
    assert local.inflation(9) == 3.0


def test_too_few_answers_are_never_opened() -> None:
    noise = Noise(1.0, 1.0, 1e6, survivors=7)
    for measure in (noise.actual, noise.inflation):
        with pytest.raises(ValueError, match="6 sites answered, 7 were guaranteed"):
            measure(6)


@pytest.mark.parametrize(
    "changes",
    [
        {"multiplier": 0.0},
        {"sensitivity": -1.0},
        {"scale": math.inf},
        {"survivors": 3, "colluders": 3},
        {"survivors": 0},
        {"colluders": -1},
        {"where": "central", "survivors": 3},
        {"scale": 1.0, "survivors": 100},
    ],
    ids=str,
)
def test_noise_makes_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|honest|not shared"):
        Noise(**({"multiplier": 1.0, "sensitivity": 1.0, "scale": 1e6} | changes))
