"""Each outer optimizer is its paper's, step by step, and goes on after a checkpoint as if nothing was."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.codec import decode_params, encode_params
from clinimeta.common.errors import StudyError
from clinimeta.common.optim import SGD, Adam, OuterOptimizer, OuterSettings
from clinimeta.common.params import add, digest, is_finite, map_params, norm, shapes
from clinimeta.common.rng import generator
from clinimeta.common.settings import parse
from clinimeta.common.typing import Params

NAMES = get_args(OuterSettings.model_fields["name"].annotation)
OPTIMIZERS: dict[str, OuterOptimizer] = {
    **{name: OuterSettings(name=name, rate=0.1).build() for name in NAMES},
    "sgd with momentum": OuterSettings(name="sgd", rate=0.1, momentum=0.9).build(),
}
EVERY = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
SHAPES = {"layer0.weight": (3, 2), "layer0.bias": (2,), "rate": ()}


def draw(*key: str | int, dtype: torch.dtype = torch.float64) -> Params:
    rng = generator("optim", *key)
    return {name: torch.randn(shape, generator=rng, dtype=dtype) for name, shape in SHAPES.items()}


def gradients(steps: int) -> list[Params]:
    """Gradients of changing sizes, one of them zero."""
    drawn = [map_params(lambda g, i=i: g * 10.0 ** (i % 5 - 3), draw("gradient", i)) for i in range(steps)]
    drawn[1] = map_params(torch.zeros_like, drawn[1])
    return drawn


def run(optimizer: OuterOptimizer, steps: list[Params]) -> list[Params]:
    """The parameters after each step."""
    params = draw("start")
    state = optimizer.init(params)
    reached = []
    for gradient in steps:
        params, state = optimizer.update(gradient, state, params)
        reached.append(params)
    return reached


def run_torch(kind: type[torch.optim.Optimizer], steps: list[Params], **options: Any) -> list[Params]:
    """The same by torch's own optimizer."""
    weights = {name: p.clone().requires_grad_() for name, p in draw("start").items()}
    optimizer = kind(list(weights.values()), **options)
    reached = []
    for gradient in steps:
        for name, weight in weights.items():
            weight.grad = gradient[name].clone()
        optimizer.step()
        reached.append({name: weight.detach().clone() for name, weight in weights.items()})
    return reached


def assert_close(found: list[Params], expected: list[Params]) -> None:
    for number, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        for name in SHAPES:
            assert torch.allclose(mine[name], theirs[name], rtol=1e-12, atol=1e-15), (number, name)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_sgd_is_torchs_step_by_step(momentum: float) -> None:
    steps = gradients(20)
    assert_close(
        run(SGD(0.05, momentum), steps), run_torch(torch.optim.SGD, steps, lr=0.05, momentum=momentum)
    )


