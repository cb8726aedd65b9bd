"""`clinimeta adapt` as a person at a hospital meets it: the right file, or words that help and no file."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clinimeta.client.local import adapt
from clinimeta.client.sources.csv_files import read_csv
from clinimeta.common.rng import generator
from clinimeta.common.study import Choice, Plan, read_study
from clinimeta.common.tasks.sampler import Episodes
from clinimeta.common.trained_model import TrainedModel, read_model
from clinimeta.simulations.cli import main

STUDY = """
name = "small"
primary = "maml"
data = { name = "csv_folder" }
model = { name = "mlp", hidden = [4] }
arms = [{ name = "maml", algorithm = { name = "maml" } }]

[table]
target = "sick"
classes = ["no", "yes"]
columns = [{ name = "age", unit = "years", center = 50.0, scale = 10.0 }, { name = "sex", kind = "binary" }]
"""
SECRET = "4711"
CASES = "person,age,sex,sick\np1,40,0,no\np2,45,1,no\np3,61,0,yes\np4,66,1,yes\n"
NEW = "person,age,sex\nq1,44,1\nq2,63,0\nq3,58,1\n"


def plan(**changes: Any) -> Plan:
    study = read_study(STUDY, "study.toml")
    return study.plan(study.arms[0], seed=0).model_copy(update=changes)


def write_model(folder: Path, chosen: Plan) -> None:
    folder.mkdir(exist_ok=True)
    model = TrainedModel(chosen, chosen.learner().init(generator("trained")), {5: 1.4})
    (folder / "model.safetensors").write_bytes(model.to_bytes())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a finished run, labelled patients and new ones; short paths, so that no line is cut."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    write_model(tmp_path / "run", plan())
    (tmp_path / "cases.csv").write_text(CASES)
    (tmp_path / "new.csv").write_text(NEW)
    return tmp_path


class Said:
    """What a command printed, and its exit code."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.words = " ".join(err.split())


Command = Callable[..., Said]


@pytest.fixture
def clinimeta(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["clinimeta", *arguments])
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        printed = capsys.readouterr()
        return Said(ended.value.code, printed.out, printed.err)

    return run


ADAPT = ("adapt", "run", "--support", "cases.csv", "--predict", "new.csv", "--out", "out.csv")


def with_option(name: str, value: str) -> list[str]:
    arguments = list(ADAPT)
    arguments[arguments.index(name) + 1] = value
    return arguments


