"""What the console promises: tables that fit, plain words, no control codes in a pipe, names as text."""

import io
import math
import re
import subprocess
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from clinimeta.common.errors import StudyError, UserError
from clinimeta.common.study import Study
from clinimeta.simulations import studies
from clinimeta.simulations.display import Progress, answer_lines, score_tables, show_error
from clinimeta.simulations.results import Answer, Estimate, Results, Score


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def results_of(study: Study, **changes: object) -> Results:
    """Every arm and reference scored at every support size."""
    values = {
        "study": study.name,
        "scores": tuple(
            Score(e.name, arm, str(k), score, Estimate(0.61 + i / 50, 0.501, 0.702), 8)
            for e in study.evaluations
            for i, arm in enumerate([*(a.name for a in study.arms), *e.references])
            for k in e.shots
            for score in e.scores
        ),
        "answers": tuple(
            Answer(q.evaluation, q.arm, q.against, str(q.shots), q.score, Estimate(-0.01, -0.03, 0.01))
            for q in study.questions
        ),
        "rounds": (),
        "arms": {},
        "site_rows": {},
        "unscored": {},
        "seeds": (0,),
        "versions": {},
        "seconds": {},
        "command": "",
    }
    return Results(**{**values, **changes})  # type: ignore[arg-type]


