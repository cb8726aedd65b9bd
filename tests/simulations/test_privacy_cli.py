"""`clinimeta privacy plan` says what a promise costs, and why it cannot be made."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clinimeta.simulations import studies
from clinimeta.simulations.cli import main

Typed = Callable[..., tuple[object, str, str]]
PLAN = ("privacy", "plan", "default")


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Type a command in this process: exit code, stdout, stderr in one line."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["clinimeta", *arguments])
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        printed = capsys.readouterr()
        return ended.value.code, printed.out, " ".join(printed.err.split())

    return run


def test_the_default_study_is_too_small_and_told_what_would_help(typed: Typed) -> None:
    code, out, err = typed(*PLAN, "--epsilon", "4", "--delta", "1e-6")
    assert (code, err) == (0, "")
    for part in (
        "arm 'maml', 12 hospitals a round",
        "epsilon 4, delta 1e-06 for each patient",
        "30 rounds of 48 tasks",
        "useless",
        'trainable = "head"',
        "tasks a round",
        "needs tasks_a_patient = 1",
    ):
        assert part in out


def test_json_holds_the_same_numbers(typed: Typed) -> None:
    code, out, _ = typed(*PLAN, "--hospitals", "5000", "--arm", "protonet", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["arm"], found["hospitals"], found["setting"]["tasks"]) == ("protonet", 5000, 20_000)
    assert found["promise"] == {"epsilon": 8.0, "delta": 1e-6, "unit": "patient", "tasks_a_patient": 1}
    assert found["verdict"] == "useful"
    assert found["remedies"] == []
    arm = studies.find("default").arm("protonet")
    assert found["setting"]["rounds"] == arm.training.rounds


def test_more_tasks_a_patient_cost_more(typed: Typed) -> None:
    once, twice = (json.loads(typed(*PLAN, "--json", "--tasks-a-patient", m)[1]) for m in ("1", "2"))
    assert twice["noise"] == pytest.approx(2 * once["noise"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--epsilon", "0"), "--epsilon"),
        (("--epsilon", "nan"), "--epsilon"),
        (("--delta", "1"), "--delta"),
        (("--arm", "mamel"), "did you mean 'maml'"),
        (("--arm", "local"), "not trained together"),
        (("--arm", "fedavg"), "local_meta_steps"),
        (("--arm", "fedavg-finetuned"), "local_meta_steps"),
    ],
    ids=str,
)
def test_what_cannot_be_is_explained(arguments: tuple[str, ...], expected: str, typed: Typed) -> None:
    code, out, err = typed(*PLAN, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert expected in err


def test_a_study_that_asks_everyone_needs_a_number(typed: Typed, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(studies.text_of("default").replace("cohort_size = 12", "cohort_size = 0"))
    code, _, err = typed("privacy", "plan", str(file))
    assert code == 2
    assert "add --hospitals NUMBER" in err
    assert typed("privacy", "plan", str(file), "--hospitals", "3")[0] == 0


def test_a_study_that_standardises_by_its_own_rows_cannot_promise(typed: Typed) -> None:
    code, _, err = typed("privacy", "plan", "heart-disease")
    assert code == 2
    assert "one patient moves the values of all the others" in err


def test_a_study_that_is_bounded_already_is_not_told_to(typed: Typed, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = studies.text_of("default").replace("{ shots = [5] }", "{ shots = [5], tasks_a_patient = 2 }")
    file.write_text(text.replace("rounds = 30", 'rounds = 30, trainable = "head"'))
    code, out, _ = typed("privacy", "plan", str(file))
    assert code == 0
    assert "2 tasks a patient" in out
    assert "33 numbers learn" in out
    assert "needs tasks_a_patient" not in out


def test_without_a_patient_column_rows_are_promised(typed: Typed, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(studies.text_of("default").replace('patient = "patient_id"\n', ""))
    assert "each row is promised" in typed("privacy", "plan", str(file))[1]
    assert "each row is promised" not in typed(*PLAN)[1]


def test_an_unknown_study_is_named(typed: Typed) -> None:
    code, _, err = typed("privacy", "plan", "defualt")
    assert code == 2
    assert "did you mean 'default'" in err
