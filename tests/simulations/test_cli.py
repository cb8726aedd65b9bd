"""The command line: help that teaches, JSON that parses, exit codes that mean something, mistakes named."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import tomli_w
import torch
import typer
from click import Abort, Command, Context, Group, UsageError

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.errors import (
    ClinimetaError,
    NumericalError,
    QuorumError,
    RecordError,
    StudyError,
    UserError,
)
from clinimeta.common.models import MODELS
from clinimeta.common.study import read_study
from clinimeta.server.store import RunDir
from clinimeta.simulations import session, studies
from clinimeta.simulations.cli import app, main, run
from clinimeta.simulations.datasets import DATASETS
from clinimeta.simulations.run import versions

SECRET = "4711"
SITES = ("bern", "graz", "lund", "oulu")
STUDY: dict[str, Any] = {
    "name": "small",
    "primary": "maml",
    "data": {"name": "csv_folder"},
    "table": {
        "target": "sick",
        "classes": ["no", "yes"],
        "columns": [{"name": "age", "unit": "years", "center": 50.0, "scale": 10.0}],
    },
    "model": {"name": "mlp", "hidden": [4]},
    "episodes": {"shots": [1], "query": 3, "tasks": 1},
    "training": {"rounds": 1},
    "arms": [{"name": "maml", "label": "MAML", "algorithm": {"name": "maml", "inner_steps": 1}}],
}
NEW = {"name": "new", "split": "unseen_sites", "sites": 1, "shots": [1], "repeats": 1, "bootstrap": 100}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with four hospitals' tables and a study of them; short paths, so that no line is cut."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "data").mkdir()
    for name in SITES:
        write_table(name)
    write_study()
    yield tmp_path
    structlog.reset_defaults()


def write_table(name: str, *extra: list[str], header: tuple[str, ...] = ("age", "sick")) -> None:
    rows = [[str(40 + 2 * i), ("no", "yes")[i % 2]] for i in range(10)]
    with Path(f"data/{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows, *extra])


def write_numbers() -> None:
    """The same tables with a number for a target."""
    for name in SITES:
        text = Path(f"data/{name}.csv").read_text()
        Path(f"data/{name}.csv").write_text(text.replace("no", "1.5").replace("yes", "2.5"))


def write_study(**changes: Any) -> None:
    Path("mine.toml").write_text(tomli_w.dumps({**STUDY, **changes}))


class Said:
    """What a command printed, and its exit code."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.words = " ".join(err.split())


Typed = Callable[..., Said]


