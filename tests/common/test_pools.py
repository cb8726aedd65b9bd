"""A patient is known to at most m tasks, and one patient more or less changes those and nothing else."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from clinimeta.common.params import digest
from clinimeta.common.rng import generator
from clinimeta.common.tasks.episode import Episode, examples
from clinimeta.common.tasks.sampler import Episodes, draw_episodes, draw_from_pools, pools
from clinimeta.common.tasks.table import Table

LIMITS = st.integers(1, 4)
SEEDS = st.integers(0, 10_000)


def table_of(targets: list[int], patients: list[int]) -> Table:
    """Each row's one feature is its number, so that a draw shows which rows it took."""
    count = len(targets)
    rows = examples({"table": torch.arange(count, dtype=torch.float32)[:, None]}, torch.tensor(targets))
    return Table(rows, torch.tensor(patients), torch.zeros(count, dtype=torch.bool))


@st.composite
def tables(draw: st.DrawFn) -> Table:
    targets = draw(st.lists(st.integers(0, 1), min_size=2, max_size=40))
    people = st.integers(0, draw(st.integers(1, 30)))
    return table_of(targets, draw(st.lists(people, min_size=len(targets), max_size=len(targets))))


def settings_of(limit: int, draw: str = "per_class", tasks: int = 4) -> Episodes:
    return Episodes(draw=draw, shots=(1, 3), query=3, tasks=tasks, tasks_a_patient=limit)  # type: ignore[arg-type]


def people_of(table: Table, episode: Episode) -> set[int]:
    rows = torch.cat([side.inputs["table"][:, 0] for side in episode]).long()
    return set(table.patients[rows].tolist())


def same(left: Episode | None, right: Episode | None) -> bool:
    if left is None or right is None:
        return left is right
    return all(
        torch.equal(a.inputs["table"], b.inputs["table"]) and torch.equal(a.targets, b.targets)
        for a, b in zip(left, right, strict=True)
    )


def without(table: Table, patient: int) -> Table:
    """The table as if that patient had never come: the others are numbered anew."""
    kept = table.take(torch.nonzero(table.patients != patient).squeeze(-1))
    return replace(kept, patients=torch.unique(kept.patients, return_inverse=True)[1])


@given(tables(), LIMITS, st.sampled_from(["per_class", "rows"]), SEEDS)
def test_no_patient_is_in_more_tasks_than_allowed(table: Table, limit: int, draw: str, seed: int) -> None:
    drawn = draw_episodes(table, settings_of(limit, draw), generator(seed))
    for patient in table.patients.unique().tolist():
        assert sum(patient in people_of(table, episode) for episode in drawn) <= limit


@given(tables(), LIMITS, st.sampled_from(["per_class", "rows"]), SEEDS, st.data())
def test_one_patient_less_changes_that_patients_tasks_only(
    table: Table, limit: int, draw: str, seed: int, data: st.DataObject
) -> None:
    people = table.patients.unique().tolist()
    assume(len(people) > 1)
    patient = data.draw(st.sampled_from(people))
    settings = settings_of(limit, draw)
    before = draw_from_pools(table, settings, generator(seed))
    after = draw_from_pools(without(table, patient), settings, generator(seed))
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not same(a, b)]
    assert len(changed) <= limit
    for i, episode in enumerate(before):
        if episode is not None and patient in people_of(table, episode):
            assert i in changed


@given(tables(), st.integers(1, 6), st.integers(1, 8), SEEDS)
def test_each_patient_is_in_as_many_pools_as_allowed(table: Table, limit: int, tasks: int, seed: int) -> None:
    member = pools(table, tasks, limit, seed)
    assert (member.sum(dim=1) == min(limit, tasks)).all()
    for patient in table.patients.unique():
        assert len(member[table.patients == patient].unique(dim=0)) == 1


def test_the_order_of_rows_does_not_matter_to_pools() -> None:
    table = table_of([0, 1] * 10, [i // 2 for i in range(20)])
    order = torch.randperm(20, generator=generator("order"))
    assert torch.equal(pools(table, 4, 1, 5)[order], pools(table.take(order), 4, 1, 5))


def test_pools_are_about_equally_large_and_change_with_the_seed() -> None:
    table = table_of([0] * 4000, list(range(4000)))
    first, second = pools(table, 4, 1, 1), pools(table, 4, 1, 2)
    assert all(900 < size < 1100 for size in first.sum(dim=0).tolist())
    assert 0.2 < float((first & second).any(dim=1).double().mean()) < 0.3
    joint = pools(table, 4, 2, 1).double()
    assert all(600 < n < 740 for n in (joint.T @ joint)[~torch.eye(4, dtype=torch.bool)].tolist())


def test_tasks_differ_and_every_patient_comes_up_over_rounds() -> None:
    table = table_of([0, 1] * 40, list(range(80)))
    seen: set[int] = set()
    for number in range(30):
        drawn = draw_episodes(table, settings_of(1), generator("episodes", number))
        assert len(drawn) == 4
        seen |= set().union(*(people_of(table, episode) for episode in drawn))
    assert seen == set(range(80))


def test_an_empty_pool_gives_no_task() -> None:
    assert draw_episodes(table_of([0, 1], [0, 1]), settings_of(1, tasks=50), generator(0)) == []


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        ("per_class", "a271b8668cf1466a"),
        ("rows", "9f73cabe46fead96"),
    ],
)
def test_without_a_limit_the_draws_are_what_they_were(draw: str, expected: str) -> None:
    table = table_of([0, 1, 1] * 10, [i // 2 for i in range(30)])
    drawn = draw_episodes(table, settings_of(0, draw), generator("pinned"))
    taken = {f"{i}.{j}": side.inputs["table"] for i, e in enumerate(drawn) for j, side in enumerate(e)}
    assert digest(taken)[:16] == expected
