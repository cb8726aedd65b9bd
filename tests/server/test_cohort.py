"""Who takes part is a function of the seed and the round, and everyone's turn comes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.server.cohort import sample_cohort

SITES = [f"hospital-{i:02d}" for i in range(12)]
NAMES = st.lists(st.text(max_size=5), unique=True, max_size=12)


@given(sites=NAMES, size=st.integers(0, 15), seed=st.integers(0), number=st.integers(0))
def test_a_cohort_is_that_many_of_the_sites_without_replacement(
    sites: list[str], size: int, seed: int, number: int
) -> None:
    cohort = sample_cohort(sites, size, seed, number)
    assert set(cohort) <= set(sites)
    assert cohort == sorted(set(cohort))
    assert len(cohort) == (min(size, len(sites)) if size else len(sites))


@given(sites=st.permutations(SITES), number=st.integers(0, 9))
def test_a_restart_asks_the_same_sites_in_whatever_order_they_come_back(
    sites: list[str], number: int
) -> None:
    assert sample_cohort(sites, 5, 3, number) == sample_cohort(SITES, 5, 3, number)


@pytest.mark.parametrize("size", [0, 12, 13, 10_000])
def test_everyone_takes_part_where_no_smaller_cohort_is_asked_for(size: int) -> None:
    assert sample_cohort(SITES, size, 1, 1) == SITES


def test_rounds_and_seeds_draw_differently() -> None:
    drawn = {tuple(sample_cohort(SITES, 6, seed, number)) for seed in range(4) for number in range(10)}
    assert len(drawn) > 35


def test_every_sites_turn_comes_about_equally_often() -> None:
    """600 rounds of 4 in 12: 200 turns each, give or take five standard deviations."""
    turns = Counter(site for number in range(600) for site in sample_cohort(SITES, 4, 0, number))
    assert set(turns) == set(SITES)
    assert all(abs(count - 200) < 5 * (600 * 1 / 3 * 2 / 3) ** 0.5 for count in turns.values())
