"""What a report promises: it says the answer plainly, can be read by everyone, and fetches nothing."""

import html
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clinimeta.common.study import Study, read_study
from clinimeta.simulations.plots import Alternative, Curve, Series, rounds_plot, shots_plot
from clinimeta.simulations.report import render_report
from clinimeta.simulations.results import Answer, Estimate, Results, RoundSummary, Score
from clinimeta.simulations.scoreboard import score_board, site_boards
from clinimeta.simulations.training_view import MAX_ROWS

NAN = math.nan
VOID = {"meta", "link", "br", "hr", "img", "input", "col", "wbr"}

STUDY = """
name = "tiny"
title = "A tiny study"
description = "Two hospitals and a question."
primary = "maml"
seeds = [0, 1]
[data]
name = "synthetic"
[table]
target = "sick"
classes = ["0", "1"]
columns = [{ name = "age" }]
[model]
name = "linear"
[[arms]]
name = "maml"
label = "Meta-learning"
algorithm = { name = "maml" }
[[arms]]
name = "fedavg"
label = "FedAvg"
algorithm = { name = "fine_tune", steps = 0 }
training = { cohort_size = 4 }
[[arms]]
name = "tuned"
label = "FedAvg + fine-tuning"
trained_by = "fedavg"
algorithm = { name = "fine_tune", steps = 3 }
[[arms]]
name = "local"
algorithm = { name = "fine_tune", steps = 3 }
training = { rounds = 0 }
"""

EVALUATION = """
[[evaluations]]
name = "new"
title = "New hospitals"
sites = 2
shots = [1, 5]
scores = ["auroc", "calibration_error"]
references = ["pooled_logistic_regression"]
curve_every = 2
[[questions]]
evaluation = "new"
arm = "maml"
against = "tuned"
shots = 5
"""

PUBLISHED = """
[[evaluations]]
name = "own"
split = "own_test_rows"
shots = ["all"]
scores = ["accuracy"]
[[published]]
evaluation = "own"
method = "FedPaper"
source = "Somebody (2022)"
values = { north = 0.99, mean = 0.98, elsewhere = 0.5 }
"""


def study_of(*parts: str) -> Study:
    return read_study(STUDY + "".join(parts), "test")


def round_of(
    number: int = 1, arm: str = "maml", training: str = "seed0-new-maml", **changes: object
) -> RoundSummary:
    values = {
        "training": training,
        "arm": arm,
        "round": number,
        "cohort": 4,
        "accepted": 4,
        "refused": {},
        "silent": (),
        "metrics": {"query_loss": 1 / number, "query_accuracy": 1 - 0.5 / number},
        "gradient_norm": 1.0,
        "bytes_down": 4000,
        "bytes_up": 8000,
        "seconds": 2.0,
        "curve": {},
    }
    return RoundSummary(**{**values, **changes})  # type: ignore[arg-type]


def score_of(arm: str, shots: str, value: float, score: str = "auroc", **changes: object) -> Score:
    values = {
        "evaluation": "new",
        "sites": 2,
        "site": "",
        "estimate": Estimate(value, value - 0.1, value + 0.1),
    }
    return Score(arm=arm, shots=shots, score=score, **{**values, **changes})  # type: ignore[arg-type]


def answer_of(value: float, low: float, high: float, score: str = "auroc") -> Answer:
    return Answer("new", "maml", "tuned", "5", score, Estimate(value, low, high))


