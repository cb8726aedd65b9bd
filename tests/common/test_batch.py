"""Ragged episodes side by side lose nothing: padding has weight 0 and comes off again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.tasks.batch import pad, stack, stack_examples, unstack
from clinimeta.common.tasks.episode import Episode, Examples, concatenate, examples

SIZES = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=4)


def rows(count: int, start: int = 0, *, dtype: torch.dtype = torch.float64) -> Examples:
    """Rows without a zero in them, of two modalities, so that padding shows."""
    numbers = torch.arange(start + 1, start + count + 1)
    image = numbers.to(dtype)[:, None, None].expand(count, 2, 3).clone()
    return examples({"table": numbers.to(dtype)[:, None], "image": image}, numbers % 2 + 1)


def equal(left: Examples, right: Examples) -> bool:
    return (
        left.inputs.keys() == right.inputs.keys()
        and all(torch.equal(left.inputs[name], right.inputs[name]) for name in left.inputs)
        and torch.equal(left.targets, right.targets)
        and torch.equal(left.weights, right.weights)
    )


@given(st.integers(0, 5), st.integers(0, 5))
def test_padding_follows_the_rows_and_weighs_nothing(count: int, more: int) -> None:
    padded = pad(rows(count), count + more)
    assert padded.size == count + more
    assert equal(padded.take(torch.arange(count)), rows(count))
    tail = padded.take(torch.arange(count, count + more))
    assert not any(bool(x.any()) for x in (*tail.inputs.values(), tail.targets, tail.weights))


def test_rows_are_never_cut_off() -> None:
    with pytest.raises(ValueError, match="cannot pad 3 rows to 2"):
        pad(rows(3), 2)


@given(SIZES)
def test_what_was_stacked_is_unstacked(sizes: list[tuple[int, int]]) -> None:
    episodes = [Episode(rows(s, 10 * i), rows(q, 10 * i + 5)) for i, (s, q) in enumerate(sizes)]
    back = unstack(stack(episodes))
    assert len(back) == len(episodes)
    for episode, again in zip(episodes, back, strict=True):
        for before, after in zip(episode, again, strict=True):
            assert torch.equal(after.inputs["real"], after.weights)
            rows_given = after._replace(inputs={name: after.inputs[name] for name in before.inputs})
            assert equal(rows_given.take(torch.arange(before.size)), before)
            assert float(after.weights.sum()) == before.size


@given(SIZES)
def test_a_batch_is_as_long_as_its_longest_task(sizes: list[tuple[int, int]]) -> None:
    batch = stack([Episode(rows(s), rows(q)) for s, q in sizes])
    longest = (max(s for s, _ in sizes), max(q for _, q in sizes))
    for side, size in zip(batch, longest, strict=True):
        assert side.targets.shape == side.weights.shape == (len(sizes), size)
        assert side.inputs["table"].shape == (len(sizes), size, 1)
        assert side.inputs["image"].shape == (len(sizes), size, 2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_number_types_are_kept(dtype: torch.dtype) -> None:
    batch = stack_examples([rows(2, dtype=dtype), rows(3, dtype=dtype)])
    assert batch.inputs["table"].dtype == batch.weights.dtype == dtype
    assert batch.targets.dtype == torch.int64


def test_rows_are_put_one_after_the_other() -> None:
    assert equal(concatenate(rows(2), rows(3, 2)), rows(5))