@pytest.mark.parametrize(
    ("options", "betas", "epsilon"),
    [
        ({}, (0.9, 0.999), 1e-8),
        ({"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3}, (0.5, 0.9), 1e-3),
        ({"beta1": 0.0}, (0.0, 0.999), 1e-8),
    ],
)
def test_adam_is_torchs_step_by_step(
    options: dict[str, float], betas: tuple[float, float], epsilon: float
) -> None:
    steps = gradients(20)
    expected = run_torch(torch.optim.Adam, steps, lr=0.01, betas=betas, eps=epsilon)
    assert_close(run(Adam(0.01, **options), steps), expected)


def yogi(
    start: np.ndarray, steps: list[np.ndarray], rate: float, b1: float, b2: float, epsilon: float
) -> list[np.ndarray]:
    """Zaheer et al. 2018, algorithm 2, an entry at a time, with Adam's bias correction."""
    x, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    reached = []
    for t, g in enumerate(steps, start=1):
        for i in range(len(x)):
            square = g[i] ** 2
            m[i] = b1 * m[i] + (1 - b1) * g[i]
            if v[i] > square:
                v[i] -= (1 - b2) * square
            elif v[i] < square:
                v[i] += (1 - b2) * square
            x[i] -= rate * (m[i] / (1 - b1**t)) / (np.sqrt(v[i] / (1 - b2**t)) + epsilon)
        reached.append(x.copy())
    return reached


def test_yogi_is_the_papers_recursion_step_by_step() -> None:
    steps = gradients(30)
    found = run(Adam(0.02, 0.8, 0.95, 1e-3, additive=True), steps)
    flat = [np.concatenate([g[name].numpy().ravel() for name in SHAPES]) for g in steps]
    start = np.concatenate([p.numpy().ravel() for p in draw("start").values()])
    expected = yogi(start, flat, 0.02, 0.8, 0.95, 1e-3)
    for mine, theirs in zip(found, expected, strict=True):
        mine_flat = np.concatenate([mine[name].numpy().ravel() for name in SHAPES])
        np.testing.assert_allclose(mine_flat, theirs, rtol=1e-12, atol=1e-15)


def test_yogi_forgets_a_large_gradient_by_no_more_than_the_square_of_a_small_one() -> None:
    """The paper's point: Adam's second moment shrinks by a share of itself, Yogi's by a share of g^2."""
    large, small = {"w": torch.tensor([100.0])}, {"w": torch.tensor([0.1])}
    kept = {}
    for additive in (False, True):
        optimizer = Adam(0.1, beta2=0.9, additive=additive)
        params = {"w": torch.zeros(1)}
        _, first = optimizer.update(large, optimizer.init(params), params)
        _, second = optimizer.update(small, first, params)
        kept[additive] = float(first["second.w"] - second["second.w"])
    assert kept[False] == pytest.approx(0.1 * 1000, rel=1e-3)
    assert kept[True] == pytest.approx(0.1 * 0.01, abs=1e-4)


# What every outer optimizer promises


def test_every_optimizer_that_a_study_can_name_is_tested() -> None:
    assert set(NAMES) == {"sgd", "adam", "yogi"}
    assert all(isinstance(optimizer, OuterOptimizer) for optimizer in OPTIMIZERS.values())


@EVERY
@given(split=st.integers(0, 8))
def test_the_state_survives_serialisation(optimizer: OuterOptimizer, split: int) -> None:
    steps = gradients(8)
    params = draw("start")
    state = optimizer.init(params)
    for number, gradient in enumerate(steps):
        if number == split:
            params, state = (decode_params(encode_params(p)) for p in (params, state))
        params, state = optimizer.update(gradient, state, params)
    assert digest(params) == digest(run(optimizer, steps)[-1])


@EVERY
def test_an_update_leaves_the_old_state_alone(optimizer: OuterOptimizer) -> None:
    params, gradient = draw("start"), draw("gradient")
    state = optimizer.init(params)
    before = digest(params), digest(gradient), digest(state)
    _, new_state = optimizer.update(gradient, state, params)
    assert (digest(params), digest(gradient), digest(state)) == before
    assert digest(new_state) != digest(state)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_update_keeps_names_shapes_and_number_types(optimizer: OuterOptimizer, dtype: torch.dtype) -> None:
    params, gradient = draw("start", dtype=dtype), draw("gradient", dtype=dtype)
    state = optimizer.init(params)
    new, new_state = optimizer.update(gradient, state, params)
    assert shapes(new) == SHAPES
    assert {p.dtype for p in new.values()} == {dtype}
    assert shapes(new_state) == shapes(state)
    assert {n: p.dtype for n, p in new_state.items()} == {n: p.dtype for n, p in state.items()}


@EVERY
def test_without_a_gradient_nothing_moves(optimizer: OuterOptimizer) -> None:
    params = draw("start")
    zero = map_params(torch.zeros_like, params)
    new, _ = optimizer.update(zero, optimizer.init(params), params)
    assert digest(new) == digest(params)


@EVERY
def test_a_quadratic_is_descended_to_its_minimum(optimizer: OuterOptimizer) -> None:
    target, params = draw("target"), draw("start")
    state = optimizer.init(params)
    distance = norm(add(params, target, -1.0))
    for _ in range(400):
        params, state = optimizer.update(add(params, target, -1.0), state, params)
    assert norm(add(params, target, -1.0)) < 0.05 * distance


@EVERY
def test_an_update_refuses_a_gradient_of_other_names(optimizer: OuterOptimizer) -> None:
    params = draw("start")
    with pytest.raises(ValueError, match="parameter names differ"):
        optimizer.update({"rate": torch.zeros(())}, optimizer.init(params), params)


def test_a_gradient_that_is_not_finite_is_not_hidden() -> None:
    params, gradient = {"w": torch.zeros(1)}, {"w": torch.tensor([float("nan")])}
    for optimizer in OPTIMIZERS.values():
        assert not is_finite(optimizer.update(gradient, optimizer.init(params), params)[0])


# Settings


def test_a_study_names_its_optimizer_and_its_rate() -> None:
    assert OuterSettings(name="sgd", rate=0.5, momentum=0.25).build() == SGD(0.5, 0.25)
    assert OuterSettings(name="adam", rate=0.5).build() == Adam(0.5, 0.9, 0.999, 1e-8, additive=False)
    assert OuterSettings(name="yogi", rate=0.5).build() == Adam(0.5, 0.9, 0.999, 1e-3, additive=True)
    assert OuterSettings().build() == Adam(1e-3)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"name": "adamw"}, "name"),
        ({"rate": 0.0}, "rate"),
        ({"rate": -1.0}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"rte": 0.1}, "rte"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], key: str) -> None:
    with pytest.raises(StudyError, match=f"'{key}'"):
        parse(OuterSettings, values, "study.toml")


def test_a_momentum_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(ValueError, match="momentum"):
        OuterSettings(name="adam", momentum=0.9)


def test_a_clipped_step_is_as_long_as_the_limit_and_no_longer() -> None:
    chosen = OuterSettings(name="sgd", rate=1.0, clip=1.0).build()
    params = {"w": torch.zeros(2)}
    for gradient, expected in (([3.0, 4.0], [-0.6, -0.8]), ([0.3, 0.4], [-0.3, -0.4])):
        new, _ = chosen.update({"w": torch.tensor(gradient)}, chosen.init(params), params)
        assert torch.allclose(new["w"], torch.tensor(expected))