def results_of(**changes: object) -> Results:
    values = {
        "study": "tiny",
        "scores": tuple(
            score_of(arm, shots, 0.6 + 0.05 * i + 0.1 * k, score)
            for i, arm in enumerate(("maml", "fedavg", "tuned", "local", "pooled_logistic_regression"))
            for k, shots in enumerate(("1", "5"))
            for score in ("auroc", "calibration_error")
        ),
        "answers": (answer_of(0.04, 0.01, 0.07),),
        "rounds": tuple(
            round_of(r, arm, f"seed{s}-new-{arm}", curve={arm: 0.6, "tuned": 0.7} if r % 2 == 0 else {})
            for arm in ("maml", "fedavg")
            for s in (0, 1)
            for r in (1, 2, 3, 4)
        ),
        "arms": {"maml": "Meta-learning", "pooled_logistic_regression": "pooled logistic regression"},
        "site_rows": {"north": "50-99", "south": "20-49"},
        "unscored": {},
        "seeds": (0, 1),
        "versions": {"python": "3.11.9", "clinimeta": "0.1.0"},
        "seconds": {"Meta-learning": 16.0, "evaluation": 3.0},
        "command": "clinimeta simulate tiny",
    }
    return Results(**{**values, **changes})  # type: ignore[arg-type]


def page_of(**changes: object) -> str:
    return render_report(study_of(EVALUATION), results_of(**changes))


