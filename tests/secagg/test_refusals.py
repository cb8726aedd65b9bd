"""Every refusal has scenarios of its own; a site without it does not refuse them, so each test has power."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from mutants import CODES as IN_SOURCE
from mutants import shortened, site_without
from refusals import SCENARIOS, Stage, plays_along

from clinimeta.common.secagg.messages import Refusal
from clinimeta.common.secagg.refusal import CODES, Refused
from clinimeta.common.secagg.site import Site

BY_NAME = {name: (code, scenario) for code, name, scenario in SCENARIOS}

OPERANDS = next(i for i in itertools.count() if not shortened(i)[0])


def is_refused(code: str, scenario: Callable[[Any], Any], kind: Any) -> bool:
    try:
        answer = scenario(kind)
    except Exception:  # a mutant may fall over anything
        return False
    return isinstance(answer, Refusal) and answer.code == code


@pytest.mark.parametrize("name", BY_NAME)
def test_it_is_refused_with_its_code(name: str) -> None:
    code, scenario = BY_NAME[name]
    answer = scenario(Site)
    assert isinstance(answer, Refusal), answer
    assert (answer.site, answer.code) == ("bern", code)
    assert answer.sentence


def test_every_code_is_raised_once_and_has_a_scenario() -> None:
    assert sorted(CODES) == IN_SOURCE
    assert {code for code, _, _ in SCENARIOS} == set(CODES)


@pytest.mark.parametrize("code", IN_SOURCE)
def test_without_the_refusal_a_scenario_fails(code: str) -> None:
    mutant = site_without(code)
    killers = [
        name for name, (c, scenario) in BY_NAME.items() if c == code and not is_refused(c, scenario, mutant)
    ]
    assert killers


@pytest.mark.parametrize("target", range(OPERANDS))
def test_without_a_part_of_a_condition_a_scenario_fails(target: int) -> None:
    what, mutant = shortened(target)
    refuses_all = all(is_refused(code, scenario, mutant) for code, scenario in BY_NAME.values())
    assert not (refuses_all and plays_along(mutant)), what


def test_a_mutant_without_change_refuses_everything() -> None:
    same = site_without()
    assert all(is_refused(code, scenario, same) for code, scenario in BY_NAME.values())
    assert plays_along(same)


def test_a_refused_request_spoils_nothing() -> None:
    """The right request, after a wrong one in each phase, is answered as if nothing had been."""
    stage = Stage(Site)
    assert isinstance(stage.ask_me(terms=b""), Refusal)
    stage.go_on()
    assert isinstance(stage.ask_me(adverts=()), Refusal)
    stage.go_on()
    assert isinstance(stage.ask_me(members=()), Refusal)
    stage.go_on()
    assert isinstance(stage.ask_me(survivors=()), Refusal)
    stage.go_on()
    assert isinstance(stage.ask_me(signatures={}), Refusal)
    with pytest.raises(StopIteration) as finished:
        stage.go_on()
    assert finished.value.value.dropped == {}


def test_a_refusal_needs_a_known_code() -> None:
    with pytest.raises(AssertionError):
        Refused("because")
