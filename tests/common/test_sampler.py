"""Episodes are drawn by person, as large as asked for or as large as the table allows, reproducibly."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.rng import generator
from clinimeta.common.tasks.episode import Episode, Examples, examples
from clinimeta.common.tasks.sampler import Episodes, draw_episode, draw_episodes, split_rows
from clinimeta.common.tasks.table import Table

DRAWS = st.sampled_from(["per_class", "rows"])
SEEDS = st.integers(0, 10_000)


def table_of(targets: list[Any], patients: list[int] | None = None) -> Table:
    """Each row's one feature is its number, so that a draw shows which rows it took."""
    count = len(targets)
    people = torch.tensor(list(range(count)) if patients is None else patients, dtype=torch.int64)
    rows = examples({"table": torch.arange(count, dtype=torch.float32)[:, None]}, torch.tensor(targets))
    return Table(rows, people, torch.zeros(count, dtype=torch.bool))


def numbers(rows: Examples) -> list[int]:
    return [int(n) for n in rows.inputs["table"][:, 0].tolist()]


def counts(rows: Examples, classes: int) -> list[int]:
    return [int((rows.targets == c).sum()) for c in range(classes)]


@st.composite
def tables(draw: st.DrawFn, *, classes: int = 2, one_row_each: bool = False) -> Table:
    """Small, ragged tables: rows of any class in any order, some people with several."""
    targets = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=14))
    several = st.lists(st.integers(0, 5), min_size=len(targets), max_size=len(targets))
    return table_of(targets, None if one_row_each else draw(several))


@st.composite
def one_class_a_person(draw: st.DrawFn) -> Table:
    """Several rows a person, all of the same class."""
    people = draw(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 4)), min_size=1, max_size=6))
    rows = [(target, person) for person, (target, visits) in enumerate(people) for _ in range(visits)]
    rows = draw(st.permutations(rows))
    return table_of([target for target, _ in rows], [person for _, person in rows])


def check(episode: Episode, table: Table) -> None:
    """What holds for every episode."""
    support, query = numbers(episode.support), numbers(episode.query)
    assert len({*support, *query}) == len(support) + len(query)
    people = [{int(table.patients[row]) for row in side} for side in (support, query)]
    assert not people[0] & people[1]
    for side, rows in ((episode.support, support), (episode.query, query)):
        assert torch.equal(side.targets, table.rows.targets[rows])
        assert bool((side.weights == 1).all())
    assert query


@given(tables(), DRAWS, st.integers(0, 6), st.integers(1, 5), SEEDS)
def test_no_person_is_ever_on_both_sides(table: Table, draw: Any, shots: int, query: int, seed: int) -> None:
    settings = Episodes(draw=draw, shots=(shots,), query=query)
    episode = draw_episode(table, settings, shots, generator(seed))
    if episode is None:
        return
    check(episode, table)
    if draw == "rows":
        assert min(shots, 1) <= episode.support.size <= shots
        assert episode.query.size <= query
    else:
        assert all(min(shots, 1) <= count <= shots for count in counts(episode.support, 2))
        assert all(1 <= count <= query for count in counts(episode.query, 2))


@given(st.integers(0, 4), st.integers(1, 4), SEEDS)
def test_a_large_table_gives_exactly_what_was_asked_for(shots: int, query: int, seed: int) -> None:
    table = table_of([0, 1, 2] * 8)
    per_class = Episodes(ways=3, shots=(shots,), query=query)
    episode = draw_episode(table, per_class, shots, generator(seed))
    assert episode is not None
    assert counts(episode.support, 3) == [shots] * 3
    assert counts(episode.query, 3) == [query] * 3
    rows = draw_episode(table, Episodes(draw="rows", shots=(shots,), query=query), shots, generator(seed))
    assert rows is not None
    assert (rows.support.size, rows.query.size) == (shots, query)


@given(tables(one_row_each=True), DRAWS, st.integers(0, 6), SEEDS)
def test_there_is_no_episode_only_where_none_is_possible(
    table: Table, draw: Any, shots: int, seed: int
) -> None:
    groups = counts(table.rows, 2) if draw == "per_class" else [len(table)]
    possible = all(count >= (2 if shots else 1) for count in groups)
    episode = draw_episode(table, Episodes(draw=draw, shots=(shots,)), shots, generator(seed))
    assert (episode is not None) == possible
    if episode is not None and draw == "per_class":
        assert counts(episode.support, 2) == [min(shots, count - 1) for count in groups]
    if episode is not None and draw == "rows":
        assert episode.support.size == min(shots, len(table) - 1)


