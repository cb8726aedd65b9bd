"""A plan in plain words, and what is different from another: for the person at the hospital who approves it.

Names in a plan are the coordinator's words, so none of them reaches a terminal with a control character.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.calibration import TEMPERATURES
from clinimeta.common.contributions import added_by_sites, metrics_of
from clinimeta.common.errors import StudyError
from clinimeta.common.models import MODELS
from clinimeta.common.plan import Plan
from clinimeta.common.privacy.accounting import largest_mu
from clinimeta.common.registry import Registry

Effect = Literal["weaker", "other", "stronger"]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two plans, and what it does to the protection of patients.

    >>> str(Change("secure aggregation", "required by the plan", "switched off", "weaker"))
    'secure aggregation: required by the plan -> switched off  (weaker)'
    """

    what: str
    before: str
    after: str
    effect: Effect = "other"

    def __str__(self) -> str:
        mark = "" if self.effect == "other" else f"  ({self.effect})"
        return f"{self.what}: {self.before} -> {self.after}{mark}"


def shown(text: str, most: int = 60) -> str:
    r"""Text from outside, on one line, without what could steer a terminal, and not too long.

    >>> shown("age\x1b[2J\n\u202e"), shown("a" * 70, 3)
    ('age\ufffd[2J\ufffd\ufffd', 'aaa... (67 more)')
    """
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return clean if len(clean) <= most else f"{clean[:most]}... ({len(clean) - most} more)"


def columns_read(plan: Plan) -> tuple[str, ...]:
    """The columns of the site's table that the plan reads: target, inputs, and who each row is of."""
    table = plan.table
    patient = (table.patient,) if table.patient else ()
    return tuple(dict.fromkeys((table.target, *(column.name for column in table.columns), *patient)))


def describe(plan: Plan) -> tuple[tuple[str, str], ...]:
    """The plan under a few headings: what is computed, from what, what leaves, how protected, how long."""
    return (
        ("Study", f"'{shown(plan.study)}', arm '{shown(plan.arm)}' (plan {plan.digest})"),
        ("What is computed", _computed(plan)),
        ("From which columns", _columns(plan)),
        ("What leaves the hospital", _leaves(plan)),
        ("How it is protected", _protected(plan)),
        ("What one patient is promised", _promised(plan)),
        ("How long", _how_long(plan)),
    )


def diff(old: Plan | None, new: Plan) -> tuple[Change, ...]:
    """What is different in `new`: first what protects patients less, then the rest, then what protects more.

    Nothing is left out: two plans without a difference here are the same plan.
    """
    if old is None:
        return (Change("plan", "none was approved before", f"'{shown(new.study)}', '{shown(new.arm)}'"),)
    before, after = _leaves_of(old), _leaves_of(new)
    changes = [
        _change(path, before.get(path, _ABSENT), after.get(path, _ABSENT))
        for path in dict.fromkeys((*after, *before))
        if _as_json(before, path) != _as_json(after, path)
    ]
    return tuple(sorted(changes, key=lambda change: ("weaker", "other", "stronger").index(change.effect)))


_ABSENT = object()


def _as_json(leaves: Mapping[str, Any], path: str) -> str:
    """Equal exactly where a plan's bytes are: Python takes 1, 1.0 and True for the same."""
    return json.dumps(leaves[path]) if path in leaves else ""


def _leaves_of(plan: Plan) -> dict[str, Any]:
    """Dotted key -> plain value. Columns go by their names, so that one more does not shift the others."""
    values: dict[str, Any] = plan.model_dump(mode="json")
    columns = values["table"].pop("columns")
    found = {f"column.{c.pop('name')}": c for c in [dict(column) for column in columns]}
    values["table"]["order of the columns"] = [column["name"] for column in columns]
    values["trainable"] = f"{values['trainable']}, rank {values.pop('rank')}"
    leaves: dict[str, Any] = {}
    for group, value in values.items():
        if isinstance(value, dict):
            leaves |= {f"{group}.{key}": inner for key, inner in value.items()}
        else:
            leaves[group] = value
    return leaves | found


