"""A person at the hospital reads what a plan does, and no difference between two plans is hidden."""

import json
from typing import Any

import pytest
from guarded import BASE, masked, plan_of, promising
from hypothesis import assume, given
from hypothesis import strategies as st
from policy_oracle import PLANS

from clinimeta.client.plan_words import EXPOSURE, WORDS, Change, columns_read, describe, diff, shown
from clinimeta.common.errors import StudyError
from clinimeta.common.plan import Plan
from clinimeta.common.study import Choice
from clinimeta.common.tasks.schema import Column


def text_of(plan: Plan) -> str:
    return "\n".join(f"{heading}: {text}" for heading, text in describe(plan))


def test_a_plan_is_described_under_the_headings_that_a_person_asks_about() -> None:
    assert [heading for heading, _ in describe(BASE)] == [
        "Study",
        "What is computed",
        "From which columns",
        "What leaves the hospital",
        "How it is protected",
        "What one patient is promised",
        "How long",
    ]
    text = text_of(BASE)
    for word in ("'sepsis'", BASE.digest, "'linear'", "'maml'", "4 tasks", "'sick'", "age (years), crp"):
        assert word in text
    assert "'person' to know which rows are one patient" in text
    assert all(name in text for name in ("query_loss", "query_accuracy"))
    assert "the coordinator reads this hospital's answer by itself" in text
    assert "no differential privacy" in text


def test_protection_is_said_in_words() -> None:
    assert "only the sum over 3 or more hospitals" in text_of(masked())
    assert "The hospitals add noise of 20 times" in text_of(promising())
    assert "epsilon 4 at delta 1e-06" in text_of(promising())
    central = text_of(promising(answers="quantised"))
    assert "The coordinator, who is trusted with it, adds" in central
    assert "reads this hospital's answer by itself" in central


def test_names_that_this_hospital_does_not_have_are_described_as_unknown() -> None:
    plan = plan_of(algorithm=Choice(name="new"), model=Choice(name="newer"), application="newest")
    assert "'new', which is unknown here" in text_of(plan)
    assert "unknown here" in dict(describe(plan))["What leaves the hospital"]


NASTY = "\x1b[2J\u202e\n\x00"


def test_no_word_of_the_coordinators_steers_the_terminal() -> None:
    column = Column(name=f"age{NASTY}", unit=f"y{NASTY}")
    schema = {
        "target": f"t{NASTY}",
        "patient": f"p{NASTY}",
        "columns": (column,),
        "classes": (f"a{NASTY}", f"b{NASTY}"),
    }
    plan = plan_of(
        study=f"s{NASTY}",
        arm=f"a{NASTY}",
        table=schema,
        model=Choice(name=f"m{NASTY}", **{f"k{NASTY}": f"v{NASTY}"}),
        algorithm=Choice(name=f"x{NASTY}"),
        application=f"y{NASTY}",
    )
    lines = [text for pair in describe(plan) for text in pair]
    lines += [str(change) for old in (None, BASE) for change in diff(old, plan)]
    lines += [str(change) for change in diff(plan, BASE)]
    assert all(line.isprintable() for line in lines)


@given(st.text(), st.integers(0, 50))
def test_what_is_shown_is_printable_and_not_long(text: str, most: int) -> None:
    assert shown(text, most).isprintable()
    assert len(shown(text, most)) <= most + 30


# The differences


def test_without_an_approved_plan_there_is_nothing_to_compare() -> None:
    (change,) = diff(None, BASE)
    assert change == Change("plan", "none was approved before", "'sepsis', 'maml'")
    assert diff(BASE, BASE) == ()


