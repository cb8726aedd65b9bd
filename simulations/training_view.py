"""What the rounds tell the reader of a report: learning curves, who was missing, what it cost."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clinimeta.common.study import Arm, Study
from clinimeta.simulations.plots import Alternative, Curve, rounds_plot
from clinimeta.simulations.results import Results, RoundSummary
from clinimeta.simulations.scoreboard import styles
from clinimeta.simulations.wording import (
    NOTHING,
    count,
    duration,
    heading,
    number,
    printable,
    ranges,
    score_meaning,
    score_name,
    size,
    title_of,
)

MAX_ROWS = 200
"""Of the table of missing answers; beyond it the reader is sent to `metrics.jsonl`."""


@dataclass(frozen=True, slots=True)
class PlainTable:
    """A table of words; the first cell of a row is its heading. `note` stands below."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """An `<svg>` element, what to say below it, and the table with its numbers (None: it is nearby)."""

    title: str
    svg: str
    note: str = ""
    table: PlainTable | None = None


def learning_pictures(study: Study, results: Results) -> tuple[Picture, ...]:
    """How each measure moved over the rounds, at the training hospitals and (last) at unseen ones."""
    pictures: list[Picture | None] = []
    for metric in sorted({name for r in results.rounds for name in r.metrics}, reverse=True):
        points = [(r.arm, r.training, r.round, r.metrics.get(metric, math.nan)) for r in results.rounds]
        title = f"{heading(score_name(metric))} at the training hospitals"
        note = f"{heading(score_name(metric))}: {score_meaning(metric)}." if score_meaning(metric) else ""
        pictures.append(_picture(study, results, f"rounds-{len(pictures)}", title, note, points))
    unseen = [(arm, r.training, r.round, value) for r in results.rounds for arm, value in r.curve.items()]
    watched = next((e for e in study.evaluations if e.split == "unseen_sites" and e.curve_every), None)
    title = "AUROC at the unseen hospitals" + (f", k = {watched.curve_shots}" if watched else "")
    note = f"AUROC: {score_meaning('auroc')}. This curve chose nothing."
    pictures.append(_picture(study, results, "rounds-unseen", title, note, unseen))
    return tuple(picture for picture in pictures if picture is not None)


def missing_answers(study: Study, results: Results) -> tuple[str, PlainTable | None]:
    """One sentence about the answers that could not be used, and a table of them if there are any."""
    asked = sum(r.cohort for r in results.rounds)
    refused = sum(len(r.refused) for r in results.rounds)
    silent = sum(len(r.silent) for r in results.rounds)
    if not results.rounds:
        return "No hospital was asked to train.", None
    if not refused + silent:
        return (
            f"There were none: hospitals were asked {count(asked, 'time')}, and every one of them gave a "
            "usable answer each time.",
            None,
        )
    sentence = (
        f"Hospitals were asked {count(asked, 'time')}: {count(refused, 'answer')} could not be used, and "
        f"{count(silent, 'time')} there was no answer. A round goes on without them."
    )
    return sentence, _missing_table(study, results)


def cost_table(study: Study, results: Results) -> PlainTable:
    """Bytes, seconds and rounds an arm, all its trainings together."""
    by_arm: dict[str, list[RoundSummary]] = defaultdict(list)
    for summary in results.rounds:
        by_arm[summary.arm].append(summary)
    rows = [_cost_row(arm, by_arm[arm.name], study, results) for arm in study.arms]
    titles = {arm.title for arm in study.arms}
    other = [f"{printable(n)}: {duration(s)}" for n, s in results.seconds.items() if n not in titles]
    columns = (
        "Method",
        "Trainings",
        "Rounds of each",
        "Sent to hospitals",
        "Received from hospitals",
        "One hospital, one round (sent / received)",
        "Time to train",
        "A round",
    )
    note = "Times are those of this simulation, with all hospitals on one machine."
    return PlainTable(
        "What each method cost, all its trainings together",
        columns,
        tuple(rows),
        f"{note} Other times: {'; '.join(other)}." if other else note,
    )


def _picture(
    study: Study,
    results: Results,
    name: str,
    title: str,
    note: str,
    points: Iterable[tuple[str, str, int, float]],
) -> Picture | None:
    curves = _curves(study, results, points)
    if not curves:
        return None
    lines = [
        f"{c.title} from {number(c.mean[first])} in round {first} to {number(c.mean[last])} in round {last}"
        for c, first, last in ((c, min(c.mean), max(c.mean)) for c in curves)
    ]
    words = f"Lines over the rounds of training. {'; '.join(lines)}. The numbers are in the table below it."
    svg = rounds_plot(Alternative(name, title, words), curves)
    return Picture(title, svg, note, _curve_table(title, curves))


def _curves(
    study: Study, results: Results, points: Iterable[tuple[str, str, int, float]]
) -> tuple[Curve, ...]:
    """(arm, training, round, value) as one curve an arm; what is not finite is left out."""
    arms: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for arm, training, round_, value in points:
        if math.isfinite(value):
            arms[arm][training][round_] = value
    numbers = styles(study, results)
    return tuple(
        Curve(
            title_of(arm, study, results),
            numbers.get(arm, len(numbers)),
            _mean_over_trainings(tuple(arms[arm].values())),
            tuple(arms[arm].values()),
        )
        for arm in sorted(arms, key=lambda arm: numbers.get(arm, len(numbers)))
    )


def _mean_over_trainings(trainings: Sequence[Mapping[int, float]]) -> dict[int, float]:
    rounds = sorted({round_ for training in trainings for round_ in training})
    known = {r: [training[r] for training in trainings if r in training] for r in rounds}
    return {r: math.fsum(values) / len(values) for r, values in known.items()}


def _curve_table(title: str, curves: Sequence[Curve]) -> PlainTable:
    """The mean at the first round, each arm's last, and at quarters of the way between."""
    rounds = sorted({round_ for curve in curves for round_ in curve.mean})
    quarters = {rounds[round(quarter * (len(rounds) - 1) / 4)] for quarter in range(5)}
    chosen = sorted(quarters | {max(curve.mean) for curve in curves})
    rows = tuple(
        (curve.title, *(number(curve.mean[r]) if r in curve.mean else NOTHING for r in chosen))
        for curve in curves
    )
    many = max(len(curve.trainings) for curve in curves)
    note = f"Mean over up to {count(many, 'training')} of a method." if many > 1 else ""
    return PlainTable(title, ("Method", *(f"round {r}" for r in chosen)), rows, note)


