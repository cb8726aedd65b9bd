"""The check finds all that is wrong at once, names row and column, and its counts single nobody out."""

from pathlib import Path
from typing import Any

import pytest
from hospital_data import STUDY

from clinimeta.client.check import examine
from clinimeta.client.config import Home
from clinimeta.client.folder import make_home
from clinimeta.client.sources.checking import check_section
from clinimeta.common.findings import Finding, lines
from clinimeta.common.tasks.schema import Column, Schema

HEADER = "patient,age,sex,creatinine,smoker,died,lactate\n"
GOOD = [
    f"p{n},{50 + n},{n % 2},{0.8 + n / 50},{('never', 'former')[n % 2]},{('no', 'yes')[n % 3 == 0]},"
    for n in range(20)
]


def check(folder: Path, rows: list[str], schema: Schema = STUDY, **more: Any) -> list[Finding]:
    (folder / "ulm.csv").write_text(HEADER + "\n".join(rows) + "\n")
    return check_section({"kind": "csv", "path": "ulm.csv"} | more, "site.toml, [data]", schema, folder)


def about(findings: list[Finding], name: str) -> list[tuple[str, str]]:
    return [(finding.state, finding.text) for finding in findings if finding.about == name]


def test_a_table_that_fits_is_counted(tmp_path: Path) -> None:
    found = check(tmp_path, GOOD)
    assert {finding.state for finding in found} == {"good", "warning"}
    assert about(found, "rows") == [("good", f"20 rows, 7 columns: {tmp_path / 'ulm.csv'}")]
    assert about(found, "target died") == [("good", "no: 13, yes: 7")]
    assert about(found, "column age") == [("good", "missing: none")]
    assert about(found, "column lactate") == [("warning", "every cell is empty")]
    assert about(found, "patients") == [("good", "20 people in 20 rows")]


def test_all_that_is_wrong_is_found_at_once(tmp_path: Path) -> None:
    rows = list(GOOD)
    rows[3] = "p3,hunter2,2,0.8,often,perhaps,"
    rows[8] = 'p8,"6,3",1,<0.8,never,,'
    found = check(tmp_path, rows, columns={"lactate": "laktat", "ages": "age"})
    faults = {finding.about: finding for finding in found if finding.state == "fault"}
    assert faults["column age"].text == (
        "2 cells cannot be used (text of 7 characters, a number with a decimal comma): line 5, line 10"
    )
    assert "line 5" in faults["column sex"].text
    assert faults["column sex"].fix.startswith("expected: 0 or 1")
    assert "a number with a comparison sign" in faults["column creatinine"].text
    assert faults["column creatinine"].fix.startswith("expected: a number in mg/dL")
    assert "expected: one of never, former, current" in faults["column smoker"].fix
    assert "line 5, line 10" in faults["target died"].text
    mapping = [finding.text for finding in found if finding.about == "mapping"]
    assert ["'ages'" in mapping[0], "'laktat'" in mapping[1], len(mapping)] == [True, True, 2]
    assert "hunter2" not in "\n".join(lines(found))


def test_many_bad_rows_are_listed_in_part(tmp_path: Path) -> None:
    found = check(tmp_path, [row.replace(",0,", ",x,").replace(",1,", ",x,") for row in GOOD])
    (finding,) = [one for one in found if one.about == "column sex" and one.state == "fault"]
    assert finding.text.startswith("20 cells cannot be used (text of 1 characters): line 2, line 3,")
    assert finding.text.endswith("line 11 and 10 more")


@pytest.mark.parametrize(
    ("died", "text"),
    [
        ("n" * 17 + "y" * 3, "no: 5 or more, yes: <5"),
        ("n" * 15 + "y" * 5, "no: 15, yes: 5"),
        ("n" * 20, "no: 20, yes: 0"),
    ],
)
def test_a_small_class_is_hidden_and_cannot_be_worked_out(tmp_path: Path, died: str, text: str) -> None:
    rows = [
        ",".join([*row.split(",")[:5], {"n": "no", "y": "yes"}[one], ""])
        for row, one in zip(GOOD, died, strict=True)
    ]
    ((state, found),) = about(check(tmp_path, rows), "target died")
    assert found == text
    assert state == ("warning" if "y" not in died else "good")


