"""What a person at the terminal sees: progress, tables of scores, answers, and errors.

Pass a console on stderr, so that stdout stays data. Nothing here parses markup: names come from files.
"""

import time
from collections.abc import Callable
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID
from rich.progress import Progress as LiveProgress
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from clinimeta.common.errors import UserError
from clinimeta.common.study import Evaluation, Study
from clinimeta.simulations.results import Results
from clinimeta.simulations.scoreboard import Board, Cell, score_board
from clinimeta.simulations.wording import (
    INTERVAL,
    MINUS,
    all_answers,
    answer_sentence,
    duration,
    evaluation_title,
    heading,
    interval,
    number,
    printable,
    score_name,
)

BEST = "*"
ERROR_WIDTH = 100
"""Columns; a longer line is hard to read, however wide the terminal."""


def score_tables(study: Study, results: Results) -> list[Table]:
    """One table an evaluation and score: arms against support sizes, published rows below.

    Five arms and four support sizes fit into 100 columns.
    """
    return [
        _score_table(study, evaluation, board, score)
        for evaluation in study.evaluations
        for board in [score_board(study, results, evaluation)]
        for score in evaluation.scores
    ]


def answer_lines(study: Study, results: Results) -> list[str]:
    """Each answer as one sentence, after the evaluation's title where there are several."""
    lines = []
    for answer in all_answers(study, results):
        where = f"{evaluation_title(answer.evaluation, study)}: " if len(study.evaluations) > 1 else ""
        lines.append(_typed(where + answer_sentence(answer, study, results)))
    return lines


def show_error(console: Console, error: UserError) -> None:
    """Print what happened, then where, what was found, what was expected and what to do, aligned."""
    width = min(console.width, ERROR_WIDTH)
    console.print(Text.assemble(("error: ", "bold red"), printable(error.what)), width=width)
    details = error.details()
    if not details:
        return
    grid = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
    for name, text in details.items():
        lines = [printable(line) for line in text.splitlines()]
        grid.add_row(Text(f"  {name}", style="dim"), Text("\n".join(lines)))
    console.print(grid, width=width)


class Progress:
    """Shows a run as it goes: a line for the stage under way, one for the whole, finished stages above.

    A terminal gets a live display. Anything else (a pipe, a CI log) gets a plain line when a stage
    begins and when it ends, and never a control code. `clock` gives seconds.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._live = _live_display(console, clock) if _is_live(console) else None
        self._task: TaskID | None = None
        self._begun = self._stage_begun = clock()
        self._title, self._label = "", ""
        self._done, self._total = 0, 0
        self._stages = 0

    def __enter__(self) -> "Progress":
        """Start the display."""
        self._begun = self._clock()
        if self._live:
            self._live.start()
            self._live.add_task("total", total=None, title="total", note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the last stage and the display, also where the run failed."""
        self._end_stage(stopped=kind is not None)
        if self._live:
            self._live.stop()
        if self._stages:
            self._say(f"{'stopped' if kind else 'finished'} after {duration(self._clock() - self._begun)}")

    def stage(self, title: str, total: int = 0, done: int = 0) -> None:
        """A training begins (or goes on, after `done` rounds); without `total`, a step of unknown length."""
        self._end_stage()
        self._title, self._label = printable(title), ""
        self._done, self._total = done, total
        self._stages += 1
        self._stage_begun = self._clock()
        if self._live:
            self._task = self._live.add_task(
                "stage", total=total or None, completed=done, title=self._title, note=""
            )
        else:
            resumed = f", going on after round {done}" if done else ""
            rounds = f": {total} rounds{resumed}" if total else ""
            self._say(f"{self._title}{rounds} ...")

    def advance(self, label: str = "") -> None:
        """A round is over; `label` says something about it, such as its query loss."""
        self._done += 1
        self._label = printable(label)
        if self._live and self._task is not None:
            self._live.update(self._task, completed=self._done, note=self._label)

    def _end_stage(self, *, stopped: bool = False) -> None:
        if not self._title:
            return
        rounds = f"round {self._done}/{self._total}" if self._total else ""
        how = "stopped" if stopped else "done"
        taken = duration(self._clock() - self._stage_begun)
        if self._live and self._task is not None:
            self._live.remove_task(self._task)
        self._say(f"{self._title}: " + ", ".join(part for part in (how, rounds, self._label, taken) if part))
        self._title, self._task = "", None

    def _say(self, line: str) -> None:
        """One line, whole and without styles, so that no control code is written."""
        self._console.print(Text(line), soft_wrap=True)