def _infinite_at_zero(value: float) -> float:
    return value or math.inf


def _smaller(value: float) -> float:
    return -value


def _ranked(*values: Any) -> Callable[[Any], float]:
    """The later in the list, the less protection; what is not in it comes last."""
    return lambda value: values.index(value) if value in values else len(values)


def _numbers_trained(value: str) -> float:
    part, rank = value.split(", rank ")
    return {"head": 0.0, "low_rank": 2 - 1 / (1 + int(rank))}.get(part, 2.0)


EXPOSURE: Mapping[str, Callable[[Any], float]] = {
    "protection.answers": _ranked("masked", "quantised", "plain"),
    "protection.epsilon": _infinite_at_zero,
    "protection.delta": float,
    "protection.noise": _ranked("local", "shared"),
    "protection.noise_multiplier": _smaller,
    "protection.colluders": _smaller,
    "protection.min_cohort": _smaller,
    "protection.clip": float,
    "episodes.tasks": _smaller,
    "episodes.query": _smaller,
    "episodes.tasks_a_patient": _infinite_at_zero,
    "local_meta_steps": lambda steps: float(steps > 1),
    "weighting": _ranked("tasks", "rows"),
    "table.normalise": _ranked("study", "site"),
    "table.patient": lambda column: float(not column),
    "trainable": _numbers_trained,
}
"""Key of a plan -> how much it exposes patients: more is weaker. The other keys say nothing about that."""

WORDS: Mapping[str, str] = {
    "protection.answers": "secure aggregation",
    "protection.epsilon": "epsilon, promised to each patient (0: nothing)",
    "protection.delta": "delta, the chance that the promise fails",
    "protection.noise": "who adds the noise",
    "protection.noise_multiplier": "noise, in units of one patient",
    "protection.colluders": "hospitals that may work together against the others",
    "protection.min_cohort": "fewest hospitals in a sum that is opened",
    "protection.clip": "most that one task can contribute",
    "protection.max_rows": "rows that a hospital counts for at most",
    "episodes.tasks": "tasks in an answer",
    "episodes.query": "patients that a task is judged on (a class)",
    "episodes.shots": "patients that a task learns from (a class)",
    "episodes.tasks_a_patient": "tasks of an answer that may know of one patient (0: all)",
    "local_meta_steps": "steps at the hospital before it answers",
    "weighting": "what a hospital's answer counts by",
    "table.target": "column to predict",
    "table.patient": "column that says who a row is of",
    "table.normalise": "whose means and spreads scale the values",
    "trainable": "what of the model is trained, and leaves",
    "algorithm.name": "algorithm",
    "model.name": "model",
}
"""What the keys that a clinician should know mean."""

_VALUES: Mapping[str, Mapping[Any, str]] = {
    "protection.answers": {
        "masked": "required by the plan",
        "quantised": "switched off (the coordinator sees rounded answers)",
        "plain": "switched off",
    },
    "protection.noise": {"local": "each hospital all of it", "shared": "all parties together"},
    "table.patient": {"": "none: each row counts as one patient"},
}


def _change(path: str, old: Any, new: Any) -> Change:
    group, _, key = path.partition(".")
    if group == "column":
        effect: Effect = "weaker" if old is _ABSENT else "stronger" if new is _ABSENT else "other"
        return Change(f"column '{shown(key)}'", _value(path, old), _value(path, new), effect)
    what = WORDS.get(path, shown(path.replace(".", ": ").replace("_", " ")))
    exposure = EXPOSURE.get(path)
    moved = 0.0 if exposure is None else exposure(new) - exposure(old) if new != old else 0.0
    effect = "weaker" if moved > 0 else "stronger" if moved < 0 else "other"
    if path == "table.target":  # another outcome of the patients is read
        effect = "weaker"
    return Change(what, _value(path, old), _value(path, new), effect)


def _value(path: str, value: Any) -> str:
    words = _VALUES.get(path, {})
    if isinstance(value, str) and value in words:
        return words[value]
    if value is _ABSENT:
        return "not read" if path.startswith("column.") else "not there"
    if isinstance(value, str):
        return f"'{shown(value, 200)}'"
    return shown(json.dumps(value), 400)


