"""The scores as a table: arms and references against support sizes (or hospitals), published rows below.

The page and the console lay out the same board, so the best value and who was published are decided once.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from clinimeta.common.study import Evaluation, Published, Study
from clinimeta.simulations.results import Estimate, Results, Score
from clinimeta.simulations.wording import (
    count,
    heading,
    lower_is_better,
    number,
    printable,
    score_name,
    shots_name,
    title_of,
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column: a score at a support size, over all hospitals or (with `site`) at one of them.

    `note` is what stands below the heading: how many hospitals, or the hospital's range of rows.
    """

    score: str
    shots: str
    site: str = ""
    note: str = ""

    @property
    def heading(self) -> str:
        """The hospital where there is one, else the support size."""
        return printable(self.site) or shots_name(self.shots)


@dataclass(frozen=True, slots=True)
class Cell:
    """A value; `sites` is filled in only where the rows of a column were scored at different numbers."""

    estimate: Estimate
    best: bool = False
    sites: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """An arm, a reference, or (with `source`) a method that others published.

    `style` numbers the arms and references of the study, so that each looks the same in every plot.
    `others` are published figures that no column holds, in words.
    """

    title: str
    cells: tuple[Cell | None, ...]
    style: int = 0
    source: str = ""
    others: str = ""


@dataclass(frozen=True, slots=True)
class Board:
    """One table: `published` rows stand below ours and never compete for the best value."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    published: tuple[Row, ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Neighbouring columns of one score: its name and their number."""
        runs = itertools.groupby(self.columns, lambda column: column.score)
        return [(score_name(score), len(list(run))) for score, run in runs]


def score_board(study: Study, results: Results, evaluation: Evaluation) -> Board:
    """An evaluation over all hospitals: every score at every support size."""
    columns = [Column(score, str(shots)) for score in evaluation.scores for shots in evaluation.shots]
    title = "The patients of all hospitals together" if evaluation.pooled else "Mean over hospitals"
    return _board(study, results, evaluation, columns, title)


def site_boards(
    study: Study, results: Results, evaluation: Evaluation, at_most: int = 8
) -> tuple[Board, ...]:
    """An evaluation at each hospital by itself: a board a score and support size, of `at_most` columns."""
    boards = []
    for score, shots in itertools.product(evaluation.scores, map(str, evaluation.shots)):
        wanted = (evaluation.name, score, shots)
        sites = sorted({s.site for s in results.scores if (s.evaluation, s.score, s.shots) == wanted} - {""})
        for start in range(0, len(sites), at_most):
            chosen = sites[start : start + at_most]
            title = f"{heading(score_name(score))} at each hospital, {shots_name(shots)}"
            if len(sites) > at_most:
                title += f" (hospitals {start + 1} to {start + len(chosen)} of {len(sites)})"
            columns = [Column(score, shots, site) for site in chosen]
            boards.append(_board(study, results, evaluation, columns, title))
    return tuple(boards)


def styles(study: Study, results: Results) -> dict[str, int]:
    """A number for each arm and reference: the study's arms, then references as they are mentioned."""
    references = [name for evaluation in study.evaluations for name in evaluation.references]
    names = [*(arm.name for arm in study.arms), *references, *(score.arm for score in results.scores)]
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def _board(
    study: Study, results: Results, evaluation: Evaluation, columns: Sequence[Column], title: str
) -> Board:
    found = {(s.arm, s.score, s.shots, s.site): s for s in results.scores if s.evaluation == evaluation.name}
    names = [name for name in styles(study, results) if any(key[0] == name for key in found)]
    scored = [[found.get((name, c.score, c.shots, c.site)) for name in names] for c in columns]
    marked = [_column(c, scores, results) for c, scores in zip(columns, scored, strict=True)]
    headings = tuple(column for column, _ in marked)
    numbers = styles(study, results)
    rows = tuple(
        Row(title_of(name, study, results), tuple(cells[i] for _, cells in marked), numbers[name])
        for i, name in enumerate(names)
    )
    others = [p for p in study.published if p.evaluation == evaluation.name]
    sites = sorted({site for *_, site in found} - {""})
    theirs = (_published(p, headings, evaluation, sites) for p in others)
    return Board(title, headings, rows, tuple(row for row in theirs if row is not None))


def _column(
    column: Column, scores: Sequence[Score | None], results: Results
) -> tuple[Column, list[Cell | None]]:
    """A column's heading with its note, and its cells with the best marked."""
    sites = sorted({s.sites for s in scores if s is not None and math.isfinite(s.estimate.value)})
    note = " to ".join(str(n) for n in dict.fromkeys((sites[0], sites[-1]))) if sites else "0"
    note += " hospital" if sites == [1] else " hospitals"
    if column.site:
        rows = results.site_rows.get(column.site, "")
        note = f"{printable(rows)} rows" if rows else ""
    shown = {number(s.estimate.value) for s in scores if s and math.isfinite(s.estimate.value)}
    best = _best(scores, column.score) if len(shown) > 1 else ""  # one value, or a tie of all, is no contest
    cells: list[Cell | None] = []
    for score in scores:
        if score is None:
            cells.append(None)
            continue
        mixed = len(sites) > 1 and not column.site
        counted = count(score.sites, "hospital") if mixed else ""
        cells.append(Cell(score.estimate, number(score.estimate.value) == best, counted))
    return Column(column.score, column.shots, column.site, note), cells


def _best(scores: Sequence[Score | None], name: str) -> str:
    """The best value as it is printed, so that values which look the same are marked alike."""
    values = [s.estimate.value for s in scores if s and math.isfinite(s.estimate.value)]
    return number(min(values) if lower_is_better(name) else max(values))


def _published(
    published: Published, columns: Sequence[Column], evaluation: Evaluation, sites: Sequence[str]
) -> Row | None:
    """A published row, or None where the columns are hospitals and it names none of them.

    A value's key is the column's score, support size and hospital joined by "@" ("auroc@5",
    "accuracy@all@Cleveland"); a score or support size of which the evaluation has only one may be left
    out ("accuracy", "Cleveland", or "mean" for the figure over all hospitals). What fits no column
    and is of none of our `sites` is still shown, in words.
    """
    elsewhere = [Column(c.score, c.shots, site) for c in columns if not c.site for site in sites]
    shown = {key for column in elsewhere for key in _keys(column, evaluation)}
    left = {key: value for key, value in published.values.items() if key not in shown}
    cells: list[Cell | None] = []
    for column in columns:
        key = next((key for key in _keys(column, evaluation) if key in left), None)
        value = math.nan if key is None else left.pop(key)
        cells.append(None if key is None else Cell(Estimate(value, math.nan, math.nan)))
    if columns[0].site:
        if not any(cells):
            return None
        left = {}  # said once, with the figures over all hospitals
    words = ", ".join(f"{printable(name)}: {number(value)}" for name, value in left.items())
    return Row(printable(published.method), tuple(cells), source=printable(published.source), others=words)


def _keys(column: Column, evaluation: Evaluation) -> list[str]:
    scores = [column.score, ""] if len(evaluation.scores) == 1 else [column.score]
    shots = [column.shots, ""] if len(evaluation.shots) == 1 else [column.shots]
    parts = [(score, k, column.site) for score in scores for k in shots]
    return ["@".join(part for part in p if part) or "mean" for p in parts]