def _missing_table(study: Study, results: Results) -> PlainTable:
    events: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for r in results.rounds:
        for site, reason in [*r.refused.items(), *((site, "no answer in time") for site in r.silent)]:
            events[r.arm, r.training, site, reason].append(r.round)
    rows = [
        (
            printable(site),
            ranges(rounds),
            printable(reason),
            title_of(arm, study, results),
            printable(training),
        )
        for (arm, training, site, reason), rounds in events.items()
    ]
    rows.sort(key=lambda row: (row[0], row[4], row[2]))
    hidden = len(rows) - MAX_ROWS
    return PlainTable(
        "Answers that could not be used",
        ("Hospital", "Rounds", "Reason", "Method", "Training"),
        tuple(rows[:MAX_ROWS]),
        f"{count(hidden, 'more row')} of this table: see metrics.jsonl in the run's folder."
        if hidden > 0
        else "",
    )


def _cost_row(arm: Arm, rounds: Sequence[RoundSummary], study: Study, results: Results) -> tuple[str, ...]:
    title = title_of(arm.name, study, results)
    if not rounds:
        teacher = arm.trained_by
        why = f"none of its own: adapts {title_of(teacher, study, results)}" if teacher else "none"
        return (title, why, *[NOTHING] * 6)
    per_training = [len(list(run)) for _, run in itertools.groupby(sorted(r.training for r in rounds))]
    low, high = min(per_training), max(per_training)
    down, up = sum(r.bytes_down for r in rounds), sum(r.bytes_up for r in rounds)
    asked, answered = sum(r.cohort for r in rounds), sum(r.accepted for r in rounds)
    seconds = math.fsum(r.seconds for r in rounds)
    return (
        title,
        f"{len(per_training):,}",
        f"{low}" if low == high else f"{low} to {high}",
        size(down),
        size(up),
        f"{size(down / asked) if asked else NOTHING} / {size(up / answered) if answered else NOTHING}",
        duration(seconds),
        duration(seconds / len(rounds)),
    )