@pytest.mark.parametrize(
    ("empty", "text"),
    [(0, "none"), (1, "<5 cells"), (4, "<5 cells"), (5, "5 cells, 25 %"), (16, "all but <5 cells")],
)
def test_missing_cells_are_counted_without_singling_out(tmp_path: Path, empty: int, text: str) -> None:
    rows = [
        ",".join([row.split(",")[0], "", *row.split(",")[2:]]) if n < empty else row
        for n, row in enumerate(GOOD)
    ]
    assert about(check(tmp_path, rows), "column age") == [("good", f"missing: {text}")]


def test_empty_cells_are_faults_where_the_study_refuses_them(tmp_path: Path) -> None:
    study = Schema(target="died", classes=("no", "yes"), columns=(Column(name="age"),))
    found = check(tmp_path, [GOOD[0], GOOD[1].replace("51", "NA"), *GOOD[2:]], study)
    assert ("fault", "1 cell cannot be used (a missing-value mark): line 3") in about(found, "column age")


def test_few_rows_are_not_counted_out(tmp_path: Path) -> None:
    found = check(tmp_path, GOOD[:3])
    assert about(found, "rows")[0][1].startswith("<5 rows")
    assert about(found, "patients") == [("good", "<5 people in <5 rows")]
    assert about(check(tmp_path, []), "rows")[0][0] == "fault"


def test_a_column_in_another_unit_is_noticed(tmp_path: Path) -> None:
    rows = [",".join([*row.split(",")[:3], "88.4", *row.split(",")[4:]]) for row in GOOD]
    (warning,) = [
        one for one in check(tmp_path, rows) if one.state == "warning" and one.about == "column creatinine"
    ]
    assert "mg/dL" in warning.fix
    assert "88" not in warning.text + warning.fix
    scaled = check(tmp_path, rows, scale={"creatinine": 0.0113})
    assert about(scaled, "column creatinine") == [("good", "missing: none")]


def test_rows_that_name_nobody_are_people_of_their_own(tmp_path: Path) -> None:
    rows = [row.replace(f"p{n},", ("a," if n < 7 else ","), 1) for n, row in enumerate(GOOD)]
    assert about(check(tmp_path, rows), "patients") == [
        ("warning", "14 people in 20 rows; 13 rows name nobody")
    ]


def test_a_numeric_target_has_no_classes(tmp_path: Path) -> None:
    study = Schema(target="age", columns=(Column(name="creatinine"),))
    assert about(check(tmp_path, GOOD, study), "target age") == [("good", "20 numbers")]


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({}, "does not say what kind"),
        ({"kind": "cvs"}, "there is no kind of data source 'cvs'"),
        ({"kind": "csv", "path": "b.csv"}, "there is no such file"),
        ({"kind": "csv", "path": "b.csv", "colums": {}}, "unknown key 'colums'"),
    ],
)
def test_a_source_that_cannot_be_read_is_the_only_finding(tmp_path: Path, section: dict, text: str) -> None:
    (finding,) = check_section(section, "site.toml, [data]", STUDY, tmp_path)
    assert (finding.about, finding.state) == ("data", "fault")
    assert text in finding.text
    assert finding.fix


def test_site_check_reads_the_rows_only_for_a_study(tmp_path: Path) -> None:
    home: Home = make_home(
        tmp_path / "site", address="127.0.0.1:9", data="ulm.csv", port=9543, health_port=9545
    )
    check(home.path, GOOD)
    names = {finding.about for finding in examine(home)}
    assert not names & {"rows", "target died"}
    assert {finding.about for finding in examine(home, STUDY)} - names >= {
        "rows",
        "target died",
        "column age",
    }