@given(tables(), st.integers(1, 20), SEEDS)
def test_two_people_are_enough_for_an_episode_of_rows(table: Table, shots: int, seed: int) -> None:
    episode = draw_episode(table, Episodes(draw="rows", shots=(shots,)), shots, generator(seed))
    assert (episode is not None) == (len(table.patients.unique()) >= 2)


@given(one_class_a_person(), st.integers(1, 20), SEEDS)
def test_two_people_of_each_class_are_enough_for_an_episode(table: Table, shots: int, seed: int) -> None:
    people = [len(table.patients[table.rows.targets == c].unique()) for c in (0, 1)]
    episode = draw_episode(table, Episodes(shots=(shots,)), shots, generator(seed))
    assert (episode is not None) == (min(people) >= 2)


@given(tables(), DRAWS, st.integers(0, 6), SEEDS)
def test_unless_it_may_shrink_a_support_set_is_exact_or_there_is_none(
    table: Table, draw: str, shots: int, seed: int
) -> None:
    split = split_rows(table, shots, draw, 2, generator(seed))
    if split is None:
        return
    support, rest = (table.rows.take(rows) for rows in split)
    if draw == "per_class":
        assert counts(support, 2) == [shots, shots]
        assert min(counts(rest, 2)) >= 1
    else:
        assert support.size == shots
    taken = {int(table.patients[row]) for row in numbers(support)}
    assert sorted(numbers(rest)) == [
        row for row in range(len(table)) if int(table.patients[row]) not in taken
    ]
    assert rest.size > 0


@pytest.mark.parametrize(("draw", "classes"), [("per_class", 2), ("rows", 2)])
def test_a_table_that_cannot_give_the_exact_size_gives_nothing(draw: str, classes: int) -> None:
    table = table_of([0, 0, 1, 1])
    most = 1 if draw == "per_class" else 3
    assert split_rows(table, most, draw, classes, generator(1)) is not None
    assert split_rows(table, most + 1, draw, classes, generator(1)) is None


@given(st.integers(1, 8))
def test_a_support_set_that_may_shrink_leaves_a_person_of_each_class(shots: int) -> None:
    split = split_rows(table_of([0] * 4 + [1] * 9), shots, "per_class", 2, generator(0), shrink=True)
    assert split is not None
    support, rest = (table_of([0] * 4 + [1] * 9).rows.take(rows) for rows in split)
    assert counts(support, 2) == [min(shots, 3), shots]
    assert counts(rest, 2) == [4 - min(shots, 3), 9 - shots]


@given(tables(), DRAWS, st.integers(1, 6), SEEDS)
def test_shrinking_gives_what_was_asked_for_or_the_most_that_leaves_a_person(
    table: Table, draw: str, shots: int, seed: int
) -> None:
    exact = split_rows(table, shots, draw, 2, generator(seed))
    split = split_rows(table, shots, draw, 2, generator(seed), shrink=True)
    if split is None:
        assert exact is None
        return
    if exact is not None:
        assert torch.equal(split[0], exact[0])
        assert torch.equal(split[1], exact[1])
    for c in (0, 1) if draw == "per_class" else (None,):
        of_class = torch.ones(len(table), dtype=torch.bool) if c is None else table.rows.targets == c
        taken = [row for row in split[0].tolist() if of_class[row]]
        assert 1 <= len(taken) <= shots
        if len(taken) < shots:  # one person more would have left nobody
            supporting = {int(table.patients[row]) for row in taken}
            assert len(set(table.patients[of_class].tolist()) - supporting) == 1


def test_a_person_with_both_classes_is_on_one_side_only() -> None:
    table = table_of([0, 1, 0, 1, 0, 1], [7, 7, 8, 8, 9, 9])
    for seed in range(20):
        episode = draw_episode(table, Episodes(shots=(2,)), 2, generator(seed))
        if episode is not None:
            check(episode, table)


