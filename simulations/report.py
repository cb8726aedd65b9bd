"""The report of a run: one HTML page that a clinician can read and that fetches nothing.

Every fact is chosen and worded here and in `wording`, `study_words`, `scoreboard` and
`training_view`; the template only lays it out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from clinimeta.common.study import Evaluation, Study
from clinimeta.simulations.plots import Alternative, Series, shots_plot
from clinimeta.simulations.protection_view import protection_table
from clinimeta.simulations.results import Answer, Estimate, Results
from clinimeta.simulations.scoreboard import Board, Cell, score_board, site_boards
from clinimeta.simulations.study_words import (
    glossary,
    how_intervals_were_made,
    how_it_was_judged,
    methods,
    who_was_judged,
)
from clinimeta.simulations.training_view import (
    Picture,
    PlainTable,
    cost_table,
    learning_pictures,
    missing_answers,
)
from clinimeta.simulations.wording import (
    all_answers,
    answer_sentence,
    count,
    evaluation_title,
    heading,
    interval,
    lower_is_better,
    number,
    printable,
    score_name,
    verdict,
)

FOLDED_FROM = 12
"""Tables with more rows than this, or more tables than this, start folded away."""

_BADGES = {
    "better": ("\N{CHECK MARK}", "Yes"),
    "worse": ("\N{MULTIPLICATION X}", "No: worse"),
    "no difference shown": ("\N{ALMOST EQUAL TO}", "No difference shown"),
    "not answered": ("?", "Not answered"),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """Where an interval stands in a strip from `-limit` to `limit`, as shares of its width."""

    low: float
    value: float
    high: float
    limit: str


@dataclass(frozen=True, slots=True)
class Card:
    """One answer; `kind` is its verdict."""

    kind: str
    mark: str
    badge: str
    where: str
    sentence: str
    bar: Bar | None


@dataclass(frozen=True, slots=True)
class Section:
    """One evaluation: what was done, the board over all hospitals, plots, and boards by hospital."""

    anchor: str
    title: str
    paragraphs: tuple[str, ...]
    board: Board
    pictures: tuple[Picture, ...]
    site_boards: tuple[Board, ...]
    folded: bool


def render_report(study: Study, results: Results) -> str:
    """The page as text; the same study and results give the same text, byte for byte."""
    environment = Environment(
        loader=PackageLoader("clinimeta.simulations", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval, "heading": heading}
    sentence, missing = missing_answers(study, results)
    page = environment.get_template("report.html").render(
        title=printable(study.title or study.name),
        description=printable(study.description),
        facts=_facts(study, results),
        cards=_cards(study, results),
        words=glossary(study, results),
        methods=methods(study, results),
        sections=[_section(i, e, study, results) for i, e in enumerate(study.evaluations, 1)],
        learning=learning_pictures(study, results),
        unseen_curve=any(summary.curve for summary in results.rounds),
        missing_sentence=sentence,
        missing=missing,
        unscored=_unscored(results),
        cost=cost_table(study, results),
        protection=protection_table(study),
        sites=_site_table(results),
        folded_from=FOLDED_FROM,
        command=results.command,
        seeds=", ".join(map(str, results.seeds)),
        versions=PlainTable("Versions", ("Software", "Version"), tuple(results.versions.items())),
        engines=PlainTable("Computation", ("Arm", "Meta-gradients"), tuple(results.engines.items())),
        toml=study.to_toml(),
    )
    kept = "".join(c for c in page if c.isprintable() or c in "\n\t\N{NO-BREAK SPACE}")
    return kept.encode("utf-8", "replace").decode()


def _facts(study: Study, results: Results) -> tuple[tuple[str, str], ...]:
    """The study at a glance: (what, value)."""
    return (
        ("Data", printable(study.data.name)),
        ("Hospitals", f"{len(results.site_rows):,}"),
        ("Methods", f"{len(study.arms):,}"),
        ("Repeated with", count(len(results.seeds), "random seed")),
    )


def _cards(study: Study, results: Results) -> tuple[Card, ...]:
    answers = all_answers(study, results)
    reach = [abs(e) for a in answers for e in (a.difference.low, a.difference.high) if math.isfinite(e)]
    limit = 1.15 * max(reach, default=0.0) or 1.0
    return tuple(
        Card(
            verdict(answer).replace(" ", "-"),
            *_BADGES[verdict(answer)],
            evaluation_title(answer.evaluation, study) if len(study.evaluations) > 1 else "",
            answer_sentence(answer, study, results),
            _bar(answer, limit),
        )
        for answer in answers
    )


def _bar(answer: Answer, limit: float) -> Bar | None:
    difference = answer.difference
    if verdict(answer) == "not answered":
        return None
    low, value, high = (
        min(max((x / limit + 1) / 2, 0.0), 1.0) for x in (difference.low, difference.value, difference.high)
    )
    return Bar(low, value, high, number(limit))


def _section(index: int, evaluation: Evaluation, study: Study, results: Results) -> Section:
    board = score_board(study, results, evaluation)
    by_site = site_boards(study, results, evaluation)
    return Section(
        f"evaluation-{index}",
        evaluation_title(evaluation.name, study),
        (who_was_judged(evaluation), how_it_was_judged(evaluation), how_intervals_were_made(evaluation)),
        board,
        _score_pictures(f"scores-{index}", evaluation, board),
        by_site,
        folded=len(by_site) > 2,
    )


def _score_pictures(name: str, evaluation: Evaluation, board: Board) -> tuple[Picture, ...]:
    """A plot a score, where there are two or more support sizes that are numbers."""
    shots = sorted({int(k) for k in evaluation.shots if not isinstance(k, str)})
    if len(shots) < 2:
        return ()
    pictures = []
    for i, score in enumerate(evaluation.scores):
        places = [
            board.columns.index(c)
            for k in shots
            for c in board.columns
            if (c.score, c.shots) == (score, str(k))
        ]
        series = [
            Series(row.title, row.style, _estimates([row.cells[p] for p in places])) for row in board.rows
        ]
        series = [s for s in series if any(math.isfinite(e.value) for e in s.estimates)]
        if series:
            title = f"{heading(score_name(score))} against labelled patients"
            words = _described(series, shots)
            label = "k, labelled patients" + (" of each class" if evaluation.draw == "per_class" else "")
            svg = shots_plot(Alternative(f"{name}-{i}", title, words), list(map(str, shots)), label, series)
            which = "lower" if lower_is_better(score) else "higher"
            pictures.append(
                Picture(title, svg, f"Bars are 95\N{NO-BREAK SPACE}% intervals; {which} is better.")
            )
    return tuple(pictures)


def _estimates(cells: Sequence[Cell | None]) -> tuple[Estimate, ...]:
    nan = Estimate(math.nan, math.nan, math.nan)
    return tuple(cell.estimate if cell else nan for cell in cells)


def _described(series: Sequence[Series], shots: Sequence[int]) -> str:
    lines = []
    for one in series:
        known = [(k, e.value) for k, e in zip(shots, one.estimates, strict=True) if math.isfinite(e.value)]
        (first, low), (last, high) = known[0], known[-1]
        lines.append(f"{one.title} from {number(low)} at k = {first} to {number(high)} at k = {last}")
    return f"Lines with interval bars. {'; '.join(lines)}. The numbers are in the table above."


def _unscored(results: Results) -> PlainTable | None:
    rows = tuple(
        (printable(why), f"{len(sites)}", ", ".join(map(printable, sites)))
        for why, sites in results.unscored.items()
    )
    if not rows:
        return None
    return PlainTable("Hospitals that could not be scored", ("Where and why", "How many", "Hospitals"), rows)


def _site_table(results: Results) -> PlainTable:
    rows = tuple((printable(site), printable(rows)) for site, rows in results.site_rows.items())
    return PlainTable("Hospitals and the range that holds their number of rows", ("Hospital", "Rows"), rows)