def _computed(plan: Plan) -> str:
    each = " of each class" if plan.episodes.draw == "per_class" else ""
    shots = " or ".join(map(str, plan.episodes.shots))
    steps = f", {plan.local_meta_steps} times before it answers" if plan.local_meta_steps > 1 else ""
    what = {"all": "all its numbers", "head": "its last layer only"}.get(
        plan.trainable, f"a change of rank {plan.rank}"
    )
    model, algorithm = _known(MODELS, plan.model.name), _known(ALGORITHMS, plan.algorithm.name)
    return (
        f"How to improve a shared model ({model}) so that it adapts to a hospital's few patients "
        f"({algorithm}); "
        f"what is trained of it: {what}. The hospital draws {plan.episodes.tasks} tasks from its own "
        f"patients{steps}; a task learns from {shots} patients{each} and is judged on up to "
        f"{plan.episodes.query} others{each}."
    )


def _known(registry: Registry[Any], name: str) -> str:
    summary = (
        f": {registry.summary(name).rstrip('.')}" if name in registry.names() else ", which is unknown here"
    )
    return f"'{shown(name)}'{summary}"


def _columns(plan: Plan) -> str:
    table = plan.table
    inputs = ", ".join(
        shown(c.name) + (f" ({shown(c.unit)})" if c.unit else "") + (" if it is there" if c.optional else "")
        for c in table.columns
    )
    outcome = f"the outcome '{shown(table.target)}'"
    if table.classes:
        outcome += f" ({', '.join(map(shown, table.classes))})"
    person = f"; '{shown(table.patient)}' to know which rows are one patient" if table.patient else ""
    return f"{outcome}, from {inputs}{person}. No other column is read."


def _leaves(plan: Plan) -> str:
    try:
        names = ", ".join(metrics_of(plan))
    except StudyError:
        names = "what an application measures that is unknown here"
    numbers = f", how many {plan.weighting} it stands for" if not plan.protection.noise_multiplier else ""
    measured = f", and over all its tasks: {names}" if names else ""
    text = f"One sum over the tasks, with as many numbers as are trained{numbers}{measured}."
    if not plan.protection.in_whole_numbers:
        text += (
            f" When asked, also the hospital's summed loss at up to {len(TEMPERATURES)} temperatures for "
            f"each number of patients that a task learns from."
        )
    return f"{text} No record, no value and no identifier of a patient."


def _protected(plan: Plan) -> str:
    protection = plan.protection
    if protection.answers == "plain":
        return "Not at all beyond being a sum: the coordinator reads this hospital's answer by itself."
    clipped = f"Each task is cut to the length {protection.clip:g} and the sum rounded"
    if protection.answers == "quantised":
        return f"{clipped}. The coordinator reads this hospital's answer by itself."
    return f"{clipped}. The coordinator reads only the sum over {protection.min_cohort} or more hospitals."


def _promised(plan: Plan) -> str:
    protection = plan.protection
    if not protection.epsilon:
        return "Nothing: no noise is added (no differential privacy)."
    who = "The hospitals add" if added_by_sites(plan) else "The coordinator, who is trusted with it, adds"
    kept = (
        "" if not (reasons := plan.unpromised()) else f" The noise must be large, since {'; '.join(reasons)}."
    )
    return (
        f"Differential privacy, epsilon {protection.epsilon:g} at delta {protection.delta:g}, for the whole "
        f"training. {who} noise of {protection.noise_multiplier:.3g} times what one patient can change.{kept}"
    )


def _how_long(plan: Plan) -> str:
    text = "A plan does not end by itself: until its approval ends or is withdrawn."
    protection = plan.protection
    if protection.epsilon and protection.noise_multiplier:
        mu = largest_mu(protection.epsilon, protection.delta) * protection.noise_multiplier
        answers = "a billion" if mu > 3e4 else str(int(mu * mu * (1 + 1e-12)))
        text += f" The promise is used up after {answers} answers."
    return text