def test_a_class_that_no_other_person_has_gives_no_episode() -> None:
    table = table_of([0, 0, 1, 1], [5, 6, 7, 7])
    assert draw_episode(table, Episodes(shots=(1,)), 1, generator(0)) is None


# Randomness


@given(tables(), DRAWS, SEEDS)
def test_the_same_key_draws_the_same_episodes(table: Table, draw: Any, seed: int) -> None:
    settings = Episodes(draw=draw, shots=(1, 2), query=3, tasks=3)
    one, other = (draw_episodes(table, settings, generator("x", seed)) for _ in range(2))
    assert [[numbers(side) for side in e] for e in one] == [[numbers(side) for side in e] for e in other]


def test_another_key_draws_other_episodes() -> None:
    table, settings = table_of([0, 1] * 10), Episodes(shots=(3,))
    drawn = {
        str(numbers(episode.support))
        for seed in range(20)
        for episode in draw_episodes(table, settings, generator(seed))
    }
    assert len(drawn) > 40


def test_every_row_comes_up_on_either_side() -> None:
    table, settings = table_of([0, 1] * 4), Episodes(shots=(2,), query=2, tasks=100)
    drawn = draw_episodes(table, settings, generator("all"))
    assert {row for episode in drawn for row in numbers(episode.support)} == set(range(8))
    assert {row for episode in drawn for row in numbers(episode.query)} == set(range(8))


def test_a_study_gets_as_many_tasks_as_it_asks_for_of_every_size() -> None:
    drawn = draw_episodes(table_of([0, 1] * 10), Episodes(shots=(1, 4), tasks=40), generator("sizes"))
    assert len(drawn) == 40
    assert {episode.support.size for episode in drawn} == {2, 8}


def test_a_table_that_is_too_small_gives_no_task() -> None:
    assert draw_episodes(table_of([0, 1, 1]), Episodes(shots=(1,), tasks=5), generator(0)) == []


# Classes and ways


def test_with_more_classes_than_ways_each_task_picks_and_renumbers() -> None:
    table, settings = table_of([0, 1, 2, 3, 4] * 4), Episodes(ways=3, shots=(2,), query=2, tasks=60)
    drawn = draw_episodes(table, settings, generator("ways"))
    assert len(drawn) == 60
    seen = set()
    for episode in drawn:
        assert counts(episode.support, 3) == counts(episode.query, 3) == [2, 2, 2]
        originals = []
        for label in range(3):
            rows = [
                row
                for side in episode
                for row, target in zip(numbers(side), side.targets.tolist(), strict=True)
                if target == label
            ]
            (original,) = {int(table.rows.targets[row]) for row in rows}
            originals.append(original)
        assert len(set(originals)) == 3
        seen |= set(enumerate(originals))
    assert seen == {(label, original) for label in range(3) for original in range(5)}


def test_a_site_with_exactly_as_many_classes_as_ways_has_its_own_renumbered_too() -> None:
    episode = draw_episode(table_of([0, 2] * 4), Episodes(ways=2, shots=(2,)), 2, generator(0))
    assert episode is not None
    assert counts(episode.support, 2) == [2, 2]


def test_where_all_classes_are_asked_for_they_keep_their_numbers() -> None:
    table = table_of([0, 1, 2] * 3)
    for episode in draw_episodes(table, Episodes(ways=3, shots=(1,)), generator(0)):
        check(episode, table)


def test_a_site_with_fewer_classes_than_ways_has_no_task() -> None:
    assert draw_episodes(table_of([0, 1] * 5), Episodes(ways=3, shots=(1,)), generator(0)) == []


def test_rows_with_a_number_for_a_target_are_drawn_whatever_it_is() -> None:
    table = table_of([0.5, 1.5, 2.5, 3.5])
    episode = draw_episode(table, Episodes(draw="rows", shots=(2,), query=5), 2, generator(0))
    assert episode is not None
    check(episode, table)
    assert (episode.support.size, episode.query.size) == (2, 2)


def test_drawing_rows_leaves_every_class_its_number() -> None:
    table = table_of([0, 1, 2, 3] * 3)
    for episode in draw_episodes(table, Episodes(draw="rows", shots=(4,), tasks=5), generator(0)):
        check(episode, table)
