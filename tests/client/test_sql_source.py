"""A query as a source: read-only, one statement, and no value or password in any message."""

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.client.sources.base import configured, records_for
from clinimeta.common.errors import DataError, StudyError, UserError
from clinimeta.common.tasks.schema import Column, Schema

SECRET = "Zyx4711"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "cohort.sqlite") as database:
        database.execute("CREATE TABLE stay (pid INTEGER, years REAL, dead INTEGER, note TEXT, picture BLOB)")
        database.executemany(
            "INSERT INTO stay VALUES (?, ?, ?, ?, ?)",
            [(1, 50.5, 0, "a:b", None), (2, None, 1, SECRET, None), (3, 71.0, 0, "", b"\0")],
        )
    return tmp_path


def read(folder: Path, **keys: object) -> dict[str, tuple[str, ...]]:
    section = {"kind": "sql", "url": "sqlite:///cohort.sqlite", "query": "SELECT * FROM stay", **keys}
    found = configured({name: value for name, value in section.items() if value != ""}, "site.toml").read(
        folder
    )
    return {name: tuple(cells) for name, cells in found.cells.items()}


def test_rows_are_text_cells_by_the_querys_names(folder: Path) -> None:
    query = "SELECT pid AS who, years, dead, note FROM stay WHERE note <> 'x;y' OR 1 ORDER BY pid".replace(
        ";", ""
    )
    assert read(folder, query=query) == {
        "who": ("1", "2", "3"),
        "years": ("50.5", "", "71.0"),
        "dead": ("0", "1", "0"),
        "note": ("a:b", SECRET, ""),
    }


def test_the_mapping_makes_them_the_studys(folder: Path) -> None:
    section = {
        "kind": "sql",
        "url": "sqlite:///cohort.sqlite",
        "query": "SELECT years, dead FROM stay",
        "columns": {"age": "years", "died": "dead"},
    }
    schema = Schema(target="died", classes=("0", "1"), columns=(Column(name="age"),))
    found = records_for(configured(section, "site.toml"), schema, folder)
    assert {name: tuple(cells) for name, cells in found.cells.items()} == {
        "age": ("50.5", "", "71.0"),
        "died": ("0", "1", "0"),
    }


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM stay",
        "SELECT 1; DELETE FROM stay",
        "DROP TABLE stay",
        "ATTACH 'x' AS y",
        "",
        "SELECTED",
        "WITH x AS (SELECT 1) DELETE FROM stay",
    ],
)
def test_nothing_is_written(folder: Path, query: str) -> None:
    with pytest.raises((DataError, StudyError)):
        read(folder, query=query)
    assert len(read(folder, query="SELECT pid FROM stay")["pid"]) == 3


def test_a_column_of_bytes_is_named_with_its_row(folder: Path) -> None:
    with pytest.raises(DataError) as refused:
        read(folder)
    assert "row 3, column 'picture'" in refused.value.where


@given(
    st.sampled_from(
        ["nothing", "stay WHERE", "stay ORDER BY nothing", f"stay WHERE {SECRET} = 1", "stay, stay"]
    )
)
def test_no_error_shows_a_value(tmp_path_factory: pytest.TempPathFactory, rest: str) -> None:
    folder = tmp_path_factory.mktemp("db")
    with sqlite3.connect(folder / "cohort.sqlite") as database:
        database.execute("CREATE TABLE stay (note TEXT)")
        database.execute("INSERT INTO stay VALUES (?)", (SECRET,))
    with pytest.raises(DataError) as refused:
        read(folder, query=" ".join(("SELECT * FROM", rest)))
    assert SECRET not in str(refused.value)


def test_a_password_stays_in_a_file_of_the_owners(folder: Path) -> None:
    with pytest.raises(DataError, match="password") as refused:
        read(folder, url="postgresql://reader:hunter2@db/x")
    assert "hunter2" not in str(refused.value)
    (folder / "url").write_text("sqlite:///cohort.sqlite\n")
    (folder / "url").chmod(0o644)
    with pytest.raises(UserError, match="private"):
        read(folder, url="", url_file="url")
    (folder / "url").chmod(0o600)
    assert len(read(folder, url="", url_file="url", query="SELECT pid FROM stay")["pid"]) == 3
    (folder / "url").write_text("mysql+nothing://reader:hunter2@db/x")
    with pytest.raises(DataError) as missing:
        read(folder, url="", url_file="url")
    assert "hunter2" not in str(missing.value)


def test_a_database_that_is_not_there_is_not_made(folder: Path) -> None:
    with pytest.raises(DataError, match="no such database"):
        read(folder, url="sqlite:///other.sqlite")
    assert not (folder / "other.sqlite").exists()


def test_a_query_may_stand_in_a_file(folder: Path) -> None:
    (folder / "cohort.sql").write_text("SELECT pid FROM stay;\n")
    assert read(folder, query="", query_file="cohort.sql") == {"pid": ("1", "2", "3")}
    with pytest.raises(DataError, match="query cannot be read"):
        read(folder, query="", query_file="other.sql")
    with pytest.raises(DataError, match="either"):
        read(folder, query_file="cohort.sql")
