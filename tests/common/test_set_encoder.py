"""The set encoder is the transformer of torch's own layers, and what is absent might as well not exist."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from clinimeta.common.errors import StudyError
from clinimeta.common.models import MODELS
from clinimeta.common.models.set_encoder import EXPANSION, SetEncoder
from clinimeta.common.params import map_params, part
from clinimeta.common.rng import generator
from clinimeta.common.typing import Params

MODEL = SetEncoder(features=5, outputs=3, width=8, heads=2, layers=2)
ROWS = 7


def weights(model: SetEncoder, dtype: torch.dtype = torch.float64) -> Params:
    """Weights that a training could have reached: no scale is 1 and no shift is 0."""
    rng = generator("weights")
    fresh = model.init(generator("init"))
    return {n: (p + 0.3 * torch.randn(p.shape, generator=rng)).to(dtype) for n, p in fresh.items()}


def table(*key: str, features: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(ROWS, features, generator=generator("table", *key), dtype=torch.float64).to(dtype)


def gaps() -> Tensor:
    """Some values of each row are absent, all of the first row's and none of the last's."""
    present = (torch.rand(ROWS, 5, generator=generator("gaps")) < 0.6).double()
    present[0], present[1], present[-1] = 0.0, torch.tensor([0, 0, 1, 0, 0]), 1.0
    return present


def torchs(model: SetEncoder, params: Params, inputs: Tensor, present: Tensor | None = None) -> Tensor:
    """The same network of torch's own layers."""
    width = model.width
    x = inputs[:, :, None] * params["token.weight"] + params["token.identity"]
    for block in range(model.layers):
        own = part(params, f"block{block}")
        layer = nn.TransformerEncoderLayer(
            width,
            model.heads,
            EXPANSION * width,
            dropout=0.0,
            activation=nn.functional.silu,
            batch_first=True,
            norm_first=True,
            dtype=inputs.dtype,
        )
        loaded = {
            "self_attn.in_proj_weight": torch.cat([own[f"{n}.weight"].T for n in ("query", "key", "value")]),
            "self_attn.in_proj_bias": torch.cat(
                [own["query.bias"], torch.zeros(width, dtype=inputs.dtype), own["value.bias"]]
            ),
            "self_attn.out_proj.weight": own["mix.weight"].T,
            "self_attn.out_proj.bias": own["mix.bias"],
            "linear1.weight": own["feed.wide.weight"].T,
            "linear1.bias": own["feed.wide.bias"],
            "linear2.weight": own["feed.narrow.weight"].T,
            "linear2.bias": own["feed.narrow.bias"],
            "norm2.weight": own["feed.norm.scale"],
            "norm2.bias": own["feed.norm.shift"],
        }
        if block == 0:
            layer.norm1 = nn.Identity()  # type: ignore[assignment]
        else:
            loaded |= {"norm1.weight": own["norm.scale"], "norm1.bias": own["norm.shift"]}
        layer.load_state_dict(loaded)
        absent = None if present is None else present == 0
        x = layer(x, src_key_padding_mask=absent)
    there = torch.ones_like(inputs) if present is None else present
    pooled = torch.stack([row[here > 0].mean(dim=0) for row, here in zip(x, there, strict=True)])
    return pooled @ params["head.weight"] + params["head.bias"]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("heads", [1, 4])
def test_it_computes_what_torchs_own_layers_do(layers: int, heads: int) -> None:
    model = dataclasses.replace(MODEL, layers=layers, heads=heads)
    params = weights(model)
    assert torch.allclose(model.apply(params, {"table": table()}), torchs(model, params, table()), rtol=1e-10)


def test_it_masks_what_torchs_own_layers_mask() -> None:
    params, present = weights(MODEL), gaps()
    found = MODEL.apply(params, {"table": table(), "present": present})
    assert torch.allclose(found[1:], torchs(MODEL, params, table()[1:], present[1:]), rtol=1e-10)


def test_what_is_all_there_need_not_be_said() -> None:
    params = weights(MODEL)
    said = MODEL.apply(params, {"table": table(), "present": torch.ones(ROWS, 5, dtype=torch.float64)})
    assert torch.allclose(said, MODEL.apply(params, {"table": table()}), rtol=1e-12)


def of_columns(params: Params, columns: list[int]) -> Params:
    """The weights of a model that has only these columns, in this order."""
    return {n: p[columns] if n.startswith("token.") else p for n, p in params.items()}