@pytest.fixture
def clinimeta(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Type a command in this process."""

    def typed(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["clinimeta", *arguments])
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        printed = capsys.readouterr()
        return Said(ended.value.code, printed.out, printed.err)

    return typed


SIMULATE = ("simulate", "mine.toml", "--data", "data", "--no-encode")


# Help


def commands() -> dict[str, Command]:
    """Every command by what one types, groups included."""
    found: dict[str, Command] = {}

    def walk(command: Command, words: tuple[str, ...]) -> None:
        if words:
            found[" ".join(words)] = command
        if isinstance(command, Group):
            for name, inner in command.commands.items():
                walk(inner, (*words, name))

    walk(typer.main.get_command(app), ())
    return found


OPERATOR = (
    *("init", "up", "down", "status", "doctor", "invite", "approve", "revoke", "rotate", "list"),
    *("certificate", "roster", "receipts", "events", "invitations"),
)
HOSPITAL = (
    *("init", "enrol", "rotate", "check", "dry-run", "up", "down", "status", "budget", "approve"),
    *("adapt", "report", "schema", "console"),
)


def test_the_commands_are_those_that_are_promised() -> None:
    assert set(commands()) == {
        "adapt",
        "simulate",
        "studies",
        "studies show",
        "algorithms",
        "models",
        "datasets",
        "version",
        "bench",
        "bench adaptation",
        "bench privacy-utility",
        "bench rounds",
        "bench secagg",
        "privacy",
        "privacy plan",
        *("run", "stop", "resume", "list", "show", "export", "console", "console link"),
        *("coordinator", "site", "site ledger", "consortium", "consortium init", "consortium sign"),
        *(f"coordinator {name}" for name in OPERATOR),
        *(f"site {name}" for name in HOSPITAL),
        *(f"site ledger {name}" for name in ("show", "verify", "certificate")),
    }


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_with_an_example(name: str, clinimeta: Typed) -> None:
    said = clinimeta(*name.split(), "--help")
    assert (said.code, said.err) == (0, "")
    assert "Example" in said.out
    assert f"clinimeta {name}" in said.out.split("Example", 1)[1]


@pytest.mark.parametrize("name", commands())
def test_every_option_and_argument_is_described(name: str, clinimeta: Typed) -> None:
    said = clinimeta(*name.split(), "--help").out
    assert "\\[" not in said
    for parameter in commands()[name].params:
        record = parameter.get_help_record(Context(commands()[name]))
        described = record is not None and record[1].partition("[")[0].strip()
        assert described or (
            parameter.human_readable_name.upper() in said.split("Arguments")[0].split("\n", 2)[2]
        )


def test_help_names_the_exit_codes(clinimeta: Typed) -> None:
    said = clinimeta("--help")
    assert said.code == 0
    for meaning in (
        "0 done",
        "1 a fault of ours",
        "2 something you can mend",
        "3 too few",
        "4 a training",
        "130",
    ):
        assert meaning in " ".join(said.out.replace("│", " ").split())


def test_without_a_command_there_is_help(clinimeta: Typed) -> None:
    said = clinimeta()
    assert said.code == 2
    assert "simulate" in said.out + said.err


# Lists


@pytest.mark.parametrize(
    ("command", "registry"), [("algorithms", ALGORITHMS), ("models", MODELS), ("datasets", DATASETS)]
)
def test_what_can_be_chosen_is_listed_with_its_options(command: str, registry: Any, clinimeta: Typed) -> None:
    listed = json.loads(clinimeta(command, "--json").out)
    assert [entry["name"] for entry in listed] == registry.names()
    for entry in listed:
        assert entry["summary"] == registry.summary(entry["name"])
        assert entry["options"] == json.loads(json.dumps(registry.options(entry["name"])))
    said = clinimeta(command)
    assert said.code == 0
    for name in registry.names():
        assert f"{name}: {registry.summary(name)}" in said.out
        for option, value in registry.options(name).items():
            assert f"    {option} = {json.dumps(value)}" in said.out


def test_the_studies_are_listed_with_their_titles(clinimeta: Typed) -> None:
    listed = json.loads(clinimeta("studies", "--json").out)
    assert [entry["name"] for entry in listed] == studies.names()
    assert all(entry["summary"] == studies.find(entry["name"]).title for entry in listed)
    said = clinimeta("studies")
    assert (said.code, said.err) == (0, "")
    assert all(f"{entry['name']} " in said.out and entry["summary"] in said.out for entry in listed)


@pytest.mark.parametrize("name", studies.names())
def test_a_study_is_shown_as_a_file_to_start_from(name: str, clinimeta: Typed) -> None:
    said = clinimeta("studies", "show", name)
    assert (said.code, said.err) == (0, "")
    assert said.out == studies.text_of(name)
    Path("copy.toml").write_text(said.out)
    assert studies.find("copy.toml") == studies.find(name)


def test_the_versions_are_those_of_a_runs_manifest(clinimeta: Typed) -> None:
    listed = json.loads(clinimeta("version", "--json").out)
    assert {entry["package"]: entry["version"] for entry in listed} == versions()
    assert versions()["torch"] in clinimeta("version").out


# Simulating


def test_a_study_file_is_run_into_a_folder_of_its_name(clinimeta: Typed) -> None:
    said = clinimeta(*SIMULATE)
    assert (said.code, said.out) == (0, "")
    assert "report: runs/small/report.html" in said.err
    assert RunDir.open(Path("runs/small")).manifest()["status"] == "finished"
    assert RunDir.open(Path("runs/small")).manifest()["command"] == f"clinimeta {' '.join(SIMULATE)}"


def test_json_on_stdout_is_the_results(clinimeta: Typed) -> None:
    write_study(evaluations=[NEW])
    said = clinimeta("simulate", "--study", "mine.toml", "--data", "data", "--out", "out", "--json")
    assert said.code == 0
    assert json.loads(said.out) == json.loads(Path("out/results.json").read_text())
    assert "NaN" not in said.out


def test_a_run_is_resumed(clinimeta: Typed) -> None:
    clinimeta(*SIMULATE)
    before = Path("runs/small/model.safetensors").read_bytes()
    assert clinimeta("simulate", "--resume", "runs/small", "--data", "data").code == 0
    assert Path("runs/small/model.safetensors").read_bytes() == before
    assert [path.name for path in Path("runs").iterdir()] == ["small"]


def test_rounds_and_seeds_are_taken(clinimeta: Typed) -> None:
    assert clinimeta(*SIMULATE, "--rounds", "0", "--seeds", "3, 7", "--out", "out").code == 0
    chosen = read_study(Path("out/study.toml").read_text(), "study.toml")
    assert chosen.seeds == (3, 7)
    assert chosen.arms[0].training.rounds == 0


def test_the_data_folder_may_come_from_the_environment(
    clinimeta: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLINIMETA_DATA", "data")
    assert clinimeta("simulate", "mine.toml").code == 0


# A person's mistakes: what, where, found, expected, what to do; exit code 2; no traceback; nothing written


def written() -> set[str]:
    """What is there besides what the test itself put there."""
    return (
        {str(p) for p in Path().rglob("*") if p.is_file()} - {"mine.toml"} - {f"data/{n}.csv" for n in SITES}
    )


def mistake(said: Said, *parts: str) -> str:
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert SECRET not in said.err
    names = set(re.findall(r"^  (where|found|expected|what to do)  ", said.err, re.MULTILINE))
    assert set(parts) <= names
    assert names & {"expected", "what to do"}
    assert written() == set()
    return said.words


FULL = ("where", "found", "expected")


def test_an_unknown_study_is_named_with_the_nearest(clinimeta: Typed) -> None:
    said = mistake(clinimeta("simulate", "defualt"), "expected")
    assert "there is no study 'defualt'" in said
    assert "did you mean 'default'?" in said
    assert "no study 'nosuch'" in mistake(clinimeta("studies", "show", "nosuch"), "expected")


def test_a_study_file_that_is_not_there_is_named(clinimeta: Typed) -> None:
    said = mistake(clinimeta("simulate", "nosuch.toml"), *FULL)
    assert "nosuch.toml" in said
    assert "default" in said


def test_a_study_file_that_is_no_text_is_named(clinimeta: Typed) -> None:
    Path("mine.toml").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in mistake(clinimeta("simulate", "mine.toml"), *FULL)


def test_a_study_that_is_not_toml_is_named_by_its_line(clinimeta: Typed) -> None:
    Path("mine.toml").write_text('name = "x"\nprimary = maml\n')
    assert "line 2" in mistake(clinimeta("simulate", "mine.toml"), "where", "found")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arm": []}, "unknown key 'arm' where mine.toml expected did you mean 'arms'?"),
        ({"training": {"round": 3}}, "unknown key 'training.round'"),
        ({"primary": "mamel"}, "there is no 'mamel'; did you mean 'maml'?"),
        ({"training": {"rounds": -3}}, "the key 'training.rounds' has a value that does not fit"),
        ({"model": {"name": "mpl"}}, "there is no model 'mpl'"),
        ({"model": {"name": "mlp", "hiden": [4]}}, "did you mean 'hidden'?"),
        ({"data": {"name": "csv_foldr"}}, "there is no data set 'csv_foldr'"),
        ({"seeds": [0, 0]}, "seeds"),
    ],
    ids=str,
)
def test_a_wrong_key_of_a_study_is_named_with_the_nearest(
    changes: dict[str, Any], expected: str, clinimeta: Typed
) -> None:
    write_study(**changes)
    assert expected in mistake(clinimeta(*SIMULATE), "where")


def test_a_missing_key_of_a_study_is_named(clinimeta: Typed) -> None:
    Path("mine.toml").write_text(tomli_w.dumps({k: v for k, v in STUDY.items() if k != "primary"}))
    assert "the key 'primary' is missing" in mistake(clinimeta(*SIMULATE), "where")


NUMBERS = {"table": {**STUDY["table"], "classes": []}, "application": "regression"}
ROWS = {"draw": "rows", "shots": [1]}


@pytest.mark.parametrize(
    "changes",
    [
        {**NUMBERS},
        {**NUMBERS, "episodes": ROWS, "evaluations": [{**NEW, "draw": "rows"}]},
        {**NUMBERS, "episodes": ROWS, "application": "diagnosis"},
        {"application": "regression"},
        {"evaluations": [NEW], "table": {**STUDY["table"], "classes": ["no", "yes", "maybe"]}},
        {"evaluations": [{**NEW, "shots": [1, 1]}]},
        {"evaluations": [{**NEW, "sites": 0}]},
        {"arms": [*STUDY["arms"], {"name": "p", "trained_by": "maml", "algorithm": {"name": "protonet"}}]},
    ],
    ids=[
        "numbers drawn by class",
        "numbers scored as classes",
        "numbers diagnosed",
        "classes regressed",
        "two ways judged on three classes",
        "a size twice",
        "nobody held out",
        "another's weights of other shapes",
    ],
)
def test_a_study_that_cannot_work_is_refused_before_it_starts(
    changes: dict[str, Any], clinimeta: Typed
) -> None:
    if changes.get("table", STUDY["table"])["classes"] == []:
        write_numbers()
    write_study(**changes)
    mistake(clinimeta(*SIMULATE))


def test_a_study_of_numbers_is_trained(clinimeta: Typed) -> None:
    write_numbers()
    write_study(**NUMBERS, episodes=ROWS)
    assert clinimeta(*SIMULATE).code == 0


def test_a_study_named_twice_is_a_question(clinimeta: Typed) -> None:
    said = mistake(clinimeta("simulate", "mine.toml", "--study", "default", "--data", "data"))
    assert "--study" in said


def test_a_missing_column_is_named_with_its_hospital(clinimeta: Typed) -> None:
    write_table("lund", header=("years", "sick"))
    said = mistake(clinimeta(*SIMULATE), *FULL)
    assert "the column 'age' is missing where data/lund.csv" in said


def test_a_cell_that_is_no_number_is_named_by_hospital_line_and_column(clinimeta: Typed) -> None:
    write_table("lund", [f"x{SECRET}", "no"])
    said = mistake(clinimeta(*SIMULATE), *FULL)
    assert "data/lund.csv, line 12, column 'age'" in said
    assert "text of 5 characters" in said


def test_an_unknown_class_is_named(clinimeta: Typed) -> None:
    write_table("lund", ["60", SECRET])
    assert "one of no, yes" in mistake(clinimeta(*SIMULATE), *FULL)


def test_an_empty_file_is_called_that(clinimeta: Typed) -> None:
    Path("data/lund.csv").write_text("")
    assert "data/lund.csv found an empty file" in mistake(clinimeta(*SIMULATE), *FULL)


def test_a_data_folder_that_is_not_there_is_named(clinimeta: Typed) -> None:
    said = mistake(clinimeta("simulate", "mine.toml", "--data", "nowhere"), *FULL)
    assert "nowhere" in said
    assert "--data" in said


def test_too_few_hospitals_are_counted(clinimeta: Typed) -> None:
    write_study(evaluations=[{**NEW, "sites": 4}])
    assert "4 hospitals" in mistake(clinimeta(*SIMULATE), "found", "expected")


@pytest.mark.parametrize("text", ["a", "1.5", "-1", "0,,1", ",", "0;1", "0,0"])
def test_seeds_that_are_no_different_whole_numbers_are_refused(text: str, clinimeta: Typed) -> None:
    said = mistake(clinimeta(*SIMULATE, f"--seeds={text}"), "where", "found")
    assert "where --seeds" in said
    assert "--seeds 0,1" in said


def test_a_run_directory_that_is_not_empty_is_left_alone(clinimeta: Typed) -> None:
    Path("data/notes.txt").write_text("mine")
    said = clinimeta(*SIMULATE, "--out", "data")
    assert written() == {"data/notes.txt"}
    Path("data/notes.txt").unlink()
    assert "the run directory is not empty where data" in mistake(said, "where", "expected")


def test_a_run_directory_that_cannot_be_made_is_named(clinimeta: Typed) -> None:
    said = mistake(clinimeta(*SIMULATE, "--out", "mine.toml/out"), "where", "found")
    assert "mine.toml/out" in said


@pytest.mark.parametrize(
    "more", [["mine.toml"], ["--study", "mine.toml"], ["--rounds", "1"], ["--seeds", "1"]]
)
def test_a_resumed_run_takes_nothing_that_would_change_it(more: list[str], clinimeta: Typed) -> None:
    said = mistake(clinimeta("simulate", "--resume", "runs/small", "--data", "data", *more), "where", "found")
    assert "goes on as it was" in said


@pytest.mark.parametrize("folder", ["nowhere", "data"])
def test_a_folder_without_a_run_is_not_resumed(folder: str, clinimeta: Typed) -> None:
    assert "not a run directory" in mistake(clinimeta("simulate", "--resume", folder), *FULL)


def test_an_engine_that_is_not_installed_says_how_to_get_it(
    clinimeta: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'clinimeta[ray]'" in mistake(clinimeta(*SIMULATE, "--engine", "ray"), "expected")


def test_a_gpu_that_is_not_there_is_named(clinimeta: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = clinimeta(*SIMULATE, "--device", "cuda")
    assert "no GPU that torch can use" in mistake(said, "where", "found", "expected")


def test_rays_workers_have_no_gpu(clinimeta: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="without Ray its absence is named first, which has a test of its own")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "on their processors" in mistake(clinimeta(*SIMULATE, "--device", "cuda", "--engine", "ray"))


def test_faults_are_refused_where_nothing_would_inject_them(clinimeta: Typed) -> None:
    write_study(faults={"error": 0.5})
    assert "loopback engine only" in mistake(clinimeta(*SIMULATE, "--engine", "batched"))


def test_rays_workers_have_no_keys(clinimeta: Typed) -> None:
    said = clinimeta("simulate", "--engine", "ray", "--secure-aggregation")
    assert "no keys to protect answers" in mistake(said)


@pytest.mark.parametrize("protection", [["--secure-aggregation"], ["--delta", "1e-5"]])
def test_a_resumed_run_keeps_its_protection(protection: list[str], clinimeta: Typed) -> None:
    said = clinimeta("simulate", "--resume", "runs/x", *protection)
    assert "goes on as it was" in mistake(said)


@pytest.mark.parametrize(
    ("protection", "why"),
    [
        (["--epsilon", "nan"], "'epsilon' has a value that does not fit"),
        (["--epsilon", "inf"], "'epsilon' has a value that does not fit"),
        (["--clip", "nan"], "'clip' has a value that does not fit"),
        (["--clip", "inf"], "'clip' has a value that does not fit"),
        (["--epsilon", "8", "--delta", "0"], "'delta' has a value that does not fit"),
        (["--epsilon", "8", "--delta", "2"], "'delta' has a value that does not fit"),
        (["--delta", "1e-5"], "a delta without an epsilon promises nothing"),
        (["--secure-aggregation", "--delta", "1e-5"], "a delta without an epsilon promises nothing"),
    ],
    ids=str,
)
def test_a_protection_that_cannot_be_is_refused(protection: list[str], why: str, clinimeta: Typed) -> None:
    assert why in mistake(clinimeta(*SIMULATE, *protection))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["--nosuch"], "No such option '--nosuch'"),
        (["simulate", "--nosuch"], "No such option '--nosuch'"),
        (["simulate", "--engine", "cloud"], "'cloud' is not one of 'loopback', 'batched', 'ray'"),
        (["simulate", "--rounds", "-1"], "-1 is not in the range x>=0"),
        (["simulate", "--rounds", "many"], "'many' is not a valid"),
        (["simulate", "mine.toml", "more"], "unexpected extra argument (more)"),
        (["studies", "show"], "Missing argument 'NAME'"),
        (["studies", "list"], "No such command 'list'"),
    ],
    ids=str,
)
def test_a_command_that_cannot_be_understood_says_why(
    arguments: list[str], why: str, clinimeta: Typed
) -> None:
    said = clinimeta(*arguments)
    assert (said.code, said.out) == (2, "")
    assert why in said.words
    assert "Traceback" not in said.err
    assert written() == set()


# Exit codes

ENDS: dict[str, tuple[BaseException, int, str]] = {
    "user": (UserError("no such file", where="x.csv", remedy="check the path"), 2, "check the path"),
    "study": (StudyError("unknown key 'x'"), 2, "unknown key 'x'"),
    "quorum": (QuorumError(3, 1, 2, {"ulm": "silent"}), 3, "smaller quorum"),
    "numbers": (NumericalError("round 2: not finite"), 4, "smaller step sizes"),
    "record": (RecordError("unknown kind of record"), 1, "unknown kind of record"),
    "any other": (ClinimetaError("odd"), 1, "odd"),
    "full disk": (OSError(28, "No space left on device", "runs/x"), 2, "where runs/x found No space left"),
    "no more is known": (OSError(), 2, "found OSError"),
    "usage": (UsageError("what?"), 2, "what?"),
    "abort": (Abort(), 130, "interrupted"),
    "interrupt": (KeyboardInterrupt(), 130, "interrupted"),
}


@pytest.mark.parametrize(("error", "code", "words"), ENDS.values(), ids=list(ENDS))
def test_every_way_to_end_has_its_exit_code(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    assert run(command) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in " ".join(printed.err.split())


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (7, 7), ("text", 0)])
def test_a_command_that_ends_well_is_0_or_what_it_says(returned: object, code: int) -> None:
    assert run(lambda: returned) == code


def test_a_fault_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_a_quorum_that_is_not_reached_ends_with_3_and_names_who_was_silent(clinimeta: Typed) -> None:
    write_study(faults={"error": 0.9}, training={"rounds": 3, "attempts": 1, "quorum": 1.0})
    said = clinimeta(*SIMULATE)
    assert said.code == 3
    assert any(name in said.err for name in SITES)
    assert "what to do" in said.err


def test_the_remedy_fits_the_reason_why_hospitals_gave_no_answer(clinimeta: Typed) -> None:
    wild = {"name": "maml", "inner_steps": 9, "inner_rate": 3e38}
    write_study(arms=[{"name": "maml", "algorithm": wild}])
    said = clinimeta(*SIMULATE)
    assert said.code == 3
    assert "not_finite" in said.words
    assert "inner_rate" in said.words


def test_hospitals_that_are_too_small_are_told_what_would_do(clinimeta: Typed) -> None:
    for name in SITES:
        Path(f"data/{name}.csv").write_text("age,sick\n40,no\n60,no\n")
    said = clinimeta(*SIMULATE)
    assert said.code == 3
    assert "too_few_rows" in said.words
    assert "draw" in said.words


def test_a_training_that_leaves_the_finite_numbers_ends_with_4(clinimeta: Typed) -> None:
    write_study(training={"rounds": 3, "outer": {"name": "sgd", "rate": 1e300}})
    said = clinimeta(*SIMULATE)
    assert said.code == 4
    assert "smaller step sizes" in said.words


def test_an_interrupted_run_says_how_to_go_on(clinimeta: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session.Run, "execute", interrupted)
    said = clinimeta(*SIMULATE)
    assert said.code == 130
    assert "clinimeta simulate --resume runs/small --data data" in said.words


# The real program


def program(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("clinimeta")), *arguments]


def real(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed entry point, in a process of its own."""
    return subprocess.run(
        program(*arguments),
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
        timeout=100,
        check=False,
    )


def test_the_installed_program_explains_a_mistake() -> None:
    done = real("simulate", "defualt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no study 'defualt'")
    assert "Traceback" not in done.stderr


def test_the_installed_program_is_stopped_by_ctrl_c_and_says_how_to_go_on() -> None:
    write_study(training={"rounds": 100_000})
    process = subprocess.Popen(
        program(*SIMULATE),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
        # A shell that runs the tests in the background has children ignore Ctrl-C; a terminal has not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "rounds ..." in line:
            break
    # In the first round torch still imports parts of itself, which may swallow an interrupt.
    metrics = Path("runs/small/metrics.jsonl")
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") > 1):
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert "clinimeta simulate --resume runs/small" in err
    assert not list(Path().rglob("*.part"))