def predictions(path: str = "out.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="") as lines:
        return list(csv.DictReader(lines))


# The right file


def test_every_new_patient_is_one_line_with_the_line_it_came_from(clinimeta: Command) -> None:
    said = clinimeta(*ADAPT)
    assert (said.code, said.err) == (0, "")
    expected = adapt(read_model(Path("run")), read_csv(Path("cases.csv")), read_csv(Path("new.csv")))
    rows = predictions()
    assert [row["line"] for row in rows] == ["2", "3", "4"]
    for row, (no, yes) in zip(rows, expected.probabilities.tolist(), strict=True):
        assert list(row) == ["line", "predicted", "probability_no", "probability_yes"]
        assert (row["probability_no"], row["probability_yes"]) == (f"{no:.6f}", f"{yes:.6f}")
        assert row["predicted"] == ("yes" if yes > no else "no")


def test_the_summary_says_what_was_done_and_what_it_assumes(clinimeta: Command) -> None:
    said = clinimeta(*ADAPT)
    assert said.out.startswith("3 patients predicted in ")
    assert "2 of class 'no'" in said.out
    assert "2 of class 'yes'" in said.out
    assert "-> out.csv" in said.out
    assert "50% no, 50% yes" in said.out
    assert "--prevalence" in said.out


def test_with_a_prevalence_nothing_is_assumed(clinimeta: Command) -> None:
    said = clinimeta(*ADAPT, "--prevalence", "0.1")
    assert said.code == 0
    assert "assume" not in said.out
    shifted = adapt(
        read_model(Path("run")), read_csv(Path("cases.csv")), read_csv(Path("new.csv")), prevalence=(0.1,)
    )
    found = [float(row["probability_yes"]) for row in predictions()]
    assert found == pytest.approx(shifted.probabilities[:, 1].tolist(), abs=1e-6)


def test_the_summary_is_json_where_asked_for(clinimeta: Command) -> None:
    said = clinimeta(*ADAPT, "--json", "--prevalence", "0.8,0.2")
    summary = json.loads(said.out)
    assert said.code == 0
    assert summary == {
        "predictions": "out.csv",
        "rows": 3,
        "support": {"no": 2, "yes": 2},
        "temperature": 1.4,
        "assumed_class_mix": {"no": 0.8, "yes": 0.2},
        "seconds": summary["seconds"],
        "warnings": [],
    }


def test_a_column_can_be_copied_beside_the_predictions(clinimeta: Command) -> None:
    assert clinimeta(*ADAPT, "--id", "person").code == 0
    assert [row["person"] for row in predictions()] == ["q1", "q2", "q3"]


def test_a_file_that_is_there_is_replaced_where_asked_for(clinimeta: Command) -> None:
    Path("out.csv").write_text("old")
    assert clinimeta(*ADAPT, "--force").code == 0
    assert len(predictions()) == 3


def test_a_model_file_is_as_good_as_its_run(clinimeta: Command) -> None:
    assert clinimeta("adapt", "run/model.safetensors", *ADAPT[2:]).code == 0


def test_a_warning_goes_to_stderr_and_holds_no_value(clinimeta: Command) -> None:
    Path("new.csv").write_text(f"age,sex\n{SECRET},1\n{SECRET},0\n")
    said = clinimeta(*ADAPT, "--json")
    assert said.code == 0
    assert said.words.startswith("note: new.csv: most values of 'age' are far")
    assert SECRET not in said.err
    assert json.loads(said.out)["warnings"] == [said.words.removeprefix("note: ")]


def test_a_study_of_numbers_gives_numbers(here: Path, clinimeta: Command) -> None:
    rows = Episodes(draw="rows")
    numbers = plan(
        application="regression", episodes=rows, table=plan().table.model_copy(update={"classes": ()})
    )
    write_model(here / "run", numbers)
    Path("cases.csv").write_text("age,sex,sick\n40,0,1.5\n60,1,2.5\n")
    said = clinimeta(*ADAPT)
    assert said.code == 0
    assert "2 rows" in said.out
    assert "assume" not in said.out
    assert list(predictions()[0]) == ["line", "predicted"]
    assert all(torch.isfinite(torch.tensor(float(row["predicted"]))) for row in predictions())


def test_a_number_stands_beside_its_standard_deviation_where_the_algorithm_knows_it(
    here: Path, clinimeta: Command
) -> None:
    numbers = plan(
        application="regression",
        algorithm=Choice(name="neural_process"),
        episodes=Episodes(draw="rows"),
        table=plan().table.model_copy(update={"classes": ()}),
    )
    write_model(here / "run", numbers)
    Path("cases.csv").write_text("age,sex,sick\n40,0,1.5\n60,1,2.5\n")
    assert clinimeta(*ADAPT, "--id", "person").code == 0
    expected = adapt(read_model(Path("run")), read_csv(Path("cases.csv")), read_csv(Path("new.csv")))
    assert expected.spread is not None
    assert list(predictions()[0]) == ["line", "person", "predicted", "standard_deviation"]
    found = [float(row["standard_deviation"]) for row in predictions()]
    assert found == pytest.approx(expected.spread.tolist(), abs=1e-6)
    assert [float(row["predicted"]) for row in predictions()] == pytest.approx(
        expected.probabilities[:, 0].tolist(), abs=1e-6
    )


def test_the_help_names_the_columns_of_the_output(clinimeta: Command) -> None:
    said = clinimeta("adapt", "--help").out
    assert all(name in said for name in ("line", "predicted", "probability_CLASS", "standard_deviation"))


# A person's mistakes: what, where, found, expected, what to do; exit code 2; no traceback; nothing written


def mistake(said: Said, *, parts: tuple[str, ...] = ("where", "what to do")) -> str:
    """The message of a mistake that was explained and left nothing behind."""
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert SECRET not in said.err
    names = set(re.findall(r"^  (where|found|expected|what to do)  ", said.err, re.MULTILINE))
    assert set(parts) <= names
    assert not Path("out.csv").exists()
    assert not list(Path().rglob("*.part"))
    return said.words


FULL = ("where", "found", "expected", "what to do")


@pytest.mark.parametrize("option", ["--support", "--predict"])
def test_a_missing_column_is_named_with_its_file(option: str, clinimeta: Command) -> None:
    Path("bad.csv").write_text(f"person,sex,sick\n{SECRET},1,no\n{SECRET},1,yes\n")
    said = mistake(clinimeta(*with_option(option, "bad.csv")), parts=FULL)
    assert "the column 'age' is missing" in said
    assert "bad.csv" in said


def test_a_support_set_without_the_answers_is_told_which_column_they_are(clinimeta: Command) -> None:
    said = mistake(clinimeta(*with_option("--support", "new.csv")), parts=FULL)
    assert "the column 'sick' is missing" in said


@pytest.mark.parametrize("option", ["--support", "--predict"])
@pytest.mark.parametrize(
    ("cell", "found"), [(f"x{SECRET}", "text of 5 characters"), (f'"{SECRET},5"', "decimal comma")]
)
def test_a_cell_that_is_no_number_is_named_by_line_and_column(
    option: str, cell: str, found: str, clinimeta: Command
) -> None:
    Path("bad.csv").write_text(f"age,sex,sick\n50,1,no\n{cell},1,yes\n")
    said = mistake(clinimeta(*with_option(option, "bad.csv")), parts=FULL)
    assert "bad.csv, line 3, column 'age'" in said
    assert found in said
    assert "a number in years" in said


def test_a_support_set_of_one_class_is_told_which_is_missing(clinimeta: Command) -> None:
    Path("bad.csv").write_text("age,sex,sick\n50,1,no\n60,0,no\n")
    said = mistake(clinimeta(*with_option("--support", "bad.csv")), parts=FULL)
    assert "2 of class 'no', none of 'yes'" in said


@pytest.mark.parametrize("option", ["--support", "--predict"])
@pytest.mark.parametrize(
    ("content", "found"), [("", "an empty file"), ("age,sex,sick\n", "no line after the header")]
)
def test_an_empty_table_is_called_that(option: str, content: str, found: str, clinimeta: Command) -> None:
    Path("bad.csv").write_text(content)
    said = mistake(clinimeta(*with_option(option, "bad.csv")), parts=FULL)
    assert "bad.csv" in said
    assert found in said


@pytest.mark.parametrize("option", ["--support", "--predict"])
def test_a_misspelt_file_is_recognised(option: str, clinimeta: Command) -> None:
    said = mistake(clinimeta(*with_option(option, "case.csv")), parts=FULL)
    assert "did you mean 'cases.csv'?" in said


def test_a_folder_is_not_a_table(clinimeta: Command) -> None:
    assert "a folder" in mistake(clinimeta(*with_option("--support", "run"))).lower().replace(
        "directory", "folder"
    )


def test_a_run_that_does_not_exist_is_named(clinimeta: Command) -> None:
    said = mistake(clinimeta("adapt", "runn", *ADAPT[2:]), parts=FULL)
    assert "there is no trained model here where runn" in said


def test_an_unfinished_run_is_told_how_to_finish(here: Path, clinimeta: Command) -> None:
    (here / "run" / "model.safetensors").unlink()
    (here / "run" / "study.toml").write_text(STUDY)
    said = mistake(clinimeta(*ADAPT), parts=FULL)
    assert "a run that is not finished" in said
    assert "clinimeta simulate --resume run" in said


def test_a_file_that_is_no_model_is_refused(clinimeta: Command) -> None:
    said = mistake(clinimeta("adapt", "cases.csv", *ADAPT[2:]))
    assert "not a model that clinimeta can use" in said


@pytest.mark.parametrize(
    "text", ["abc", "10%", "0,1", "0", "1", "1.5", "-0.1", "nan", "inf", "0.3,0.3,0.4", ","]
)
def test_a_prevalence_that_is_no_share_is_refused(text: str, clinimeta: Command) -> None:
    said = mistake(clinimeta(*ADAPT, f"--prevalence={text}"), parts=FULL)
    assert "where --prevalence" in said
    assert "for example --prevalence 0.1" in said


def test_an_unknown_column_to_copy_is_named_with_the_nearest(clinimeta: Command) -> None:
    said = mistake(clinimeta(*ADAPT, "--id", "persons"), parts=FULL)
    assert "the column 'persons' is missing" in said
    assert "did you mean 'person'?" in said


def test_a_file_that_is_there_is_never_replaced_unasked(clinimeta: Command) -> None:
    Path("old.csv").write_text("old")
    said = mistake(clinimeta(*with_option("--out", "old.csv")))
    assert "the output file is there already" in said
    assert "--force" in said
    assert Path("old.csv").read_text() == "old"


@pytest.mark.parametrize("precious", ["cases.csv", "new.csv"])
def test_the_patients_tables_are_never_overwritten(precious: str, clinimeta: Command) -> None:
    before = Path(precious).read_text()
    said = clinimeta(*with_option("--out", f"./{precious}"), "--force")
    assert Path(precious).read_text() == before
    assert "where" in mistake(said)


def test_an_output_folder_that_does_not_exist_is_not_made(clinimeta: Command) -> None:
    said = mistake(clinimeta(*with_option("--out", "nowhere/out.csv")))
    assert "the output's folder does not exist where nowhere" in said
    assert not Path("nowhere").exists()


def test_an_output_that_cannot_be_written_leaves_nothing_behind(clinimeta: Command) -> None:
    Path("taken").mkdir()
    said = mistake(clinimeta(*with_option("--out", "taken"), "--force"))
    assert "cannot be written where taken" in said
    assert list(Path("taken").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["adapt"], "Missing argument 'RUN_DIR'"),
        (["adapt", "run"], "Missing option '--support'"),
        ([*ADAPT, "--nosuch"], "No such option '--nosuch'"),
        ([*ADAPT, "more"], "unexpected extra argument (more)"),
        ([*ADAPT, "--prevalence"], "Option '--prevalence' requires an argument"),
    ],
)
def test_a_command_that_cannot_be_understood_says_why(
    arguments: list[str], why: str, clinimeta: Command
) -> None:
    said = clinimeta(*arguments)
    assert said.code == 2
    assert why in said.words
    assert "Traceback" not in said.err
    assert not Path("out.csv").exists()


# The real program


def real(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed entry point, in a process of its own."""
    program = Path(sys.executable).with_name("clinimeta")
    return subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
        timeout=60,
        check=False,
    )


def test_the_installed_program_adapts() -> None:
    done = real(*ADAPT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 patients predicted")
    assert len(predictions()) == 3