def shown(study: Study, results: Results, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in score_tables(study, results):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def error_text(error: UserError, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    show_error(console, error)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_default_study_fits_into_100_columns_without_a_broken_cell() -> None:
    study = studies.find("default")
    text = shown(study, results_of(study))
    assert text.count("AUROC: ") == text.count("Accuracy: ") == 1
    assert text.count("0.50-0.70") == 5 * 4 * 2  # every interval whole, on its value's line
    assert max(map(cell_len, text.splitlines())) <= 100
    for arm in study.arms:
        assert arm.title in text


def test_the_best_value_has_a_sign() -> None:
    study = studies.find("default")
    text = shown(study, results_of(study))
    assert text.count("*0.690") == 8
    assert len(re.findall(r"\*\d", text)) == 8
    assert "* best; 95 % intervals; k: labelled patients of each class" in text


def test_published_rows_are_labelled_and_their_sources_named() -> None:
    study = studies.find("heart-disease")
    text = shown(study, results_of(study))
    assert text.count("(published") == len(study.published)
    assert "FL4Health (arXiv 2309.16825)" in " ".join(text.split())
    assert text.index("Own patients only") < text.index("FedProx (published")


def test_figures_without_a_column_stand_beside_the_published_method() -> None:
    study = studies.find("heart-disease")
    row = study.published[0].model_copy(update={"method": "P", "values": {"atlantis": 0.5}})
    study = study.model_copy(update={"published": (row,)})
    assert "P (published; atlantis: 0.500)" in shown(study, results_of(study))


def test_what_was_not_measured_has_a_dash_and_no_interval() -> None:
    study = studies.find("default")
    few = (
        Score("new-hospitals", "maml", "1", "auroc", Estimate(math.nan, math.nan, math.nan), 0),
        Score("new-hospitals", "maml", "5", "auroc", Estimate(0.8, 0.7, 0.9), 8),
        Score("new-hospitals", "local", "5", "auroc", Estimate(0.7, 0.6, 0.8), 7),
    )
    text = shown(study, results_of(study, scores=few))
    maml = next(line for line in text.splitlines() if line.startswith(" MAML"))
    assert maml.split()[1:4] == ["-", "*0.800", "0.70-0.90"]
    assert "7 to 8 hospitals" in text
    assert "7 hospitals" in text


def test_answers_are_sentences_that_can_be_typed() -> None:
    study = studies.find("default")
    assert answer_lines(study, results_of(study)) == [
        "MAML did not beat FedAvg + fine-tuning at 5 labelled patients of each class: its AUROC was "
        "0.010 lower (95 % interval -0.030 to 0.010), and as the interval holds zero, no difference is shown."
    ]


def test_answers_of_several_evaluations_say_which() -> None:
    study = studies.find("heart-disease")
    lines = answer_lines(study, results_of(study))
    assert [line.partition(":")[0] for line in lines] == [
        "A hospital that never took part, from few of its patients",
        "FLamby's test rows at the four hospitals",
    ]


def test_markup_and_control_codes_in_a_name_are_text() -> None:
    study = studies.find("default")
    name = "[bold red]St. \x1b[31mMary[/nonsense]"
    arms = tuple(arm.model_copy(update={"label": name}) for arm in study.arms)
    study = study.model_copy(update={"arms": arms})
    text = shown(study, results_of(study), width=200)
    assert text.count("[bold red]St. [31mMary[/nonsense]") == 10
    text = error_text(UserError(name, where=name, remedy=name))
    assert text.count("[bold red]St. [31mMary[/nonsense]") == 3
    file = io.StringIO()
    with Progress(Console(file=file)) as progress:
        progress.stage(name, total=1)
        progress.advance(name)
    assert "\x1b" not in file.getvalue() + text
    assert file.getvalue().count("[bold red]St.") == 3


def test_an_error_says_all_its_parts_aligned() -> None:
    error = StudyError("a wrong key", where="study.toml", found="7", expected="8", remedy="write 8")
    assert [line.rstrip() for line in error_text(error).splitlines()] == [
        "error: a wrong key",
        "  where       study.toml",
        "  found       7",
        "  expected    8",
        "  what to do  write 8",
    ]
    assert error_text(UserError("only this")).strip() == "error: only this"


def test_an_error_wraps_inside_its_column_and_loses_nothing() -> None:
    path = "/hospital/" + "a-folder/" * 20 + "study.toml"
    words = " ".join(f"word{i}" for i in range(60))
    lines = error_text(UserError(words, where=path, remedy=f"first line\n{words}")).splitlines()
    assert max(map(len, lines)) <= 80
    body = [line for line in lines if line.startswith("  ")]
    assert all(line[:14].strip() in {"where", "what to do", ""} for line in body)
    assert path in "".join(line[14:].strip() for line in body)
    assert "".join(lines).count("word59") == 2
    assert max(map(len, error_text(UserError(words), width=300).splitlines())) <= 100


class Clock:
    """Gives the times in turn, then the last one for ever."""

    def __init__(self, times: tuple[float, ...]) -> None:
        self._times = list(times)

    def __call__(self) -> float:
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


@pytest.mark.parametrize("forced", [False, True])
def test_a_pipe_gets_a_plain_line_at_each_beginning_and_end(forced: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=forced, width=40)
    with Progress(console, clock=Clock((0, 0, 10, 20, 20, 30, 30, 75))) as progress:
        progress.stage("MAML with a title that is longer than the line", total=3)
        for loss in (3, 2, 1):
            progress.advance(f"query loss {loss}")
        progress.stage("FedAvg", total=3, done=2)
        progress.advance()
        progress.stage("judging")
    assert file.getvalue().splitlines() == [
        "MAML with a title that is longer than the line: 3 rounds ...",
        "MAML with a title that is longer than the line: done, round 3/3, query loss 1, 10 s",
        "FedAvg: 3 rounds, going on after round 2 ...",
        "FedAvg: done, round 3/3, 10 s",
        "judging ...",
        "judging: done, 45 s",
        "finished after 1 min 15 s",
    ]


def test_a_terminal_sees_the_round_the_loss_and_the_time() -> None:
    file = Terminal()
    console = Console(file=file, force_terminal=True, color_system=None, width=100)
    now = [0.0]
    with Progress(console, clock=lambda: now[0]) as progress:
        assert progress._live is not None
        progress.stage("MAML", total=60)
        now[0] = 83.0
        for _ in range(30):
            progress.advance("query loss 0.512")
        progress._live.refresh()
        progress.stage("judging")
        progress._live.refresh()
    text = file.getvalue()
    assert re.search(r"MAML +━+ +30/60 +query loss 0.512 +1:23", text)
    assert re.search(r"total +1:23", text)
    assert "MAML: done, round 30/60, query loss 0.512, 1 min 23 s" in text
    assert re.search(r"judging +0:00", text)


def test_a_run_that_failed_says_where_it_stopped() -> None:
    file = io.StringIO()

    def fail() -> None:
        with Progress(Console(file=file), clock=Clock((0.0,))) as progress:
            progress.stage("MAML", total=60)
            progress.advance("query loss 0.5")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert file.getvalue().splitlines()[1:] == [
        "MAML: stopped, round 1/60, query loss 0.5, 0.0 s",
        "stopped after 0.0 s",
    ]


def test_a_run_without_a_stage_says_nothing() -> None:
    file = io.StringIO()
    with Progress(Console(file=file)) as progress:
        progress.advance("nobody began")
    assert file.getvalue() == ""


def test_the_display_does_not_wait_for_plots() -> None:
    code = "import sys, clinimeta.simulations.display; print({'matplotlib', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
