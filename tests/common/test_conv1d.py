"""The convolutional network on signals is that of torch's own layers, row by row."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from clinimeta.common.errors import StudyError
from clinimeta.common.models import MODELS
from clinimeta.common.models.conv1d import Conv1d
from clinimeta.common.params import map_params
from clinimeta.common.rng import generator
from clinimeta.common.typing import Params

MODEL = Conv1d(features=2 * 11, outputs=3, channels=2, filters=6, kernel=3, blocks=3, groups=2)
ROWS = 5


def weights(model: Conv1d, dtype: torch.dtype = torch.float64) -> Params:
    """Weights that a training could have reached: no scale is 1 and no shift is 0."""
    rng = generator("weights")
    fresh = model.init(generator("init"))
    return {n: (p + 0.3 * torch.randn(p.shape, generator=rng)).to(dtype) for n, p in fresh.items()}


def table(features: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(ROWS, features, generator=generator("table"), dtype=torch.float64).to(dtype)


def torchs(model: Conv1d, params: Params) -> nn.Module:
    """The same network of torch's own layers."""
    layers: list[nn.Module] = [nn.Unflatten(1, (model.channels, model.features // model.channels))]
    steps, width = model.features // model.channels, model.channels
    for block in range(model.blocks):
        convolution = nn.Conv1d(width, model.filters, model.kernel, padding="same", bias=False)
        convolution.load_state_dict({"weight": params[f"block{block}.weight"]})
        norm = nn.GroupNorm(model.groups, model.filters)
        norm.load_state_dict({"weight": params[f"block{block}.scale"], "bias": params[f"block{block}.shift"]})
        layers += [convolution, norm, nn.SiLU()]
        if steps > 1:
            layers.append(nn.AvgPool1d(2))
        steps, width = max(1, steps // 2), model.filters
    head = nn.Linear(width, model.outputs)
    head.load_state_dict({"weight": params["head.weight"].T, "bias": params["head.bias"]})
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), head).double()


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        Conv1d(features=64, outputs=2),
        Conv1d(features=9, outputs=1, filters=4, kernel=1, blocks=1, groups=1),
        Conv1d(features=3 * 5, outputs=2, channels=3, filters=8, blocks=5, groups=4),
        Conv1d(features=4, outputs=2, channels=4, filters=4, blocks=1, groups=2),
    ],
    ids=["odd steps", "defaults", "one block", "more blocks than halvings", "one step"],
)
def test_it_computes_what_torchs_own_layers_do(model: Conv1d) -> None:
    # In float32 weights first, as torch's modules hold them; both then compute in float64.
    params = map_params(lambda p: p.double(), weights(model, torch.float32))
    x = table(model.features)
    assert torch.allclose(model.apply(params, {"table": x}), torchs(model, params)(x), rtol=1e-9, atol=1e-12)


def test_a_row_is_its_signals_one_after_the_other() -> None:
    params = weights(MODEL)
    first = {n: p.clone() for n, p in params.items()}
    first["block0.weight"][:, 1] = 0.0  # deaf to the second signal
    x, other = table(22), table(22)
    other[:, 11:] += 1.0
    assert torch.equal(MODEL.apply(first, {"table": x}), MODEL.apply(first, {"table": other}))
    assert not torch.allclose(MODEL.apply(params, {"table": x}), MODEL.apply(params, {"table": other}))


def test_a_row_stands_for_itself() -> None:
    params, x = weights(MODEL), table(22)
    together = MODEL.apply(params, {"table": x})
    for i in range(ROWS):
        assert torch.allclose(MODEL.apply(params, {"table": x[i : i + 1]})[0], together[i], rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_zeros_have_finite_outputs_and_gradients(dtype: torch.dtype) -> None:
    nothing = {"table": torch.zeros(2, 22, dtype=dtype)}
    for params in (weights(MODEL, dtype), map_params(lambda p: p.to(dtype), MODEL.init(generator("init")))):
        outputs = MODEL.apply(params, nothing)
        assert outputs.dtype == dtype
        assert torch.isfinite(outputs).all()
        gradient = grad(lambda p: MODEL.apply(p, nothing).square().sum())(params)
        assert all(bool(torch.isfinite(g).all()) for g in gradient.values())


def test_no_rows_have_no_outputs() -> None:
    assert MODEL.apply(weights(MODEL), {"table": table(22)[:0]}).shape == (0, 3)


def test_second_derivatives_under_vmap_equal_those_of_a_loop() -> None:
    def loss(params: Params, x: Tensor) -> Tensor:
        return MODEL.apply(params, {"table": x}).square().mean()

    def after(params: Params, x: Tensor) -> Tensor:
        stepped = map_params(lambda p, g: p - 0.1 * g, params, grad(loss)(params, x))
        return loss(stepped, x + 1)

    params, tasks = weights(MODEL), torch.stack([table(22), table(22).flip(1)])
    together = vmap(grad(after), in_dims=(None, 0))(params, tasks)
    for i in range(2):
        alone = grad(after)(params, tasks[i])
        assert all(torch.allclose(together[n][i], g, rtol=1e-9, atol=1e-12) for n, g in alone.items())


def test_its_head_is_the_last_layer() -> None:
    assert {n: tuple(weights(MODEL)[n].shape) for n in MODEL.head} == {
        "head.weight": (6, 3),
        "head.bias": (3,),
    }


@pytest.mark.parametrize(
    ("options", "what", "found"),
    [
        ({"channels": 3}, "not signals of one length", "16 features, 3 channels"),
        ({"filters": 6}, "cannot be divided into the groups", "6 filters, 4 groups"),
        ({"kernel": 4}, "the kernel has no middle", "4 steps"),
        ({"filters": 4, "blocks": 5}, "a single number", "4 filters in 4 groups, 5 blocks"),
    ],
)
def test_numbers_that_make_no_network_are_refused(options: dict[str, Any], what: str, found: str) -> None:
    with pytest.raises(StudyError, match=what) as caught:
        MODELS.build("conv1d", options, features=16, outputs=1)
    assert found in caught.value.found
    assert caught.value.expected
    assert caught.value.remedy


def test_a_group_of_one_filter_is_enough_while_there_are_steps() -> None:
    assert MODELS.build("conv1d", {"filters": 4, "blocks": 4}, features=16, outputs=1).outputs == 1