@pytest.mark.parametrize("gone", [[0], [2, 4], [0, 1, 2, 3]])
def test_an_absent_column_might_as_well_not_exist(gone: list[int]) -> None:
    kept = [i for i in range(5) if i not in gone]
    params, present = weights(MODEL), torch.ones(ROWS, 5, dtype=torch.float64)
    present[:, gone] = 0.0
    smaller = dataclasses.replace(MODEL, features=len(kept))
    expected = smaller.apply(of_columns(params, kept), {"table": table()[:, kept]})
    found = MODEL.apply(params, {"table": table(), "present": present})
    assert torch.allclose(found, expected, rtol=1e-10)


def test_what_stands_in_an_absent_cell_changes_nothing() -> None:
    params, present = weights(MODEL), gaps()
    other = torch.where(present > 0, table(), 1e6 * table("other"))
    one, same = (MODEL.apply(params, {"table": x, "present": present}) for x in (table(), other))
    assert torch.equal(one, same)


def test_the_columns_have_no_order() -> None:
    order = [3, 0, 4, 1, 2]
    params, present = weights(MODEL), gaps()
    plain = MODEL.apply(params, {"table": table(), "present": present})
    other = MODEL.apply(of_columns(params, order), {"table": table()[:, order], "present": present[:, order]})
    assert torch.allclose(plain, other, rtol=1e-10)


def test_a_row_stands_for_itself() -> None:
    params, present = weights(MODEL), gaps()
    together = MODEL.apply(params, {"table": table(), "present": present})
    for i in range(ROWS):
        alone = MODEL.apply(params, {"table": table()[i : i + 1], "present": present[i : i + 1]})
        assert torch.allclose(alone[0], together[i], rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_nothing_have_finite_outputs_and_gradients(dtype: torch.dtype) -> None:
    params = weights(MODEL, dtype)
    nothing = torch.zeros(3, 5, dtype=dtype)
    for inputs in ({"table": nothing}, {"table": nothing, "present": nothing}):
        outputs = MODEL.apply(params, inputs)
        assert outputs.dtype == dtype
        assert torch.isfinite(outputs).all()
        gradient = grad(lambda p, inputs=inputs: MODEL.apply(p, inputs).square().sum())(params)
        assert all(bool(torch.isfinite(g).all()) for g in gradient.values())
    assert torch.allclose(outputs, params["head.bias"].expand(3, 3))


def test_no_rows_have_no_outputs() -> None:
    assert MODEL.apply(weights(MODEL), {"table": table()[:0], "present": gaps()[:0]}).shape == (0, 3)


def inner_step(model: SetEncoder) -> Callable[[Params, Tensor, Tensor], Params]:
    """The gradient of a loss after an inner step: second derivatives by `vmap(grad(grad))`."""

    def loss(params: Params, x: Tensor, present: Tensor) -> Tensor:
        return model.apply(params, {"table": x, "present": present}).square().mean()

    def after(params: Params, x: Tensor, present: Tensor) -> Tensor:
        stepped = map_params(lambda p, g: p - 0.1 * g, params, grad(loss)(params, x, present))
        return loss(stepped, x + 1, present)

    return grad(after)


def test_second_derivatives_under_vmap_equal_those_of_a_loop_and_of_central_differences() -> None:
    params = weights(MODEL)
    x, present = torch.stack([table("a"), table("b")]), torch.stack([gaps(), gaps().flip(0)])
    step = inner_step(MODEL)
    together = vmap(step, in_dims=(None, 0, 0))(params, x, present)
    for i in range(2):
        alone = step(params, x[i], present[i])
        assert all(torch.allclose(together[n][i], g, rtol=1e-9, atol=1e-12) for n, g in alone.items())
    compiled = make_fx(vmap(step, in_dims=(None, 0, 0)))(params, x, present)(params, x, present)
    assert all(torch.equal(compiled[n], g) for n, g in together.items())


def test_every_weight_has_an_effect() -> None:
    params = weights(MODEL)
    slopes = jacrev(lambda p: MODEL.apply(p, {"table": table(), "present": gaps()}))(params)
    assert all(float(slope.abs().max()) > 1e-9 for slope in slopes.values())


def test_its_head_is_the_last_layer() -> None:
    assert {n: tuple(weights(MODEL)[n].shape) for n in MODEL.head} == {
        "head.weight": (8, 3),
        "head.bias": (3,),
    }


def test_the_heads_share_the_width() -> None:
    with pytest.raises(StudyError, match="cannot be divided among the heads") as caught:
        MODELS.build("set_encoder", {"width": 6, "heads": 4}, features=3, outputs=1)
    assert "6" in caught.value.found
    assert "4 heads" in caught.value.found
    assert caught.value.expected
    assert caught.value.remedy