WEAKER = {
    "secure aggregation": (masked(), BASE),
    "secure aggregation again": (masked(), plan_of(protection={"answers": "quantised"})),
    "fewest hospitals": (masked(min_cohort=5), masked(min_cohort=4)),
    "epsilon": (promising(epsilon=2.0), promising(epsilon=2.5)),
    "epsilon, promised": (promising(), masked(noise_multiplier=20.0, delta=1e-6)),
    "delta": (promising(), promising(delta=1e-5)),
    "noise": (promising(noise_multiplier=3.0), promising(noise_multiplier=2.0)),
    "who adds the noise": (promising(noise="local"), promising()),
    "work together": (promising(colluders=1), promising()),
    "most that one task": (masked(clip=1.0), masked(clip=2.0)),
    "tasks in an answer": (BASE, plan_of(episodes={"tasks": 3})),
    "judged on": (BASE, plan_of(episodes={"query": 1})),
    "know of one patient": (BASE, plan_of(episodes={"tasks_a_patient": 2})),
    "know of one patient (0: all)": (BASE, plan_of(episodes={"tasks_a_patient": 0})),
    "steps at the hospital": (BASE, plan_of(local_meta_steps=2)),
    "counts by": (BASE, plan_of(weighting="rows")),
    "whose means": (BASE, plan_of(table={"normalise": "site"})),
    "who a row is of": (BASE, plan_of(table={"patient": ""})),
    "column to predict": (BASE, plan_of(table={"target": "died"})),
    "what of the model is trained": (plan_of(trainable="head"), BASE),
    "what of the model is": (plan_of(trainable="low_rank", rank=1), plan_of(trainable="low_rank", rank=2)),
    "column 'crp'": (plan_of(table={"columns": BASE.table.columns[:1]}), BASE),
}


@pytest.mark.parametrize("what", WEAKER)
def test_what_protects_patients_less_is_said_first_and_its_reverse_is_said_to_protect_more(what: str) -> None:
    old, new = WEAKER[what]
    new = Plan.from_bytes(new.model_copy(update={"seed": 99, "local_rate": 0.5}).canonical())
    changes = diff(old, new)
    assert changes[0].effect == "weaker", [str(change) for change in changes]
    assert what.removesuffix(" again").split(" (")[0].split(", ")[0] in changes[0].what
    assert {change.effect for change in changes[1:]} <= {"weaker", "other"}
    back = diff(new, old)
    if "predict" in what:
        assert back[0].effect == "weaker"
    else:
        assert back[-1].effect == "stronger"


def test_every_key_with_an_effect_has_an_example_above_and_every_word_is_a_plans() -> None:
    keys = {path for old, new in WEAKER.values() for path in changed(old, new)}
    assert set(EXPOSURE) <= keys
    known = set(leaves_of(BASE)) | {"trainable"}
    assert set(WORDS) <= known
    assert set(EXPOSURE) <= known


def leaves_of(plan: Plan) -> dict[str, Any]:
    values = json.loads(plan.canonical())
    groups = {key: value if isinstance(value, dict) else {"": value} for key, value in values.items()}
    return {f"{g}.{key}".rstrip("."): value for g, group in groups.items() for key, value in group.items()}


def changed(old: Plan, new: Plan) -> set[str]:
    before, after = leaves_of(old), leaves_of(new)
    return {path for path in before if before[path] != after.get(path)}


PATHS = st.sampled_from(sorted(leaves_of(BASE)))
VALUES = st.one_of(
    st.booleans(),
    st.integers(0, 9),
    st.floats(0, 9, allow_nan=False),
    st.sampled_from(["", "maml", "rows", "masked", "all", "mask"]),
)


@given(plan=st.sampled_from(PLANS), path=PATHS, value=VALUES)
def test_no_difference_between_two_plans_is_hidden(plan: Plan, path: str, value: Any) -> None:
    values = json.loads(plan.canonical())
    group, _, key = path.partition(".")
    (values[group] if key else values).__setitem__(key or group, value)
    try:
        other = Plan.from_bytes(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())
    except StudyError:
        assume(False)
    assert (diff(plan, other) == ()) == (plan.digest == other.digest)


def test_columns_in_another_order_are_a_difference_and_one_more_column_is_one() -> None:
    turned = plan_of(table={"columns": BASE.table.columns[::-1]})
    (change,) = diff(BASE, turned)
    assert "order of the columns" in change.what
    more = plan_of(table={"columns": (Column(name="lactate"), *BASE.table.columns)})
    column, order = diff(BASE, more)
    assert (column.what, column.before) == ("column 'lactate'", "not read")
    assert "order of the columns" in order.what


@given(old=st.sampled_from(PLANS), new=st.sampled_from(PLANS))
def test_two_plans_without_a_difference_are_the_same_plan(old: Plan, new: Plan) -> None:
    changes = diff(old, new)
    assert (changes == ()) == (old.digest == new.digest)
    order = [("weaker", "other", "stronger").index(change.effect) for change in changes]
    assert order == sorted(order)
    assert all(change.before != change.after for change in changes)


def test_the_columns_of_a_plan_are_all_that_it_reads() -> None:
    assert columns_read(BASE) == ("sick", "age", "crp", "person")
    assert columns_read(plan_of(table={"patient": ""})) == ("sick", "age", "crp")