class Page(HTMLParser):
    """Collects a page's elements, and complains where tags do not balance."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"nothing is open at </{tag}>"
        assert self.open.pop() == tag

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.elements if tag in tags]


def text_of(page: str) -> str:
    """What a reader sees, on one line."""
    without_style = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    words = html.unescape(re.sub(r"<[^>]*>", " ", without_style)).replace("\N{NO-BREAK SPACE}", " ")
    return " ".join(words.split())


def svgs_of(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)


def assert_sound(page: str) -> None:
    """Well-formed, with unique ids, fetching nothing, every picture with its words."""
    parsed = Page(page)
    for tag, attrs in parsed.elements:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
        assert not {"src", "srcset", "data", "action", "poster", "xlink:href", "background"} & set(attrs)
        assert not any(name.startswith("on") for name in attrs)
        assert (attrs.get("href") or "#").startswith("#")
        assert "url(" not in (attrs.get("style") or "")
    style = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]
    ids = Counter(attrs["id"] for _, attrs in parsed.elements if "id" in attrs)
    assert max(ids.values()) == 1
    for _, attrs in parsed.elements:
        for name in ("aria-labelledby", "href"):
            for target in (attrs.get(name) or "").split():
                assert target.removeprefix("#") in ids
    for svg in svgs_of(page):
        root = ET.fromstring(svg)  # noqa: S314
        names = {element.get("id"): element.text for element in root}
        assert root.get("role") == "img"
        assert all(names[target] for target in (root.get("aria-labelledby") or "").split())
        assert [element.tag.rpartition("}")[2] for element in root][:2] == ["title", "desc"]


def test_a_report_fetches_nothing() -> None:
    page = page_of()
    assert_sound(page)
    assert "default-src 'none'" in page  # and the browser is told to see to it


def test_every_plot_has_a_text_alternative_with_its_numbers() -> None:
    svgs = svgs_of(page_of())
    assert len(svgs) == 1 + 2 + 2 + 1  # the answer, two scores, two measures, the unseen hospitals
    assert "Meta-learning from 0.600 at k = 1 to 0.700 at k = 5" in svgs[1]
    assert "Meta-learning from 1.000 in round 1 to 0.250 in round 4" in svgs[3]


def test_the_answer_comes_before_the_tables() -> None:
    page = page_of()
    assert page.index("Meta-learning beat FedAvg") < page.index("<table")


@pytest.mark.parametrize(
    ("difference", "badge", "sentence"),
    [
        (
            (0.04, 0.01, 0.07),
            "Yes",
            "Meta-learning beat FedAvg + fine-tuning at 5 labelled patients of each class",
        ),
        ((-0.04, -0.07, -0.01), "No: worse", "Meta-learning did not beat FedAvg + fine-tuning at 5"),
        ((0.01, -0.02, 0.03), "No difference shown", "as the interval holds zero, no difference is shown"),
        ((0.01, -0.02, 0.03), "No difference shown", "Meta-learning did not beat FedAvg + fine-tuning"),
        ((NAN, NAN, NAN), "Not answered", "could not be answered: too few hospitals"),
        ((0.1, NAN, NAN), "Not answered", "could not be answered: too few hospitals"),
    ],
)
def test_a_verdict_that_is_not_better_is_said_plainly(
    difference: tuple[float, float, float], badge: str, sentence: str
) -> None:
    text = text_of(page_of(answers=(answer_of(*difference),)))
    assert badge in text
    assert sentence in text


def test_an_answer_gives_the_difference_and_its_interval() -> None:
    text = text_of(page_of(answers=(answer_of(-0.04, -0.07, 0.01),)))
    assert "its AUROC was 0.040 lower (95 % interval −0.070 to 0.010)" in text  # noqa: RUF001


def test_an_error_that_fell_is_better() -> None:
    fell = answer_of(-0.04, -0.07, -0.01, "calibration_error")
    rose = answer_of(0.04, 0.01, 0.07, "calibration_error")
    assert "Meta-learning beat FedAvg + fine-tuning" in text_of(page_of(answers=(fell,)))
    assert "Meta-learning did not beat" in text_of(page_of(answers=(rose,)))


def test_a_question_that_got_no_answer_is_not_passed_over() -> None:
    assert "could not be answered" in text_of(page_of(answers=()))


def test_a_study_without_question_or_evaluation_says_so() -> None:
    text = text_of(render_report(study_of(), results_of(scores=(), answers=(), rounds=())))
    assert "asks no question" in text
    assert "nothing was scored" in text
    assert "no learning curve" in text
    assert "No hospital was asked to train" in text


def test_several_evaluations_are_named_beside_their_answers() -> None:
    page = render_report(study_of(EVALUATION, PUBLISHED), results_of())
    assert re.search(r'class="where">New hospitals<', page)


def test_the_best_value_is_bold_and_marked_by_a_sign() -> None:
    board = score_board(study_of(EVALUATION), results_of(), study_of(EVALUATION).evaluations[0])
    best = [[row.title for row in board.rows if (c := row.cells[i]) and c.best] for i in range(4)]
    assert best == [["pooled logistic regression"]] * 2 + [["Meta-learning"]] * 2  # an error: the lowest
    page = page_of()
    assert page.count('<td class="best"><span class="star" aria-hidden="true">★</span>') == 4
    assert page.count('<span class="hidden">best: </span>') == 4
    assert re.search(r"\.best \.value \{ font-weight: [78]00", page)


def test_values_that_print_alike_are_marked_alike() -> None:
    study = study_of(EVALUATION)

    def marked(*values: float) -> list[bool]:
        arms = ("maml", "fedavg", "tuned")
        scores = tuple(score_of(arm, "1", value) for arm, value in zip(arms, values, strict=False))
        board = score_board(study, results_of(scores=scores), study.evaluations[0])
        return [cell.best for row in board.rows if (cell := row.cells[0])]

    assert marked(0.70001, 0.70002, 0.6) == [True, True, False]
    assert marked(0.7, 0.7, 0.7) == [False, False, False]  # no contest
    assert marked(0.7) == [False]
    assert marked(NAN, 0.7, 0.6) == [False, True, False]
    assert marked(NAN, NAN, NAN) == [False, False, False]


def test_the_number_of_hospitals_stands_in_the_heading_or_where_it_differs_in_the_cell() -> None:
    same = text_of(page_of())
    assert "k = 1 2 hospitals" in same
    scores = (score_of("maml", "1", 0.7, sites=1), score_of("fedavg", "1", 0.8, sites=2))
    text = text_of(page_of(scores=scores))
    assert "k = 1 1 to 2 hospitals" in text
    assert "0.700 0.600–0.800 1 hospital" in text  # noqa: RUF001
    assert "k = 1 1 hospital" in text_of(page_of(scores=scores[:1]))
    assert "k = 1 0 hospitals" in text_of(page_of(scores=(score_of("maml", "1", NAN, sites=0),)))


def test_published_rows_are_labelled_published_and_compete_with_nobody() -> None:
    study = study_of(PUBLISHED)
    scores = tuple(
        score_of(arm, "all", value, "accuracy", evaluation="own", site=site)
        for arm, value in (("maml", 0.8), ("fedavg", 0.7))
        for site in ("", "north", "south")
    )
    page = render_report(study, results_of(scores=scores))
    assert_sound(page)
    boards = [score_board(study, results_of(scores=scores), study.evaluations[0])]
    boards += site_boards(study, results_of(scores=scores), study.evaluations[0])
    assert len(boards) == 2
    for board in boards:
        assert [row.title for row in board.rows] == ["Meta-learning", "FedAvg"]
        assert [row.title for row in board.published] == ["FedPaper"]
        assert not any(cell.best for row in board.published for cell in row.cells if cell)
    assert page.count('FedPaper <span class="label">published</span>') == 2
    assert page.count("Published by others, not run here") == 2
    text = text_of(page)
    assert "Somebody (2022); elsewhere: 0.500 0.980" in text  # what fits no column is said in words
    assert "north 50-99 rows south 20-49 rows" in text
    assert "Somebody (2022) 0.990 – not measured" in text  # noqa: RUF001


def test_a_published_method_without_figures_by_hospital_is_not_in_that_table() -> None:
    study = study_of(PUBLISHED.replace("north = 0.99, ", ""))
    scores = (score_of("maml", "all", 0.8, "accuracy", evaluation="own", site="north"),)
    assert not site_boards(study, results_of(scores=scores), study.evaluations[0])[0].published


def test_many_hospitals_are_shown_in_several_tables() -> None:
    study = study_of(PUBLISHED)
    scores = tuple(
        score_of("maml", "all", 0.8, "accuracy", evaluation="own", site=f"h{i:02d}") for i in range(17)
    )
    boards = site_boards(study, results_of(scores=scores), study.evaluations[0])
    assert [len(board.columns) for board in boards] == [8, 8, 1]
    assert boards[2].title.endswith("(hospitals 17 to 17 of 17)")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("sites = 2\nshots = [1]", "two-level bootstrap over hospitals and over draws"),
        ('split = "site_folds"\nshots = [1]', "put into 5 groups"),
        ('split = "leave_one_site_out"\nshots = ["half"]', "the hospitals themselves are a fixed list"),
        (
            'split = "own_test_rows"\nshots = ["all"]',
            "The methods adapted to all of a hospital's labelled patients.",
        ),
        ("pooled = true\nshots = [1]\nbootstrap = 500", "bootstrap over hospitals (whole ones)"),
        ("pooled = true\nshots = [1]", "The patients of all hospitals together"),
        ('draw = "rows"\nshots = [1]', "Here k is the number of labelled patients to adapt to."),
    ],
)
def test_it_says_who_was_judged_and_how_intervals_were_made(lines: str, said: str) -> None:
    study = study_of(f'[[evaluations]]\nname = "new"\n{lines}\n')
    text = text_of(render_report(study, results_of(answers=())))
    assert said in text
    assert "Intervals: 95 %, by a" in text


def test_a_plot_needs_two_support_sizes_that_are_numbers() -> None:
    one = study_of('[[evaluations]]\nname = "new"\nshots = [5, "half"]\n')
    assert "against labelled patients" not in render_report(one, results_of(answers=()))
    assert "AUROC against labelled patients" in text_of(page_of())
    assert "against labelled patients" not in page_of(scores=(score_of("maml", "1", NAN),))


def test_the_curve_at_unseen_hospitals_is_said_to_have_chosen_nothing() -> None:
    text = text_of(page_of())
    assert "AUROC at the unseen hospitals, k = 5" in text
    assert "chose nothing : no method, no setting" in text
    without = text_of(page_of(rounds=(round_of(), round_of(2))))
    assert "unseen hospitals" not in without


def test_a_learning_curve_is_the_mean_over_trainings() -> None:
    rounds = (
        round_of(1, training="a", metrics={"query_loss": 1.0}),
        round_of(1, training="b", metrics={"query_loss": 3.0}),
        round_of(2, training="b", metrics={"query_loss": 5.0}),
        round_of(2, training="a", metrics={"query_loss": NAN}),
        round_of(3, training="a", metrics={}),
    )
    text = text_of(page_of(rounds=rounds))
    assert "Method round 1 round 2 Meta-learning 2.000 5.000 Mean over up to 2 trainings" in text


def test_who_was_refused_or_silent_is_named_with_round_and_reason() -> None:
    rounds = tuple(
        round_of(r, accepted=2, refused={"north": "norm 9 over 5"}, silent=("south",)) for r in (1, 2, 4)
    )
    text = text_of(page_of(rounds=rounds))
    assert (
        "Hospitals were asked 12 times: 3 answers could not be used, and 3 times there was no answer" in text
    )
    assert "north 1–2, 4 norm 9 over 5 Meta-learning seed0-new-maml" in text  # noqa: RUF001
    assert "south 1–2, 4 no answer in time" in text  # noqa: RUF001


def test_where_nobody_was_missing_it_says_so() -> None:
    text = text_of(page_of())
    assert "There were none: hospitals were asked 64 times" in text
    assert "None was left out for having too few patients." in text


def test_a_flood_of_refusals_is_cut_and_says_where_the_rest_is() -> None:
    refused = {f"site-{i:03d}": "refused: busy" for i in range(MAX_ROWS + 3)}
    text = text_of(page_of(rounds=(round_of(refused=refused, accepted=0),)))
    assert "3 more rows of this table: see metrics.jsonl" in text
    assert f"Answers that could not be used ({MAX_ROWS} rows)" in text


def test_hospitals_that_could_not_be_scored_are_named_with_the_reason() -> None:
    text = text_of(page_of(unscored={"New hospitals, k = 5: too few rows of a class": ("north", "south")}))
    assert "New hospitals, k = 5: too few rows of a class 2 north, south" in text


def test_the_cost_of_an_arm_is_that_of_its_trainings() -> None:
    text = text_of(page_of())
    assert "Meta-learning 2 4 32.0 kB 64.0 kB 1.0 kB / 2.0 kB 16 s 2.0 s" in text
    assert "FedAvg + fine-tuning none of its own: adapts FedAvg" in text
    assert "local none –" in text  # noqa: RUF001
    assert "Other times: evaluation: 3.0 s." in text
    uneven = (round_of(1), round_of(2), round_of(1, training="b", cohort=0, accepted=0))
    again = text_of(page_of(rounds=uneven, seconds={}))
    assert "Meta-learning 2 1 to 2" in again
    assert "Other times" not in again
    endless = text_of(page_of(seconds={"evaluation": NAN, "this call": 3725.0}))
    assert "evaluation: –; this call: 1 h 02 min" in endless  # noqa: RUF001
    assert "– / –" in text_of(page_of(rounds=uneven[2:]))  # noqa: RUF001


def test_the_run_can_be_repeated_from_the_page() -> None:
    page = page_of()
    toml = re.findall(r"<code>(.*?)</code>", page, flags=re.DOTALL)[-1]
    assert read_study(html.unescape(toml), "page") == study_of(EVALUATION)
    text = text_of(page)
    for fact in ("clinimeta simulate tiny", "Random seeds: 0, 1", "clinimeta 0.1.0", "north 50-99"):
        assert fact in text


def test_each_method_is_explained_in_a_sentence() -> None:
    text = text_of(page_of())
    assert "Meta-learning Learns a starting point" in text
    assert (
        "FedAvg Baseline: one shared model for all hospitals, used as it is. Training: 50 rounds with 4"
        in text
    )
    assert (
        "fitted further to the hospital's own labelled patients. Training: adapts what FedAvg learned."
        in text
    )
    assert "local Baseline: a model made from nothing but the hospital's own labelled patients." in text
    assert "pooled logistic regression A reference" in text


def test_an_algorithm_that_came_later_is_explained_by_its_own_first_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clinimeta.simulations.study_words._PLAIN", {})
    assert "Learn initial weights from which" in text_of(page_of())


def test_the_same_results_give_the_same_bytes() -> None:
    assert page_of().encode() == page_of().encode()


def test_plotting_leaves_no_trace_and_ignores_the_readers_own_style() -> None:
    before = dict(mpl.rcParams)
    plain = page_of()
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"lines.linewidth": 9.0, "font.size": 30.0}):
        assert page_of() == plain


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "[bold]St. Mary[/bold]", "$x^2$", "_hidden", "a\x1b[2Jb"]
)
def test_markup_in_a_name_is_text(name: str) -> None:
    study = study_of(EVALUATION, PUBLISHED).model_copy(update={"title": name, "description": name})
    arms = tuple(arm.model_copy(update={"label": name}) for arm in study.arms)
    study = study.model_copy(update={"arms": arms})
    scores = (score_of("maml", "all", 0.8, "accuracy", evaluation="own", site=name),)
    page = render_report(
        study,
        results_of(
            scores=results_of().scores + scores,
            rounds=(round_of(refused={name: name}, silent=(name,)), round_of(2)),
            site_rows={name: name},
            unscored={name: (name,)},
            versions={name: name},
            command=name,
        ),
    )
    assert_sound(page)
    shown = name.replace("\x1b", "")
    text = html.unescape(page)
    assert text.count(shown) > 20
    assert "\x1b" not in page
    legend = [html.unescape(t) for svg in svgs_of(page) for t in re.findall(r"<text[^>]*>(.*?)</text>", svg)]
    assert shown in legend


def test_a_page_can_be_used_with_keyboard_and_screen_reader() -> None:
    page = page_of()
    parsed = Page(page)
    assert parsed.all("html") == [{"lang": "en"}]
    assert any("width=device-width" in (meta.get("content") or "") for meta in parsed.all("meta"))
    assert len(re.findall(r"<table[^>]*>\s*<caption", page)) == len(parsed.all("table")) > 5
    assert all(cell.get("scope") for cell in parsed.all("th"))
    regions = [attrs for attrs in parsed.all("div") if attrs.get("class", "").startswith("scroll")]  # type: ignore[union-attr]
    assert len(regions) == len(parsed.all("table"))
    assert all(r.get("tabindex") == "0" and r.get("aria-labelledby") for r in regions)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert [tag for tag, _ in parsed.elements if tag == "h1"] == ["h1"]


def test_arms_differ_by_more_than_colour() -> None:
    estimates = (Estimate(0.5, 0.4, 0.6), Estimate(0.6, 0.5, 0.7))
    looks = set()
    for style in range(14):
        series = [Series("arm", style, estimates)]
        svg = shots_plot(Alternative("p", "t", "d"), ["1", "5"], "k", series)
        marker = re.findall(r'<path id="p-m[0-9a-f]+" d="([^"]+)"', svg)[-1]
        dashes = re.findall(r"stroke-dasharray: [^;]*", svg)[:1]
        looks.add((marker, *dashes))
        assert "var(--series-" in svg
        assert "#000f0" not in svg  # a stand-in colour that was forgotten
    assert len(looks) == 14


def test_long_names_and_long_runs_stay_within_bounds() -> None:
    long = Curve("x" * 100, 0, {r: 1 / r for r in range(1, 1001)}, ({1: 1.0},))
    assert "x" * 59 + "…" in rounds_plot(Alternative("p", "t", "d"), [long])
    many = tuple({r: 1 / r for r in range(1, 1001)} for _ in range(3))
    thin = rounds_plot(Alternative("p", "t", "d"), [Curve("a", 0, {1: 1.0, 2: 0.5}, many)])
    assert len(thin) < 20_000


def test_the_template_is_part_of_the_package() -> None:
    assert (files("clinimeta.simulations") / "templates" / "report.html").is_file()


NAMES = st.one_of(
    st.sampled_from(
        ["<script>x</script>", "[bold]b[/]", "a & b", '" onload="', "$", "\x00\x1b[0m", "  ", "ü\u2028"]
    ),
    st.text(max_size=8),
)
NUMBERS = st.one_of(st.floats(), st.floats(-1, 1))
ESTIMATES = st.tuples(NUMBERS, NUMBERS, NUMBERS)
ARMS = st.sampled_from(["maml", "fedavg", "tuned", "pooled_logistic_regression", "unheard of"])
EVALUATIONS = st.sampled_from(["new", "own", "no such"])
SCORES = st.fixed_dictionaries(
    {
        "evaluation": EVALUATIONS,
        "arm": ARMS,
        "shots": st.sampled_from(["1", "5", "all"]),
        "score": st.sampled_from(["auroc", "accuracy", "calibration_error"]),
        "estimate": ESTIMATES,
        "sites": st.integers(0, 3),
        "site": st.one_of(st.just(""), NAMES),
    }
)
ANSWERS = st.fixed_dictionaries(
    {
        "evaluation": EVALUATIONS,
        "arm": ARMS,
        "against": ARMS,
        "shots": st.sampled_from(["0", "1", "half"]),
        "score": st.sampled_from(["auroc", "calibration_error"]),
        "difference": ESTIMATES,
    }
)
ROUNDS = st.fixed_dictionaries(
    {
        "training": NAMES,
        "arm": ARMS,
        "round": st.integers(1, 9),
        "cohort": st.integers(0, 9),
        "accepted": st.integers(0, 9),
        "refused": st.dictionaries(NAMES, NAMES, max_size=2),
        "silent": st.lists(NAMES, max_size=2).map(tuple),
        "metrics": st.dictionaries(st.one_of(st.just("query_loss"), NAMES), NUMBERS, max_size=2),
        "gradient_norm": NUMBERS,
        "bytes_down": st.integers(0, 10**13),
        "bytes_up": st.integers(0, 10**13),
        "seconds": NUMBERS,
        "curve": st.dictionaries(ARMS, NUMBERS, max_size=2),
    }
)
REST = st.fixed_dictionaries(
    {
        "arms": st.dictionaries(ARMS, NAMES, max_size=2),
        "site_rows": st.dictionaries(NAMES, NAMES, max_size=15),
        "unscored": st.dictionaries(NAMES, st.lists(NAMES, max_size=2).map(tuple), max_size=2),
        "seeds": st.lists(st.integers(0, 9), max_size=2).map(tuple),
        "versions": st.dictionaries(NAMES, NAMES, max_size=2),
        "seconds": st.dictionaries(NAMES, NUMBERS, max_size=2),
        "command": NAMES,
    }
)


@settings(max_examples=25)
@given(
    scores=st.lists(SCORES, max_size=6),
    answers=st.lists(ANSWERS, max_size=2),
    rounds=st.lists(ROUNDS, max_size=4),
    rest=REST,
)
def test_whatever_was_measured_the_page_is_sound(
    scores: list[dict[str, Any]],
    answers: list[dict[str, Any]],
    rounds: list[dict[str, Any]],
    rest: dict[str, Any],
) -> None:
    results = results_of(
        scores=tuple(Score(**{**s, "estimate": Estimate(*s["estimate"])}) for s in scores),
        answers=tuple(Answer(**{**a, "difference": Estimate(*a["difference"])}) for a in answers),
        rounds=tuple(RoundSummary(**r) for r in rounds),
        **rest,
    )
    page = render_report(study_of(EVALUATION, PUBLISHED), results)
    assert_sound(page)
    page.encode()  # no lone surrogates


def test_a_number_near_the_largest_float_leaves_a_gap() -> None:
    """Matplotlib's margins overflow there; the rest of the curve is still drawn."""
    words = Alternative("n", "t", "d")
    curve = {1: 0.5, 2: 1.7976930009237398e308, 3: 0.7}
    assert rounds_plot(words, [Curve("arm", 0, curve, ())]).startswith("<svg")