def _is_live(console: Console) -> bool:
    """A terminal that can move its cursor; a colour forced upon a pipe does not make it one."""
    return console.is_interactive and console.file.isatty()


class _Words(ProgressColumn):
    """One column of the live display: `text` of a task, never read as markup."""

    def __init__(self, text: Callable[[Task], str], column: Column, style: str = "") -> None:
        super().__init__(column)
        self._text, self._style = text, style

    def render(self, task: Task) -> Text:
        """The task's words."""
        return Text(self._text(task), style=self._style)


class _Bar(BarColumn):
    """A bar where the end is known, and nothing that moves where it is not."""

    def render(self, task: Task) -> ProgressBar | Text:  # type: ignore[override]  # a Text is as good
        """The bar, or nothing."""
        return super().render(task) if task.total else Text()


def _live_display(console: Console, clock: Callable[[], float]) -> LiveProgress:
    def rounds(task: Task) -> str:
        return f"{task.completed:.0f}/{task.total:.0f}" if task.total else ""

    def elapsed(task: Task) -> str:
        minutes, seconds = divmod(int(task.elapsed or 0), 60)
        return f"{minutes}:{seconds:02d}"

    return LiveProgress(
        _Words(lambda t: t.fields["title"], Column(ratio=2, no_wrap=True, overflow="ellipsis")),
        _Bar(bar_width=20),
        _Words(rounds, Column(justify="right", no_wrap=True)),
        _Words(lambda t: t.fields["note"], Column(ratio=1, no_wrap=True, overflow="ellipsis"), "dim"),
        _Words(elapsed, Column(justify="right", no_wrap=True)),
        console=console,
        get_time=clock,
        expand=True,
        transient=True,
        refresh_per_second=4,
    )


def _score_table(study: Study, evaluation: Evaluation, board: Board, score: str) -> Table:
    places = [i for i, column in enumerate(board.columns) if column.score == score]
    table = Table(
        title=Text(f"{heading(score_name(score))}: {evaluation_title(evaluation.name, study)}"),
        caption=Text(_typed(_caption(evaluation, board))),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1),
    )
    table.add_column(Text("method"), overflow="fold", max_width=40)
    for i in places:
        column = board.columns[i]
        table.add_column(Text(f"{column.heading}\n{column.note}"), overflow="fold")
    for row in board.rows:
        table.add_row(Text(row.title), *(_cell(row.cells[i]) for i in places))
    if board.published:
        table.add_section()
    for row in board.published:
        others = f"; {row.others}" if row.others else ""
        title = Text(f"{row.title} (published{_typed(others)})")
        table.add_row(title, *(_cell(row.cells[i]) for i in places), style="dim")
    return table


def _caption(evaluation: Evaluation, board: Board) -> str:
    parts = [f"{BEST} best", f"{INTERVAL}s"]
    if any(isinstance(k, int) for k in evaluation.shots):
        parts.append("k: labelled patients" + (" of each class" if evaluation.draw == "per_class" else ""))
    sources = dict.fromkeys(row.source for row in board.published)
    if sources:
        parts.append("published: " + " | ".join(sources))
    return "; ".join(parts)


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text(" -")
    text = Text(BEST if cell.best else " ")
    text.append(_typed(number(cell.estimate.value)), style="bold" if cell.best else "")
    if interval(cell.estimate):
        text.append(f" {_typed(interval(cell.estimate, 2, dash=True))}", style="dim")
    if cell.sites:
        text.append(f"\n {cell.sites}", style="dim")
    return text


def _typed(text: str) -> str:
    """As one types it: what is copied from a terminal should paste into a program."""
    return text.translate({ord(MINUS): "-", ord("\N{EN DASH}"): "-", ord("\N{NO-BREAK SPACE}"): " "})
